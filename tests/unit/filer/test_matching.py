"""Wildcards against the standard library's, and in time that no pattern can stretch."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.filer.matching import expand_braces, matcher

NAMES = st.text("ab.-[]!1", min_size=1, max_size=8)


@given(pattern=st.text("ab*?1-", max_size=8), name=st.text("ab1-", min_size=1, max_size=8))
def test_stars_and_question_marks_are_the_usual_ones(pattern: str, name: str) -> None:
    assert matcher(pattern)(name) == fnmatch.fnmatchcase(name, pattern)


@given(pattern=st.text("ab[]!-*?\\^:{", max_size=10), name=NAMES)
def test_no_pattern_fails(pattern: str, name: str) -> None:
    matcher(pattern)(name)


@pytest.mark.parametrize(
    "pattern, yes, no",
    [
        ("[a-c]", "abc", "dA-"),
        ("[!a-c]", "dx-", "abc."),
        ("[^a]", "b", "a"),
        ("[]a]", "]a", "b"),
        ("[!]]", "a", "]"),
        ("[a-]", "a-", "b"),
        ("[[:digit:]x]", "0x", "a"),
        ("[[:punct:]]", "!-_~", "a1 "),
        ("[c-a]", "", "abc-"),
        ("\\*", "*", "a"),
        ("?", "aé", "."),
    ],
)
def test_brackets(pattern: str, yes: str, no: str) -> None:
    assert all(matcher(pattern)(c) for c in yes)
    assert not any(matcher(pattern)(c) for c in no)


def test_hidden_names_need_a_dot() -> None:
    assert not matcher("*")(".a")
    assert not matcher("?a")(".a")
    assert not matcher("[.]a")(".a")
    assert matcher(".*")(".a")
    assert matcher("[")("[")


def test_time_is_bounded() -> None:
    before = time.monotonic()
    assert not matcher("*a" * 100 + "b")("a" * 255)
    assert time.monotonic() - before < 1


def test_braces() -> None:
    assert expand_braces("x.{a,b}") == ["x.a", "x.b"]
    assert expand_braces("{a,b{c,d}}") == ["a", "bc", "bd"]
    assert expand_braces("{a}") == ["{a}"]
    assert expand_braces("{a,") == ["{a,"]
    assert len(expand_braces("{a,b}" * 30)) <= 1000
