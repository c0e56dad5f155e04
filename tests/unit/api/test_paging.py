"""Page tokens."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.api.paging import page_token, read_token
from poiesis.domain.access import Access
from poiesis.domain.errors import InvalidRequest
from poiesis.domain.states import State
from poiesis.domain.task import TaskId
from poiesis.ports.repository import TaskFilter

ID = TaskId("0p4qrl296007tvttajbu2hepqs")
FILTERS = st.builds(
    TaskFilter,
    name_prefix=st.text(max_size=5),
    states=st.frozensets(st.sampled_from(State), max_size=2),
    tags=st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=2).map(tuple),
    owner=st.none() | st.text(max_size=3),
)


@given(FILTERS)
def test_a_token_returns_its_position(where: TaskFilter) -> None:
    assert read_token(page_token(where, ID), where) == ID


@given(FILTERS, FILTERS)
def test_a_token_is_valid_only_for_its_filters(one: TaskFilter, other: TaskFilter) -> None:
    same = (one.name_prefix, one.states, sorted(one.tags), one.owner) == (
        other.name_prefix, other.states, sorted(other.tags), other.owner,
    )  # fmt: skip
    if same:
        assert read_token(page_token(one, ID), other) == ID
    else:
        with pytest.raises(InvalidRequest):
            read_token(page_token(one, ID), other)


@pytest.mark.parametrize(
    "change",
    [
        {"owner": "bob"},
        {"owner": None},
        {"access": Access("ada")},
        {"name_prefix": "m"},
        {"states": frozenset({State.RUNNING})},
        {"tags": (("k", "w"),)},
        {"tags": (("k", "v"), ("l", ""))},
    ],
)
def test_a_token_is_refused_when_any_one_filter_or_the_user_differs(change: dict[str, Any]) -> None:
    where = TaskFilter(name_prefix="n", states=frozenset({State.COMPLETE}), tags=(("k", "v"),), owner="ada")
    with pytest.raises(InvalidRequest, match="other filters"):
        read_token(page_token(where, ID), replace(where, **change))


def test_no_token_is_the_start() -> None:
    assert read_token(None, TaskFilter()) is None


def test_a_token_of_another_version_is_refused() -> None:
    raw = base64.urlsafe_b64decode(page_token(TaskFilter(), ID) + "==")
    token = base64.urlsafe_b64encode(b"2" + raw[1:]).decode()
    with pytest.raises(InvalidRequest, match="invalid page token"):
        read_token(token, TaskFilter())


@given(st.text())
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest):
        read_token(token, TaskFilter())
