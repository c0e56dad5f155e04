"""Who the caller is to this service."""

from __future__ import annotations

from starlette.types import Scope

from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.users import USER, User


def operations(_: Context) -> dict[str, Handler]:
    return {"GetWhoami": _get}


async def _get(scope: Scope) -> Document:
    """Without authentication everyone has all rights, and no name."""
    user: User = scope[USER]
    found = {"name": user.name, "method": user.method, "admin": user.access is None}
    known = {name: value for name, value in found.items() if value is not None}
    return {**known, "groups": sorted(user.groups), "scopes": sorted(user.rights)}
