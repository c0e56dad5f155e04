"""Runs the launcher as in a container: one process, its files in a directory of the test.

The binary is the one that the package ships, or is built here if `launcher/` has changed since; `POIESIS_LAUNCHER` is another binary
to test. `until` checks a condition until a deadline; nothing waits for a fixed time.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from poiesis.config import ARCHITECTURES, shipped_launchers

SOURCE = Path(__file__).resolve().parents[2] / "launcher"
MARKER = "@@record"
DEADLINE_S = 20.0  # generous: only reached if something hangs

Record = dict[str, Any]
T = TypeVar("T")


def until(condition: Callable[[], T], what: str = "condition") -> T:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {DEADLINE_S} s: {what}")
        time.sleep(0.005)


@dataclass(frozen=True)
class Result:
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def record(self) -> Record:
        """The record in the last line with the marker."""
        line = [x for x in self.stdout.split(b"\n") if x.startswith(MARKER.encode() + b" ")][-1]
        record: Record = json.loads(line[len(MARKER) + 1 :].decode("utf-8"))
        return record

    @property
    def log(self) -> bytes:
        """The command's output: the log without the record's line."""
        return self.stdout[: self.stdout.rindex(MARKER.encode() + b" ")]


class Launcher:
    """The binary under test, and the processes started with it."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, *options: object, argv: list[Any], marker: bool = True, prefix: Sequence[str] = (), **popen: Any
    ) -> subprocess.Popen[bytes]:
        line = [("--record-line", MARKER)] if marker else []
        words = [
            os.fsencode(str(o)) if not isinstance(o, bytes) else o
            for o in (*options, *(w for pair in line for w in pair))
        ]
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen([*prefix, self.binary, *words, "--", *argv], **popen)
        self._started.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> Result:
        out, err = process.communicate(timeout=DEADLINE_S)
        return Result(process.returncode, out or b"", err or b"")

    def run(self, *options: object, argv: list[Any], **popen: Any) -> Result:
        return self.end(self.start(*options, argv=argv, **popen))

    def sh(self, script: str, *options: object, **popen: Any) -> Result:
        return self.run(*options, argv=["/bin/sh", "-c", script], **popen)

    until = staticmethod(until)

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("POIESIS_LAUNCHER"):
        return Path(given)
    current = subprocess.run(
        ["sha256sum", "--status", "--check", "launcher/shipped.sha256"], cwd=SOURCE.parent, check=False
    )
    if current.returncode == 0 and (name := ARCHITECTURES.get(platform.machine())):
        return shipped_launchers()[name]
    if not (shutil.which("make") and shutil.which("musl-gcc")):
        pytest.skip("launcher/ has changed, and there is no musl-gcc: `make launcher` builds it")
    build = tmp_path_factory.mktemp("launcher")
    made = subprocess.run(["make", "-C", SOURCE, f"BUILD={build}"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return build / "launcher"


@pytest.fixture
def launcher(binary: Path) -> Iterator[Launcher]:
    own = Launcher(binary)
    yield own
    own.close()


@pytest.fixture
def control(tmp_path: Path) -> Path:
    directory = tmp_path / "control"
    directory.mkdir()
    return directory
