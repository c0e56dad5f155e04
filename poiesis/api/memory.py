"""What glibc keeps of freed memory (elsewhere, on musl and macOS, its functions do nothing), and what Python's collector looks at."""

from __future__ import annotations

import ctypes
import gc
from typing import Any, Final

KEPT_BYTES: Final = 1024 * 1024
_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3


def limit_kept_memory() -> None:
    """Return blocks of KEPT_BYTES and more to the system when they are freed, and keep no more at the end of each arena.

    By default glibc raises both limits to the size of the largest block freed so far, up to 64 MB, and `malloc_trim` does not reach
    the ends of the threads' arenas: after responses of 7.5 MB each thread kept 24 MB.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def freeze_started_objects() -> None:
    """Leave all objects of a process that has started out of garbage collections: a full one looks at 220,000 of them, and no request is
    answered meanwhile (docs/performance.md). For processes whose application lives as long as they do."""
    gc.collect()
    gc.freeze()


def trim_memory() -> None:
    """Return the free pages between used blocks too."""
    gc.collect()
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
