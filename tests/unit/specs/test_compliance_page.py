"""docs/compliance.md has every sentence of both TES documents that prescribes something, with tests that exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from tests.integration.api.test_tolerance import CASES
from tests.unit.specs.conftest import OURS, PUBLISHED_DEFAULT, PUBLISHED_VARIABLE
from tests.unit.specs.sentences import sentences, split, words

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "compliance.md").read_text()


def rows(section: str) -> list[list[str]]:
    """The cells of the table in a section."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ("The published document", Path(os.environ.get(PUBLISHED_VARIABLE) or PUBLISHED_DEFAULT)),
        ("Our document", OURS),
    ],
)
def test_every_sentence_that_prescribes_something_has_a_row(section: str, path: Path) -> None:
    if not path.is_file():
        pytest.skip(f"no copy of the published TES 1.1.0 document at {path}; set {PUBLISHED_VARIABLE}")
    document = yaml.safe_load(path.read_text())
    normative = {(s.place, s.words): s.text for s in sentences(document) if s.prescribes}
    everything = {(s.place, s.words) for s in sentences(document)}
    listed = {(place, words(text)) for place, text, *_ in rows(section)}
    assert [f"{place}: {text}" for (place, w), text in normative.items() if (place, w) not in listed] == []
    assert listed - everything == set(), "the document does not say that"
    assert len(normative) > 50


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`((?:[a-z0-9_]+/)+[a-z0-9_]+\.py)::(\w+)`", PAGE)
    assert len(named) > 100
    texts = {path: (ROOT / "tests" / path).read_text() for path in {path for path, _ in named}}
    assert sorted({f"{path}::{name}" for path, name in named if not re.search(rf"def {name}\b", texts[path])}) == []


def test_every_sentence_has_a_test_or_says_that_it_needs_none() -> None:
    without = [
        row[1]
        for row in rows("The published document") + rows("Our document")
        if "::" not in row[-1] and row[-1] != "-"
    ]
    assert without == []


def test_the_table_of_unusual_requests_is_that_of_the_test() -> None:
    assert [(row[0], row[1]) for row in rows("Unusual requests")] == [
        (name, str(case.status)) for name, case in CASES.items()
    ]


def test_sentences_are_found_in_paragraphs_lists_and_between_examples() -> None:
    text = "One thing, e.g. this. Two\nthings.\n\n- An item must be.\n```\ncode. Not.\n```\nIt may end"
    assert list(split(text)) == ["One thing, e.g. this.", "Two things.", "An item must be.", "It may end"]
