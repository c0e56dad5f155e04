"""From claims to a user: validity in time, audience, scopes; then the user's name, groups and rights by the issuer's settings."""

from __future__ import annotations

import hmac
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from poiesis.api.oidc.jwt import Claims, InsufficientScope, TokenRefused
from poiesis.api.oidc.settings import ANY, Issuer
from poiesis.api.users import User

MAX_VALUES: Final = 1_000  # of all claims of one path
MAX_GROUPS: Final = 200
MAX_CHARACTERS: Final = 255  # of a name, and of a value that may be a group


def check_claims(claims: Claims, issuer: Issuer, now: float, *, must_expire: bool) -> None:
    """`must_expire`: whether `exp` is required, as in a JWT. Raises: TokenRefused, InsufficientScope."""
    leeway = issuer.leeway_s
    expires = _time(claims, "exp")
    if expires is None and must_expire:
        raise TokenRefused("the token has no expiry")
    if expires is not None and expires <= now - leeway:
        raise TokenRefused("the token has expired")
    for name in ("nbf", "iat"):
        if (_time(claims, name) or 0.0) > now + leeway:
            raise TokenRefused("the token is not valid yet")
    if claims.get("iss", issuer.url) != issuer.url:
        raise TokenRefused("the token is of another issuer")
    if ANY not in issuer.audiences and not set(issuer.audiences) & set(_texts(claims.get("aud"))):
        raise TokenRefused("the token is for another audience")
    if issuer.clients and claims.get("azp", claims.get("client_id")) not in issuer.clients:
        raise TokenRefused("the token was issued to another client")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise TokenRefused("the token has no subject")
    granted = claims.get("scope", claims.get("scp"))
    if not set(issuer.scopes) <= {scope for text in _texts(granted) for scope in text.split(" ")}:
        raise InsufficientScope(issuer.scopes)


def check_id_token(claims: Claims, issuer: Issuer, nonce: str, now: float) -> None:
    """OpenID Connect Core 1.0, section 3.1.3.7. Raises: TokenRefused."""
    audience = _texts(claims.get("aud"))
    if claims.get("iss") != issuer.url:
        raise TokenRefused("the ID token is of another issuer")
    if issuer.browser_client not in audience or claims.get("azp", issuer.browser_client) != issuer.browser_client:
        raise TokenRefused("the ID token is for another client")
    if (_time(claims, "exp") or 0.0) <= now - issuer.leeway_s or (_time(claims, "iat") or 0.0) > now + issuer.leeway_s:
        raise TokenRefused("the ID token has expired, or is not valid yet")
    given = claims.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
        raise TokenRefused("the ID token is of another login")
    if not isinstance(claims.get("sub"), str) or not claims["sub"]:
        raise TokenRefused("the ID token has no subject")


def expiry(claims: Claims) -> float:
    """Seconds since the epoch; infinity without `exp`."""
    return _time(claims, "exp") or math.inf


def user_of(claims: Claims, issuer: Issuer, others: Iterable[str] = ()) -> User:
    """The user that claims stand for. `others`: names of the other issuers. Raises: TokenRefused."""
    if issuer.user_claim == "email" and claims.get("email_verified") is not True:
        raise TokenRefused("the token has no verified e-mail address")
    name = next(iter(values_at(claims, issuer.user_claim)), "")
    if not _is_usable(name):
        raise TokenRefused(f"the token has no usable user name in {issuer.user_claim}")
    reserved = tuple(f"{other}:" for other in others)
    if not issuer.prefix_names and name.startswith(reserved):
        raise TokenRefused("the user name is that of another issuer's user")
    wanted = re.compile(issuer.group_pattern) if issuer.group_pattern else None
    groups: dict[str, None] = {}
    for value in _all_values(claims, issuer.group_claims):
        group = _group(value, wanted)
        if group and (issuer.prefix_names or not group.startswith(reserved)):
            groups[f"{issuer.name}:{group}" if issuer.prefix_names else group] = None
    if len(groups) > MAX_GROUPS:
        raise TokenRefused(f"the user has more than {MAX_GROUPS} groups: narrow group_pattern")
    ranks = _all_values(claims, issuer.admin_claims or issuer.group_claims) if issuer.admin_values else ()
    admin = any(value in issuer.admin_values for value in ranks)
    return User(f"{issuer.name}:{name}" if issuer.prefix_names else name, admin, tuple(groups), method="oidc")


def values_at(claims: Any, path: str) -> Iterator[str]:
    """The texts at a path: one claim with that name, or levels separated by dots; names may contain dots, such as URLs."""
    if not isinstance(claims, dict):
        return
    if path in claims:
        yield from _texts(claims[path])
        return
    for i, character in enumerate(path):
        if character == "." and path[:i] in claims:
            yield from values_at(claims[path[:i]], path[i + 1 :])


def _all_values(claims: Claims, paths: Iterable[str]) -> list[str]:
    values: list[str] = []
    for path in paths:
        for value in values_at(claims, path):
            if len(values) == MAX_VALUES:
                raise TokenRefused(f"the token has more than {MAX_VALUES} values of groups")
            values.append(value)
    return values


def _group(value: str, wanted: re.Pattern[str] | None) -> str | None:
    if not _is_usable(value):
        return None
    if wanted is None:
        return value
    match = wanted.fullmatch(value)
    if match is None:
        return None
    return match[1] if wanted.groups else value


def _is_usable(text: str) -> bool:
    return 0 < len(text) <= MAX_CHARACTERS and text.isprintable() and text == text.strip()


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _time(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise TokenRefused(f"the token has an invalid {name}")
    return float(value)
