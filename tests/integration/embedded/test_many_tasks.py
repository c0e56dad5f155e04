"""A hundred concurrent tasks; and the service killed, with or without its commands, in the

middle of many. A command reports its start and its end over a connection to this process, which is not
killed, so that no crash can lose a count (plain processes use the machine's network).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from tests.integration.embedded.service import Service, eventually, logs_of, resident_bytes, sh, system_log

TASKS: Final = 100
PARALLEL: Final = 2 * len(os.sched_getaffinity(0))
KILLED_TASKS: Final = 4 + 2 * PARALLEL
OUTPUT_LINES: Final = 60_000  # of each killed task: megabytes, so that uploads take a while
# A quarter above the measured peak on two cores, with pages that processes share counted once: the service 113 MB, four concurrent tasks
# (twice the cores) 25 MB: 138 MB. A task that stayed in memory would exceed the second bound.
TREE_BYTES: Final = 172_000_000
BYTES_FOR_EACH_PARALLEL_TASK: Final = 10_000_000
SERVICE_GROWTH_BYTES: Final = 60_000_000


class Counted(socketserver.ThreadingTCPServer):
    """Counts the lines that it receives, and responds only once `gate` is open, so that a test knows what is in progress."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self) -> None:
        self.lines: Counter[str] = Counter()
        self.gate = threading.Event()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Line)

    def note(self, line: str) -> None:
        with self._lock:
            self.lines[line] += 1

    def count(self, word: str) -> int:
        with self._lock:
            return sum(n for line, n in self.lines.items() if line.startswith(word))


class _Line(socketserver.StreamRequestHandler):
    server: Counted

    def handle(self) -> None:
        line = self.rfile.readline().decode().strip()
        if not line:
            return
        self.server.note(line)
        self.server.gate.wait(60)
        with contextlib.suppress(OSError):  # it was killed while it waited
            self.wfile.write(b"go\n")


@pytest.fixture
def counted() -> Iterator[Counted]:
    if shutil.which("bash") is None:
        pytest.skip("commands need bash to speak over TCP")
    with Counted() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.gate.set()
        server.shutdown()
        thread.join()


def post_all(service: Service, documents: list[dict[str, Any]]) -> list[str]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(service.post, documents))


def test_a_hundred_concurrent_tasks_complete_in_bounded_memory(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = make_service().start()
    files = service.allow[0]
    before = resident_bytes(service.pid)
    ids = post_all(
        service,
        [
            {
                "name": f"task-{i}",
                "inputs": [{"path": "/data/in.txt", "content": f"number {i}\n"}],
                "executors": [sh("tr a-z A-Z < /data/in.txt > /data/out.txt")],
                "outputs": [{"path": "/data/out.txt", "url": f"file://{files}/{i}.txt"}],
            }
            for i in range(TASKS)
        ],
    )
    assert len(set(ids)) == TASKS
    peak = 0

    def ended() -> bool:
        nonlocal peak
        peak = max(peak, resident_bytes(service.pid))
        states = service.states(ids)
        return len(states) == TASKS and set(states.values()) == {"COMPLETE"}

    eventually(ended, "the end of all tasks", 100)
    assert [(files / f"{i}.txt").read_text() for i in range(TASKS)] == [f"NUMBER {i}\n" for i in range(TASKS)]
    assert sorted(p.name for p in files.iterdir()) == sorted(f"{i}.txt" for i in range(TASKS))
    assert peak < TREE_BYTES + max(0, PARALLEL - 4) * BYTES_FOR_EACH_PARALLEL_TASK
    service.assert_nothing_is_left()
    assert resident_bytes(service.pid) - before < SERVICE_GROWTH_BYTES
    assert service.logged_errors() == []


def slow_task(service: Service, counted: Counted, number: int) -> dict[str, Any]:
    """Sends `begin N`, waits for the answer, writes a large file, sends `end N`."""
    say = f'say() {{ exec 3<>/dev/tcp/127.0.0.1/{counted.server_address[1]}; echo "$1 {number}" >&3; read -r _ <&3; exec 3>&-; }}'
    script = f"{say}; say begin; yes '{number} of many' | head -n {OUTPUT_LINES} > /data/out; say end"
    return {
        "name": f"task-{number}",
        "inputs": [{"path": "/data/in", "content": "x"}],
        "executors": [{"image": "alpine", "command": ["bash", "-c", script]}],
        "outputs": [{"path": "/data/out", "url": f"file://{service.allow[0]}/{number}"}],
    }


def assert_files_are_complete(directory: Path, numbers: set[int]) -> None:
    """Exactly these files, each with all its lines, and no temporary ones."""
    assert {p.name for p in directory.iterdir()} == {str(n) for n in numbers}
    for number in numbers:
        assert (directory / str(number)).read_text() == f"{number} of many\n" * OUTPUT_LINES


def test_commands_survive_the_service_and_are_adopted(make_service: Callable[..., Service], counted: Counted) -> None:
    """`kill -9` of only the service, with commands running, ending and waiting: every task completes, each command ran once."""
    service = make_service().start()
    ids = post_all(service, [slow_task(service, counted, n) for n in range(KILLED_TASKS)])
    eventually(lambda: counted.count("begin") >= 2, "the first commands")
    service.kill()
    counted.gate.set()  # some end while no service is running
    eventually(lambda: counted.count("end") >= 2, "the end of commands without a service")
    service.start()
    eventually(lambda: counted.count("end") >= KILLED_TASKS // 2, "half of the commands")
    service.kill()  # now in the middle of uploads and launches
    service.start()
    states = service.wait_all(ids)
    assert set(states.values()) == {"COMPLETE"}, {i: system_log(service.get(i)) for i in ids}
    assert counted.lines == Counter({f"{word} {n}": 1 for word in ("begin", "end") for n in range(KILLED_TASKS)})
    assert_files_are_complete(service.allow[0], set(range(KILLED_TASKS)))
    assert all(len(logs_of(service.get(i))) == 1 for i in ids)
    service.assert_nothing_is_left()
    assert service.logged_errors() == []


def test_after_everything_is_killed_every_task_ends_and_none_runs_twice(
    make_service: Callable[..., Service], counted: Counted
) -> None:
    """`kill -9` of service, launchers and commands: started tasks end as SYSTEM_ERROR with the reason, waiting ones run."""
    service = make_service().start()
    ids = post_all(service, [slow_task(service, counted, n) for n in range(KILLED_TASKS)])
    eventually(lambda: counted.count("begin") >= 2, "the first commands")
    service.kill_tree()
    begun_first = {int(line.split()[1]) for line in counted.lines}
    counted.gate.set()
    service.start()
    eventually(lambda: counted.count("end") >= 4, "commands of the second life")
    service.kill_tree()
    service.start()
    states = service.wait_all(ids)
    outcome = {n: states[task_id] for n, task_id in enumerate(ids)}
    assert set(outcome.values()) <= {"COMPLETE", "SYSTEM_ERROR"}
    assert {n for n in begun_first if outcome[n] != "SYSTEM_ERROR"} == set()
    assert max(counted.lines.values()) == 1, counted.lines
    complete = {n for n, state in outcome.items() if state == "COMPLETE"}
    assert len(complete) >= KILLED_TASKS - 2 * PARALLEL  # the rest was about to run, or ran, when it was killed
    assert_files_are_complete(service.allow[0], complete)
    for number in set(outcome) - complete:
        messages = system_log(service.get(ids[number]))
        assert "how its command ended is unknown" in messages or "its command was not started" in messages
    service.assert_nothing_is_left()
