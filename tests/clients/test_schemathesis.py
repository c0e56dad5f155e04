"""schemathesis against both APIs of a real service, with all its checks: every failure has to be one that is explained here.

Seeded (`POIESIS_SEED`, a number), and bounded in time (`POIESIS_SCHEMATHESIS_S` seconds for each API).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import pytest

from tests.clients.conftest import Client, programs_of
from tests.integration.embedded.service import Service

SEED: Final = os.environ.get("POIESIS_SEED", "1")
SECONDS: Final = os.environ.get("POIESIS_SCHEMATHESIS_S", "25")

ANY: Final = "any operation"
STATEFUL: Final = "Stateful tests"
"""What the report names instead of an operation, where requests follow each other."""

MINIMAL = "TES requires `executors` in a task, and says that MINIMAL has only id and state; MINIMAL is the default"
TOLERANT = "requests are read with tolerance (docs/api.md): types of ignored keys, an empty or large parameter, a view in another case"
WORDS = "rules that TES states in words are checked too: absolute paths, at least one executor, URL schemes, a token that was issued"

EXPLAINED: Final[dict[str, dict[tuple[str, str], str]]] = {
    "/ga4gh/tes/v1": {
        ("ST108", "GET /tasks"): MINIMAL,
        ("ST108", "GET /tasks/{id}"): MINIMAL,
        ("ST201", "GET /tasks"): TOLERANT,
        ("ST201", "GET /tasks/{id}"): TOLERANT,
        ("ST201", "POST /tasks"): TOLERANT,
        ("ST202", "GET /tasks"): WORDS,
        ("ST202", "POST /tasks"): WORDS,
    },
    "/poiesis/v1": {("ST201", ANY): TOLERANT, ("ST202", ANY): WORDS},
}
"""By API: the code of a failure and the operation. ST108: a response violates its schema; ST201: a request that violates the schema is
accepted; ST202: one that does not is refused."""

LEFT_OUT: Final = {
    "StreamEvents": "its response has no end",
    "WaitForTask": "its response may take a minute",
    "WaitForTasks": "its response may take a minute",
}
"""Operations that schemathesis cannot test in bounded time; test_mutated_extensions.py sends mutated requests to them."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("base", EXPLAINED)
def test_every_failure_is_explained(service: Service, tmp_path: Path, base: str) -> None:
    client = Client(programs_of("schemathesis"), tmp_path)
    api = service.url + base
    done = client.run(
        *("schemathesis", "run", f"{api}/openapi.json", "--url", api, "--seed", SEED, "--max-time", SECONDS),
        *(part for name in LEFT_OUT for part in ("--exclude-operation-id", name)),
        *("--checks", "all", "--continue-on-failure", "--report", "json", "--report-json-path", "report.json"),
        expected=(0, 1),
    )
    report = json.loads((tmp_path / "report.json").read_text())
    found = {(failure["code"], operation) for failure in report["failures"] for operation in failure["operations"]}
    explained = {*EXPLAINED[base], *((code, STATEFUL) for code, _ in EXPLAINED[base])}
    unexplained = {(code, name) for code, name in found if not {(code, name), (code, ANY)} & explained}
    assert unexplained == set(), done.stdout[-8000:]
    assert report["errors"] == []
    assert report["operations"]["selected"] > 0 and report["test_cases"]["generated"] > 0, report["test_cases"]
