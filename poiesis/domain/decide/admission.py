"""Admission of a task: what it claims of the site's quotas, and how it enters and leaves the stage `admit` (docs/adr/0014).

A task that waits in `admit` has nothing in the cluster and no `wake_at`: only the admitter looks at it. Once admitted it holds its claim
until its state is final, through all its attempts; an attempt that asks for more than the one before waits again, before younger tasks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from poiesis.domain.decide.journal import move, note
from poiesis.domain.errors import InvalidTask, Problem
from poiesis.domain.fair_share import Candidate, Ledger
from poiesis.domain.parameters import gpu_count
from poiesis.domain.plan import Plan
from poiesis.domain.policy import GIGABYTE, Policy
from poiesis.domain.quotas import MILLI, AdmissionRules, Amount, Claim, whole_units
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Outcome, Task, TaskSpec
from poiesis.domain.timeline import admitted

MEMORY: Final = Amount._fields.index("memory_bytes")
AGAIN: Final = timedelta(seconds=5)
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
SOON: Final = timedelta(seconds=20)  # the first link is published at once; this is for a lost message


def claim_of(task: Task, the_plan: Plan, rules: AdmissionRules, groups: Sequence[str] = ()) -> Claim:
    """What the task holds once it is admitted. GPUs are those of the pod that has most: containers of a pod cannot share them."""
    asked = task.spec.requested
    gpus = gpu_count(asked.backend_parameters) * max(len(pod.executors) for pod in the_plan.pods)
    cores = rules.default_cpu_cores if asked.cpu_cores is None else asked.cpu_cores
    ram_gb = rules.default_ram_gb if task.ram_gb is None else task.ram_gb
    amount = Amount(
        tasks=1,
        millicores=whole_units(cores, MILLI),
        memory_bytes=whole_units(ram_gb, GIGABYTE),
        gpus=gpus,
        volumes=0 if the_plan.volume_bytes is None else 1,
    )
    service_class = asked.backend_parameters.get("service_class", rules.default_class)
    return Claim(task.owner or "", rules.clamped(amount), service_class, rules.groups_with_caps(groups))


def check_admissible(spec: TaskSpec, rules: AdmissionRules, user: str | None, groups: Iterable[str]) -> None:
    """Raises: InvalidTask for a service class that the user may not use."""
    asked = spec.requested.backend_parameters.get("service_class")
    if asked is None or rules.may_use(asked, user, groups):
        return
    usable = sorted(name for name in {*rules.classes, *rules.other_classes} if rules.may_use(name, user, groups))
    use = f"use one of {', '.join(usable)}" if usable else "leave it out"
    message = f"service class {asked[:63]!r} is not available to you: {use}"
    raise InvalidTask([Problem("$.resources.backend_parameters.service_class", message)])


def notes_on_size(spec: TaskSpec, rules: AdmissionRules) -> tuple[str, ...]:
    """A line for the system log of a task that asks for more than the one machine has; on a cluster it is refused instead."""
    asked = spec.requested
    sizes = (
        ("CPU cores", asked.cpu_cores, rules.site.max_cpu_cores),
        ("GB of memory", asked.ram_gb, rules.site.max_ram_gb),
    )
    larger = [f"{size:g} {unit} of {cap:.4g}" for unit, size, cap in sizes if size and cap is not None and size > cap]
    if not rules.clamp or not larger:
        return ()
    return (f"asks for more than this machine has ({', '.join(larger)}): starts when that is free, with what there is",)


def enqueue(task: Task, claim: Claim, rules: AdmissionRules) -> Task:
    """A new task that waits for admission. Raises: InvalidTask if it is larger than a quota."""
    problem = Ledger(rules).never_fits(claim)
    if problem is not None:
        raise InvalidTask([Problem("$.resources", f"the task {problem}: request less")])
    return replace(task, stage=Stage.ADMIT, wake_at=None, claim=claim)


def next_attempt(task: Task, the_plan: Plan, rules: AdmissionRules, now: datetime) -> Task:
    """Let a new attempt that asks for more than the task holds wait for admission again; the others keep what the task holds."""
    assert task.claim is not None
    claim = claim_of(task, the_plan, rules, task.claim.groups)
    if all(new <= old for new, old in zip(claim.amount, task.claim.amount, strict=True)):
        return task
    more = replace(task.claim, amount=claim.amount)
    return replace(task, stage=Stage.ADMIT, stage_since=now, wake_at=None, claim=more)


def most_ram_gb(task: Task, policy: Policy) -> float | None:
    """What an attempt may request at most; None: no limit."""
    found = [] if policy.limits.max_ram_gb is None else [policy.limits.max_ram_gb]
    if task.claim is not None:
        caps = Ledger(policy.admission).caps_of(task.claim, MEMORY)
        found += [cap / GIGABYTE for cap in caps]
    return min(found, default=None)


def admit(task: Task, now: datetime) -> Task:
    """A later attempt has its delay since it was queued again."""
    since, wake_at = (now, now + SOON) if task.attempt == 1 else (task.stage_since, now + AGAIN)
    return replace(admitted(task, now), stage=Stage.PREPARE, stage_since=since, wake_at=wake_at)


def refuse(task: Task, why: str, now: datetime) -> Task:
    """End a task that has become larger than a quota."""
    outcome = Outcome(State.SYSTEM_ERROR, "ExceedsQuota", f"the task {why}: request less")
    return replace(task, stage=Stage.FINISH, stage_since=now, wake_at=now, outcome=outcome)


def cancel_at_once(task: Task, now: datetime) -> Task | None:
    """Cancel a task that waits for admission: nothing exists of it. None: it has to be canceled by way of CANCELING."""
    if task.stage is not Stage.ADMIT or task.state is not State.QUEUED:
        return None
    task = note(move(task, State.CANCELED, now), now, "Canceled by request.")
    return replace(task, cancel_requested_at=now, stage=Stage.DONE, stage_since=now, wake_at=None)


def is_queued(task: Task) -> bool:
    return task.claim is not None and task.stage is Stage.ADMIT and task.cancel_requested_at is None


def is_held(task: Task) -> bool:
    """Whether the task is in flight."""
    return task.claim is not None and task.stage is not Stage.ADMIT and not task.state.is_terminal


def waiting_word(task: Task) -> str:
    """The first word of why the task waits (`ErrImagePull in executor-0: …`), `Other` for an unusual one; empty: it does not wait."""
    if is_queued(task):
        return "Queued"
    word = (task.waiting or "").split(":")[0].split(" in ")[0]
    return word if not word or _WORD.fullmatch(word) else "Other"


def candidate_of(task: Task) -> Candidate:
    assert task.claim is not None
    return Candidate(task.id, task.attempt, task.claim, task.stage_since or task.created_at)
