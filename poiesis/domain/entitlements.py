"""What a task may request of the site: Kueue's queues, by user and group, and shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from poiesis.domain.bindings import keys_of
from poiesis.domain.errors import InvalidTask, Problem
from poiesis.domain.parameters import parse_size_gb
from poiesis.domain.policy import Policy
from poiesis.domain.task import TaskSpec

DEFAULT_SHM_GB: Final = 1.0  # of tasks that do not request memory


def check_entitlements(spec: TaskSpec, policy: Policy, user: str | None, groups: Sequence[str]) -> None:
    """`spec` as checked by `validate`. Raises: InvalidTask."""
    parameters, problems = spec.requested.backend_parameters, []
    queue = parameters.get("queue")
    allowed = {queue for key in keys_of(user, groups) for queue in policy.queues.get(key, ())}
    if queue is not None and queue not in allowed:
        use = f"use one of {', '.join(sorted(allowed))}" if allowed else "leave it out"
        message = f"queue {queue[:63]!r} is not available to you: {use}"
        problems.append(Problem("$.resources.backend_parameters.queue", message))
    if "shm_gb" in parameters:
        asked = parse_size_gb(parameters["shm_gb"])
        most = policy.limits.max_shm_gb
        reason = "this service's limit"
        if most is None:
            most, reason = spec.requested.ram_gb or DEFAULT_SHM_GB, "the task's ram_gb, or 1 without it"
        if asked > most:
            message = f"invalid size {asked:g}: must be at most {most:g} ({reason})"
            problems.append(Problem("$.resources.backend_parameters.shm_gb", message))
    if problems:
        raise InvalidTask(problems)
