"""A program in a pseudo-terminal, used as a person does: type, and wait for what appears."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence

DEADLINE_S = 60.0  # for a busy machine
_ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|\([A-Z0-9]|[=>])")


class Terminal:
    def __init__(self, argv: Sequence[str], env: Mapping[str, str], *, columns: int = 100, rows: int = 30) -> None:
        self.raw = b""
        self._seen = 0
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execvpe(argv[0], list(argv), {"TERM": "xterm-256color", **env})
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def text(self) -> str:
        return _ESCAPES.sub(b"", self.raw).decode(errors="replace")

    def type(self, keys: str) -> None:
        """What appears from now on is what `expect` waits for."""
        self._seen = len(self.text)
        os.write(self._fd, keys.encode())

    def expect(self, words: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while words not in self.text[self._seen :]:
            assert time.monotonic() < end, f"no {words!r} in {self.text[-2000:]!r}"
            if not self._read(0.1):
                assert words in self.text[self._seen :], f"ended without {words!r}: {self.text[-2000:]!r}"
                return

    def exit_code(self) -> int:
        end = time.monotonic() + DEADLINE_S
        while self._read(0.1):
            assert time.monotonic() < end, f"has not ended: {self.text[-2000:]!r}"
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def _read(self, timeout_s: float) -> bool:
        """False at the end."""
        if select.select([self._fd], [], [], timeout_s)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # Linux: EIO when the program has ended
                return False
            self.raw += data
            return bool(data)
        return True

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._fd)
