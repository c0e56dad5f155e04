"""What a filer implements so that one thread can move its small files (`poiesis.filer.small_files`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeGuard

from poiesis.ports.filer import RemoteFile, Sent

if TYPE_CHECKING:
    from poiesis.filer.http_connection import ConnectionPool


class Exchange(Protocol):
    """One small file as a request and its response. Any exception of its methods returns the file to the regular threads."""

    pool: ConnectionPool

    def request(self) -> bytes:
        """Head and body, as bytes."""
        ...

    def handle_response(self, status: int, headers: Mapping[str, str], body: memoryview) -> Sent:
        """Handle the response; `body` is complete, and valid until this returns."""
        ...


class SmallFiles(Protocol):
    """None: the file has to be moved by the regular threads. Both raise the family of `domain.errors`."""

    def get_exchange(self, file: RemoteFile, target: Path) -> Exchange | None: ...

    def put_exchange(self, opened: Callable[[], AbstractContextManager[int]], size: int, url: str) -> Exchange | None:
        """`opened`: yields a descriptor of the local file."""
        ...


def moves_small_files(filer: object) -> TypeGuard[SmallFiles]:
    return hasattr(filer, "get_exchange")
