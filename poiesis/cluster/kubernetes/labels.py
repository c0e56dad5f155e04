"""Labels and selectors of a task's objects: `poiesis/…`, and the labels recommended by Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.naming import slug
from poiesis.domain.task import TaskId

TASK_ID: Final = "poiesis/task-id"
ATTEMPT: Final = "poiesis/attempt"
PART: Final = "poiesis/part"
NAME: Final = "app.kubernetes.io/name"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
POIESIS: Final = "poiesis"
TASK: Final = "task"
VOLUME: Final = "volume"
DOCUMENTS: Final = "filer"


def common(settings: KubernetesSettings, component: str) -> dict[str, str]:
    return {
        **settings.labels,
        NAME: POIESIS,
        INSTANCE: settings.instance,
        COMPONENT: component,
        MANAGED_BY: POIESIS,
    }


def of_task(settings: KubernetesSettings, task_id: TaskId, attempt: int, part: str) -> dict[str, str]:
    return {**common(settings, TASK), TASK_ID: slug(task_id), ATTEMPT: str(attempt), PART: part}


def id_annotations(task_id: TaskId) -> dict[str, str]:
    """The id itself, if it is not a valid label value."""
    return {} if slug(task_id) == task_id else {TASK_ID: task_id}


def selector(settings: KubernetesSettings, task_id: TaskId | None = None) -> str:
    """Selects the objects of all tasks, or of one task."""
    wanted = {COMPONENT: TASK, INSTANCE: settings.instance, MANAGED_BY: POIESIS}
    if task_id is not None:
        wanted[TASK_ID] = slug(task_id)
    return ",".join(f"{key}={value}" for key, value in wanted.items())


def task_id_of(metadata: Mapping[str, Any]) -> TaskId | None:
    found = (metadata.get("annotations") or {}).get(TASK_ID) or (metadata.get("labels") or {}).get(TASK_ID)
    return TaskId(found) if isinstance(found, str) and found else None


def attempt_of(metadata: Mapping[str, Any]) -> int:
    text = (metadata.get("labels") or {}).get(ATTEMPT, "")
    return int(text) if text.isdecimal() and len(text) < 9 else 0


def is_same(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether an existing object is the one wanted: same task, attempt, part and service."""
    found, expected = metadata.get("labels") or {}, wanted["labels"]
    return all(found.get(key) == expected.get(key) for key in (TASK_ID, ATTEMPT, PART, INSTANCE, MANAGED_BY))
