"""The service accepts the settings of every OpenID provider in the documentation and in the chart's examples."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from poiesis.api.oidc.settings import read_issuers

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^( *)```(?:yaml|json)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def documents() -> Iterator[tuple[str, Any]]:
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]:
        for _, text in BLOCK.findall(path.read_text()):
            if "audiences" in text:
                yield str(path.relative_to(ROOT)), yaml.safe_load(text)  # JSON is YAML too
    for path in sorted(ROOT.glob("helm/poiesis/ci/*.yaml")):
        yield str(path.relative_to(ROOT)), yaml.safe_load(path.read_text())


def issuers(document: Any) -> Iterator[list[dict[str, Any]]]:
    """The lists of objects with audiences, at any depth."""
    if isinstance(document, list) and document and all(isinstance(i, dict) and "audiences" in i for i in document):
        yield document
    elif isinstance(document, dict | list):
        for item in document.values() if isinstance(document, dict) else document:
            yield from issuers(item)


FOUND = [(name, found) for name, document in documents() for found in issuers(document)]


@pytest.mark.parametrize(("name", "found"), FOUND, ids=[name for name, _ in FOUND])
def test_an_example_is_accepted(name: str, found: list[dict[str, Any]], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    files = {"client_secret_file", "browser_secret_file"}
    here = [{key: str(secret) if key in files else value for key, value in issuer.items()} for issuer in found]
    assert len(read_issuers(json.dumps(here))) == len(found)


def test_the_examples_are_found() -> None:
    assert {"docs/howto/oidc-keycloak.md", "docs/operators.md", "docs/dashboard.md"} <= {name for name, _ in FOUND}
