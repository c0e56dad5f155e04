"""API keys of the user: create, list, revoke; admins do it for others too.

A key cannot do more than its user, and not make another key: who finds one must not be able to keep its rights for longer than it lasts.
Only keys with an admin's rights may.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from starlette.types import Scope

from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.parameters import PARAMETERS
from poiesis.api.users import USER, User
from poiesis.api.validation import DOCUMENT
from poiesis.domain.errors import Forbidden, InvalidRequest
from poiesis.domain.keys import ApiKey
from poiesis.services.keys import KeyService


def operations(context: Context) -> dict[str, Handler]:
    def usable(user: User) -> KeyService:
        keys = context.services.keys
        if keys is None or "api_key" not in context.services.api.auth:
            raise Forbidden("API keys are not enabled here: POIESIS_API__AUTH has no api_key")
        if user.method == "api_key" and not user.admin:
            raise Forbidden("an API key cannot manage API keys: use another method of authentication")
        return keys

    async def create(scope: Scope) -> Document:
        user, body = scope[USER], scope.pop(DOCUMENT)
        keys = usable(user)
        key, secret = await context.call(lambda: keys.create(**_request(user, body)))
        return {**key_document(key), "key": secret}

    async def list_(scope: Scope) -> Document:
        user = scope[USER]
        keys = usable(user)
        wanted = scope[PARAMETERS].get("user") if user.admin else user.name
        return {"keys": [key_document(key) for key in await context.call(keys.list, wanted)]}

    async def revoke(scope: Scope) -> Document:
        user = scope[USER]
        keys = usable(user)
        await context.call(keys.revoke, scope["path_params"]["id"], user=None if user.admin else user.name)
        return {}

    return {"CreateKey": create, "ListKeys": list_, "RevokeKey": revoke}


def _request(user: User, body: Any) -> dict[str, Any]:
    """The arguments of `KeyService.create`. Raises: Forbidden, InvalidRequest."""
    rights = frozenset(body.get("scopes") or ("read", "write"))
    if "admin" in rights and not user.admin:
        raise Forbidden("only an administrator can create a key with the scope admin")
    if not rights <= user.scopes:
        raise Forbidden("a key cannot have more scopes than the credentials that create it")
    days = body.get("lifetime_days")
    made = {"name": body["name"], "rights": rights, "lifetime": None if days is None else timedelta(days=days)}
    other = body.get("user") or user.name
    if other != user.name or body.get("groups") is not None:
        if not user.admin:
            raise Forbidden("only an administrator can create a key for another user, or choose its groups")
        return {**made, "user": other, "groups": tuple(body.get("groups") or ()), "admin": "admin" in rights}
    if user.name is None:
        raise InvalidRequest("user", "is required without authentication")
    return {**made, "user": user.name, "groups": user.groups, "admin": user.admin, "in_file": user.in_file}


def key_document(key: ApiKey) -> dict[str, Any]:
    document = {
        "id": key.id,
        "name": key.name,
        "user": key.user,
        "scopes": sorted(key.rights),
        "groups": list(key.groups),
        "created": _text(key.created_at),
    }
    times = {"expires": key.expires_at, "last_used": key.last_used_at}
    return document | {name: _text(moment) for name, moment in times.items() if moment is not None}


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
