"""The user of a request: what every part of the API asks before it shows or changes anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from poiesis.domain.access import Access

Right = Literal["read", "write", "admin"]
"""What credentials may be used for: `read` for GET, `write` for everything else, `admin` for the rights of an admin."""
SCOPES: Final[frozenset[Right]] = frozenset(("read", "write", "admin"))
Method = Literal["basic", "bearer", "oidc", "api_key"]

USER: Final = "poiesis.user"
"""Key of the ASGI scope: the `User`."""


@dataclass(frozen=True)
class User:
    """`name`: the owner of the user's new tasks; None without authentication. `method`: how the user was authenticated."""

    name: str | None
    admin: bool = False
    groups: tuple[str, ...] = ()
    scopes: frozenset[Right] = SCOPES
    method: Method | None = field(default=None, compare=False)

    @property
    def access(self) -> Access | None:
        """The tasks that the user may see; None: all."""
        return None if self.admin or self.name is None else Access(self.name, frozenset(self.groups))


ANONYMOUS: Final = User(None)
"""Of every request without authentication."""
