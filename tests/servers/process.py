"""Start a server program on free ports, wait until it answers, stop it by its process id.

A port found free may be taken before the server binds it, so a server that dies early is started again on other ports.
A test run that is killed with SIGKILL cannot clean up: where the system has `setpriv`, the kernel ends the server with its
parent.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

T = TypeVar("T")

HOST = "127.0.0.1"
PORTS = range(
    15000, 28000
)  # below Linux's ephemeral range and Kubernetes' node ports, so that no outgoing connection takes one in the meantime
ATTEMPTS = 3
START_S = 60.0  # seconds; generous for a machine busy with other workers, the usual start is below five
STOP_S = 5.0  # seconds between SIGTERM and SIGKILL
POLL_S = 0.05


class ServerFailed(RuntimeError):
    """The server ended, or did not respond before the deadline; the message contains the end of its output."""


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports of 127.0.0.1 that are free now."""
    found: list[int] = []
    chance = random.SystemRandom()  # workers started together must not draw the same ports
    while len(found) < count:
        port = chance.choice(PORTS)
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def missing(reason: str) -> NoReturn:
    """Skip the test: the program of the server that it needs is not installed."""
    pytest.skip(reason)


@contextmanager
def running(
    name: str,
    ports: int,
    command: Callable[[Path, list[int]], Sequence[str]],
    connect: Callable[[list[int]], T],
    *,
    start_s: float = START_S,
    stop_s: float = STOP_S,
) -> Iterator[T]:
    """Run `command(directory, ports)` until the block ends; yield what `connect(ports)` returned, tried for `start_s` seconds.

    At the end the server and what it has started get SIGTERM, and SIGKILL when it has ended or after `stop_s` seconds; its directory
    is removed.
    """
    for attempt in range(1, ATTEMPTS + 1):
        # a short path: some servers put a unix socket there, and its path has a limit of 108 bytes
        directory = Path(tempfile.mkdtemp(prefix=f"poiesis-{name}-"))
        process: subprocess.Popen[bytes] | None = None
        try:
            chosen = free_ports(ports)
            log = directory / "server.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*_bound_to_parent(), *command(directory, chosen)],
                    cwd=directory,
                    env={**os.environ, "TMPDIR": str(directory)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                server = _wait(name, process, log, partial(connect, chosen), start_s)
            except ServerFailed:
                if attempt == ATTEMPTS:
                    raise
                continue
            yield server
            return
        finally:
            if process is not None:
                _stop(process, stop_s)
            shutil.rmtree(directory, ignore_errors=True)


def _bound_to_parent() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _wait(name: str, process: subprocess.Popen[bytes], log: Path, connect: Callable[[], T], start_s: float) -> T:
    deadline = time.monotonic() + start_s
    last: Exception | None = None
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return connect()
        except (
            Exception
        ) as error:  # clients raise many types while their server is not ready; the last error is chained below
            last = error
            time.sleep(POLL_S)
    what = (
        f"ended with {process.returncode}" if process.poll() is not None else f"did not respond within {start_s:.0f} s"
    )
    raise ServerFailed(f"{name} {what}: {log.read_bytes()[-2000:].decode(errors='replace')}") from last


def _stop(process: subprocess.Popen[bytes], stop_s: float) -> None:
    """Of the whole group: a server may be the child of a script that does not pass signals on."""
    _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(stop_s)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
