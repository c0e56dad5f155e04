"""TOF: what outputs mean (O1 to O14 of docs/data-plane.md), and uploading them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from poiesis.domain.errors import FileTooLarge, NotFound, StagingFailed
from poiesis.domain.patterns import PathPattern, brace_alternatives, unescape
from poiesis.filer.stage import Stage, Tools
from poiesis.filer.transfer import Job
from poiesis.filer.urls import ends_with_slash, join, without_slash, without_suffix
from poiesis.filer.volume import Entry, is_placeholder
from poiesis.ports.filer import Filer

if TYPE_CHECKING:
    from poiesis.filer.small_files import Exchange, SmallFiles


class OutputMissing(StagingFailed):
    code = "output_missing"


class StageOut(Stage):
    def __init__(self, tools: Tools, document: Mapping[str, Any]) -> None:
        super().__init__(tools)
        self._optional = bool(document.get("optional"))
        self._placeholders = frozenset(document.get("touched", ()))
        self._bytes = 0

    def jobs(self, outputs: Iterable[Mapping[str, Any]]) -> Iterator[Job]:
        for item in outputs:
            path = str(item["path"])
            try:
                yield from self._output(item, path)
            except NotFound as error:
                if self._optional:
                    self._log.note(f"optional output {error}")
                else:
                    self._fail(OutputMissing(f"output {error}"), path)
            except Exception as error:
                self._fail(error, path)

    def _output(self, item: Mapping[str, Any], path: str) -> Iterator[Job]:
        url, prefix, kind = str(item["url"]), item.get("path_prefix"), item.get("type")
        filer = self._filers.writer(url)
        pattern = PathPattern(path)
        if not pattern.has_wildcard or not (pattern.needs_matching or self._volume.look(pattern.literal) is None):
            yield from self._one(filer, pattern, url, kind)
            return
        base, cut = (url, unescape(prefix)) if prefix else _base(pattern, url)
        any_matches = any_usable = False
        for hit in self._matches(pattern):
            any_matches = True
            if self._is_usable(hit):
                any_usable = True
                name = hit.path[len(cut) :].lstrip("/")
                if not name and not hit.is_directory:  # the file that the prefix names
                    name = posixpath.basename(hit.path)
                yield from self._sending(filer, hit, join(base, name))
        if not any_usable:
            raise NotFound(f"{path}: {'nothing that matches can be uploaded' if any_matches else 'nothing matches'}")

    def _matches(self, pattern: PathPattern) -> Iterator[Entry]:
        """Braces are literal unless nothing matches so."""
        found = False
        for hit in self._volume.match(pattern, self._count_entry):
            found = True
            yield hit
        if not found:
            seen: set[str] = set()
            for alternative in brace_alternatives(pattern.text):
                for hit in self._volume.match(alternative, self._count_entry):
                    if hit.path not in seen:
                        seen.add(hit.path)
                        yield hit

    def _is_usable(self, entry: Entry) -> bool:
        """The one rule for what a pattern or a directory contains: an unusable entry is left out with a note, one that cannot be read is an
        error; the others are uploaded."""
        if entry.problem is not None and entry.is_error:
            self._fail(StagingFailed(entry.problem), entry.path)
        elif entry.problem is not None:
            self._log.note(f"not uploaded: {entry.problem}")
        return entry.problem is None

    def _one(self, filer: Filer, pattern: PathPattern, url: str, kind: str | None) -> Iterator[Job]:
        """The one file or directory of that name. Raises: NotFound, StagingFailed with the reason when it is unusable."""
        path = pattern.literal.rstrip("/")
        state = self._volume.stat(path)
        entry = self._volume.entry(path, state)
        if entry.problem is not None:
            raise StagingFailed(entry.problem)
        if path in self._placeholders and is_placeholder(state):
            raise NotFound(f"{path}: no command wrote it")
        if entry.is_directory:
            if kind == "FILE" and not pattern.is_directory:
                self._log.note(f"{path}: is a directory; uploaded as one although its type is FILE")
            yield from self._sending(filer, entry, without_slash(url))
            return
        if kind == "DIRECTORY":
            self._log.note(f"{path}: is a file; uploaded as one although its type is DIRECTORY")
        if ends_with_slash(url):
            url = join(url, posixpath.basename(path))
        yield from self._sending(filer, entry, url)

    def _sending(self, filer: Filer, top: Entry, url: str) -> Iterator[Job]:
        """Jobs for a file, or for everything below a directory."""
        for entry in self._volume.walk(top.path) if top.is_directory else (top,):
            self._count_entry(top.path)
            if not self._is_usable(entry):
                continue
            name = entry.path[len(top.path) :].lstrip("/")
            target = join(url, name) if name else url
            if entry.is_directory:
                yield self._job(entry.path, lambda t=target: self._control.repeat(lambda: filer.make_directory(t)))  # type: ignore[misc]
            else:
                yield from self._sending_file(filer, entry, target)

    def _fits(self, entry: Entry) -> bool:
        """Whether the file may be uploaded too; if not, it is an error, and others are uploaded."""
        most, total = self._control.settings.max_output_bytes, self._bytes + entry.size_bytes
        if most is not None and total > most:
            self._fail(
                FileTooLarge(f"{entry.path}: {entry.size_bytes} bytes; outputs have at most {most} together"),
                entry.path,
            )
            return False
        self._bytes = total
        return True

    def _sending_file(self, filer: Filer, entry: Entry, url: str) -> Iterator[Job]:
        if not self._fits(entry):
            return

        def send() -> None:
            with self._volume.opened(entry.path) as source:
                sent = self._control.repeat(lambda: filer.send(source, url))
            self._log.moved(entry.path, sent)

        def exchange(filer: SmallFiles) -> Exchange | None:
            return filer.put_exchange(lambda: self._volume.opened(entry.path), entry.size_bytes, url)

        yield from self._moving(filer, entry.path, entry.size_bytes, self._job(entry.path, send), exchange)


def _base(pattern: PathPattern, url: str) -> tuple[str, str]:
    """For a pattern without `path_prefix`: the URL that stands for a prefix of the matched paths, and that prefix."""
    fixed = sum(1 for _ in filter(None, pattern.fixed_directory.split("/")))
    suffix = "/".join(name.text for name in pattern.names[fixed:]) + ("/" if pattern.is_directory else "")
    base = without_suffix(url, suffix)
    return (base if base is not None else url), pattern.fixed_directory
