"""Requests that last, of a user who loses the right to what they show: each is checked again and ends. Streams of events: test_events."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import urllib3

from poiesis.api import credentials, streams
from poiesis.api.extensions import logs, wait
from poiesis.api.server import BackgroundServer
from poiesis.config import ApiSettings
from poiesis.domain.states import State
from poiesis.domain.task import TaskId
from poiesis.logstore.directory import DirectoryLogStore
from poiesis.ports.logs import LogRef
from tests.unit.api.service import Site

LOG: Final = bytes(range(256)) * 1000
LATER: Final[dict[str, tuple[dict[str, Any], int]]] = {
    "a user who has left": ({"eve": {}}, 401),
    "a user who is no longer an admin": ({"ada": {}, "eve": {}}, 404),
}


@pytest.fixture
def site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Site, str, Callable[[dict[str, Any]], None]]]:
    """A service in which ada, an admin, may see a running task of eve; its address; and how to set the users."""
    monkeypatch.setattr(streams, "AUTHENTICATE_EVERY_S", 0.01)
    monkeypatch.setattr(credentials, "_CHECK_FILE_S", 0.01)
    file = tmp_path / "users.json"

    def write(users: dict[str, Any]) -> None:
        entries = [
            {"name": name, "token_hash": "sha256$" + hashlib.sha256(name.encode()).hexdigest(), **more}
            for name, more in users.items()
        ]
        file.write_text(json.dumps(entries))

    write({"ada": {"admin": True}, "eve": {}})
    settings = ApiSettings(auth=("bearer",), credentials_file=str(file), port=0)
    found = Site(api=settings, logs=DirectoryLogStore(tmp_path / "logs"), validate_responses=False)
    task_id = found.create(headers={"Authorization": "Bearer eve"})
    found.change(task_id, state=State.RUNNING)
    with BackgroundServer(found.app, settings, timedelta(seconds=6)) as server:
        yield found, f"{server.url}/poiesis/v1/tasks/{task_id}", write


@pytest.fixture
def log_of_task(site: tuple[Site, str, Any], tmp_path: Path) -> DirectoryLogStore:
    """The log store, which has a log of several pieces."""
    store = site[0].logs
    assert isinstance(store, DirectoryLogStore)
    (tmp_path / "data").write_bytes(LOG)
    with (tmp_path / "data").open("rb") as data:
        ref = LogRef(TaskId(site[1].rpartition("/")[2]), 1, 0, "stdout")
        store.write(ref, 0, data.fileno(), 0, len(LOG))
    return store


def _get(url: str, **kwargs: Any) -> urllib3.BaseHTTPResponse:
    headers = {"Authorization": "Bearer ada"}
    return urllib3.request("GET", url, headers=headers, retries=False, timeout=20, **kwargs)


@pytest.mark.parametrize(("users", "status"), LATER.values(), ids=LATER)
def test_a_long_poll_is_refused(
    site: tuple[Site, str, Any], monkeypatch: pytest.MonkeyPatch, users: dict[str, Any], status: int
) -> None:
    monkeypatch.setattr(wait, "LOST_EVENT_S", 0.1)
    _, url, write = site
    threading.Timer(0.3, write, [users]).start()
    assert _get(f"{url}/wait?timeout=60").status == status


@pytest.mark.parametrize("query", ["", "?follow=true"])
@pytest.mark.parametrize("users", [users for users, _ in LATER.values()], ids=LATER)
def test_a_log_breaks_off(
    site: tuple[Site, str, Any],
    log_of_task: DirectoryLogStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    query: str,
    users: dict[str, Any],
) -> None:
    monkeypatch.setattr(logs, "PIECE_BYTES", 20_000)
    _, url, write = site
    read, pause = log_of_task.read, threading.Event()

    def read_slowly(*args: Any) -> bytes:
        write(users)
        pause.wait(0.05)  # longer than the rights are believed
        return read(*args)

    monkeypatch.setattr(log_of_task, "read", read_slowly)
    response = _get(f"{url}/logs/0/stdout{query}", preload_content=False)
    assert response.status == 200
    with caplog.at_level(logging.WARNING), pytest.raises(urllib3.exceptions.ProtocolError):
        list(response.stream(1000))
    assert response.tell() < len(LOG)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
