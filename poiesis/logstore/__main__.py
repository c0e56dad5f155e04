"""`python -m poiesis.logstore --control DIR --task ID --attempt N --executors 0,1 --grace SECONDS`: the container `logs` of a task's pod.

It moves the output of the pod's executors to the log store, and ends after them. The exit code is always 0: a problem of the log store is
no problem of the task. What was not stored is reported as the termination message. SIGTERM gives it `--grace` seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Final

READER: Final = "logs"  # the container's name; launchers wait for its `.up`
TERMINATION_LOG: Final = "/dev/termination-log"
MAX_MESSAGE_BYTES: Final = 1024
USAGE: Final = "usage: python -m poiesis.logstore --control DIR --task ID --attempt N --executors 0,1 --grace SECONDS"

_terminated = False


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    global _terminated
    _terminated = True


def _announce(control: str) -> None:
    """Create the file for which launchers wait up to a second (launcher/keep.c). From then on SIGTERM is handled."""
    with suppress(OSError):
        path = os.path.join(control, f"{READER}.up")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644))


def _options(arguments: list[str]) -> dict[str, str] | None:
    words = dict(zip(arguments[::2], arguments[1::2], strict=False))
    known = {"--control", "--task", "--attempt", "--executors", "--grace"}
    return {name[2:]: value for name, value in words.items()} if len(arguments) == 10 and set(words) == known else None


def follow(options: dict[str, str]) -> str | None:
    """What could not be stored, and why; None: everything was."""
    from poiesis.config import PREFIX, LogSettings, read
    from poiesis.domain.errors import PoiesisError
    from poiesis.domain.task import TaskId
    from poiesis.logstore.follower import Follower
    from poiesis.logstore.open import open_store

    try:
        settings = read(LogSettings, os.environ, f"{PREFIX}LOGS__")
        store = open_store(settings)
        if store is None:
            return f"{PREFIX}LOGS__URL is not set"
        executors = [int(index) for index in options["executors"].split(",")]
        task_id, attempt = TaskId(options["task"]), int(options["attempt"])
        follower = Follower(store, options["control"], task_id, attempt, executors, settings)
        return follower.run(lambda: _terminated, time.sleep, float(options["grace"]))
    except (PoiesisError, OSError, ValueError) as error:
        return str(error)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, _terminate)
    options = _options(arguments)
    if options is None:
        print(USAGE, file=sys.stderr)
        return 2
    _announce(options["control"])
    problem = follow(options)
    if problem is not None:
        print(f"the output was not stored completely: {problem}", file=sys.stderr, flush=True)
        with suppress(OSError), open(TERMINATION_LOG, "r+b", buffering=0) as file:
            file.write(problem.encode(errors="replace")[:MAX_MESSAGE_BYTES])
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
