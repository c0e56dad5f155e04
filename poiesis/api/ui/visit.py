"""What the gate has found out about a request to the dashboard, for its pages: in the ASGI scope, under VISIT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from poiesis.api.users import User

VISIT: Final = "poiesis.visit"


@dataclass
class Visit:
    """`user` None: not logged in. `csrf`: the token that forms send back. `error`: why the request is refused."""

    user: User | None
    csrf: str = field(repr=False)
    error: Exception | None = None
    has_session: bool = False
