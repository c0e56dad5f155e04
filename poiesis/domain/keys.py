"""API keys: credentials that a user makes for a program, limited in rights and time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

Right = Literal["read", "write", "admin"]
"""What credentials may be used for: `read` for GET, `write` for everything else, `admin` for the rights of an admin."""
RIGHTS: Final[frozenset[Right]] = frozenset(("read", "write", "admin"))


@dataclass(frozen=True)
class ApiKey:
    """`digest`: SHA-256 of the secret, in hexadecimal; the secret itself is nowhere. `expires_at` None: never.

    `groups` and `admin` are those of the user when the key was made or, with a provider, at the user's last token. Where the user is in the
    credentials file, that counts instead; `in_file` says that the user was there, and without them the key is worth nothing.
    """

    id: str
    digest: str
    user: str
    name: str
    rights: frozenset[Right]
    created_at: datetime
    groups: tuple[str, ...] = ()
    admin: bool = False
    in_file: bool = False
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
