"""Paths in containers, as text: which lies in which. Every function here is near-linear in the total length of its paths.

Paths are absolute and without a trailing slash. By `sort_key` a directory comes right before everything in it, so one pass over
sorted paths, or one binary search, finds what lies in what.
"""

from __future__ import annotations

import posixpath
from bisect import bisect_right
from collections.abc import Iterable, Iterator


def without_slash(path: str) -> str:
    """The path without trailing slashes; `/` stays."""
    return path.rstrip("/") or "/"


def sort_key(path: str) -> str:
    """Sorts a directory right before everything in it: NUL, which no path has, is less than any character of a name."""
    return path.rstrip("/").replace("/", "\0") + "\0"


def is_within(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def parent(path: str) -> str:
    return posixpath.dirname(path)


class PathSet:
    """The outermost of some paths: iterated in `sort_key` order; `holder(path)` is the one that is `path` or contains it."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._keys: list[str] = []
        self._paths: list[str] = []
        for key, path in sorted((sort_key(path), path) for path in paths):
            if not self._keys or not key.startswith(self._keys[-1]):
                self._keys.append(key)
                self._paths.append(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, path: str) -> bool:
        return self.holder(path) is not None

    def holder(self, path: str) -> str | None:
        key = sort_key(path)
        i = bisect_right(self._keys, key) - 1
        return self._paths[i] if i >= 0 and key.startswith(self._keys[i]) else None
