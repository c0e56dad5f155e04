from __future__ import annotations

import pytest

from poiesis.domain.entitlements import check_entitlements
from poiesis.domain.errors import InvalidTask
from poiesis.domain.policy import Limits, Policy
from poiesis.domain.task import Executor, Resources, TaskSpec

POLICY = Policy(queues={"*": ("small",), "ada": ("urgent",), "group:imaging": ("large", "gpu")})


def check(
    user: str | None = None, *groups: str, policy: Policy = POLICY, ram_gb: float | None = None, **parameters: str
) -> None:
    resources = Resources(ram_gb=ram_gb, backend_parameters=parameters)
    check_entitlements(TaskSpec((Executor("i", ("true",)),), resources=resources), policy, user, groups)


@pytest.mark.parametrize(
    ("user", "groups", "queue"),
    [(None, (), "small"), ("bob", (), "small"), ("ada", (), "urgent"), ("bob", ("imaging",), "gpu")],
)
def test_a_queue_listed_for_the_user_or_group_is_accepted(
    user: str | None, groups: tuple[str, ...], queue: str
) -> None:
    check(user, *groups, queue=queue)


@pytest.mark.parametrize(
    ("user", "groups", "queue", "words"),
    [
        (None, (), "urgent", "use one of small"),
        ("bob", (), "large", "use one of small"),
        ("bob", ("ada",), "urgent", "use one of small"),
        ("imaging", (), "large", "use one of small"),
        ("group:imaging", (), "large", "use one of small"),  # a name that an identity provider let its user choose
        ("ada", ("imaging",), "another-teams", "use one of gpu, large, small, urgent"),
    ],
)
def test_any_other_queue_is_refused_with_those_allowed(
    user: str | None, groups: tuple[str, ...], queue: str, words: str
) -> None:
    with pytest.raises(InvalidTask, match=words) as error:
        check(user, *groups, queue=queue)
    assert queue in str(error.value)


def test_without_any_queue_none_can_be_named() -> None:
    with pytest.raises(InvalidTask, match="leave it out"):
        check(queue="small", policy=Policy())


def test_shared_memory_is_bounded_by_the_tasks_memory() -> None:
    check(ram_gb=8, shm_gb="8")
    check(shm_gb="1")
    with pytest.raises(InvalidTask, match=r"at most 8 \(the task's ram_gb"):
        check(ram_gb=8, shm_gb="8.1")
    with pytest.raises(InvalidTask, match="at most 1 "):
        check(shm_gb="999999")


def test_a_site_may_set_another_bound_for_shared_memory() -> None:
    policy = Policy(limits=Limits(max_shm_gb=4))
    check(ram_gb=1, shm_gb="4", policy=policy)
    with pytest.raises(InvalidTask, match="at most 4 "):
        check(ram_gb=8, shm_gb="5", policy=policy)
