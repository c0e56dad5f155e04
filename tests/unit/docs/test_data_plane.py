"""Each numbered row of the tables in docs/data-plane.md is cited by at least one test."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_number_of_the_semantics_has_a_test() -> None:
    numbers = re.findall(r"^\| ([IO]\d+) \|", (ROOT / "docs/data-plane.md").read_text(), re.MULTILINE)
    marked = {
        n
        for p in (ROOT / "tests").rglob("test_*.py")
        for n in re.findall(r":  # ([IO]\d+)$", p.read_text(), re.MULTILINE)
    }
    assert len(numbers) == len(set(numbers)) > 20
    assert marked == set(numbers)
