"""What the gate has found out about a request to the dashboard, for its pages; addresses and CSRF tokens."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final

from poiesis.api.ui.cookies import FORM, SESSION, Cookies
from poiesis.api.users import User

VISIT: Final = "poiesis.visit"
"""Key of the ASGI scope: the `Visit`."""
ROOT: Final = "/ui"
LOGIN_PAGE: Final = f"{ROOT}/login"
MAX_NEXT: Final = 1_500  # characters of an address to go on to after a login


@dataclass
class Visit:
    """`user` None: not logged in. `csrf`: the token that forms send back. `error`: why the request is refused."""

    user: User | None
    csrf: str = field(repr=False)
    error: Exception | None = None
    has_session: bool = False


def form_secret(cookies: Cookies, *, has_session: bool) -> tuple[str, list[tuple[bytes, bytes]]]:
    """The CSRF token of a browser, and the cookie to set where it is the first."""
    if has_session:
        return csrf_token(cookies.get(SESSION)), []
    if secret := cookies.get(FORM):
        return csrf_token(secret), []
    secret = secrets.token_urlsafe(32)
    return csrf_token(secret), [cookies.set_header(FORM, secret)]


def csrf_token(secret: str) -> str:
    """The token for forms: it is bound to a cookie, and does not reveal it."""
    return hmac.digest(secret.encode(), b"poiesis csrf", "sha256").hex()


def is_csrf_token(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def is_dashboard(path: str) -> bool:
    return path == ROOT or path.startswith(ROOT + "/")


def next_path(text: str) -> str:
    """An address to go on to: a path of the dashboard, or its root for anything else."""
    is_usable = (
        len(text) <= MAX_NEXT
        and text.isascii()  # as every address is that a browser sends
        and text.isprintable()
        and "\\" not in text
        and is_dashboard(text.partition("?")[0])
    )
    return text if is_usable and "/../" not in text and "#" not in text else ROOT
