"""The filers' part of a task, as JSON documents, with nothing else of the task in them.

They are in a Secret that only the filer containers mount, and are read by `poiesis.filer.staging`. Paths are the executors'; the filer
finds them below its own view of the volume (`<volume>/root/<path>`). Equal inputs and equal outputs are listed once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from poiesis.domain.parameters import outputs_are_optional
from poiesis.domain.paths import without_slash
from poiesis.domain.plan import Plan
from poiesis.domain.task import Task

VERSION = 1
Item = TypeVar("Item")


def tif_document(task: Task, plan: Plan) -> dict[str, Any]:
    """`inputs` to fetch, `directories` to make (writable for all), files to make empty (`touched`), as mount points."""
    return {
        "v": VERSION,
        "task_id": task.id,
        "inputs": [
            {"path": i.path, "url": i.url, "content": i.content, "type": i.type and i.type.value}
            for i in _unique(task.spec.inputs, lambda i: without_slash(i.path))
        ],
        "directories": list(plan.directories),
        "touched": list(plan.touched),
    }


def tof_document(task: Task, plan: Plan) -> dict[str, Any]:
    """`outputs` to upload; `optional`: a missing one is not an error; `touched`: these were made empty, see `tif_document`."""
    return {
        "v": VERSION,
        "task_id": task.id,
        "outputs": [
            {"path": o.path, "url": o.url, "path_prefix": o.path_prefix, "type": o.type and o.type.value}
            for o in _unique(task.spec.outputs, lambda o: (o.path, o.url, o.path_prefix))
        ],
        "optional": outputs_are_optional(task.spec.requested.backend_parameters),
        "touched": list(plan.touched),
    }


def _unique(items: Iterable[Item], key: Callable[[Item], object]) -> Collection[Item]:
    """The first item of each key."""
    found: dict[object, Item] = {}
    for item in items:
        found.setdefault(key(item), item)
    return found.values()
