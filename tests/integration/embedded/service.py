"""A real `poiesis up` in a separate process, used only over HTTP; and what the kernel knows of its processes.

Everything that runs for a service has its directory in its mount table, so `processes_of` also finds commands that an earlier, killed
service process had started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import urllib3

T = TypeVar("T")

DEADLINE_S: Final = float(os.environ.get("DL", "60"))  # seconds; generous, for a machine that is busy with other tests
POLL_S: Final = 0.02
SHOWN_BYTES: Final = 20_000
TERMINAL: Final = frozenset({"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED"})
IMAGE: Final = "alpine"  # not used by the process runtime
HTTP: Final = urllib3.PoolManager(maxsize=32, timeout=urllib3.Timeout(30), retries=False)
Document = dict[str, Any]


class Answer(NamedTuple):
    status: int
    text: str

    @property
    def document(self) -> Any:
        return json.loads(self.text)


def request(method: str, url: str, body: Any = None, **headers: str) -> Answer:
    """`body`: bytes as they are, anything else as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    answer = HTTP.request(
        method, url, body=data, headers={**kind, **{k.replace("_", "-"): v for k, v in headers.items()}}
    )
    return Answer(answer.status, answer.data.decode())


def eventually(look: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Return the first true result of `look`, which is polled."""
    end = time.monotonic() + deadline_s
    while not (found := look()):
        assert time.monotonic() < end, f"no {what} within {deadline_s:.0f} s"
        time.sleep(POLL_S)
    return found


def environment(**more: str) -> dict[str, str]:
    """This process' variables without those that would change a service or a client."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("POIESIS_", "TES_", "COV_CORE", "COVERAGE"))}
    return {**own, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "poiesis", *arguments]


def _bound_to_parent() -> list[str]:
    """A test run that is killed leaves no service behind, where the system supports that."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def run_poiesis(*arguments: str, stdin: str | None = None, timeout_s: float = DEADLINE_S, **variables: str) -> Any:
    """`poiesis ARGUMENTS` to its end."""
    return subprocess.run(
        command(*arguments),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(**variables),
        check=False,
    )


class Service:
    """On one directory; may be started, killed and started again. `allow`: directories that file:// URLs may refer to."""

    def __init__(self, directory: Path, *, allow: Sequence[Path] = (), **variables: str) -> None:
        self.directory = directory
        self.allow = tuple(allow)
        self.variables = variables
        self.url = ""
        self.log = directory.parent / f"{directory.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    # ---- its life

    def start(self) -> Service:
        """Return when it responds."""
        options = [o for root in self.allow for o in ("--allow-dir", str(root))]
        written = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                _bound_to_parent()
                + command("up", "--port", "0", "--dir", str(self.directory), "--runtime", "process", *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(**self.variables),
                start_new_session=True,
            )

        def announced() -> str | None:
            text = self.log.read_bytes()[written:].decode()
            assert self._process is not None and self._process.poll() is None, f"the service ended: {text}"
            first = text.partition("\n")[0].split()
            return first[4] if first[:4] == ["Poiesis", "is", "up", "at"] and "Try:" in text else None

        self.url = eventually(announced, "the address of the service")
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code. A service that does not end prints the stacks of its threads."""
        assert self._process is not None
        self._process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(DEADLINE_S)
        written = self.log.stat().st_size
        self._process.send_signal(signal.SIGABRT)
        self._process.wait(DEADLINE_S)
        raise AssertionError(f"the service did not stop: {self.log.read_bytes()[written:].decode(errors='replace')}")

    def kill(self) -> None:
        """Kill only the service process: commands continue."""
        self.stop(signal.SIGKILL)

    def kill_tree(self) -> None:
        """Kill the service and everything that it or an earlier process of it has started, like a power failure."""
        assert self._process is not None
        own = self._process.pid
        os.kill(own, signal.SIGSTOP)  # so that it starts nothing while the others are killed

        def none_left() -> bool:
            left = {*descendants(own), *processes_of(self.directory)} - {own}
            # stopped first, so that no launcher records how its command was killed
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            return not {pid for pid in left if not is_zombie(pid)}

        eventually(none_left, "the end of all processes")
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def close(self) -> None:
        """Remove everything of it, also after a failed test, which then shows the end of its log."""
        if self.log.exists():
            print(
                f"the end of {self.log.name}:", self.log.read_bytes()[-SHOWN_BYTES:].decode(errors="replace"), sep="\n"
            )
        try:
            if self.is_running:
                self.stop()
        finally:
            for pid in processes_of(self.directory):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Service:
        return self if self.is_running else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- as a client sees it

    @property
    def api(self) -> str:
        return f"{self.url}/ga4gh/tes/v1"

    def post(self, document: Document) -> str:
        answer = request("POST", f"{self.api}/tasks", document)
        assert answer.status == 200, answer.text
        return str(answer.document["id"])

    def get(self, task_id: str, view: str = "FULL") -> Document:
        answer = request("GET", f"{self.api}/tasks/{task_id}?view={view}")
        assert answer.status == 200, answer.text
        return dict(answer.document)

    def state(self, task_id: str) -> str:
        return str(self.get(task_id, "MINIMAL")["state"])

    def states(self, task_ids: Iterable[str]) -> dict[str, str]:
        """By one listing, as a client with many tasks does."""
        found = request("GET", f"{self.api}/tasks?page_size=2000").document["tasks"]
        wanted = set(task_ids)
        return {t["id"]: t["state"] for t in found if t["id"] in wanted}

    def cancel(self, task_id: str) -> Answer:
        return request("POST", f"{self.api}/tasks/{task_id}:cancel")

    def count(self) -> int:
        return len(request("GET", f"{self.api}/tasks?page_size=2000").document["tasks"])

    def wait(self, task_id: str, *states: str) -> Document:
        """In FULL, once it is in one of `states`: without any, at its end."""
        wanted = frozenset(states) or TERMINAL

        def reached() -> bool:
            state = self.state(task_id)
            assert state not in TERMINAL or state in wanted, f"{state}: {self.get(task_id)['logs']}"
            return state in wanted

        eventually(reached, f"{' or '.join(sorted(wanted))} of {task_id}")
        return self.get(task_id)

    def wait_all(self, task_ids: Iterable[str], deadline_s: float = DEADLINE_S) -> dict[str, str]:
        ids = list(task_ids)

        def ended() -> bool:
            states = self.states(ids)
            return len(states) == len(ids) and set(states.values()) <= TERMINAL

        eventually(ended, f"the end of {len(ids)} tasks", deadline_s)
        return self.states(ids)

    def run(self, *executors: Document, **task: Any) -> Document:
        return self.wait(self.post({"executors": list(executors), **task}))

    # ---- what is left

    def logged_errors(self) -> list[str]:
        """Errors in its log, and traces."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if " ERROR " in line or "Traceback" in line or "Exception" in line]

    def leftovers(self) -> list[str]:
        """Files of tasks, mounts and processes that exist now."""
        tasks = self.directory / "tasks"
        found = [str(p.relative_to(self.directory)) for p in tasks.iterdir()] if tasks.is_dir() else []
        found = found or [f"mount {m}" for m in mounts_of("self", self.directory)]
        return found or [f"process {pid}: {command_line(pid)}" for pid in processes_of(self.directory)]

    def assert_nothing_is_left(self) -> None:
        end = time.monotonic() + DEADLINE_S
        while (left := self.leftovers()) and time.monotonic() < end:
            time.sleep(POLL_S)
        assert left == []


def sh(script: str, **more: Any) -> Document:
    return {"image": IMAGE, "command": ["sh", "-c", script], **more}


def logs_of(task: Mapping[str, Any]) -> list[Document]:
    return list(task["logs"][0]["logs"])


def exit_codes(task: Mapping[str, Any]) -> list[int]:
    return [entry["exit_code"] for entry in logs_of(task)]


def system_log(task: Mapping[str, Any]) -> str:
    return "\n".join(task["logs"][0]["system_logs"])


# ---- what the kernel knows


def _pids() -> Iterator[int]:
    yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def mounts_of(pid: int | str, directory: Path) -> list[str]:
    """Lines of the mount table of a process that contain `directory`."""
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # gone, or another user's
        return []
    return [line for line in lines if f"{directory}/" in line]


def processes_of(directory: Path) -> list[int]:
    """Running commands, launchers and sandboxes of the service on `directory`; not the service itself."""
    own = _namespace("self")
    theirs: dict[str, bool] = {}  # mount namespaces, read once each
    found = []
    for pid in _pids():
        space = _namespace(pid)
        if space not in ("", own):
            if space not in theirs:
                theirs[space] = bool(mounts_of(pid, directory))
            if theirs[space]:
                found.append(pid)
                continue
        if f"{directory}/tasks/" in command_line(pid):
            found.append(pid)
    return [pid for pid in found if not is_zombie(pid)]


def _namespace(pid: int | str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:  # gone, a zombie, or another user's
        return ""


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def is_zombie(pid: int) -> bool:
    return _stat(pid)[:1] in ([], ["Z"], ["X"])


def descendants(pid: int) -> list[int]:
    parents = {p: int(fields[1]) for p in _pids() if (fields := _stat(p))}
    found, front = [], [pid]
    while front:
        front = [p for p, parent in parents.items() if parent in front]
        found += front
    return found


def of_session(leader: int) -> list[int]:
    """Its processes, also when the leader has ended and they have no parent left; not the leader."""
    return [p for p in _pids() if p != leader and _stat(p)[3:4] == [str(leader)]]


def resident_bytes(pid: int) -> int:
    """Memory of a process and all its descendants now; pages that they share are counted once, as after a fork."""
    kilobytes = 0
    for p in (pid, *descendants(pid)):
        with contextlib.suppress(OSError, IndexError):  # gone, or going
            kilobytes += int(Path(f"/proc/{p}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0])
    return kilobytes * 1024
