"""Checks of OpenID providers: discovery, keys, algorithms, clock."""

from __future__ import annotations

import time
from typing import Any, Final

import httpx

from poiesis.api.oidc.jwt import parse_json
from poiesis.api.oidc.provider import MAX_BODY_BYTES, usable_key
from poiesis.api.oidc.settings import SETTING, Issuer, is_secure, read_issuers
from poiesis.doctor.clock import SYNCHRONIZE, date_skew_s, shown_skew
from poiesis.doctor.result import Findings, error, ok
from poiesis.doctor.site import Site
from poiesis.domain.errors import ConfigurationError

TIMEOUT_S: Final = 5.0
REFUSED: Final = "Tokens of its users are refused (401), or answered with 503."


class _Unusable(Exception):
    """The message says what is wrong."""


def issuers_of(site: Site) -> tuple[Issuer, ...]:
    """Empty if the setting is invalid, which `check_issuers` reports."""
    try:
        return read_issuers(site.settings.api.oidc_issuers)
    except ConfigurationError:
        return ()


def check_issuers(site: Site) -> Findings:
    """The setting; each provider has a check of its own."""
    try:
        found = read_issuers(site.settings.api.oidc_issuers)
    except ConfigurationError as failure:
        yield error(str(failure), "The API does not start.", f"Correct {SETTING} (api.auth.issuers).")
        return
    yield ok(", ".join(f"{issuer.name}: {issuer.url}" for issuer in found))


def check_issuer(issuer: Issuer) -> Findings:
    try:
        client = httpx.Client(verify=issuer.tls(), timeout=TIMEOUT_S, follow_redirects=False)
    except ValueError as failure:
        yield error(f"issuer {issuer.name}: {failure}", "The API does not start.", f"Correct ca_file in {SETTING}.")
        return
    with client:
        try:
            discovery, skew = _document(client, f"{issuer.url.removesuffix('/')}/.well-known/openid-configuration")
            yield from _clock(issuer, skew)
            if discovery.get("issuer") != issuer.url:
                yield error(
                    f"the provider calls itself {str(discovery.get('issuer'))[:200]!r}, and the setting {issuer.url!r}",
                    REFUSED,
                    f"Set url of {issuer.name!r} in {SETTING} to exactly what the provider says, also a slash at its end.",
                )
                return
            yield from _endpoints(issuer, discovery)
            yield from _keys(client, issuer, discovery)
        except _Unusable as failure:
            yield error(
                f"issuer {issuer.name}: {failure}",
                REFUSED,
                "Check its url, that the provider runs, that this network reaches it, and ca_file for a private authority.",
            )
            return
    yield ok(f"issuer {issuer.name}: {issuer.url}")


def _endpoints(issuer: Issuer, discovery: dict[str, Any]) -> Findings:
    wanted = {
        "jwks_uri": True,
        "introspection_endpoint": issuer.introspection != "never",
        "userinfo_endpoint": issuer.userinfo,
        "device_authorization_endpoint": issuer.login_client is not None,
    }
    for name, is_wanted in wanted.items():
        if is_wanted and not is_secure(discovery.get(name)):
            has = "no https address" if discovery.get(name) else "none"
            follows = "`poiesis login` does not work." if name.startswith("device") else REFUSED
            repair = f"Enable it at the provider, or change the field of {issuer.name!r} in {SETTING} that needs it."
            yield error(f"the provider's discovery document has {has} for {name}", follows, repair)


def _keys(client: httpx.Client, issuer: Issuer, discovery: dict[str, Any]) -> Findings:
    if not is_secure(discovery.get("jwks_uri")):
        return
    document, _ = _document(client, discovery["jwks_uri"])
    keys = document.get("keys")
    usable = [k for k in keys if isinstance(k, dict) and usable_key(k)] if isinstance(keys, list) else []
    if not usable:
        yield error(
            f"the provider has no key for signatures that can be used, among {len(keys) if isinstance(keys, list) else 0}",
            REFUSED,
            "Let it sign with RSA (2048 bits or more), EC (P-256 to P-521) or Ed25519.",
        )
        return
    algorithms = {str(k["alg"]) for k in usable if "alg" in k}
    if algorithms and not algorithms & set(issuer.algorithms):
        yield error(
            f"the provider's keys are for {', '.join(sorted(algorithms))}, and the setting allows "
            f"{', '.join(issuer.algorithms)}",
            REFUSED,
            f"Add one of them to algorithms of {issuer.name!r} in {SETTING}.",
        )


def _clock(issuer: Issuer, skew: float | None) -> Findings:
    if skew is not None and abs(skew) > issuer.leeway_s:
        yield error(
            f"the clock of the provider is {shown_skew(skew)}; leeway_s is {issuer.leeway_s}",
            "New tokens are refused as not valid yet, or tokens as expired before their time.",
            SYNCHRONIZE,
        )


def _document(client: httpx.Client, url: str) -> tuple[dict[str, Any], float | None]:
    """The JSON object at an address, and how far the server's clock is ahead. Raises: _Unusable."""
    before, body = time.time(), bytearray()
    try:
        with client.stream("GET", url, headers={"Accept": "application/json"}) as response:
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise _Unusable(f"GET {url}: more than {MAX_BODY_BYTES} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as failure:
        raise _Unusable(f"GET {url}: {str(failure) or type(failure).__name__}") from None
    if response.status_code != 200:
        raise _Unusable(f"GET {url}: status {response.status_code}")
    try:
        found = parse_json(bytes(body))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _Unusable(f"GET {url}: not a JSON object")
    return found, date_skew_s(response.headers.get("date"), before)
