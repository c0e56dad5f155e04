"""docs/configuration.md is generated from the settings' docstrings."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_configuration_page_is_up_to_date() -> None:
    made = runpy.run_path(str(DOCS / "make_configuration.py"))["document"]()
    assert (DOCS / "configuration.md").read_text() == made, "run: python docs/make_configuration.py"


def test_every_setting_has_a_meaning_and_its_default_in_order() -> None:
    rows = [line for line in (DOCS / "configuration.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 180
    assert not [row for row in rows if row.rsplit("|", 2)[1].strip() == ""]
    assert any("| `python,-m,poiesis.filer` |" in row for row in rows)
