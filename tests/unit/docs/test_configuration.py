"""docs/configuration.md is generated from the settings' docstrings."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_configuration_page_is_up_to_date() -> None:
    made = runpy.run_path(str(DOCS / "make_configuration.py"))["document"]()
    assert (DOCS / "configuration.md").read_text() == made, "run: python docs/make_configuration.py"
