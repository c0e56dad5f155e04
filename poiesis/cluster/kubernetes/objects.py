"""The objects of a task other than its pods, as JSON: its volume, its filers' documents, and the shared launcher. Pure.

PVC        the task's volume; deleted after the pods, kept by the cluster until they are gone
Secret     owned by the PVC, so Kubernetes deletes it with the volume, even if a late link creates it after the clean-up
ConfigMap  the launcher's binaries, named by their hash, one for all tasks of the namespace
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from poiesis.cluster.kubernetes import labels
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.errors import ClusterRefused, ConfigurationError
from poiesis.domain.naming import object_name
from poiesis.domain.observed import TIF, TOF
from poiesis.domain.plan import Layout, Plan
from poiesis.domain.policy import LONGEST
from poiesis.domain.staging import tif_document, tof_document
from poiesis.domain.task import Task, TaskId

MAX_SECRET_BYTES: Final = 900 * 1024  # of a Secret's data; Kubernetes' limit is 1 MiB
MAX_DOCUMENTS_BYTES: Final = 24 * 1024 * 1024  # of all documents of a task
SETTINGS_KEY: Final = "filer.json"
NAME_FILES: Final = {"hosts": "/etc/hosts", "resolv.conf": "/etc/resolv.conf"}  # key → path in filer containers
CACHE: Final = "/poiesis/cache"  # mount point of `KubernetesSettings.cache_volume` in TIF's container

Owner = Mapping[str, Any]


def owner(kind: str, name: str, uid: str) -> dict[str, Any]:
    """An owner reference without `blockOwnerDeletion`, which would need a further permission."""
    return {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}


def seconds(duration: timedelta) -> str:
    """As the launcher reads them."""
    return f"{min(duration, LONGEST).total_seconds():.3f}".rstrip("0").rstrip(".")


def volume_name(task_id: TaskId, attempt: int) -> str:
    return object_name(task_id, attempt, labels.VOLUME)


def documents_name(task_id: TaskId, attempt: int, index: int) -> str:
    name = object_name(task_id, attempt, labels.DOCUMENTS)
    return name if index == 0 else f"{name}-{index}"


def filer_settings(text: str, settings: KubernetesSettings) -> str:
    """The filers' settings as JSON, with the cache directory if the site has a cache."""
    return json.dumps({**json.loads(text), "cache_dir": CACHE}) if settings.cache_volume.is_set else text


def volume(task: Task, plan: Plan, settings: KubernetesSettings, owned_by: Owner | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": [settings.access_mode],
        "resources": {"requests": {"storage": str(plan.volume_bytes)}},
        "volumeMode": "Filesystem",
    }
    if settings.storage_class is not None:  # "" means something
        spec["storageClassName"] = settings.storage_class
    made = _metadata(volume_name(task.id, task.attempt), task, settings, labels.VOLUME, owned_by)
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": made, "spec": spec}


def documents(task: Task, plan: Plan, shared: Mapping[str, bytes]) -> dict[str, bytes]:
    """File name → content, as filers see them below /poiesis/task. `shared`: the files that are the same for every task. A document
    too large for one Secret is split into `NAME.0`, `NAME.1`, …, to be read one after the other.

    Raises: ClusterRefused above MAX_DOCUMENTS_BYTES.
    """
    wanted: dict[str, bytes] = {}
    if TIF in plan.names:
        wanted["tif.json"] = _json(tif_document(task, plan))
    if TOF in plan.names:
        apart = plan.layout is Layout.STAGED  # in a pod without the task's commands
        wanted["tof.json"] = _json({**tof_document(task, plan), "allow_unencrypted_credentials": apart})
    wanted |= shared
    if sum(map(len, wanted.values())) > MAX_DOCUMENTS_BYTES:
        raise ClusterRefused(
            f"the task's inputs and outputs are too large for its filers: more than {MAX_DOCUMENTS_BYTES} bytes of JSON"
        )
    files: dict[str, bytes] = {}
    for name, content in wanted.items():
        pieces = [content[i : i + MAX_SECRET_BYTES] for i in range(0, len(content), MAX_SECRET_BYTES)] or [b""]
        files |= {name: content} if len(pieces) == 1 else {f"{name}.{i}": piece for i, piece in enumerate(pieces)}
    return files


def secret_contents(files: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    """Distribute files over Secrets of at most MAX_SECRET_BYTES each, deterministically."""
    bins: list[dict[str, bytes]] = [{}]
    for name, content in files.items():
        if bins[-1] and sum(map(len, bins[-1].values())) + len(content) > MAX_SECRET_BYTES:
            bins.append({})
        bins[-1][name] = content
    return bins


def secrets(
    task: Task, plan: Plan, settings: KubernetesSettings, shared: Mapping[str, bytes], owned_by: Owner | None
) -> list[dict[str, Any]]:
    made = []
    for index, content in enumerate(secret_contents(documents(task, plan, shared))):
        name = documents_name(task.id, task.attempt, index)
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": _metadata(name, task, settings, labels.DOCUMENTS, owned_by),
                "type": "Opaque",
                "immutable": True,
                "data": {key: base64.b64encode(value).decode() for key, value in content.items()},
            }
        )
    return made


def launcher_key(architecture: str) -> str:
    return f"launcher-{architecture}"


def launcher(
    binaries: Mapping[str, bytes], settings: KubernetesSettings, owned_by: Owner | None = None
) -> dict[str, Any]:
    """The ConfigMap with the launcher for every container. `binaries`: by architecture.

    Raises: ConfigurationError when they do not fit (1 MiB).
    """
    if not binaries:
        raise ConfigurationError("missing launcher: set POIESIS_KUBERNETES__LAUNCHERS")
    digest = hashlib.sha256(settings.instance.encode())
    for architecture, content in sorted(binaries.items()):
        digest.update(f"{architecture} {len(content)} ".encode() + content)
    data = {launcher_key(a): base64.b64encode(content).decode() for a, content in sorted(binaries.items())}
    if sum(map(len, binaries.values())) > MAX_SECRET_BYTES:
        raise ConfigurationError(
            "the launchers do not fit in a ConfigMap (1 MiB): set POIESIS_KUBERNETES__DELIVERY=init"
        )
    name = f"poiesis-launcher-{digest.hexdigest()[:16]}"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(name, labels.common(settings, "launcher"), {}, owned_by),
        "immutable": True,
        "binaryData": data,
    }


def metadata(
    name: str, of: Mapping[str, str], annotations: Mapping[str, str], owned_by: Owner | None
) -> dict[str, Any]:
    """`of`: the labels."""
    owners = [dict(owned_by)] if owned_by is not None else []
    return given({"name": name, "labels": of, "annotations": annotations, "ownerReferences": owners})


def escape(text: str) -> str:
    """For arguments and values of variables, in which Kubernetes expands `$(NAME)` and replaces `$$` by `$`: to arrive unchanged."""
    return text.replace("$", "$$")


def given(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that are None or empty."""
    return {key: value for key, value in document.items() if value}


def _metadata(name: str, task: Task, settings: KubernetesSettings, part: str, owned_by: Owner | None) -> dict[str, Any]:
    of = labels.of_task(settings, task.id, task.attempt, part)
    return metadata(name, of, labels.id_annotations(task.id), owned_by)


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
