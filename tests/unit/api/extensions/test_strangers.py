"""To another user, a task answers like one that does not exist: every operation of both documents that has a task's id in its path."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import pytest

from poiesis.api.app import load_specification
from poiesis.config import ApiSettings
from poiesis.domain.naming import new_task_id
from poiesis.logstore.directory import DirectoryLogStore
from tests.mutation.operations import Operation, operations
from tests.unit.api.service import BASE, Site

DOCUMENTS: Final = ((BASE, "tes.openapi.yaml"), ("/poiesis/v1", "poiesis.openapi.yaml"))
OF_A_TASK: Final = [
    (base, operation)
    for base, name in DOCUMENTS
    for operation in operations(load_specification(name))
    if operation.path.startswith("/tasks/{id}")
]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    users = [{"name": n, "token_hash": "sha256$" + hashlib.sha256(n.encode()).hexdigest()} for n in ("ada", "eve")]
    file = tmp_path / "users.json"
    file.write_text(json.dumps(users))
    settings = ApiSettings(auth=("bearer",), credentials_file=str(file))
    return Site(api=settings, logs=DirectoryLogStore(tmp_path / "logs"))


def answer(site: Site, base: str, operation: Operation, task_id: str) -> tuple[int, Any]:
    path = operation.path.replace("{id}", task_id).replace("{executor}", "0").replace("{stream}", "stdout")
    response = site.client.request(
        operation.method,
        base + path,
        json=operation.body,
        headers={"Authorization": "Bearer eve"},
        params={"timeout": 0} if "timeout" in operation.query else None,
    )
    return response.status_code, response.json()["error"]


@pytest.mark.parametrize(("base", "operation"), OF_A_TASK, ids=[f"{o.method} {b}{o.path}" for b, o in OF_A_TASK])
def test_the_task_of_another_user_is_unknown(site: Site, base: str, operation: Operation) -> None:
    task_id = site.create(headers={"Authorization": "Bearer ada"})
    before = site.repository.get(task_id)  # type: ignore[arg-type]

    assert answer(site, base, operation, task_id) == (404, "unknown_task")
    assert answer(site, base, operation, new_task_id(site.clock.now())) == (404, "unknown_task")
    assert site.repository.get(task_id) == before  # type: ignore[arg-type]
    assert site.stored() == 1
