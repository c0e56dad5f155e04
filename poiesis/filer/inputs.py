"""TIF: what inputs mean (I1 to I12 of docs/data-plane.md), and fetching them."""

from __future__ import annotations

import itertools
import posixpath
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from poiesis.domain.errors import NotFound, PoiesisError, StagingFailed, UnsupportedUrl
from poiesis.filer.atomic_write import atomic_file
from poiesis.filer.stage import Stage, Tools
from poiesis.filer.transfer import Cancelled, Changed, Job
from poiesis.filer.urls import ends_with_slash, name_problem, scheme_of, shown, without_slash
from poiesis.filer.volume import LocalPathError
from poiesis.ports.filer import Filer, RemoteFile, Sent

if TYPE_CHECKING:
    from poiesis.filer.cache import Cache
    from poiesis.filer.small_files import Exchange, SmallFiles

WITHOUT_DIRECTORIES: Final = ("http", "https")  # also in domain.plan.is_directory


class StageIn(Stage):
    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._cache: Cache | None = None
        if self._control.settings.cache_dir is not None:
            from poiesis.filer.cache import Cache

            self._cache = Cache(self._control.settings, self._control, self._log.note)
        self._made: set[str] = set()
        self._lock = threading.Lock()

    def make_directory(self, path: str) -> None:
        with self._lock:
            if path not in self._made:
                if not self._volume.make_directory(path):
                    self._log.note(f"{path}: is not writable by all users, and its owner or mode cannot be changed")
                if len(self._made) < 100_000:
                    self._made.add(path)

    def jobs(self, inputs: Iterable[Mapping[str, Any]]) -> Iterator[Job]:
        """One job for each file, drawn lazily; errors of listings are recorded as those of files are."""
        for item in inputs:
            path = str(item["path"])
            if self._control.is_stopped:
                self._log.failed(Cancelled("interrupted before it was complete"), path)
                return
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
        clean = path.rstrip("/")
        names_directory = path.endswith("/") or (ends_with_slash(url) and scheme_of(url) not in WITHOUT_DIRECTORIES)
        if kind == "DIRECTORY" or (kind is None and names_directory):
            yield from self._directory_or_file(filer, url, clean)
        else:
            yield self._job(path, lambda: self._file_or_directory(filer, url, clean, kind))

    def _fail(self, error: Exception, path: str) -> None:
        super()._fail(error, path)
        self._control.stop()

    def _write(self, path: str, content: str) -> None:
        data = content.encode(errors="surrogatepass")
        self.make_directory(posixpath.dirname(path))
        with atomic_file(self._volume.place(path), sync=self._control.settings.sync) as part:
            part.write(data, 0)
        self._control.moved(len(data))
        self._log.moved(path, Sent("", len(data)))

    def _file_or_directory(self, filer: Filer, url: str, path: str, kind: str | None) -> None:
        """The file, without a stat request first; if there is none, the directory of that name."""
        try:
            self._stage_file(filer, RemoteFile(url, posixpath.basename(path), None), path)
            return
        except NotFound as error:
            missing = error
        jobs = self._directory(filer, url, path)
        try:
            first = list(itertools.islice(jobs, 1))
        except (NotFound, UnsupportedUrl):
            raise missing from None
        if kind is not None:
            self._log.note(f"{path}: {shown(url)} is a directory; staged as one although its type is {kind}")
        self._pool.together(itertools.chain(first, jobs), most=self._control.settings.parallel)

    def _directory_or_file(self, filer: Filer, url: str, path: str) -> Iterator[Job]:
        """The directory; if it is a file instead, a directory that holds the file, since commands expect a directory at `path`."""
        try:
            yield from self._directory(filer, url, path)
            return
        except NotFound as error:
            missing = error
        file = self._control.repeat(lambda: filer.stat(without_slash(url)))
        if file is None:
            raise missing
        target = f"{path}/{posixpath.basename(file.name) or posixpath.basename(path)}"
        self._log.note(f"{path}: {shown(url)} is a file, not a directory; staged as {target}")
        yield from self._file_jobs(filer, file, target)

    def _directory(self, filer: Filer, url: str, path: str) -> Iterator[Job]:
        any_found = False
        for file in self._listed(filer, url):
            if not any_found:
                any_found = True
                with _staging_at(url, path):
                    self.make_directory(path)
            if file.is_directory and not file.name:
                continue
            if problem := name_problem(file.name):
                raise StagingFailed(f"{shown(file.url)}: cannot be staged below {path}: its name {problem}")
            target = f"{path}/{file.name}"
            if file.problem is not None:
                self._log.note(f"{target}: not staged, because {shown(file.url)} {file.problem}")
            elif file.is_directory:
                with _staging_at(file.url, target):
                    self.make_directory(target)
            else:
                yield from self._file_jobs(filer, file, target)
        if not any_found:
            raise NotFound(f"{shown(url)}: there is no such directory, or it is empty")

    def _listed(self, filer: Filer, url: str) -> Iterator[RemoteFile]:
        """The listing, repeated after a transient error, then without the entries up to the last one that was used. Their number would
        not do, since files may have been removed or added meanwhile. Raises: Changed when the last one is gone."""
        last: RemoteFile | None = None

        def listing() -> Iterator[RemoteFile]:
            files = filer.walk(url)
            if last is not None and not any((file.url, file.name) == (last.url, last.name) for file in files):
                raise Changed(f"{shown(url)}: the directory changed while it was listed")
            yield from files

        source = listing()

        def step() -> RemoteFile | None:
            nonlocal source
            try:
                return next(source, None)
            except PoiesisError:
                source = listing()
                raise

        while (file := self._control.repeat(step, final=(Changed,))) is not None:
            last = file
            self._count_entry(shown(url))
            yield file

    def _file_jobs(self, filer: Filer, file: RemoteFile, path: str) -> Iterator[Job]:
        def exchange(filer: SmallFiles) -> Exchange | None:
            self._control.check_size(file.url, file.size_bytes)
            self.make_directory(posixpath.dirname(path))
            return filer.get_exchange(file, self._volume.place(path))

        job = self._job(path, lambda: self._stage_file(filer, file, path))
        size = file.size_bytes
        if size is None or (self._cache is not None and size >= self._control.settings.cache_min_bytes):
            yield job
        else:
            yield from self._moving(filer, path, size, job, exchange)

    def _stage_file(self, filer: Filer, file: RemoteFile, path: str) -> None:
        self._control.check_size(file.url, file.size_bytes)
        target = self._volume.place(path)
        with _staging_at(file.url, path):
            self.make_directory(posixpath.dirname(path))
            sent = self._download(filer, file, target)
        self._log.moved(path, sent)

    def _download(self, filer: Filer, file: RemoteFile, target: Path) -> Sent:
        """From the cache, by the version that the store has now; asking for it also proves the right to read."""
        if self._cache is not None and scheme_of(file.url) not in ("", "file"):
            found = file if file.version is not None else self._control.repeat(lambda: filer.stat(file.url))
            if found is None:
                raise NotFound(f"{shown(file.url)}: there is no such file")
            with suppress(Changed):
                return self._cache.fetch(
                    found,
                    target,
                    lambda version, at: self._control.repeat(lambda: filer.fetch(version, at), final=(Changed,)),
                )
            file = RemoteFile(file.url, file.name, None)
        return self._control.repeat(lambda: filer.fetch(file, target))


@contextmanager
def _staging_at(source: str, path: str) -> Iterator[None]:
    """Let an error about the local path name both the source and the path."""
    try:
        yield
    except LocalPathError as error:
        raise StagingFailed(f"{shown(source)}: cannot be staged at {path}: {error}") from error
