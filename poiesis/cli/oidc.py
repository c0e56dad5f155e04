"""The client's side of OpenID providers: discovery, the device flow (RFC 8628) with PKCE, refreshing and revoking tokens.

No token is checked here, so there is no cryptography: they are the server's to check. Tokens and codes are sent only over https, or to this
machine, and never to where a redirect points.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import urllib3

from poiesis.domain.errors import ConfigurationError, PoiesisError, Unauthenticated, Unavailable
from poiesis.domain.hosts import is_loopback

GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_WAIT_S: Final = 1800.0  # for the user to approve, whatever the provider allows
MIN_INTERVAL_S: Final = 1.0
DEFAULT_INTERVAL_S: Final = 5.0  # RFC 8628, section 3.2; also added by slow_down
DEFAULT_EXPIRY_S: Final = 300.0  # of a token, where the provider does not report it


@dataclass(frozen=True)
class Tokens:
    """`expires_at`: seconds since the epoch."""

    access_token: str
    refresh_token: str | None
    expires_at: float

    def __repr__(self) -> str:
        return f"Tokens(expires_at={self.expires_at:.0f})"


@dataclass(frozen=True)
class DeviceLogin:
    """What the user has to do: open `uri` (with the code in it, if `has_code`) and confirm `user_code`."""

    uri: str
    has_code: bool
    user_code: str
    device_code: str
    verifier: str
    interval_s: float
    expires_s: float


class OidcClient:
    """A public client of one provider. Raises on construction: ConfigurationError, Unavailable."""

    def __init__(self, issuer: str, client_id: str) -> None:
        self.issuer, self._client_id = issuer, client_id
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=10, read=30), retries=False
        )  # and no redirects
        url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        status, document = self._request("GET", url)
        if status != 200 or document.get("issuer") != issuer:
            problem = f"HTTP status {status}" if status != 200 else f"it calls itself {document.get('issuer')!r}"
            raise ConfigurationError(
                f"no OpenID provider at {issuer}: {problem}; use the issuer exactly as it is configured there"
            )
        self._document = document

    def begin(self, scope: str) -> DeviceLogin:
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        form = {"client_id": self._client_id, "scope": scope}
        # providers that do not use PKCE in this flow ignore it (RFC 6749, section 3.1)
        form |= {"code_challenge": challenge, "code_challenge_method": "S256"}
        status, answer = self._request("POST", self._endpoint("device_authorization_endpoint", "the device flow"), form)
        if status != 200:
            raise Unauthenticated(f"{self.issuer} refuses the login: {_problem(status, answer)}")
        try:
            complete = answer.get("verification_uri_complete")
            return DeviceLogin(
                uri=_safe(str(complete or answer["verification_uri"])),
                has_code=bool(complete),
                user_code=str(answer["user_code"]),
                device_code=str(answer["device_code"]),
                verifier=verifier,
                interval_s=max(MIN_INTERVAL_S, float(answer.get("interval", DEFAULT_INTERVAL_S))),
                expires_s=min(MAX_WAIT_S, float(answer["expires_in"])),
            )
        except (KeyError, TypeError, ValueError):
            raise PoiesisError(f"invalid response of {self.issuer} to the device flow") from None

    def finish(self, login: DeviceLogin, sleep: Callable[[float], None] = time.sleep) -> Tokens:
        """Wait until the user has approved. Raises: Unauthenticated."""
        interval_s, deadline = login.interval_s, time.monotonic() + login.expires_s
        form = {"grant_type": GRANT, "device_code": login.device_code, "code_verifier": login.verifier}
        while time.monotonic() < deadline:
            sleep(interval_s)
            try:
                status, answer = self._token_request(form)
            except Unavailable:  # RFC 8628, section 3.5: back off
                interval_s = min(2 * interval_s, 60.0)
                continue
            error = answer.get("error")
            if status == 200:
                return _tokens(answer, None)
            if error == "slow_down":
                interval_s += DEFAULT_INTERVAL_S
            elif error == "access_denied":
                raise Unauthenticated("the login was refused")
            elif error == "expired_token":
                break
            elif error != "authorization_pending" and status < 500:
                raise Unauthenticated(f"{self.issuer} refuses the login: {_problem(status, answer)}")
        raise Unauthenticated("the login was not approved in time: run `poiesis login` again")

    def refresh(self, tokens: Tokens) -> Tokens:
        """Raises: Unauthenticated, when only a new login helps; Unavailable."""
        status, answer = self._token_request(
            {"grant_type": "refresh_token", "refresh_token": tokens.refresh_token or ""}
        )
        if status >= 500 or status == 429:
            raise Unavailable(f"{self.issuer} cannot refresh the login: {_problem(status, answer)}")
        if status != 200:
            raise Unauthenticated(f"the login has expired: {_problem(status, answer)}")
        return _tokens(answer, tokens.refresh_token)

    def revoke(self, tokens: Tokens) -> bool:
        """Whether the provider has ended the login (RFC 7009). It may have no way to, nor for access tokens that it does not keep."""
        if "revocation_endpoint" not in self._document:
            return False
        url = self._endpoint("revocation_endpoint", "revocation")
        given = {"refresh_token": tokens.refresh_token, "access_token": tokens.access_token}
        forms = [
            {"token": token, "token_type_hint": kind, "client_id": self._client_id}
            for kind, token in given.items()
            if token
        ]
        ended = [self._request("POST", url, form)[0] == 200 for form in forms]
        return ended[0]

    def user(self, tokens: Tokens) -> str | None:
        """The user's name by UserInfo; None where it cannot be asked."""
        if "userinfo_endpoint" not in self._document:
            return None
        url = self._endpoint("userinfo_endpoint", "UserInfo")
        status, answer = self._request("GET", url, bearer=tokens.access_token)
        name = answer.get("preferred_username") or answer.get("sub") if status == 200 else None
        return str(name) if name else None

    def _token_request(self, form: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        url = self._endpoint("token_endpoint", "tokens")
        return self._request("POST", url, {**form, "client_id": self._client_id})

    def _endpoint(self, name: str, what: str) -> str:
        url = self._document.get(name)
        if not isinstance(url, str):
            raise ConfigurationError(f"{self.issuer} does not offer {what}: there is no {name} in its configuration")
        return url

    def _request(
        self, method: str, url: str, form: Mapping[str, str] | None = None, bearer: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The status, and the JSON object, which is empty where there is none. Raises: Unavailable, ConfigurationError."""
        headers, body = {"Accept": "application/json"}, None
        if bearer is not None:
            headers["Authorization"] = f"Bearer {bearer}"
        if form is not None:
            headers["Content-Type"], body = "application/x-www-form-urlencoded", urlencode(form)
        try:
            with closing(
                self._http.request(
                    method, _safe(url), body=body, headers=headers, redirect=False, preload_content=False
                )
            ) as answer:
                data = answer.read(MAX_ANSWER_BYTES, decode_content=True)
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"no response from {self.issuer}: {type(error).__name__}") from None
        try:
            document = json.loads(data)
        except ValueError:
            document = None
        return answer.status, document if isinstance(document, dict) else {}


def is_safe(url: str) -> bool:
    """Whether what is sent to a URL is encrypted, or stays on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or not url.isprintable():
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def _safe(url: str) -> str:
    """Raises: ConfigurationError."""
    if not is_safe(url):
        raise ConfigurationError(f"invalid address of an OpenID provider {url!r}: must begin with https://")
    return url


def _tokens(answer: Mapping[str, Any], refresh_token: str | None) -> Tokens:
    """`refresh_token`: the one to keep where the provider sends no other."""
    token, kind = answer.get("access_token"), str(answer.get("token_type", "bearer"))
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or kind.lower() != "bearer":
        raise PoiesisError("invalid response of the OpenID provider: it has no bearer token")
    try:
        lasts_s = float(answer.get("expires_in", DEFAULT_EXPIRY_S))
    except (TypeError, ValueError):
        lasts_s = DEFAULT_EXPIRY_S
    new = answer.get("refresh_token")
    return Tokens(token, new if isinstance(new, str) else refresh_token, time.time() + lasts_s)


def _problem(status: int, answer: Mapping[str, Any]) -> str:
    error, text = answer.get("error"), answer.get("error_description")
    return f"{error}: {text}" if error and text else str(error or f"HTTP status {status}")
