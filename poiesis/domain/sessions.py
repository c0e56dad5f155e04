"""Sessions: logins in a browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

SessionMethod = Literal["basic", "bearer", "oidc", "api_key"]


@dataclass(frozen=True)
class Session:
    """`digest`: SHA-256 of the token in the browser's cookie, in hexadecimal; the token itself is nowhere.

    `method` and `credential`: how the user logged in, and a digest of what was used, or with a provider its name; the session counts only
    while that does. `sealed`: tokens of the provider, encrypted with the session's token. `version` counts saves. `busy_until`: a process
    is getting new tokens until then at the latest.
    """

    digest: str
    user: str
    method: SessionMethod
    credential: str
    created_at: datetime
    expires_at: datetime
    sealed: str = field(default="", repr=False)
    version: int = 1
    busy_until: datetime | None = None
