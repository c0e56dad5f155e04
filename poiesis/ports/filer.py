"""How files come and go: one implementation for each URL scheme."""

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
    """What an upload made: final URL, size, and checksum (`sha256:…`, `md5:…`) where it was computed on the way."""

    url: str
    size_bytes: int
    checksum: str | None = None


class Filer(Protocol):
    """Moves files of one scheme. Not every scheme can do both; `filer.registry` says which.

    All raise the family of `domain.errors`: NotFound, AccessDenied, StagingFailed (never retried), StorageUnavailable (transient; the
    caller repeats with back-off). Messages name the URL without credentials.
    """

    def stat(self, url: str) -> RemoteFile | None:
        """The one file at `url`, or None when there is no such file (it may be a directory)."""
        ...

    def walk(self, url: str) -> Iterator[RemoteFile]:
        """All files below the directory `url`, lazily, empty directories included where the scheme has them."""
        ...

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        """Copy one file to `target` (its parent exists): under a temporary name, verified, fsync'd, renamed. `Sent.url` is the source."""
        ...

    def send(self, source: int, url: str) -> Sent:
        """Copy the local file which the descriptor `source` has open to `url`: it appears whole or not at all. Read by position, so that
        a repetition begins anew. A descriptor and no path, since paths below a user's directory can change under our feet."""
        ...

    def make_directory(self, url: str) -> None:
        """Keep an empty directory, where the scheme has such a thing; else nothing."""
        ...

    def close(self) -> None: ...
