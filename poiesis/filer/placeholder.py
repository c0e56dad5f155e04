"""The mark of a placeholder: the empty file that TIF makes for the file mount of an output, which has to exist before its container.

TOF has to tell such a file from an empty one that a command wrote. TIF therefore sets a modification time that no program sets by habit,
and every way to write to the file, truncating it while it is empty among them, replaces that time. Changes of owner or mode, which a
volume's driver makes when it mounts the volume, do not.
"""

from __future__ import annotations

import os
from typing import Final

from poiesis.domain.errors import StagingFailed

# 2005-03-18; an even number of whole seconds since 1980, because some file systems keep no others
_MARK_NS: Final = 1_111_111_110 * 10**9


def mark_as_placeholder(descriptor: int) -> None:
    """Raises: OSError, StagingFailed when the file system does not keep the mark."""
    os.utime(descriptor, ns=(_MARK_NS, _MARK_NS))
    if not is_placeholder(os.fstat(descriptor)):
        raise StagingFailed("the file system of the task's volume does not keep modification times")


def is_placeholder(state: os.stat_result) -> bool:
    """Whether a file is a placeholder to which no command has written."""
    return state.st_size == 0 and state.st_mtime_ns == _MARK_NS
