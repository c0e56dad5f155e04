"""A JSON Web Token taken apart: bounds and strict syntax, before anything is trusted or any key is searched.

Duplicate members are refused (RFC 7519, section 4, allows that), so no two readers can see different claims.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, Final

MAX_TOKEN_BYTES: Final = 16 * 1024
_SHAPE: Final = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~+/-]+=*")
_TYPES: Final = frozenset(("jwt", "at+jwt", "application/at+jwt", "application/jwt"))
Claims = dict[str, Any]


class TokenRefused(Exception):
    """A token that is not accepted. The text is for the client and contains nothing of the token."""


class InsufficientScope(TokenRefused):
    """A valid token that lacks scopes; `scopes` are all that are required."""

    def __init__(self, scopes: tuple[str, ...]) -> None:
        super().__init__(f"the token must have the scope {' '.join(scopes)}")
        self.scopes = scopes


@dataclass(frozen=True)
class Jwt:
    """`header` and `claims` as the token has them, not verified."""

    header: Claims
    claims: Claims


def is_jwt(token: bytes) -> bool:
    return _SHAPE.fullmatch(token) is not None


def is_token(token: bytes) -> bool:
    """Whether these are characters of bearer tokens (RFC 6750, section 2.1)."""
    return _TOKEN.fullmatch(token) is not None


def parse(token: bytes) -> Jwt:
    """`token`: at most MAX_TOKEN_BYTES. Raises: TokenRefused."""
    jwt = _parse(token)
    kind = jwt.header.get("typ", "JWT")
    # Keycloak writes the kind of a token into its claims
    if not isinstance(kind, str) or kind.lower() not in _TYPES or jwt.claims.get("typ", "Bearer") != "Bearer":
        raise TokenRefused("the token is not an access token")
    if "cnf" in jwt.claims:
        raise TokenRefused("the token is bound to a key of its client, which is not supported")
    return jwt


def parse_id_token(token: bytes) -> Jwt:
    """Raises: TokenRefused."""
    if len(token) > MAX_TOKEN_BYTES or not is_jwt(token):
        raise TokenRefused("the ID token is malformed")
    return _parse(token)


def _parse(token: bytes) -> Jwt:
    header, claims, _ = token.split(b".")
    jwt = Jwt(_object(header), _object(claims))
    if "crit" in jwt.header:
        raise TokenRefused("the token has critical extensions, and none is supported")
    return jwt


def parse_json(data: bytes) -> Any:
    """Raises: ValueError, also for duplicate members, NaN, and nesting that no honest document has."""
    try:
        return json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(part: bytes) -> Claims:
    try:
        found = parse_json(base64.b64decode(part + b"=" * (-len(part) % 4), altchars=b"-_", validate=True))
    except ValueError:
        raise TokenRefused("the token is malformed") from None
    if not isinstance(found, dict):
        raise TokenRefused("the token is malformed")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Claims:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is repeated")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
