"""The settings of OpenID providers: POIESIS_API__OIDC_ISSUERS, a JSON list of objects with the fields of `Issuer`."""

from __future__ import annotations

import dataclasses
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec

from poiesis.domain.errors import ConfigurationError
from poiesis.domain.hosts import is_loopback

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
PASSPORT: Final = "ga4gh_passport_v1"
ANY: Final = "*"
SETTING: Final = "POIESIS_API__OIDC_ISSUERS"
_Texts = tuple[Annotated[str, msgspec.Meta(min_length=1)], ...]


@dataclass(frozen=True)
class Issuer:
    """One OpenID provider whose access tokens the API accepts."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9-]{0,31}$")] = ""
    """Short name, part of its users' names: lower-case letters, digits and `-`. Do not change it once tasks exist."""
    url: str = ""
    """The issuer exactly as in the claim `iss`. `https`, or a loopback address."""
    audiences: _Texts = ()
    """A token must have one of these in `aud`. `*`: any token of the issuer, for providers that set no audience; then limit `clients`."""
    clients: _Texts = ()
    """A token must have been issued to one of these clients (`azp` or `client_id`); empty: to any."""
    scopes: _Texts = ()
    """Scopes that a token must have, all of them."""
    algorithms: tuple[str, ...] = ALGORITHMS
    """Signature algorithms of tokens; asymmetric only."""
    leeway_s: Annotated[int, msgspec.Meta(ge=0, le=300)] = 30
    """Seconds that the provider's clock may differ."""
    user_claim: str = "sub"
    """Claim of the user's name, by path. Only `sub` is never given to another person; `email` counts only with `email_verified`."""
    prefix_names: bool = True
    """Whether users and groups are called `NAME:…` here, so that those of two issuers and of the credentials file cannot be taken for each
    other. One issuer may have false: its users are the same as those of that name in the credentials file."""
    group_claims: _Texts = ()
    """Claims that list the user's groups, by path: `groups`, `realm_access.roles`, `https://example.org/groups`."""
    group_pattern: str | None = None
    """Regular expression that a whole value must match to count as a group; its first parenthesis, if any, is the group's name."""
    admin_claims: _Texts = ()
    """Claims for `admin_values`, by path; empty: `group_claims`."""
    admin_values: _Texts = ()
    """Values that make a user an admin, as the provider writes them."""
    userinfo: bool = False
    """Whether claims come from the provider's UserInfo too, for providers whose tokens have no groups."""
    introspection: Literal["never", "opaque", "always"] = "never"
    """Ask the provider about tokens (RFC 7662): `never`; `opaque`: about those that are not JWTs, for one issuer; `always`: about its JWTs,
    so that revoked ones are refused."""
    client_id: str | None = None
    """For introspection."""
    client_secret: str | None = field(default=None, repr=False)
    """For introspection; better in a file."""
    client_secret_file: str | None = None
    """Path of a file with the secret, read at start."""
    cache_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60
    """Seconds that what UserInfo and introspection reported is used again for the same token; a revocation takes effect after them."""
    login_client: str | None = None
    """Public client for `poiesis login` (device flow), which the service advertises in its capabilities; None: users name one."""
    login_scope: str = "openid profile offline_access"
    """Scopes that `poiesis login` asks for, with the ones that tokens need."""
    title: str | None = None
    """What the button of the dashboard's login page calls the provider; None: `name`."""
    browser_client: str | None = None
    """Client for the login in the dashboard (authorization code flow with PKCE), registered at the provider with the redirect address
    `https://SERVICE/ui/login/oidc/NAME/callback`; None: no button."""
    browser_secret: str | None = field(default=None, repr=False)
    """Of `browser_client`, unless it is a public client; better in a file."""
    browser_secret_file: str | None = None
    """Path of a file with the secret, read at start."""
    browser_scope: str = "openid profile"
    """Scopes that the dashboard asks for, with the ones that tokens need; with `offline_access` some providers issue refresh tokens."""
    ca_file: str | None = None
    """Certificates for the provider's own, where a private authority has signed it."""

    def secret(self) -> str | None:
        """Raises: ValueError."""
        return _secret("client_secret_file", self.client_secret_file, self.client_secret)

    def browser_client_secret(self) -> str | None:
        """Raises: ValueError."""
        return _secret("browser_secret_file", self.browser_secret_file, self.browser_secret)

    def tls(self) -> ssl.SSLContext:
        """Raises: ValueError."""
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError:
            raise ValueError(f"ca_file: cannot read certificates from {self.ca_file}") from None


def _secret(field_name: str, file: str | None, otherwise: str | None) -> str | None:
    """The content of the file, if there is one. Raises: ValueError."""
    if file is None:
        return otherwise
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise ValueError(f"{field_name}: cannot read {file}") from None


def is_secure(url: object) -> bool:
    """Whether an address of a provider is encrypted, or on this machine."""
    if not isinstance(url, str) or not url.isprintable():
        return False
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        usable = (
            bool(host) and parts.port != 0 and not (parts.username or parts.password or parts.query or parts.fragment)
        )
    except ValueError:
        return False
    return usable and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))


def read_issuers(text: str) -> tuple[Issuer, ...]:
    """The issuers of POIESIS_API__OIDC_ISSUERS. Raises: ConfigurationError with the position and what is wrong, without secrets."""
    try:
        items = msgspec.json.decode(text, type=list[dict[str, msgspec.Raw]])
    except msgspec.MsgspecError:
        raise ConfigurationError(f"invalid {SETTING}: must be a JSON list of objects") from None
    known = {item.name for item in dataclasses.fields(Issuer)}
    issuers = []
    for i, item in enumerate(items):
        try:
            if unknown := sorted(item.keys() - known):
                raise ValueError(f"unknown field {unknown[0]}")
            issuers.append(msgspec.json.decode(msgspec.json.encode(item), type=Issuer))
            _check(issuers[-1])
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigurationError(f"invalid {SETTING}[{i}]: {error}") from None
    _check_together(issuers)
    return tuple(issuers)


def _check(issuer: Issuer) -> None:
    """Raises: ValueError."""
    if not issuer.algorithms or not set(issuer.algorithms) <= set(ALGORITHMS):
        raise ValueError(f"algorithms: must be some of {', '.join(ALGORITHMS)}")
    if not issuer.name:
        raise ValueError("name: must not be empty")
    if issuer.name == "group":  # its users would have the names of groups in bindings and queues
        raise ValueError("name: group is reserved")
    if not issuer.audiences:
        raise ValueError(f"audiences: must not be empty; {ANY} accepts every token of the issuer")
    if not is_secure(issuer.url):
        raise ValueError(
            "url: must begin with https://, or http:// with a loopback address, without query and fragment"
        )
    if issuer.introspection != "never" and not (issuer.client_id and issuer.secret()):
        raise ValueError("introspection: needs client_id, and client_secret or client_secret_file")
    if issuer.browser_client and "openid" not in issuer.browser_scope.split():
        raise ValueError("browser_scope: must contain openid")
    if issuer.admin_values and not (issuer.admin_claims or issuer.group_claims):
        raise ValueError("admin_values: needs admin_claims or group_claims")
    for path in (issuer.user_claim, *issuer.group_claims, *issuer.admin_claims):
        if path.split(".")[0] == PASSPORT:  # its visas are signed by others, and nothing here checks them (ADR 12)
            raise ValueError(f"{path}: visas of a GA4GH passport give no names or groups here")
    try:
        re.compile(issuer.group_pattern or "")
    except re.error as error:
        raise ValueError(f"group_pattern: {error}") from None


def _check_together(issuers: Sequence[Issuer]) -> None:
    if not issuers:
        raise ConfigurationError(f"invalid {SETTING}: must have at least one issuer")
    for attribute in ("name", "url"):
        values = [getattr(issuer, attribute) for issuer in issuers]
        if len(set(values)) != len(values):
            raise ConfigurationError(f"invalid {SETTING}: two issuers have the same {attribute}")
    if sum(not issuer.prefix_names for issuer in issuers) > 1:
        raise ConfigurationError(f"invalid {SETTING}: only one issuer can have prefix_names false")
    # nothing in an opaque token names its issuer, and no provider may see the tokens of another
    if sum(issuer.introspection == "opaque" for issuer in issuers) > 1:
        raise ConfigurationError(f"invalid {SETTING}: only one issuer can have introspection opaque")
