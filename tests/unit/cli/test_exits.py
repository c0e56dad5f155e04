"""Exit codes tell what happened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poiesis.cli import exits
from poiesis.cli.exits import Exit
from poiesis.domain.errors import ConfigurationError, Forbidden, PoiesisError, Unauthenticated, Unavailable, UnknownTask


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([], 0),
        (["COMPLETE", "COMPLETE"], 0),
        (["EXECUTOR_ERROR", "COMPLETE"], 100),
        (["CANCELED", "EXECUTOR_ERROR", "SYSTEM_ERROR"], 101),
        (["CANCELED"], 102),
        (["PREEMPTED", "CANCELED"], 103),
        (["OF_A_LATER_VERSION"], 1),
    ],
)
def test_states_have_codes_with_a_precedence(states: list[str], code: int) -> None:
    assert exits.of_states(states) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (UnknownTask("x"), 66),
        (Unavailable("x"), 69),
        (exits.MissingExtension("x"), 76),
        (Unauthenticated("x"), 77),
        (Forbidden("x"), 77),
        (PoiesisError("x"), 1),
    ],
)
def test_errors_have_codes(error: PoiesisError, code: int) -> None:
    assert exits.of_error(error) == code


def test_the_guide_has_the_same_table() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", guide, re.MULTILINE))
    assert rows == {str(code.value): text for code, text in exits.MEANINGS.items()}
    assert set(exits.MEANINGS) == set(Exit)
