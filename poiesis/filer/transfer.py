"""How transfers run: a pool of threads, retries with back-off, progress, cancellation.

One pool of `FilerSettings.parallel` threads does everything, so that connections and memory are bounded whatever a task requests. Jobs
(files) are drawn from a lazy sequence. A job that splits into parts offers them to idle threads and runs the rest in its own, so nested
jobs never wait for a free thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from poiesis.domain.errors import FileTooLarge, PoiesisError, StorageUnavailable
from poiesis.filer.settings import FilerSettings
from poiesis.filer.urls import shown

T = TypeVar("T")
Job = Callable[[], object]
PARTS_AT_ONCE: Final = 8  # of one file: more make servers read back and forth, and no network faster
_END: Final = object()
POLL: Final = 0.2  # seconds; how soon a wait notices that it must stop


class Cancelled(PoiesisError):
    """The filer was asked to stop."""

    code = "cancelled"
    retryable = True


class Exhausted(StorageUnavailable):
    """All attempts are used up; callers do not retry."""


class Changed(StorageUnavailable):
    """The file is no longer the version whose transfer began; it has to start again."""


class Control:
    """Shared by all parts of a run: cancellation, retries, progress."""

    def __init__(
        self,
        settings: FilerSettings,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self.settings = settings
        self._cancelled = cancelled
        self._stopped = threading.Event()
        self._sleep = sleep or self._wait
        self._lock = threading.Lock()
        self.sync = settings.sync
        """Whether each file is synced to the disk before it gets its name; False where the caller syncs all of them at the end."""
        self.bytes_done = 0
        self.files_done = 0

    def stop(self) -> None:
        """Let all transfers end soon, because one of them failed permanently."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set() or self._cancelled()

    def check(self) -> None:
        """Raises: Cancelled."""
        if self.is_stopped:
            raise Cancelled("stopped before the end")

    def moved(self, count: int) -> None:
        """Count bytes that were transferred. Raises: Cancelled, which is how a transfer notices that it has to stop."""
        with self._lock:
            self.bytes_done += count
        self.check()

    def finished(self) -> None:
        with self._lock:
            self.files_done += 1

    def check_size(self, url: str, size: int | None) -> None:
        """Raises: FileTooLarge."""
        most = self.settings.max_file_bytes
        if most is not None and (size or 0) > most:
            raise FileTooLarge(f"{shown(url)}: {size} bytes; at most {most}")

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.is_stopped:
            self._stopped.wait(min(left, POLL))

    def repeat(
        self,
        call: Callable[[], T],
        progress: Callable[[], int] | None = None,
        *,
        final: tuple[type[PoiesisError], ...] = (),
    ) -> T:
        """`call()`, again after transient faults (`PoiesisError.retryable`, but not `final`), with back-off and jitter.

        `progress` returns a number that grows when a failed call got further than the one before; attempts then count from one again, at
        most `max_resumes` times. Raises: permanent errors of `call`, Exhausted, Cancelled.
        """
        settings = self.settings
        attempt = resumes = 0
        reached = progress() if progress else 0
        while True:
            self.check()
            try:
                return call()
            except PoiesisError as error:
                if not error.retryable or isinstance(error, (Cancelled, Exhausted, *final)):
                    raise
                if progress and progress() > reached and resumes < settings.max_resumes:
                    reached, attempt = progress(), 0
                    resumes += 1
                attempt += 1
                if attempt >= settings.attempts:
                    raise Exhausted(f"{error} (after {settings.attempts} attempts)") from error
            from random import uniform  # imports hashes and more; few transfers need a second attempt

            delay, longest = settings.retry_delay.total_seconds(), settings.max_retry_delay.total_seconds()
            self._sleep(min(delay * 2 ** (attempt - 1), longest) * uniform(0.5, 1.0))


class _Parts:
    """The parts of one job, run by all threads that are free. What drawing a part raises counts as an error of one."""

    def __init__(self, calls: Iterable[Callable[[], object]], most: int) -> None:
        self._calls = iter(calls)
        self._most = most
        self._changed = threading.Condition()
        self._running = 0
        self.error: BaseException | None = None
        self.is_empty = False

    @property
    def has_room(self) -> bool:
        """Whether another thread helps. Read without the lock: a few too many do no harm."""
        return self._running < self._most

    def run_one(self) -> bool:
        """Run one more call; False when there is none left."""
        with self._changed:
            try:
                call = None if self.error else next(self._calls, None)
            except BaseException as error:
                self.error, call = error, None
            if call is None:
                self.is_empty = True
                return False
            self._running += 1
        try:
            call()
        except BaseException as error:
            with self._changed:
                self.error = self.error or error
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
        return True

    def wait(self) -> None:
        with self._changed:
            while self._running:
                self._changed.wait()


class Pool:
    """Threads for jobs and parts of jobs, each started when there is work for it. Only one `run` at a time."""

    def __init__(self, threads: int) -> None:
        self._most = self._threads = threads
        self._lock = threading.Condition()
        self._offers: deque[_Parts] = deque()
        self._has_jobs = self._is_drawing = False
        # threads that draw or run a job, that run a part of another thread's, and that wait
        self._busy = self._helping = self._idle = 0
        self._begun: list[threading.Thread] = []
        self._alive: set[int] = set()
        self._work: Callable[[int], None] | None = None

    def run(self, jobs: Iterable[Job]) -> None:
        """Run all jobs; returns when the last one has ended. Jobs handle their own errors. `jobs` is drawn from lazily, by one thread at
        a time while others help with parts; what it raises is raised here at the end."""
        source = iter(jobs)
        raised: list[BaseException] = []

        def draw() -> Job | None:
            try:
                return next(source, None)
            except BaseException as error:
                raised.append(error)
                return None

        def work(number: int) -> None:
            while (offer := self._next(number)) is not _END:
                if isinstance(offer, _Parts):
                    if not offer.run_one():
                        self._withdraw(offer)
                    with self._lock:
                        self._helping -= 1
                    continue
                job = draw()
                self._drawn(job)
                try:
                    if job is not None:
                        job()
                except BaseException as error:
                    raised.append(error)
                finally:
                    with self._lock:
                        self._busy -= 1
                        if not self._has_jobs:
                            self._lock.notify_all()

        with self._lock:
            self._has_jobs, self._is_drawing = True, False
            self._begun, self._alive, self._work, self._idle = [], set(), work, 0
            self._grow()
        for thread in self._begun:  # grows meanwhile, but not after its last thread has ended
            thread.join()
        if raised:
            raise raised[0]

    def _next(self, number: int) -> _Parts | object | None:
        """What thread `number` does next: parts of a job, None to draw a job, `_END` to end. Waits for one of these."""
        with self._lock:
            while True:
                offer = next((o for o in self._offers if o.has_room), None) if number < self._threads else None
                if offer is not None:
                    self._helping += 1
                elif number >= self._threads or not (self._has_jobs or self._busy):
                    self._alive.discard(number)
                    self._lock.notify_all()
                    return _END
                elif self._is_drawing or not self._has_jobs:
                    self._idle += 1
                    self._lock.wait()
                    self._idle -= 1
                    continue
                else:
                    self._busy += 1
                    self._is_drawing = True
                    return None
                if self._has_jobs and not self._is_drawing:
                    self._lock.notify()  # another thread can draw
                return offer

    def _drawn(self, job: Job | None) -> None:
        with self._lock:
            self._is_drawing = False
            if job is None:
                self._has_jobs = False
                self._lock.notify_all()
            elif self._idle:
                self._lock.notify()
            else:
                self._grow()

    def together(self, calls: Iterable[Callable[[], object]], most: int = PARTS_AT_ONCE) -> None:
        """From within a job: run `calls` (drawn lazily) here and on idle threads, about `most` at a time.

        Raises the first error, after all calls that had begun have ended.
        """
        parts = _Parts(calls, most)
        with self._lock:
            self._offers.append(parts)
            self._lock.notify_all()
            for _ in range(most - 1 - self._idle):
                self._grow()
        try:
            while parts.run_one():
                pass
        finally:
            self._withdraw(parts)
            parts.wait()
        if parts.error is not None:
            raise parts.error

    @property
    def running(self) -> int:
        """Number of threads that run a job or a part of one, or are about to."""
        return self._busy + self._helping

    def limit(self, threads: int) -> None:
        """Use at most so many threads from now on; those beyond end with the job that they run. Only the iterator of `run` may call it:
        no other thread is about to begin a job then."""
        with self._lock:
            self._threads = max(1, min(threads, self._most))
            self._lock.notify_all()

    def _grow(self) -> None:
        """Start one more thread unless there are enough. The caller holds the lock."""
        if self._work is None or len(self._alive) >= self._threads:
            return
        number = next(n for n in range(self._threads) if n not in self._alive)
        thread = threading.Thread(target=self._work, args=(number,), name=f"filer-{number}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system's limit; the threads that run do the work
            if not self._begun:
                raise
        else:
            self._begun.append(thread)
            self._alive.add(number)

    def _withdraw(self, offer: _Parts) -> None:
        with self._lock:
            if offer in self._offers:
                self._offers.remove(offer)
