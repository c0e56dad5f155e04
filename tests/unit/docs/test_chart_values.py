"""The reference of the chart's values, and the descriptions in its schema, are generated from the comments in values.yaml."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "make_chart_values.py"))


def test_the_schema_and_the_reference_are_up_to_date(generator):
    schema, reference = generator["current"]()
    hint = "run: python docs/make_chart_values.py"
    assert (ROOT / "helm" / "poiesis" / "values.schema.json").read_text() == schema, hint
    assert (ROOT / "docs" / "reference" / "chart-values.md").read_text() == reference, hint


def test_every_property_of_the_schema_has_a_description():
    def without(node: dict[str, Any], path: str) -> Iterator[str]:
        for group in ("properties", "$defs"):
            for name, inner in node.get(group, {}).items():
                if group == "properties" and not inner.get("description"):
                    yield f"{path}.{name}"
                yield from without(inner, f"{path}.{name}")

    schema = json.loads((ROOT / "helm" / "poiesis" / "values.schema.json").read_text())
    assert list(without(schema, "")) == []


def test_the_reference_has_a_row_for_every_value(generator):
    rows = [
        line
        for line in (ROOT / "docs" / "reference" / "chart-values.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    assert not [row for row in rows if row.rstrip(" |").endswith("|")]
    paths = {row.split("`")[1] for row in rows}
    assert {"api.auth.keyLifetime", "torc.resources", "tasks.deadlines.noNode", "logs.backlogBytes", "texam"} <= paths
    assert len(paths) > 250


def test_a_comment_belongs_to_the_key_directly_below_it(generator):
    text = "# ── first ──────\na: 1\n# Of b,\n# over two lines.\nb:\n  # Inner.\n  c: 2\n  d: 3\n"
    found = {".".join(path): (comment, section) for path, comment, section in generator["comments"](text)}
    assert found == {
        "a": ("", "first"),
        "b": ("Of b, over two lines.", "first"),
        "b.c": ("Inner.", "first"),
        "b.d": ("", "first"),
    }
