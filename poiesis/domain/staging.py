"""The filers' part of a task, as JSON documents: what TIF and TOF are told, and nothing else of the task.

They travel in a Secret mounted in the filer containers alone, and are read by `poiesis.filer.staging`. Paths are the executors'; the filer
finds them below its own view of the volume (`<volume>/root/<path>`).
"""

from __future__ import annotations

from typing import Any

from poiesis.domain.parameters import outputs_are_optional
from poiesis.domain.plan import Plan
from poiesis.domain.task import Resources, Task

VERSION = 1


def tif_document(task: Task, plan: Plan) -> dict[str, Any]:
    """`inputs` to fetch, `directories` to make (writable for all), `touched` files to make empty."""
    return {
        "v": VERSION,
        "task_id": task.id,
        "inputs": [
            {"path": i.path, "url": i.url, "content": i.content, "type": i.type and i.type.value}
            for i in task.spec.inputs
        ],
        "directories": list(plan.directories),
        "touched": list(plan.touched),
    }


def tof_document(task: Task, plan: Plan) -> dict[str, Any]:
    """`outputs` to send; `optional`: a missing one is no error; `touched`: an empty one of these was never written."""
    resources = task.spec.resources or Resources()
    return {
        "v": VERSION,
        "task_id": task.id,
        "outputs": [
            {"path": o.path, "url": o.url, "path_prefix": o.path_prefix, "type": o.type and o.type.value}
            for o in task.spec.outputs
        ],
        "optional": outputs_are_optional(resources.backend_parameters),
        "touched": list(plan.touched),
    }
