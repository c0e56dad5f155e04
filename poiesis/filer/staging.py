"""TIF and TOF: what a task's inputs and outputs mean, and moving them. docs/data-plane.md has the rules by number.

Both entry functions take a document of `poiesis.domain.staging`, and answer a report; what goes wrong with a task is in the report and
never an exception. They run as a container's program or inside a process.
"""

from __future__ import annotations

import itertools
import posixpath
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from poiesis.domain.errors import NotFound, PoiesisError, StagingFailed, UnsupportedUrl
from poiesis.domain.report import FilerReport, TransferredFile
from poiesis.filer.atomic_write import atomic_file
from poiesis.filer.matching import expand_braces, has_braces, is_pattern
from poiesis.filer.placeholder import is_placeholder
from poiesis.filer.registry import Context, Filers, Scheme
from poiesis.filer.settings import FilerSettings
from poiesis.filer.small_file_protocol import Exchange, SmallFiles, moves_small_files
from poiesis.filer.transfer import Cancelled, Changed, Control, Job, Pool
from poiesis.filer.urls import (
    ends_with_slash,
    join,
    name_problem,
    scheme_of,
    shown,
    without_secrets,
    without_slash,
    without_suffix,
)
from poiesis.filer.volume import LocalPathError, Volume
from poiesis.ports.filer import Filer, RemoteFile, Sent

if TYPE_CHECKING:
    from poiesis.filer.cache import Cache
    from poiesis.filer.small_files import SmallFileMover

MAX_FILES_TOLD: Final = 10_000  # more would not fit in a report
MAX_NOTES: Final = 100
MAX_ERRORS_TOLD: Final = 5
SMALL_BYTES: Final = 1 << 18
MANY: Final = 100  # small files, from which on one thread moves them all

Progress = Callable[[int, int], None]
"""Called with files and bytes done, a few times a second at most."""


class OutputMissing(StagingFailed):
    code = "output_missing"


class _TransferLog:
    """What happened so far; written by many threads, bounded."""

    def __init__(self, control: Control) -> None:
        self._lock = threading.Lock()
        self._control = control
        self._started = time.monotonic()
        self.files: list[TransferredFile] = []
        self.notes: list[str] = []
        self.errors: list[PoiesisError] = []
        self.error_count = 0
        self.total_files = 0
        self.total_bytes = 0

    def moved(self, path: str, sent: Sent) -> None:
        with self._lock:
            self.total_files += 1
            self.total_bytes += sent.size_bytes
            if len(self.files) < MAX_FILES_TOLD:
                self.files.append(TransferredFile(without_secrets(sent.url), path, sent.size_bytes, sent.checksum))
        self._control.finished()

    def note(self, text: str) -> None:
        with self._lock:
            if len(self.notes) < MAX_NOTES:
                self.notes.append(text)

    def failed(self, error: BaseException, path: str) -> None:
        """Whatever it is: a bug ends the task as a plain fault does, not the filer."""
        if not isinstance(error, PoiesisError):
            error = StagingFailed(f"unexpected {type(error).__name__}: {error}")
        if path not in str(error):
            error = _with_path(error, path)
        with self._lock:
            self.error_count += 1
            if len(self.errors) < MAX_FILES_TOLD:
                self.errors.append(error)

    def report(self) -> FilerReport:
        # what the stop of the others caused says nothing; a fault that is for good decides over one that may pass
        told = [e for e in self.errors if not isinstance(e, Cancelled)] or self.errors
        told.sort(key=lambda e: e.retryable)
        error = None
        if told:
            error = "; ".join(dict.fromkeys(str(e) for e in told[:MAX_ERRORS_TOLD]))
            if len(told) > MAX_ERRORS_TOLD:
                error += f"; and {len(told) - MAX_ERRORS_TOLD} more"
        files = tuple(sorted(self.files, key=lambda f: f.path))
        return FilerReport(
            files=files,
            omitted=self.total_files - len(files),
            total_files=self.total_files,
            total_bytes=self.total_bytes,
            seconds=time.monotonic() - self._started,
            notes=tuple(self.notes),
            error=error,
            error_code=told[0].code if told else None,
            retryable=bool(told) and all(e.retryable for e in told),
        )


def _with_path(error: PoiesisError, path: str) -> PoiesisError:
    """The same kind of error that says whose it is."""
    copy = type(error).__new__(type(error))
    copy.__dict__.update(error.__dict__)
    copy.args = (f"{path}: {error}",)
    copy.__cause__ = error.__cause__
    return copy


def stage_in(
    document: Mapping[str, Any],
    volume: Path,
    settings: FilerSettings,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    schemes: Mapping[str, Scheme] | None = None,
) -> FilerReport:
    """Bring the inputs of a `tif_document` onto the volume; stops at the first error. `schemes`: instead of the registered ones."""

    def run(tools: _Tools) -> None:
        for path in document.get("directories", ()):
            _make_directory(tools.volume, path, tools.ledger)
        for path in document.get("touched", ()):
            tools.volume.make_placeholder(path)
        tools.control.sync = False  # all of them at once, at the end
        stage = _StageIn(tools)
        stage.run(stage.jobs(document.get("inputs", ())))
        if settings.sync and not tools.ledger.errors:
            tools.volume.sync()

    return _run(run, document, volume, settings, cancelled, progress, schemes)


def stage_out(
    document: Mapping[str, Any],
    volume: Path,
    settings: FilerSettings,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    schemes: Mapping[str, Scheme] | None = None,
) -> FilerReport:
    """Send the outputs of a `tof_document`; every one is tried, whatever happens to the others."""

    def run(tools: _Tools) -> None:
        stage = _StageOut(tools, document)
        stage.run(stage.jobs(document.get("outputs", ())))

    return _run(run, document, volume, settings, cancelled, progress, schemes)


@dataclass(frozen=True)
class _Tools:
    """What one run works with."""

    volume: Volume
    control: Control
    pool: Pool
    filers: Filers
    ledger: _TransferLog


def _run(
    direction: Callable[[_Tools], None],
    document: Mapping[str, Any],
    volume: Path,
    settings: FilerSettings,
    cancelled: Callable[[], bool],
    progress: Progress | None,
    schemes: Mapping[str, Scheme] | None,
) -> FilerReport:
    control = Control(settings, cancelled)
    ledger = _TransferLog(control)
    pool = Pool(settings.parallel)
    allow = settings.allow_unencrypted_credentials or document.get("allow_unencrypted_credentials", True)
    filers = Filers(Context(settings, control, pool, allow), schemes)
    told = _ProgressReporter(control, progress)
    try:
        tree = Volume(volume)
        try:
            direction(_Tools(tree, control, pool, filers, ledger))
        finally:
            tree.close()
            filers.close()
    except Exception as error:
        ledger.failed(error, "")
    finally:
        told.end()
    return ledger.report()


class _ProgressReporter:
    """Calls `progress` from a thread of its own while there is something new."""

    INTERVAL: Final = 1.0  # seconds

    def __init__(self, control: Control, progress: Progress | None) -> None:
        self._control, self._progress = control, progress
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        if progress is not None:
            self._thread = threading.Thread(target=self._tell, name="filer-progress", daemon=True)
            self._thread.start()

    def _tell(self) -> None:
        assert self._progress is not None
        before = (0, 0)
        while not self._end.wait(self.INTERVAL):
            now = (self._control.files_done, self._control.bytes_done)
            if now != before:
                self._progress(*now)
                before = now

    def end(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()


class _Stage:
    """What both directions have in common: jobs, and one thread for small files once there are mover."""

    def __init__(self, tools: _Tools) -> None:
        self._volume, self._control, self._filers = tools.volume, tools.control, tools.filers
        self._pool, self._ledger = tools.pool, tools.ledger
        self._small, self._gave_up = 0, False
        self._mover: SmallFileMover | None = None
        self._starting = threading.Lock()

    def run(self, jobs: Iterable[Job]) -> None:
        try:
            self._pool.run(jobs)
        except BaseException:
            self._control.stop()
            raise
        finally:
            mover = self._mover
            if mover is not None:
                self._end_mover(mover)
        if mover is not None:
            self._pool.run(mover.given_back())

    def _fail(self, error: Exception, path: str) -> None:
        self._ledger.failed(error, path)

    def _job(self, path: str, call: Callable[[], object]) -> Job:
        def run() -> None:
            try:
                self._control.check()
                call()
            except Exception as error:
                self._fail(error, path)

        return run

    def _moving(
        self, filer: Filer, path: str, size: int, job: Job, exchange: Callable[[SmallFiles], Exchange | None]
    ) -> Iterator[Job]:
        """`job`, unless the one thread moves the file, for which `exchange` makes what it needs; and what it gives back of others."""
        if not self._is_taken(filer, path, size, job, exchange):
            yield job
        mover = self._mover
        if mover is not None:
            if mover.gave_up or (size > SMALL_BYTES and mover.is_idle):
                self._end_mover(mover)
            yield from mover.given_back()

    def _is_taken(
        self, filer: Filer, path: str, size: int, job: Job, exchange: Callable[[SmallFiles], Exchange | None]
    ) -> bool:
        if size > SMALL_BYTES or not moves_small_files(filer):
            return False
        with self._starting:
            self._small += 1
            if self._small == MANY and self._control.settings.parallel > 1 and not self._gave_up:
                self._begin_mover()
            mover = self._mover
        if mover is None:
            return False
        try:
            found = exchange(filer)
        except Exception:
            return False  # the job says it
        return found is not None and mover.take(found, lambda sent: self._ledger.moved(path, sent), job)

    def _end_mover(self, mover: SmallFileMover) -> None:
        """It has nothing to do, or gave up: its connections are for all threads again. Another hundred small files begin another one, in
        the former case."""
        mover.finish()
        with self._starting:
            if self._mover is mover:
                self._mover = None
                self._small, self._gave_up = 0, mover.gave_up
                self._pool.limit(self._control.settings.parallel)

    def _begin_mover(self) -> None:
        from poiesis.filer.small_files import SmallFileMover  # for many files alone

        parallel = self._control.settings.parallel
        theirs = max(1, parallel // 4)
        # where the system gives no more threads or descriptors, the threads that run do the work
        with suppress(RuntimeError, OSError):
            self._mover = SmallFileMover(self._control, lambda: max(1, parallel - max(theirs, self._pool.running)))
            self._pool.limit(theirs)


# in


def _make_directory(volume: Volume, path: str, ledger: _TransferLog) -> None:
    if not volume.make_directory(path):
        ledger.note(f"{path}: is not writable for everybody, and that cannot be changed")


@contextmanager
def _staging_at(url: str, path: str) -> Iterator[None]:
    """Let an error about the local path name both the source and the path."""
    try:
        yield
    except LocalPathError as error:
        raise StagingFailed(f"{shown(url)}: cannot be staged at {path}: {error}") from error


class _StageIn(_Stage):
    def __init__(self, tools: _Tools) -> None:
        super().__init__(tools)
        self._cache: Cache | None = None
        if self._control.settings.cache_dir is not None:
            from poiesis.filer.cache import Cache

            self._cache = Cache(self._control.settings, self._control, self._ledger.note)
        self._made: set[str] = set()
        self._lock = threading.Lock()
        self._count = 0

    def jobs(self, inputs: Iterable[Mapping[str, Any]]) -> Iterator[Job]:
        """One job for each file, drawn lazily; listing errors are recorded as those of files are."""
        for item in inputs:
            if self._control.is_stopped:
                self._ledger.failed(Cancelled("stopped before the end"), str(item.get("path")))
                return
            path = str(item["path"])
            try:
                yield from self._input(item, path)
            except Exception as error:
                self._fail(error, path)

    def _input(self, item: Mapping[str, Any], path: str) -> Iterator[Job]:
        if item.get("content") is not None:
            yield self._job(path, lambda: self._write(path, str(item["content"])))
            return
        url, kind = str(item["url"]), item.get("type")
        filer = self._filers.reader(url)
        as_directory = kind == "DIRECTORY" or (kind is None and (path.endswith("/") or ends_with_slash(url)))
        if as_directory:
            yield from self._directory(filer, url, path.rstrip("/"))
            return

        yield self._job(path, lambda: self._file_or_more(filer, url, path.rstrip("/"), kind))

    def _fail(self, error: Exception, path: str) -> None:
        super()._fail(error, path)
        self._control.stop()

    def _write(self, path: str, content: str) -> None:
        self._parent(path)
        data = content.encode(errors="surrogatepass")
        with atomic_file(self._volume.place(path), sync=self._control.settings.sync) as part:
            part.write(data, 0)
        self._control.moved(len(data))
        self._ledger.moved(path, Sent("", len(data)))

    def _file_or_more(self, filer: Filer, url: str, path: str, kind: str | None) -> None:
        """The file, without asking for it first; if there is none, the directory of that name."""
        try:
            self._fetch(filer, RemoteFile(url, posixpath.basename(path), None), path)
            return
        except NotFound as error:
            missing = error
        try:
            jobs = list(self._directory(filer, url, path))
        except (NotFound, UnsupportedUrl):
            raise missing from None
        if kind is not None:
            self._ledger.note(f"{path}: {shown(url)} is a directory, and was staged as one although its type is {kind}")
        self._pool.together(jobs, most=self._control.settings.parallel)

    def _directory(self, filer: Filer, url: str, path: str) -> Iterator[Job]:
        any_found = False
        for file in self._listed(filer, url):
            if not any_found:
                any_found = True
                self._make(path)
            if file.is_directory and not file.name:
                continue
            if problem := name_problem(file.name):
                raise StagingFailed(f"{shown(file.url)}: cannot be staged below {path}: its name {problem}")
            target = f"{path}/{file.name}"
            if file.is_directory:
                with _staging_at(file.url, target):
                    self._make(target)
            else:
                yield from self._fetching(filer, file, target)
        if not any_found:
            raise NotFound(f"{shown(url)}: there is no such directory, or it is empty")

    def _fetching(self, filer: Filer, file: RemoteFile, path: str) -> Iterator[Job]:
        def exchange(filer: SmallFiles) -> Exchange | None:
            self._check_size(file)
            self._parent(path)
            return filer.getting(file, self._volume.place(path))

        job = self._job(path, lambda: self._fetch(filer, file, path))
        size = file.size_bytes
        if size is None or (self._cache is not None and size >= self._control.settings.cache_min_bytes):
            yield job
        else:
            yield from self._moving(filer, path, size, job, exchange)

    def _listed(self, filer: Filer, url: str) -> Iterator[RemoteFile]:
        """The listing, begun anew after a transient fault as long as nothing of it was used, resumed behind what was."""
        done = 0

        def advance() -> Iterator[RemoteFile]:
            yield from itertools.islice(filer.walk(url), done, None)

        source = advance()
        while True:

            def step() -> RemoteFile | None:
                nonlocal source
                try:
                    return next(source, None)
                except PoiesisError:
                    source = advance()
                    raise

            file = self._control.repeat(step)
            if file is None:
                return
            done += 1
            with self._lock:
                self._count += 1
                if self._count > self._control.settings.max_files:
                    raise StagingFailed(f"{shown(url)}: more than {self._control.settings.max_files} files in one task")
            yield file

    def _fetch(self, filer: Filer, file: RemoteFile, path: str) -> None:
        self._check_size(file)
        target = self._volume.place(path)
        with _staging_at(file.url, path):
            self._parent(path)
            sent = self._cached(filer, file, target) if self._cache else self._fetched(filer, file, target)
        self._ledger.moved(path, sent)

    def _check_size(self, file: RemoteFile) -> None:
        """As far as the listing tells. Raises: StagingFailed."""
        most = self._control.settings.max_file_bytes
        if most is not None and (file.size_bytes or 0) > most:
            raise StagingFailed(f"{shown(file.url)}: {file.size_bytes} bytes; at most {most}")

    def _fetched(self, filer: Filer, file: RemoteFile, target: Path) -> Sent:
        return self._control.repeat(lambda: filer.fetch(file, target))

    def _cached(self, filer: Filer, file: RemoteFile, target: Path) -> Sent:
        """From the cache, by what version the store has now; asking it proves the right to read, too."""
        if self._cache is None or scheme_of(file.url) in ("", "file"):
            return self._fetched(filer, file, target)
        found: RemoteFile | None = file
        if file.version is None:
            found = self._control.repeat(lambda: filer.stat(file.url))
            if found is None:
                raise NotFound(f"{shown(file.url)}: there is no such file")

        def fetch(file: RemoteFile, target: Path) -> Sent:
            return self._control.repeat(lambda: filer.fetch(file, target), final=(Changed,))

        try:
            return self._cache.fetch(found or file, target, fetch)
        except Changed:
            return self._fetched(filer, RemoteFile(file.url, file.name, None), target)

    def _parent(self, path: str) -> None:
        self._make(posixpath.dirname(path))

    def _make(self, path: str) -> None:
        with self._lock:
            if path not in self._made:
                _make_directory(self._volume, path, self._ledger)
                if len(self._made) < 100_000:
                    self._made.add(path)


# out


class _StageOut(_Stage):
    def __init__(self, tools: _Tools, document: Mapping[str, Any]) -> None:
        super().__init__(tools)
        self._optional = bool(document.get("optional"))
        self._placeholders = frozenset(document.get("touched", ()))
        self._count = 0

    def jobs(self, outputs: Iterable[Mapping[str, Any]]) -> Iterator[Job]:
        for item in outputs:
            path = str(item["path"])
            try:
                yield from self._output(item, path)
            except NotFound as error:
                self._missing(path, error)
            except Exception as error:
                self._fail(error, path)

    def _missing(self, path: str, error: Exception) -> None:
        if self._optional:
            self._ledger.note(f"optional output {path} was not made")
        else:
            self._fail(OutputMissing(f"output {error}"), path)

    def _output(self, item: Mapping[str, Any], path: str) -> Iterator[Job]:
        url, prefix, kind = str(item["url"]), item.get("path_prefix"), item.get("type")
        filer = self._filers.writer(url)
        if not any(c in path for c in "*?") and self._volume.exists(path):
            yield from self._one(filer, path, url, kind)  # literally first, braces and brackets too
            return
        if not (is_pattern(path) or has_braces(path)):
            self._volume.stat(path)  # raises, and says why
            return
        found = list(self._matches(path))
        if not found:
            raise NotFound(f"{path}: nothing matches")
        base, cut = self._base(path, url, prefix)
        for hit in found:
            yield from self._one(filer, hit, join(base, hit[len(cut) :].lstrip("/")), None)

    def _matches(self, path: str) -> Iterator[str]:
        """Braces are literal unless nothing matches so."""
        found = False
        if is_pattern(path):
            for hit in self._volume.match(path):
                found = True
                yield hit
        if not found and has_braces(path):
            seen: set[str] = set()
            for pattern in expand_braces(path):
                for hit in self._volume.match(pattern):
                    if hit not in seen:
                        seen.add(hit)
                        yield hit

    def _base(self, path: str, url: str, prefix: str | None) -> tuple[str, str]:
        """The URL that stands for a beginning of the paths, and that beginning."""
        if prefix:
            return url, prefix
        first = min(i for i in (path.find(c) for c in "*?[{") if i >= 0)
        fixed = posixpath.dirname(path[:first])
        base = without_suffix(url, path[len(fixed) :].lstrip("/"))
        return (base if base is not None else url), fixed

    def _one(self, filer: Filer, path: str, url: str, kind: str | None) -> Iterator[Job]:
        """Jobs for the file or directory `path`. `kind` None: either is fine."""
        found = self._volume.stat(path)
        clean = path.rstrip("/")
        if stat.S_ISDIR(found.st_mode):
            if kind == "FILE" and not path.endswith("/"):
                self._ledger.note(f"{path}: is a directory, and was sent as one although its type is FILE")
            yield from self._directory(filer, clean, without_slash(url))
            return
        if clean in self._placeholders and is_placeholder(found):
            raise NotFound(f"{path}: no command wrote it")
        if kind == "DIRECTORY":
            self._ledger.note(f"{path}: is a file, and was sent as one although its type is DIRECTORY")
        if ends_with_slash(url):
            url = join(url, posixpath.basename(clean))
        yield from self._sending(filer, clean, url, found.st_size)

    def _directory(self, filer: Filer, path: str, url: str) -> Iterator[Job]:
        for entry in self._volume.walk(path):
            name = entry.path[len(path) :].lstrip("/")
            target = join(url, name) if name else url
            if entry.problem is not None:
                self._ledger.note(f"not sent: {entry.problem}")
            elif entry.is_directory:
                yield self._job(entry.path, lambda t=target: self._control.repeat(lambda: filer.make_directory(t)))  # type: ignore[misc]
            else:
                yield from self._sending(filer, entry.path, target, entry.size_bytes)

    def _sending(self, filer: Filer, path: str, url: str, size: int) -> Iterator[Job]:
        self._count += 1
        if self._count > self._control.settings.max_files:
            raise StagingFailed(f"{path}: more than {self._control.settings.max_files} files in one task")

        def send() -> None:
            with self._volume.opened(path) as source:
                sent = self._control.repeat(lambda: filer.send(source, url))
            self._ledger.moved(path, sent)

        def exchange(filer: SmallFiles) -> Exchange | None:
            return filer.putting(lambda: self._volume.opened(path), size, url)

        yield from self._moving(filer, path, size, self._job(path, send), exchange)
