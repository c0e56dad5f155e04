"""The files for browsers in `static/`, read once and served from memory.

Their URLs contain a digest of all of them, so browsers may keep each file without asking again, and modules import each other by relative
paths.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from starlette.responses import Response

DIRECTORY: Final = Path(__file__).with_name("static")
PREFIX: Final = "/ui/static/"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    "": "text/plain; charset=utf-8",
    ".json": "application/json",
}


class Assets:
    def __init__(self) -> None:
        self._files = {
            path.relative_to(DIRECTORY).as_posix(): (path.read_bytes(), _TYPES[path.suffix])
            for path in sorted(DIRECTORY.rglob("*"))
            if path.is_file() and path.suffix in _TYPES
        }
        digest = hashlib.sha256()
        for name, (content, _) in self._files.items():
            digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
        self.version: Final = digest.hexdigest()[:16]

    def url(self, name: str) -> str:
        """Raises: KeyError for a file that does not exist."""
        self._files[name]
        return f"{PREFIX}{self.version}/{name}"

    def response(self, path: str) -> Response | None:
        """The file at a path below PREFIX; None where there is none. A file of another release's page is the present one, not kept."""
        version, _, name = path.removeprefix(PREFIX).partition("/")
        if (found := self._files.get(name)) is None:
            return None
        kept = "public, max-age=31536000, immutable" if version == self.version else "no-cache"
        return Response(found[0], 200, {"Cache-Control": kept}, found[1])


@cache
def assets() -> Assets:
    return Assets()
