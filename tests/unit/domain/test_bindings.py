"""Which binding applies to a task."""

import pytest

from poiesis.domain.bindings import binding_of

BINDINGS = {"ada": "ada's", "group:lab": "the lab's", "group:core": "the core's"}


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("ada", (), "ada's"),
        ("ada", ("lab",), "ada's"),
        ("eve", ("lab",), "the lab's"),
        ("eve", ("core", "lab"), "the lab's"),  # the order of the bindings decides, not that of a token
        ("eve", ("other",), None),
        ("eve", (), None),
        (None, (), None),
        (None, ("lab",), "the lab's"),
        ("ADA", (), None),
    ],
)
def test_the_users_own_binding_comes_first_then_those_of_groups_in_order(
    user: str | None, groups: tuple[str, ...], expected: str | None
) -> None:
    assert binding_of(BINDINGS, user, groups) == expected


@pytest.mark.parametrize("user", ["eve", None])
def test_everyone_without_another_binding_has_that_of_everyone(user: str | None) -> None:
    assert binding_of({**BINDINGS, "*": "none"}, user, ()) == "none"
    assert binding_of({"*": "none", **BINDINGS}, user, ("core",)) == "the core's"


def test_a_user_named_like_a_group_does_not_get_the_groups_binding() -> None:
    assert binding_of(BINDINGS, "group:lab", ()) is None
    assert binding_of({**BINDINGS, "*": "none"}, "group:lab", ()) == "none"


def test_a_group_named_like_a_key_is_only_a_group() -> None:
    assert binding_of(BINDINGS, "eve", ("ada", "*", "group:lab")) is None


def test_a_user_named_like_everyone_has_no_more_than_everyone() -> None:
    assert binding_of({"*": "none", "group:lab": "x"}, "*", ()) == "none"
