"""File transfer: one implementation for each URL scheme."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class RemoteFile:
    """One file below a URL. `name` is its path relative to the listed URL (`/` between parts, never absolute, no `..`); `is_directory`: an
    empty directory or a marker of one. `version` is an ETag or the like, None where the protocol has none. `problem`: why an entry of a
    listing is neither a file nor a directory ("is a FIFO", "is a symbolic link to ..."); it is left out, with a note."""

    url: str
    name: str
    size_bytes: int | None
    version: str | None = None
    is_directory: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Sent:
    """The result of a transfer: final URL, size, and checksum (`sha256:…`, `md5:…`) if one was computed on the way."""

    url: str
    size_bytes: int
    checksum: str | None = None


class Filer(Protocol):
    """Transfers files of one URL scheme. Not every scheme supports both directions; see `filer.registry`.

    Methods raise NotFound, AccessDenied and StagingFailed (never retried), and StorageUnavailable (transient; the caller retries with
    back-off). Messages contain the URL without credentials.
    """

    def stat(self, url: str) -> RemoteFile | None:
        """The one file at `url`, or None if there is no such file (it may be a directory)."""

    def walk(self, url: str) -> Iterator[RemoteFile]:
        """All files below the directory `url`, lazily, including empty directories if the scheme has them."""

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        """Copy one file to `target` (its parent exists): under a temporary name, verified, fsync'd, renamed. `Sent.url` is the source."""

    def send(self, source: int, url: str) -> Sent:
        """Upload the file open at the descriptor `source` to `url`, where it appears whole or not at all. It is read by position, so that
        a retry starts from the beginning. Not a path, because user code can change paths below its directory at any time."""

    def make_directory(self, url: str) -> None:
        """Create an empty directory if the scheme has directories; otherwise do nothing."""

    def close(self) -> None: ...
