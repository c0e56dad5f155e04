"""The document of the extensions: every operation has the errors that its parameters and its body can cause."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.mutation.operations import METHODS, operations

DOCUMENT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[3] / "specs" / "poiesis.openapi.yaml").read_text())
OPERATIONS = {f"{operation.method} {operation.path}": operation for operation in operations(DOCUMENT)}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_the_errors_that_a_client_can_cause(name: str) -> None:
    operation = OPERATIONS[name]
    responses: Mapping[str, Any] = DOCUMENT["paths"][operation.path][operation.method.lower()]["responses"]
    wanted = {
        "403",
        *(("400",) if operation.query or operation.body is not None else ()),
        *(("404",) if "{" in operation.path else ()),
    }
    assert wanted <= set(responses), f"add to its responses: {sorted(wanted - set(responses))}"


def test_operations_have_unique_ids() -> None:
    ids = [item[m]["operationId"] for item in DOCUMENT["paths"].values() for m in METHODS if m in item]
    assert len(ids) == len(set(ids))


def test_a_valid_body_is_made_for_each_operation_with_one() -> None:
    bodies = {name: operation.body for name, operation in OPERATIONS.items() if operation.body is not None}
    assert all(isinstance(body, dict) for body in bodies.values())
