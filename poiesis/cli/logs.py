"""The output of commands: what TES shows of it, and whole logs while they are written where the server has them."""

from __future__ import annotations

import codecs
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Self

from poiesis.cli.client import TesClient
from poiesis.cli.columns import dig, state_of
from poiesis.cli.exits import MissingExtension
from poiesis.cli.output import note
from poiesis.cli.text import printable
from poiesis.domain.errors import PoiesisError, Unauthenticated, UnknownTask

STREAMS: Final = ("stdout", "stderr")
RETRY_FROM_S: Final = 0.3
RETRY_TO_S: Final = 5.0
QUIET_S: Final = 3.0
"""A task that ends sooner needs no note that its output is shown only at its end."""
JOIN_S: Final = 15.0
"""How long to wait for the rest of a log after its task has ended."""
SUSPICIOUS: Final = 10_000
"""Characters from which on TES servers keep only the end of an output (Funnel 10 KB, Poiesis 16 KiB)."""


class Sink:
    """Writes output of commands to this process's streams, one piece at a time; nothing after `close`."""

    def __init__(self, *, raw: bool = False) -> None:
        self._raw, self._lock, self._closed = raw, threading.Lock(), False
        self.failure: OSError | None = None

    def writer(self, stream: str) -> Writer:
        return Writer(self, stream)

    def write(self, stream: str, piece: bytes, text: str) -> None:
        target = sys.stderr if stream == "stderr" else sys.stdout
        with self._lock:
            if self._closed or self.failure is not None:
                return
            try:
                if self._raw and hasattr(target, "buffer"):
                    target.buffer.write(piece)
                else:
                    target.write(text)
                target.flush()
            except OSError as error:  # of a closed pipe: the main thread ends the command
                self.failure = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for a write that has begun: at its end Python may not find a thread within one."""
        if self._lock.acquire(timeout=1.0):
            self._closed = True
            self._lock.release()

    def check(self) -> None:
        """Raises: OSError, BrokenPipeError."""
        if self.failure is not None:
            raise self.failure


class Writer:
    """One stream: bytes cut anywhere become text, with carriage returns as progress bars use them, and no other control characters."""

    def __init__(self, sink: Sink, stream: str) -> None:
        self._sink, self._stream, self.count = sink, stream, 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def __call__(self, piece: bytes, *, final: bool = False) -> None:
        self.count += len(piece)
        text = "\r".join(map(printable, self._decode(piece, final).split("\r")))
        if piece or text:
            self._sink.write(self._stream, piece, text)


class LiveLogs:
    """Follows streams of a task in threads, from `start` until its executors have ended. `finish` prints what was not followed."""

    def __init__(
        self, client: TesClient, task_id: str, sink: Sink, executors: Iterable[int], streams: Sequence[str] = STREAMS
    ) -> None:
        self._client, self._task_id, self._sink = client, task_id, sink
        self._executors, self._streams = list(executors), streams
        self._threads: list[threading.Thread] = []
        self._task_ended = threading.Event()
        self._done: set[tuple[int, str]] = set()
        self._writers = {(i, stream): sink.writer(stream) for i in self._executors for stream in streams}

    def start(self) -> None:
        if not self._threads:
            self._threads = [threading.Thread(target=self._follow, args=(s,), daemon=True) for s in self._streams]
            for thread in self._threads:
                thread.start()

    def finish(self, task: dict[str, Any]) -> None:
        """`task`: in FULL view, ended. Raises: OSError of the output."""
        self._task_ended.set()
        for thread in self._threads:
            thread.join(JOIN_S)
        for (index, stream), writer in self._writers.items():
            if (index, stream) not in self._done:
                if writer.count:
                    note(f"{stream} of executor {index} broke off: `poiesis task logs {self._task_id}` shows its end")
                    continue
                text = str(dig(task, "logs", -1, "logs", index, stream) or "")
                writer(text.encode("utf-8", "surrogatepass"), final=True)
                if len(text) >= SUSPICIOUS:
                    note(f"{stream} of executor {index} may be only the end of what was written")
        self._sink.check()

    @property
    def is_done(self) -> bool:
        return len(self._done) == len(self._writers)

    def _follow(self, stream: str) -> None:
        for index in self._executors:
            if not self._follow_one(index, stream):
                return

    def _follow_one(self, index: int, stream: str) -> bool:
        """Whether the log was read to its end. What does not exist yet is asked for again until the task has ended."""
        writer, pause = self._writers[index, stream], RETRY_FROM_S
        while True:
            is_last = self._task_ended.is_set()
            try:
                for piece in self._client.follow_log(self._task_id, index, stream):
                    writer(piece)
                    if self._sink.failure is not None:
                        return False
                writer(b"", final=True)
                self._done.add((index, stream))
                return True
            except (MissingExtension, Unauthenticated):
                if not self._task_ended.wait(QUIET_S):
                    self._client.state_missing(
                        "logs", "has no whole logs (an extension of Poiesis): output is shown when the task has ended"
                    )
                return False
            except (PoiesisError, OSError):
                if is_last or writer.count:
                    return False
            self._task_ended.wait(pause)
            pause = min(pause * 1.5, RETRY_TO_S)


def follow_logs(
    client: TesClient, task_id: str, executors: Sequence[int] | None, streams: Sequence[str], sink: Sink
) -> str:
    """Print the output of executors (None: all) until the task has ended, and return its state. Raises: PoiesisError, OSError."""
    from poiesis.cli.follow import Follower

    first = with_executors(client.get(task_id), executors)
    chosen = list(range(_count(first))) if executors is None else list(executors)
    live = LiveLogs(client, task_id, sink, chosen, streams)
    follower = Follower(client, [task_id], every_s=1)

    def show(changes: Any) -> None:
        sink.check()
        if follower.states.get(task_id) not in ("QUEUED", "INITIALIZING"):
            live.start()
        if live.is_done:
            raise _AllRead

    with suppress(_AllRead):
        follower.run(show)
    live.finish({} if live.is_done else client.get(task_id))
    return follower.states[task_id]


def with_executors(task: dict[str, Any], executors: Sequence[int] | None) -> dict[str, Any]:
    """The task, if it has these executors (None: all). Raises: UnknownLog."""
    count = _count(task)
    for index in executors or []:
        if not 0 <= index < count:
            have = "1 executor" if count == 1 else f"{count} executors"
            raise UnknownLog(f"no executor {index}: the task {task.get('id')} has {have}, numbered from 0")
    return task


def _count(task: dict[str, Any]) -> int:
    return len(task.get("executors") or []) or len(dig(task, "logs", -1, "logs") or []) or 1


class _AllRead(Exception):
    pass


class UnknownLog(UnknownTask):
    def __init__(self, message: str) -> None:
        PoiesisError.__init__(self, message)


def render_logs(task: dict[str, Any]) -> list[str]:
    """Return the logs of a task in FULL view as lines of text."""
    lines = [f"{task.get('id')} {state_of(task)}"]
    for entry in filter(lambda each: isinstance(each, dict), task.get("logs") or []):
        lines += [f"  | {line}" for line in entry.get("system_logs") or []]
        for index, executor in enumerate(entry.get("logs") or []):
            code = dig(executor, "exit_code")
            lines.append(f"  executor {index}: " + ("no exit code" if code is None else f"exit code {code}"))
            for stream in STREAMS:
                lines += [f"    {stream}: {line}" for line in str(dig(executor, stream) or "").splitlines()]
        metadata = entry.get("metadata") or {}  # of Poiesis: the latest output of the running executor (docs/api.md)
        if "live_executor" in metadata:
            lines.append(f"  executor {metadata['live_executor']}: has not ended")
            for stream in STREAMS:
                lines += [f"    {stream}: {line}" for line in metadata.get(f"live_{stream}", "").splitlines()]
        for output in entry.get("outputs") or []:
            size = dig(output, "size_bytes")
            about = "" if size is None else f" ({size} bytes)"
            lines.append(f"  output {dig(output, 'path')} -> {dig(output, 'url')}{about}")
    return lines
