"""Values of backend parameters."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.parameters import (
    MAX_DURATION,
    PARAMETERS,
    outputs_are_optional,
    parse_bool,
    parse_count,
    parse_duration,
    parse_size_gb,
    time_limit,
)
from poiesis.domain.policy import Policy


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("2H", 7200), (" 1d ", 86400)])
def test_a_duration_is_read(text, seconds):
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "1.5h", "1w", "h", "1 h", "9" * 18, "9" * 30 + "d", "36501d"])
def test_an_invalid_duration_is_refused(text):
    with pytest.raises(ValueError, match="must be"):
        parse_duration(text)


def test_the_longest_duration_is_accepted():
    assert parse_duration("36500d") == MAX_DURATION


@given(st.sampled_from(sorted(PARAMETERS)), st.text(max_size=40) | st.from_regex(r"\d{1,40}[smhd]?"))
def test_any_text_is_a_value_or_a_value_error(key, text):
    with suppress(ValueError):
        PARAMETERS[key](text)


def test_words_and_numbers_are_read():
    assert (parse_bool("Yes"), parse_bool("0"), parse_count("3"), parse_size_gb("0.5")) == (True, False, 3, 0.5)
    for parse, text in ((parse_bool, "maybe"), (parse_count, "-1"), (parse_count, "1.0"), (parse_size_gb, "0")):
        with pytest.raises(ValueError, match="must be"):
            parse(text)
    assert outputs_are_optional({"optional_outputs": "true"}) and not outputs_are_optional({})


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("asked", "default", "most", "limit"),
    [
        (None, None, None, None),
        ("2h", None, None, 2 * HOUR),
        ("2h", None, HOUR, HOUR),
        (None, 3 * HOUR, None, 3 * HOUR),
        (None, 3 * HOUR, HOUR, HOUR),
        (None, None, HOUR, HOUR),
        ("1h", 3 * HOUR, 5 * HOUR, HOUR),
    ],
)
def test_the_time_limit_is_the_tasks_or_the_default_and_never_above_the_sites(asked, default, most, limit):
    policy = replace(Policy(), default_time_limit=default, max_time_limit=most)
    assert time_limit({} if asked is None else {"time_limit": asked}, policy) == limit
