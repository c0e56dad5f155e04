"""The documents that these tests read: ours of TES and of the extensions, and the published one where there is a copy of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.unit.specs.interface import Document

ROOT = Path(__file__).resolve().parents[3]
OURS = ROOT / "specs" / "tes.openapi.yaml"
EXTENSIONS = ROOT / "specs" / "poiesis.openapi.yaml"
PUBLISHED_VARIABLE = "TES_PUBLISHED_SPEC"
PUBLISHED_DEFAULT = ROOT.parent / "shared" / "specs" / "task_execution_service.openapi.yaml"


def _load(path: Path) -> Document:
    document: Document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="session", params=[OURS, EXTENSIONS], ids=lambda path: path.stem)
def document_path(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="session")
def document(document_path: Path) -> Document:
    """Each of our documents in turn."""
    return _load(document_path)


@pytest.fixture(scope="session")
def ours() -> Document:
    return _load(OURS)


@pytest.fixture(scope="session")
def published() -> Document:
    path = Path(os.environ.get(PUBLISHED_VARIABLE) or PUBLISHED_DEFAULT)
    if not path.is_file():
        pytest.skip(
            f"no copy of the published TES 1.1.0 document at {path}; set {PUBLISHED_VARIABLE} to compare with one"
        )
    return _load(path)
