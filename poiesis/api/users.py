"""The user of a request: what every part of the API asks before it shows or changes anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from poiesis.domain.access import Access
from poiesis.domain.keys import RIGHTS, Right

Method = Literal["basic", "bearer", "oidc", "api_key"]

USER: Final = "poiesis.user"
"""Key of the ASGI scope: the `User`."""


@dataclass(frozen=True)
class User:
    """`name`: the owner of the user's new tasks; None without authentication. `method`: how the user was authenticated."""

    name: str | None
    admin: bool = False
    groups: tuple[str, ...] = ()
    scopes: frozenset[Right] = RIGHTS
    method: Method | None = field(default=None, compare=False)
    in_file: bool = field(default=False, compare=False)
    """Whether the credentials file has the user."""

    @property
    def access(self) -> Access | None:
        """The tasks that the user may see; None: all."""
        return None if self.admin or self.name is None else Access(self.name, frozenset(self.groups))

    @property
    def rights(self) -> frozenset[Right]:
        """`scopes` without `admin`, which is nothing for users who are not administrators."""
        return self.scopes if self.access is None else self.scopes - {"admin"}


ANONYMOUS: Final = User(None)
"""Of every request without authentication."""
