"""docs/clients.md has the versions that are installed for the tests, and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.specs.test_compliance_page import ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text()
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")][1:]
PINS = {
    "py-tes": "dev.txt:py-tes",
    "pydantic-tes (Galaxy's Pulsar)": "clients/pydantic-tes.txt:pydantic-tes",
    "cwl-tes": "clients/cwl-tes.txt:cwl-tes",
    "Snakemake": "clients/snakemake.txt:snakemake",
    "Snakemake 7 (`--tes`)": "clients/snakemake7.txt:snakemake",
    "Toil": "clients/toil.txt:toil",
    "openapi-python-client": "clients/generated.txt:openapi-python-client",
    "schemathesis": "clients/schemathesis.txt:schemathesis",
}
"""By client, the file below requirements/ and the package in it."""


def pinned(place: str) -> str:
    file, package = place.split(":")
    text = (Path(ROOT) / "requirements" / file).read_text()
    found = re.search(rf"^{package}(?:\[[a-z,]+\])?==(\S+)", text, re.MULTILINE)
    assert found, place
    return found[1]


def test_every_client_has_a_test_and_its_version() -> None:
    versions = {row[0]: row[1] for row in ROWS}
    assert {client: versions[client] for client in PINS} == {client: pinned(place) for client, place in PINS.items()}
    assert f"SPROCKET := {versions['Sprocket']}\n" in (ROOT / "Makefile").read_text()
    for _, version, date, *_, test in ROWS:
        assert version == date == "-" or re.fullmatch(r"\d{4}-\d\d-\d\d", date)
        path, name = test.strip("`").split("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text()


def test_every_file_of_client_tests_is_in_the_table() -> None:
    shown = {row[-1].strip("`").split("::")[0] for row in ROWS}
    assert {f"clients/{path.name}" for path in (ROOT / "tests" / "clients").glob("test_*.py")} <= shown
