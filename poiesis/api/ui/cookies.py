"""Cookies of the dashboard. Over TLS their names begin with `__Host-`: no other host and no unencrypted page can set them."""

from __future__ import annotations

from typing import Final

from starlette.requests import cookie_parser
from starlette.types import Scope

MAX_COOKIES: Final = 16 * 1024  # bytes of the headers that are read

SESSION: Final = "poiesis_session"
"""The token of a login."""
FORM: Final = "poiesis_form"
"""A random value that CSRF tokens are made from before a login, and without authentication."""
LOGIN: Final = "poiesis_login"
"""What a login by a provider has to match when the browser comes back."""


class Cookies:
    """Those of one request, and the texts that set others."""

    def __init__(self, scope: Scope, *, is_secure: bool) -> None:
        self._is_secure = is_secure
        header = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
        # not http.cookies: one unusual cookie of another application of the host would hide all the others from it
        self._given = cookie_parser(header[:MAX_COOKIES].decode("latin-1"))

    def get(self, name: str) -> str:
        """Empty where there is none."""
        return self._given.get(self._name(name), "")

    def set_header(self, name: str, value: str, *, max_age_s: int | None = None) -> tuple[bytes, bytes]:
        """`max_age_s` None: until the browser is closed; 0: delete it."""
        parts = [f"{self._name(name)}={value}", "Path=/", "HttpOnly", "SameSite=Lax"]
        parts += ["Secure"] if self._is_secure else []
        parts += [] if max_age_s is None else [f"Max-Age={max_age_s}"]
        return b"set-cookie", "; ".join(parts).encode("latin-1")

    def _name(self, name: str) -> str:
        return f"__Host-{name}" if self._is_secure else name
