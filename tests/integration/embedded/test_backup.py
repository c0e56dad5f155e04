"""Backup and restore of the store, as docs/howto/backup-and-restore.md describes them, with tasks in flight and clients that go on."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from pymongo import MongoClient

from poiesis.domain.task import Executor, Task, TaskId, TaskSpec
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.tasks import MongoTaskRepository
from tests.integration.embedded.service import IMAGE, Service, eventually, request

PAGE: Final = Path(__file__).resolve().parents[3] / "docs" / "howto" / "backup-and-restore.md"
NOON: Final = datetime(2026, 1, 31, 12, tzinfo=UTC)
pytestmark = pytest.mark.timeout(300)


class Inputs:
    """A server of inputs, which counts how often each was fetched: once for each attempt of a task."""

    def __init__(self) -> None:
        self.fetched: Counter[str] = Counter()
        inputs = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                inputs.fetched[self.path.strip("/")] += 1
                self.send_response(200)
                self.send_header("Content-Length", "3")
                self.end_headers()
                self.wfile.write(b"in\n")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def inputs() -> Iterator[Inputs]:
    found = Inputs()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join(10)


def commands_of_the_page(section: str) -> list[str]:
    """The shell commands of the first block of a section."""
    text = PAGE.read_text().partition(f"## {section}\n")[2]
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None, f"the page has no commands in {section}"
    return [line for line in block[1].splitlines() if line.strip()]


def post(service: Service, inputs: Inputs, name: str, script: str) -> str:
    return service.post(
        {
            "name": name,
            "inputs": [{"path": "/data/in", "url": f"{inputs.url}/{name}"}],
            "executors": [{"image": IMAGE, "command": ["sh", "-c", script]}],
        }
    )


def test_a_restored_store_runs_nothing_twice_and_loses_no_task_of_the_backup(
    make_service: Callable[..., Service], inputs: Inputs, tmp_path: Path
):
    service = make_service(POIESIS_FILER__ALLOW_ADDRESSES="127.0.0.0/8", POIESIS_MAX_PARALLEL="20").start()
    done = {name: post(service, inputs, name, "echo $0") for name in ("done-1", "done-2")}
    before = {name: service.wait(task_id) for name, task_id in done.items()}
    gate = "until [ -e /data/in ] && [ $(( $(date +%s) - START )) -ge SECONDS ]; do sleep 0.2; done; echo end"
    wait_s = gate.replace("until", "START=$(date +%s); until")
    running = {n: post(service, inputs, n, wait_s.replace("SECONDS", "30")) for n in ("long-1", "long-2")}
    ending = {n: post(service, inputs, n, wait_s.replace("SECONDS", "8")) for n in ("short-1", "short-2")}
    for task_id in (*running.values(), *ending.values()):
        service.wait(task_id, "RUNNING")

    # backed up while clients go on
    stop = threading.Event()
    later: list[str] = []

    def create() -> None:
        while not stop.wait(0.05):
            later.append(post(service, inputs, f"later-{len(later)}", "echo later"))

    client = threading.Thread(target=create)
    client.start()
    eventually(lambda: len(later) > 1, "tasks created before the backup")
    (command,) = commands_of_the_page("On one machine")
    assert command.split()[0] == "python3"
    argv = [sys.executable, *shlex.split(command)[1:]]
    made = subprocess.run(argv, cwd=service.directory.parent, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    backup = service.directory.parent / "poiesis-backup.sqlite"
    count = len(later)
    eventually(lambda: len(later) > count + 1, "tasks created after the backup")
    stop.set()
    client.join(30)
    with sqlite3.connect(backup) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        stored = dict(db.execute("SELECT id, state FROM tasks").fetchall())
    db.close()
    assert {*done.values(), *running.values(), *ending.values()} <= stored.keys()
    service.wait_all(ending.values())
    eventually(lambda: not any(task_id in str(service.leftovers()) for task_id in ending.values()), "their removal")
    unknown = [task_id for task_id in later if task_id not in stored]
    assert unknown, "no task was created after the backup"

    # the disk is lost, and the backup restored
    service.kill()
    for path in service.directory.glob("tasks.sqlite*"):
        path.unlink()
    shutil.copy(backup, service.directory / "tasks.sqlite")
    service.start()

    assert {name: service.get(task_id) for name, task_id in done.items()} == before
    for name, task_id in running.items():  # taken over
        found = service.wait(task_id)
        assert found["state"] == "COMPLETE", found
        assert [log["stdout"] for log in found["logs"][0]["logs"]] == ["end\n"]
        assert inputs.fetched[name] == 1
    for name, task_id in ending.items():  # ended after the backup: their ends are lost, and they are not run again
        found = service.wait(task_id)
        is_lost = stored[task_id] == "RUNNING"  # on a slow machine it may have ended before the backup
        assert found["state"] == ("SYSTEM_ERROR" if is_lost else "COMPLETE"), found
        assert inputs.fetched[name] == 1
    for task_id in unknown:
        assert request("GET", f"{service.api}/tasks/{task_id}").status == 404
    known = [task_id for task_id in later if task_id in stored]
    assert known, "no task was created before the backup"
    assert set(service.wait_all(known).values()) <= {"COMPLETE", "SYSTEM_ERROR"}
    # what had not begun at the time of the backup begins, although it has run since: the store cannot know
    not_begun = {f"later-{n}" for n, task_id in enumerate(later) if stored.get(task_id) in ("QUEUED", "INITIALIZING")}
    assert {name for name, count in inputs.fetched.items() if count > 1} <= not_begun


def dump(url: str, name: str) -> dict[str, list[dict[str, Any]]]:
    """What mongodump copies, except for indexes, which a process of the service creates when it starts."""
    with MongoClient[dict[str, Any]](url) as client:
        return {c: list(client[name][c].find()) for c in client[name].list_collection_names()}


def test_the_collections_of_mongodb_are_the_whole_store(mongo_server: str):
    """A logical copy, as mongodump and mongorestore make it, into another database: documents, numbers of events, and indexes."""
    uri = f"{mongo_server}/"
    names = ("backup-source", "backup-target")
    databases = [MongoDatabase(uri, name) for name in names]
    try:
        source = MongoTaskRepository(databases[0])
        for number in range(5):
            task = Task(TaskId(f"task-{number}"), TaskSpec((Executor("alpine", ("true",)),)), created_at=NOON)
            source.add(task)
        copied = dump(mongo_server, names[0])
        assert "tasks" in copied
        with MongoClient[dict[str, Any]](mongo_server) as client:
            for collection, documents in copied.items():
                if documents:
                    client[names[1]][collection].insert_many(documents)
        target = MongoTaskRepository(databases[1])
        for number in range(5):
            assert target.get(TaskId(f"task-{number}")) == source.get(TaskId(f"task-{number}"))
        assert json.dumps(dump(mongo_server, names[1]), default=str) == json.dumps(copied, default=str)
    finally:
        for database in databases:
            database.close()
        with MongoClient[dict[str, Any]](mongo_server) as client:
            for name in names:
                client.drop_database(name)
