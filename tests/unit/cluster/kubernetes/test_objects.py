"""Volume, documents and launcher as whole JSON, and what does not fit."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from poiesis.cluster.kubernetes import objects
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.errors import ClusterRefused, ConfigurationError
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.staging import tif_document
from poiesis.domain.task import Executor, FileType, Input, Output, Resources, TaskSpec
from tests.unit.cluster.kubernetes.conftest import TASK_ID, make_task

SITE = KubernetesSettings(namespace="tasks", instance="lab", storage_class="fast", labels={"team": "bio"})
TRUE = Executor("busybox", ("true",))
OWNER = objects.owner("PersistentVolumeClaim", "volume", "uid-1")


def of_part(part: str) -> dict[str, str]:
    return {
        "team": "bio",
        "app.kubernetes.io/name": "poiesis",
        "app.kubernetes.io/instance": "lab",
        "app.kubernetes.io/component": "task",
        "app.kubernetes.io/managed-by": "poiesis",
        "poiesis/task-id": TASK_ID,
        "poiesis/attempt": "2",
        "poiesis/part": part,
    }


def test_the_volume() -> None:
    spec = TaskSpec((TRUE,), volumes=("/data",), resources=Resources(disk_gb=1.5))
    task = make_task(spec, attempt=2)
    assert objects.volume(task, plan(spec, Policy()), SITE) == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"poiesis-{TASK_ID}-2-volume", "labels": of_part("volume")},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1500000000"}},
            "volumeMode": "Filesystem",
            "storageClassName": "fast",
        },
    }
    owned = objects.volume(task, plan(spec, Policy()), replace(SITE, storage_class=None), OWNER)
    assert owned["metadata"]["ownerReferences"] == [OWNER] and "storageClassName" not in owned["spec"]


def test_the_documents_are_owned_by_the_volume() -> None:
    spec = TaskSpec(
        (TRUE,),
        inputs=(Input(path="/data/a", content="x", type=FileType.FILE),),
        outputs=(Output(path="/data/b", url="s3://b/b", type=FileType.FILE),),
    )
    task = make_task(spec, attempt=2)
    (secret,) = objects.secrets(task, plan(spec, Policy()), SITE, {"filer.json": b'{"a": 1}'}, OWNER)
    data = {key: json.loads(base64.b64decode(value)) for key, value in secret.pop("data").items()}
    assert secret == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": f"poiesis-{TASK_ID}-2-filer",
            "labels": of_part("filer"),
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "volume", "uid": "uid-1"}
            ],
        },
        "type": "Opaque",
        "immutable": True,
    }
    assert data["tif.json"] == tif_document(task, plan(spec, Policy())) and data["filer.json"] == {"a": 1}
    assert set(data) == {"tif.json", "tof.json", "filer.json"}


@pytest.mark.parametrize("megabytes", [1, 3, 8])
def test_a_document_above_the_limit_is_split_over_several_secrets(megabytes: int) -> None:
    inputs = tuple(Input(path=f"/data/{i}", content="x" * 1024 * 1024) for i in range(megabytes))
    spec = TaskSpec((TRUE,), inputs=inputs)
    task = make_task(spec)
    the_plan = plan(spec, Policy())
    made = objects.secrets(task, the_plan, SITE, {"filer.json": b"{}"}, OWNER)
    files: dict[str, bytes] = {}
    for index, secret in enumerate(made):
        content = {key: base64.b64decode(value) for key, value in secret["data"].items()}
        assert sum(map(len, content.values())) <= objects.MAX_SECRET_BYTES
        assert len(json.dumps(secret)) < 1.5 * 1024 * 1024
        assert secret["metadata"]["name"] == objects.documents_name(task.id, 1, index)
        files |= content
    pieces = [files[f"tif.json.{i}"] for i in range(len(files) - 1)]
    assert json.loads(b"".join(pieces)) == tif_document(task, the_plan)


def test_documents_above_the_total_limit_are_refused() -> None:
    spec = TaskSpec((TRUE,), inputs=tuple(Input(path=f"/data/{i}", content="x" * 1024 * 1024) for i in range(25)))
    with pytest.raises(ClusterRefused, match="too large"):
        objects.documents(make_task(spec), plan(spec, Policy()), {})


def test_the_launcher_is_named_by_its_content() -> None:
    made = objects.launcher({"amd64": b"a", "arm64": b"b"}, SITE)
    assert made["binaryData"] == {"launcher-amd64": "YQ==", "launcher-arm64": "Yg=="} and made["immutable"] is True
    assert made["metadata"]["labels"]["app.kubernetes.io/component"] == "launcher"
    again = objects.launcher({"arm64": b"b", "amd64": b"a"}, SITE)
    other = objects.launcher({"amd64": b"a", "arm64": b"c"}, SITE)
    assert made["metadata"]["name"] == again["metadata"]["name"] != other["metadata"]["name"]
    assert made["metadata"]["name"] != objects.launcher({"amd64": b"ab", "arm64": b""}, SITE)["metadata"]["name"]


def test_launchers_that_do_not_fit_or_are_missing_are_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="init"):
        objects.launcher({"amd64": b"x" * (1024 * 1024)}, SITE)
    with pytest.raises(ConfigurationError, match="missing launcher"):
        objects.launcher({}, SITE)


@pytest.mark.parametrize("layout", ["single", "staged"])
def test_credentials_may_go_unencrypted_only_from_a_pod_without_the_tasks_commands(layout: str) -> None:
    spec = TaskSpec((TRUE,), outputs=(Output(path="/data/b", url="s3://b/b", type=FileType.FILE),))
    made = objects.documents(make_task(spec), plan(spec, Policy(layout=layout)), {})
    assert json.loads(made["tof.json"])["allow_unencrypted_credentials"] is (layout == "staged")
