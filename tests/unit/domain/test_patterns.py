"""Output paths as defined by POSIX 2.13: what a path names, what it matches, and linear time for any pattern."""

from __future__ import annotations

import fnmatch
import sys
import time
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.patterns import MAX_ALTERNATIVES, PathPattern, brace_alternatives, unescape

NAMES = st.text("ab.-[]!1", min_size=1, max_size=8)


def matches(pattern: str, name: str) -> bool:
    return PathPattern("/" + pattern).names[-1].matches(name)


@pytest.mark.parametrize(
    ("text", "literal", "fixed_text", "fixed_directory", "has_wildcard", "needs_matching"),
    [
        ("/w/a.txt", "/w/a.txt", "/w/a.txt", "/w", False, False),
        ("/w/a\\*b", "/w/a*b", "/w/a*b", "/w", False, False),
        ("/w/s\\[1\\]/x", "/w/s[1]/x", "/w/s[1]/x", "/w/s[1]", False, False),
        ("/w/a\\ b/*.txt", "/w/a b/*.txt", "/w/a b/", "/w/a b", True, True),
        ("/w/s\\[1\\]/part-*", "/w/s[1]/part-*", "/w/s[1]/part-", "/w/s[1]", True, True),
        ("/w/a[1]", "/w/a[1]", "/w/a", "/w", True, False),
        ("/w/a[1", "/w/a[1", "/w/a[1", "/w", False, False),
        ("/w/[a/b]", "/w/[a/b]", "/w/[a/b]", "/w/[a", False, False),
        ("/w/a\\", "/w/a\\", "/w/a\\", "/w", False, False),
        ("/w/\\\\x", "/w/\\x", "/w/\\x", "/w", False, False),
        ("/w/d/", "/w/d/", "/w/d/", "/w", False, False),
        ("/w/*/", "/w/*/", "/w/", "/w", True, True),
        ("/*", "/*", "/", "/", True, True),
        ("/w/x{a,b}/c", "/w/x{a,b}/c", "/w/x", "/w", True, False),
        ("/w/{a,{b,c}}", "/w/{a,{b,c}}", "/w/", "/w", True, False),
        ("/w/\\{a,b}{a}", "/w/{a,b}{a}", "/w/{a,b}{a}", "/w", False, False),
        ("/w/[*]", "/w/[*]", "/w/", "/w", True, False),
        ("/w/a\\/b*", "/w/a\\/b*", "/w/a\\/b", "/w/a\\", True, True),
        ("/w/[x/[\\a]*", "/w/[x/[\\a]*", "/w/[x/", "/w/[x", True, True),
        ("/w/[[:a:]*", "/w/[[:a:]*", "/w/[[:a:]", "/w", True, True),
        ("/w/[{a/x{a,b}", "/w/[{a/x{a,b}", "/w/[{a/x", "/w/[{a", True, False),
        ("/w/a{\\?{a,b}", "/w/a{?{a,b}", "/w/a", "/w", True, False),
    ],
)
def test_a_path_is_parsed(text, literal, fixed_text, fixed_directory, has_wildcard, needs_matching):
    parsed = PathPattern(text)
    assert (parsed.literal, parsed.fixed_text, parsed.fixed_directory) == (literal, fixed_text, fixed_directory)
    assert (parsed.has_wildcard, parsed.needs_matching) == (has_wildcard, needs_matching)


def test_a_prefix_has_the_same_escapes():
    assert unescape("/w/s\\[1\\]\\\\") == "/w/s[1]\\"


@given(st.text("/ab\\*?[]!-.{},", max_size=12))
def test_every_text_has_a_meaning(text):
    parsed = PathPattern("/" + text)
    assert parsed.literal.startswith(parsed.fixed_text)
    assert parsed.fixed_text.startswith(parsed.fixed_directory)
    assert parsed.has_wildcard or not parsed.needs_matching
    for name in parsed.names:
        assert name.has_wildcard or name.matches(name.literal)
        name.matches("a")


@given(pattern=st.text("ab*?1-", min_size=1, max_size=8), name=st.text("ab1-", min_size=1, max_size=8))
def test_stars_and_question_marks_match_as_in_the_standard_library(pattern, name):
    assert matches(pattern, name) == fnmatch.fnmatchcase(name, pattern)


@given(pattern=st.text("ab[]!-*?\\^:{", min_size=1, max_size=10), name=NAMES)
def test_matching_never_raises(pattern, name):
    matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("[a-c]", "abc", "dA-"),
        ("[!a-c]", "dx-", "abc."),
        ("[^a]", "b", "a"),
        ("[]a]", "]a", "b"),
        ("[!]]", "a", "]"),
        ("[a-]", "a-", "b"),
        ("[a\\-c]", "a-c", "b\\"),
        ("[\\]a]", "]a", "\\"),
        ("[[:digit:]x]", "0x", "a"),
        ("[[:punct:]]", "!-_~", "a1 "),
        ("[c-a]", "", "abc-"),
        ("\\*", "*", "a"),
        ("?", "aé", "."),
    ],
)
def test_brackets(pattern, yes, no):
    assert all(matches(pattern, c) for c in yes)
    assert not any(matches(pattern, c) for c in no)


def test_a_leading_dot_is_matched_only_by_a_dot():
    assert not matches("*", ".a")
    assert not matches("?a", ".a")
    assert not matches("[.]a", ".a")
    assert matches(".*", ".a")
    assert matches("\\.*", ".a")
    assert matches("[", "[")


def test_matching_time_does_not_depend_on_the_pattern():
    before = time.monotonic()
    assert not matches("*a" * 100 + "b", "a" * 255)
    assert time.monotonic() - before < 1


def calls(text: str) -> int:
    """How many functions are called for what validation asks of a path."""
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    pattern = PathPattern(text)
    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        _ = pattern.has_wildcard, pattern.needs_matching, pattern.fixed_text, pattern.fixed_directory
        if not pattern.has_wildcard:
            _ = pattern.literal
        unescape(text)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("end", ["x", "*"])
@pytest.mark.parametrize("part", ["a", "[", "[[:", "\\[", "\\a", "[\\a", "{", "{,", "?", "[a]", "a/", "[/", "[\\a/"])
def test_a_longer_path_is_not_parsed_in_more_steps_of_python(part, end):
    assert calls("/o/" + part * 1000 + end) == calls("/o/" + part * 3 + end)


def test_braces():
    def texts(text):
        return [alternative.text for alternative in brace_alternatives(text)]

    assert texts("/x.{a,b}") == ["/x.a", "/x.b"]
    assert texts("/{a,b{c,d}}") == ["/a", "/bc", "/bd"]
    assert texts("/{a}") == texts("/{a,") == texts("/\\{a,b}") == []
    assert len(texts("/" + "{a,b}" * 30)) <= MAX_ALTERNATIVES
