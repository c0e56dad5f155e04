"""What a filer whose small files one thread can move (`poiesis.filer.small_files`) says of each: a request and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeGuard

from poiesis.ports.filer import RemoteFile, Sent

if TYPE_CHECKING:
    from poiesis.filer.http_connection import ConnectionPool


class Exchange(Protocol):
    """One small file as a request and its answer. What its methods raise, whatever it is, gives the file back."""

    pool: ConnectionPool

    def request(self) -> bytes:
        """Head and body."""
        ...

    def answered(self, status: int, headers: Mapping[str, str], body: memoryview) -> Sent:
        """What the answer means; `body` is whole, and good until this returns."""
        ...


class SmallFiles(Protocol):
    """None: not this file, which then goes the ordinary way. Both raise the family of `domain.errors`."""

    def getting(self, file: RemoteFile, target: Path) -> Exchange | None: ...

    def putting(self, opened: Callable[[], AbstractContextManager[int]], size: int, url: str) -> Exchange | None:
        """`opened`: the local file, as a descriptor."""
        ...


def moves_small_files(filer: object) -> TypeGuard[SmallFiles]:
    return hasattr(filer, "getting")
