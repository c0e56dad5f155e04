"""docs/metrics.md has every metric as the code declares it."""

import runpy
from pathlib import Path

from poiesis import metrics

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_is_what_the_catalogue_makes() -> None:
    made = runpy.run_path(str(DOCS / "make_metrics.py"))["document"]()
    assert (DOCS / "metrics.md").read_text() == made, "run: python docs/make_metrics.py"
    assert [d.name for d in metrics.CATALOGUE if f"| `{d.name}` |" not in made] == []
