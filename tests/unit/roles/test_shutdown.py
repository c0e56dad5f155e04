"""A process ends within its grace period, whatever its threads compute."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import re, sys, threading, time
from datetime import timedelta
from poiesis.roles.shutdown import stop_on_signal, wait_for

def compute():
    {compute}

stop = threading.Event()
stop_on_signal(stop, timedelta(seconds=0.5))
thread = threading.Thread(target=compute{daemon})
thread.start()
print("ready", flush=True)
{main}
sys.exit(0)
"""


def run(compute: str, main: str, daemon: str = "") -> tuple[int, str]:
    """Start the program, send SIGTERM when it is ready; exit code and stderr. Raises: TimeoutExpired when it does not end."""
    program = PROGRAM.format(compute=compute, main=main, daemon=daemon)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, stderr


@pytest.mark.parametrize("main", ["stop.wait()", "compute()"], ids=["thread", "main thread and thread"])
def test_a_process_that_computes_forever_ends_after_the_grace_period(main: str) -> None:
    code, stderr = run("while True: pass", main)

    assert code == 1
    assert "in compute" in stderr  # the dump names what did not end


def test_a_process_that_ends_in_time_keeps_its_exit_code() -> None:
    assert run("stop.wait()", "stop.wait()") == (0, "")


def test_a_second_signal_does_not_extend_the_grace_period() -> None:
    code, _ = run("while True: pass", "import os, signal; stop.wait(); os.kill(os.getpid(), signal.SIGTERM); compute()")

    assert code == 1


def test_a_signal_that_another_thread_received_ends_the_wait() -> None:
    receive = "import signal; time.sleep(0.2); signal.pthread_kill(threading.get_ident(), signal.SIGINT)"
    program = PROGRAM.format(compute=receive, main="wait_for(stop)", daemon="")

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)

    assert (ended.returncode, ended.stderr) == (0, "")
