"""The generated pages of docs/reference are what docs/make_reference.py makes of the sources."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[3] / "docs"
MADE: dict[str, Any] = runpy.run_path(str(DOCS / "make_reference.py"))
PAGES: dict[str, Callable[[], str]] = MADE["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(name: str) -> None:
    assert (DOCS / "reference" / name).read_text() == PAGES[name](), "run: make reference"


def test_the_words_of_the_code_are_found() -> None:
    assert {"rate_limited", "uri_too_long", "invalid_task", "internal", "not_found", "unknown_webhook"} <= MADE[
        "http_errors"
    ]()
    assert {"executor_N_oom_killed", "inputs_seconds", "checksum:PATH", "failure_reason"} <= MADE["metadata_keys"]()


def test_a_word_without_a_meaning_is_reported() -> None:
    with pytest.raises(SystemExit, match="add to waits: Nonsense"):
        MADE["meanings"]("waits", {"Nonsense", *MADE["WAITS"]})
    with pytest.raises(SystemExit, match="no longer, in waits: Queued"):
        MADE["meanings"]("waits", set(MADE["WAITS"]) - {"Queued"})
