"""Saved logins: one file for each server below `$XDG_CONFIG_HOME/poiesis/logins`, readable for its owner only.

A lock per file lets only one process refresh: providers that rotate refresh tokens take a second use of one for theft, and end the login.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from poiesis.cli.oidc import OidcClient, Tokens
from poiesis.cli.profiles import config_directory, read_private, write_private
from poiesis.domain.errors import ConfigurationError, Unauthenticated

REFRESH_BEFORE_S: Final = 30.0  # so long before a token expires
PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Login:
    """`server`: as `server_key` has it; a token is sent to no other one."""

    server: str
    issuer: str
    client_id: str
    scope: str
    tokens: Tokens


def server_key(url: str) -> str:
    """Scheme, host, port and path of a server, so that equal ones are written the same. Raises: ConfigurationError."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = (parts.hostname or "").lower(), parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError):
        host, port = "", 0
    if not host:
        raise ConfigurationError(f"invalid server URL {url!r}: use one such as https://tes.example.org")
    path = parts.path.rstrip("/")
    for prefix in ("/ga4gh/tes/v1", "/v1"):
        path = path.removesuffix(prefix)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}{path.rstrip('/')}"


class Logins:
    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        directory = config_directory(environ)
        self._directory = directory / "logins" if directory is not None else None

    def get(self, url: str) -> Login | None:
        """Raises: ConfigurationError, for a file that is damaged or that others can read."""
        if self._directory is None:
            return None
        server = server_key(url)
        path = self._path(server)
        data = read_private(path, "the saved login", f"run `poiesis logout --url {server}` and log in again")
        if data is None:
            return None
        try:
            document: dict[str, Any] = json.loads(data)
            login = Login(**{**document, "tokens": Tokens(**document["tokens"])})
        except (ValueError, TypeError, KeyError):
            login = None
        if login is None or login.server != server:
            raise ConfigurationError(f"damaged saved login {path}: run `poiesis login --url {server}` again")
        return login

    def save(self, login: Login) -> None:
        """Raises: ConfigurationError."""
        write_private(self._path(login.server), json.dumps(asdict(login)), "the login")

    def remove(self, url: str) -> bool:
        """Whether there was one."""
        try:
            self._path(server_key(url)).unlink()
        except FileNotFoundError:
            return False
        return True

    def access_token(self, url: str) -> str | None:
        """A token that is valid for some time, refreshed if necessary; None without a login.

        Raises: Unauthenticated, when only a new login helps; Unavailable, ConfigurationError.
        """
        login = self.get(url)
        if login is None or _is_fresh(login.tokens):
            return login.tokens.access_token if login is not None else None
        with self._locked(login.server):
            login = self.get(url)
            if login is None:
                return None
            if not _is_fresh(login.tokens):
                if login.tokens.refresh_token is None:
                    raise Unauthenticated(f"the login has expired: run `poiesis login --url {login.server}`")
                try:
                    tokens = OidcClient(login.issuer, login.client_id).refresh(login.tokens)
                except Unauthenticated as error:
                    raise Unauthenticated(f"{error}; run `poiesis login --url {login.server}`") from None
                login = replace(login, tokens=tokens)
                self.save(login)
            return login.tokens.access_token

    @contextlib.contextmanager
    def _locked(self, server: str) -> Iterator[None]:
        with open(f"{self._path(server)}.lock", "a", opener=lambda p, flags: os.open(p, flags, 0o600)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _path(self, server: str) -> Path:
        """Raises: ConfigurationError."""
        if self._directory is None:
            raise ConfigurationError("no directory for logins: set XDG_CONFIG_HOME or HOME")
        return self._directory / f"{hashlib.sha256(server.encode()).hexdigest()[:32]}.json"


def _is_fresh(tokens: Tokens) -> bool:
    return tokens.expires_at - REFRESH_BEFORE_S > time.time()
