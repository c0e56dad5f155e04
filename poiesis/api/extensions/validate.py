"""A dry run of CreateTask: every problem, or the plan that would be made and what the site would add."""

from __future__ import annotations

from itertools import islice
from typing import Any

from starlette.types import Scope

from poiesis.api.errors import MAX_PROBLEMS
from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.normalize import unknown_fields
from poiesis.api.services import SiteDefaults
from poiesis.api.users import USER, User
from poiesis.api.validation import DOCUMENT
from poiesis.domain.errors import InvalidTask
from poiesis.domain.parameters import gpu_count
from poiesis.domain.plan import ContainerPlan, Plan, plan
from poiesis.domain.policy import Policy
from poiesis.domain.task import Resources, TaskSpec


def operations(context: Context) -> dict[str, Handler]:
    async def validate(scope: Scope) -> Document:
        return await context.call(dry_run, context, scope.pop(DOCUMENT), scope[USER])

    return {"ValidateTask": validate}


def dry_run(context: Context, document: Any, user: User) -> Document:
    """The answer of ValidateTask."""
    policy = context.services.policy
    try:
        spec = context.tasks.read(document)
        spec, notes = context.services.tasks.check(spec, owner=user.name, groups=user.groups)
    except InvalidTask as error:
        problems = [{"path": p.path, "message": p.message} for p in error.problems]
        return {"valid": False, "problems": problems}
    ignored = [f"{p.path}: ignored the {p.message}" for p in islice(unknown_fields(document), MAX_PROBLEMS)]
    planned = plan(spec, policy)
    return {
        "valid": True,
        "problems": [],
        "notes": [*notes, *ignored],
        "plan": plan_document(planned, spec) | requested(spec, context.services.defaults),
        "defaults": site_defaults(spec, planned, policy, context.services.defaults),
    }


def plan_document(made: Plan, spec: TaskSpec) -> dict[str, Any]:
    def container(planned: ContainerPlan) -> Document:
        found: dict[str, Any] = {"name": planned.name}
        if planned.executor is not None:
            found |= {"executor": planned.executor, "image": spec.executors[planned.executor].image}
        return found | {"waits_for": list(planned.waits_for)}

    document: dict[str, Any] = {
        "layout": made.layout.value,
        "pods": [
            {
                "name": pod.part,
                "init_containers": [container(c) for c in pod.init],
                "containers": [container(c) for c in pod.containers],
            }
            for pod in made.pods
        ],
        "mounts": [mount.path for mount in made.mounts],
        "scratch": list(made.scratch),
    }
    if made.volume_bytes is not None:
        document["volume_bytes"] = made.volume_bytes
    if made.time_limit is not None:
        document["time_limit_seconds"] = int(made.time_limit.total_seconds())
    return document


def requested(spec: TaskSpec, site: SiteDefaults) -> dict[str, Any]:
    """What each attempt requests of the cluster."""
    asked = spec.resources or Resources()
    parameters = asked.backend_parameters
    amounts = {
        "cpu_cores": site.cpu_cores if asked.cpu_cores is None else asked.cpu_cores,
        "ram_gb": site.ram_gb if asked.ram_gb is None else asked.ram_gb,
        "gpu": gpu_count(parameters) or None,
        "preemptible": asked.preemptible,
        "zones": list(asked.zones) or None,
    }
    document: dict[str, Any] = {"resources": {name: value for name, value in amounts.items() if value is not None}}
    queue = parameters.get("queue", site.queue)
    return document if queue is None else document | {"queue": queue}


def site_defaults(spec: TaskSpec, made: Plan, policy: Policy, site: SiteDefaults) -> dict[str, str]:
    """What the site decides for this task because it does not say it, or says more than the site allows; a sentence each."""
    asked = spec.resources or Resources()
    found: dict[str, str] = {}
    if asked.cpu_cores is None and site.cpu_cores is not None:
        found["cpu_cores"] = f"{site.cpu_cores:g}, since the task does not request any"
    if asked.ram_gb is None and site.ram_gb is not None:
        found["ram_gb"] = f"{site.ram_gb:g} GB, since the task does not request any"
    if "queue" not in asked.backend_parameters and site.queue is not None:
        found["queue"] = f"{site.queue}, the queue of tasks that do not name one"
    if made.volume_bytes is not None and asked.disk_gb is None:
        found["disk_gb"] = f"{made.volume_bytes / 1e9:g} GB, since the task does not request a size"
    limit = asked.backend_parameters.get("time_limit")
    if made.time_limit is not None and limit is None:
        found["time_limit"] = f"{made.time_limit}, since the task does not set a limit"
    elif made.time_limit is not None and made.time_limit == policy.max_time_limit:
        found["time_limit"] = f"{made.time_limit}, the maximum of the site"
    return found
