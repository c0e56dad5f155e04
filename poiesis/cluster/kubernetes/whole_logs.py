"""The container `logs`, which moves the whole output of a pod's executors to the log store (docs/adr/0013-whole-logs.md). Pure.

It holds the store's credentials, so it has nothing in common with the executors but the control directory: not their user, image or
environment, and its own /etc/hosts and /etc/resolv.conf (see `name_resolution`), which come as annotations of the pod.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from poiesis.cluster.kubernetes import objects, placement
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.config import PREFIX, LogSettings
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.policy import Policy
from poiesis.domain.task import Task

CONTAINER: Final = "logs"
ANNOTATION: Final = "poiesis/logs-"
SEGMENT_BYTES: Final = 8 * 1024 * 1024  # launcher/keep.c
SLACK: Final = timedelta(seconds=7)  # after the commands' grace period, within that of the pod
COMMAND: Final = ("python", "-m", "poiesis.logstore")
_QUANTITY: Final = re.compile(r"(\d+)(Ki|Mi|Gi|k|M|G)?")
_UNITS: Final = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 10**3, "M": 10**6, "G": 10**9}

Json = dict[str, Any]


@dataclass(frozen=True)
class WholeLogs:
    """`name_files`: the content of /etc/hosts and /etc/resolv.conf, by their keys in `objects.NAME_FILES`."""

    store: LogSettings
    name_files: Mapping[str, str]

    @property
    def annotations(self) -> dict[str, str]:
        return {f"{ANNOTATION}{key}": text for key, text in self.name_files.items()}

    def launcher_options(self) -> list[str]:
        store = self.store
        sizes = ["--keep-output", str(store.max_bytes), "--keep-backlog", str(store.backlog_bytes)]
        return [*sizes, "--keep-stall", objects.seconds(store.max_stall), "--keep-reader", CONTAINER]

    def container(
        self, task: Task, executors: Sequence[int], settings: KubernetesSettings, policy: Policy, control: Json
    ) -> Json:
        """`control`: the mount of the control directory."""
        options = {
            "--control": control["mountPath"],
            "--task": task.id,
            "--attempt": str(task.attempt),
            "--executors": ",".join(map(str, executors)),
            "--grace": objects.seconds(policy.grace + SLACK),
        }
        mounts = [control]
        mounts += [
            {"name": "logs-names", "mountPath": path, "subPath": key, "readOnly": True}
            for key, path in objects.NAME_FILES.items()
        ]
        for i, path in enumerate(settings.logs_file_secrets.values()):
            mounts.append({"name": f"logs-secret-{i}", "mountPath": path, "readOnly": True})
        if settings.logs_claim is not None:
            mounts.append({"name": "logs-store", "mountPath": _directory(self.store)})
        made = {
            "name": CONTAINER,
            "image": settings.image,
            "imagePullPolicy": settings.filer_pull_policy,
            "command": list(COMMAND),
            "args": [objects.escape(word) for pair in options.items() for word in pair],
            "env": [{"name": k, "value": objects.escape(v)} for k, v in self._variables().items()],
            "envFrom": [{"secretRef": {"name": name}} for name in settings.logs_env_secrets],
            "volumeMounts": mounts,
            "resources": placement.filer_resources(settings.logs_resources),
        }
        return objects.given(made)

    def volumes(self, settings: KubernetesSettings) -> list[Json]:
        items = [
            {"path": key, "fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION}{key}']"}}
            for key in self.name_files
        ]
        made: list[Json] = [{"name": "logs-names", "downwardAPI": {"defaultMode": 0o444, "items": items}}]
        for i, name in enumerate(settings.logs_file_secrets):
            made.append({"name": f"logs-secret-{i}", "secret": {"secretName": name, "defaultMode": 0o444}})
        if settings.logs_claim is not None:
            made.append({"name": "logs-store", "persistentVolumeClaim": {"claimName": settings.logs_claim}})
        return made

    def control_size(self, settings: KubernetesSettings, executors: int) -> str:
        """The control directory's limit with the output that waits there: launchers keep to theirs, so that no pod is evicted for it."""
        match = _QUANTITY.fullmatch(settings.control_size)
        if match is None:
            raise ConfigurationError(f"invalid control_size {settings.control_size!r}: must be like 64Mi")
        waiting = 2 * executors * (self.store.backlog_bytes + 3 * SEGMENT_BYTES)
        return str(int(match[1]) * _UNITS[match[2] or ""] + waiting)

    def _variables(self) -> dict[str, str]:
        """The settings but the secrets."""
        found: dict[str, str] = {}
        for item in dataclasses.fields(self.store):
            value = getattr(self.store, item.name)
            if value == item.default or not item.repr:
                continue
            text = str(value).lower() if isinstance(value, bool) else str(value)
            found[f"{PREFIX}LOGS__{item.name.upper()}"] = (
                f"{math.ceil(value.total_seconds())}s" if isinstance(value, timedelta) else text
            )
        return found


def _directory(store: LogSettings) -> str:
    """Raises: ConfigurationError where a claim is set and the store is not a directory."""
    if store.url is None or not store.url.startswith("file:"):
        raise ConfigurationError("logs_claim requires POIESIS_LOGS__URL=file:///DIRECTORY, where the claim is mounted")
    return unquote(urlsplit(store.url).path)
