"""The conformance tests of openapi-test-runner (ELIXIR Cloud & AAI, GA4GH's tests of TES), all of them, by its own program.

It is not in a package registry: `make clients CLIENTS=openapi-test-runner` clones it, where its repository can be reached.
"""

from __future__ import annotations

import json

import pytest

from tests.clients.conftest import ENVIRONMENTS, Client, programs_of
from tests.integration.embedded.service import Service

VERSION = "1.1.0"
UNMET = {
    "tests/create_task_ignore_error.yml get_task": "it reads logs right after the creation; entries are for executors that ended"
}
"""Tests that Poiesis does not pass, by name, with the reason."""


@pytest.mark.timeout(600)
def test_all_its_tests_of_tes(service: Service) -> None:
    source = ENVIRONMENTS / "openapi-test-runner" / "source"
    client = Client(programs_of("openapi-test-runner"), source)
    output = service.directory.parent
    client.run(
        "openapi-test-runner",
        "report",
        "--server",
        f"{service.url}/ga4gh/tes/",
        "--version",
        VERSION,
        "--output_path",
        str(output),
    )
    report = json.loads((output / "report.json").read_text())
    results = {
        f"{phase['phase_name']} {test['test_name']}": test["status"]
        for phase in report["phases"]
        for test in phase["tests"]
    }
    assert len(results) > 15
    assert {name for name, status in results.items() if status not in ("PASS", "SKIP")} <= set(UNMET)
