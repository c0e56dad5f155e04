"""The rules of chart-testing (`ct lint`), which is not in a package registry, and those of Artifact Hub, applied to the chart."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

import poiesis
from tests.unit.helm.conftest import CHART

# ct's lintconf.yaml; lines are as long here as everywhere in the repository
RULES: Final = """
rules:
  braces: {min-spaces-inside: 0, max-spaces-inside: 0, min-spaces-inside-empty: -1, max-spaces-inside-empty: -1}
  brackets: {min-spaces-inside: 0, max-spaces-inside: 0, min-spaces-inside-empty: -1, max-spaces-inside-empty: -1}
  colons: {max-spaces-before: 0, max-spaces-after: 1}
  commas: {max-spaces-before: 0, min-spaces-after: 1, max-spaces-after: 1}
  comments: {require-starting-space: true, min-spaces-from-content: 2}
  document-end: disable
  document-start: disable
  empty-lines: {max: 2, max-start: 0, max-end: 0}
  hyphens: {max-spaces-after: 1}
  indentation: {spaces: consistent, indent-sequences: whatever, check-multi-line-strings: false}
  key-duplicates: enable
  line-length: disable
  new-line-at-end-of-file: enable
  new-lines: {type: unix}
  trailing-spaces: enable
  truthy: {level: error}
"""
# all fields of ct's chart_schema.yaml, which refuses others
SCHEMA: Final = {"name", "home", "version", "apiVersion", "appVersion", "description", "keywords", "sources", "maintainers", "dependencies",
                 "icon", "engine", "condition", "tags", "deprecated", "kubeVersion", "annotations", "type"}  # fmt: skip
FILES: Final = ["Chart.yaml", "values.yaml", *sorted(f"ci/{p.name}" for p in (CHART / "ci").glob("*.yaml"))]


@pytest.fixture(scope="module")
def chart() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return found


@pytest.mark.parametrize("name", FILES)
def test_yamllint_reports_nothing(name: str):
    problems = linter.run(io.StringIO((CHART / name).read_text()), YamlLintConfig(RULES))
    assert [str(problem) for problem in problems] == []


def test_chart_yaml_has_what_ct_requires(chart: dict[str, Any]):
    required = {
        "apiVersion",
        "name",
        "home",
        "version",
        "appVersion",
        "description",
        "keywords",
        "sources",
        "maintainers",
        "icon",
    }
    assert required <= chart.keys()
    assert chart.keys() <= SCHEMA and all(m.keys() <= {"name", "email", "url"} for m in chart["maintainers"])
    assert chart["name"] == CHART.name
    assert chart["type"] == "application"
    assert chart["kubeVersion"] == ">=1.27.0-0"
    assert re.fullmatch(r"\d+\.\d+\.\d+", chart["version"])
    assert chart["version"] == chart["appVersion"] == poiesis.__version__
    assert all(m["name"] and m["url"] for m in chart["maintainers"])
    assert "deprecated" not in chart


def test_the_icon_needs_no_request(chart: dict[str, Any]):
    assert chart["icon"].startswith("data:image/svg+xml;base64,")


def test_the_chart_has_values_for_installations_and_a_readme():
    assert (CHART / "README.md").is_file()
    assert [name for name in FILES if name.startswith("ci/") and name.endswith("-values.yaml")]


def test_annotations_of_artifact_hub_are_well_formed(chart: dict[str, Any]):
    annotations = chart["annotations"]
    assert all(isinstance(value, str) for value in annotations.values())
    assert annotations["artifacthub.io/license"] == "Apache-2.0"
    assert annotations["artifacthub.io/prerelease"] == str("-" in chart["version"]).lower()
    assert "artifacthub.io/signKey" not in annotations, "packages are not signed: the key would not be true"
    links = yaml.safe_load(annotations["artifacthub.io/links"])
    assert all(set(link) == {"name", "url"} and link["url"].startswith("https://") for link in links)


def test_the_images_are_those_of_the_values(chart: dict[str, Any]):
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    images = {i["name"]: i["image"] for i in yaml.safe_load(chart["annotations"]["artifacthub.io/images"])}
    assert images == {
        "poiesis": f"{values['image']['repository']}:{chart['appVersion']}",
        "mongodb": values["mongodb"]["image"],
        "redis": values["redis"]["image"],
    }


def test_the_readme_shows_how_to_install_and_where_the_values_are():
    text = (CHART / "README.md").read_text()
    for words in (
        "helm install",
        "helm upgrade",
        "helm uninstall",
        "helm rollback",
        "docs/reference/chart-values.md",
        ">= 1.27",
    ):
        assert words in text
    for path in re.findall(r"\]\((\.\./[^)#]+)", text):
        assert (CHART / Path(path)).exists(), path
