"""Ids and names."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.naming import is_task_id, new_task_id, object_name, slug
from poiesis.testing.clock import START

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
TIMES = st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))


@given(
    st.text(min_size=1, max_size=80) | st.from_regex(r"[a-z0-9-]{30,50}", fullmatch=True),
    st.integers(1, 99_999),
    st.sampled_from(["task", "tif", "executors", "tof", "volume", "filer", "executor-0", "executor-99"]),
)
def test_a_name_is_valid_for_any_id(task_id, attempt, part):
    name = object_name(task_id, attempt, part)
    assert len(name) <= 63
    assert NAME.fullmatch(name)
    assert name == object_name(task_id, attempt, part)


def test_objects_of_other_attempts_and_parts_have_other_names():
    """Otherwise leftovers of an attempt would be mistaken for the next one's: its pod for having run, its volume for being filled."""
    parts = ["task", "tif", "executors", "tof", "volume", "filer", "executor-0", "executor-1"]
    names = {object_name(t, a, p) for t in ("0a", "0b") for a in (1, 2, 11) for p in parts}
    assert len(names) == 2 * 3 * len(parts)


@pytest.mark.parametrize("task_id", ["\ud800", "-", "A", "a" * 38, "-a", "ä"])
def test_an_id_that_is_not_a_valid_name_is_hashed(task_id):
    assert slug(task_id) != task_id
    assert NAME.fullmatch(slug(task_id))


def test_ids_that_look_alike_have_different_names():
    assert len({slug(text) for text in ("Abc", "aBc", "abC", "a_bc", "a.bc")}) == 5


@given(TIMES, st.integers(1, 10**9))
def test_ids_sort_by_the_time_they_were_made(at, later):
    after = at + timedelta(microseconds=later)
    assert new_task_id(at, lambda n: b"\xff" * n) < new_task_id(after, lambda n: b"\0" * n)


@given(TIMES, st.binary(min_size=9, max_size=9))
def test_an_id_is_recognized_and_unchanged_in_names(at, chance):
    task_id = new_task_id(at, lambda n: chance)
    assert is_task_id(task_id)
    assert slug(task_id) == task_id


@given(st.text(max_size=30))
def test_anything_else_is_not_an_id(text):
    assert is_task_id(text) == bool(re.fullmatch("[0-9a-z]{26}", text, re.ASCII))


def test_two_ids_of_one_moment_differ():
    assert len({new_task_id(START) for _ in range(1000)}) == 1000
