"""Which web pages may call the service: only its own and those of the CORS settings.

A browser sends requests for any page that its user has open, to addresses that only the user can reach. Two attacks follow: a page posts
a task (CSRF), and a page whose name is made to resolve to the service's address reads the responses (DNS rebinding). Browsers name the
page in `Origin` and `Sec-Fetch-Site` and the service in `Host`, and pages cannot change these.

| Request | Without authentication | With authentication |
|---|---|---|
| `Host` is not a name of the service | refused | allowed: credentials are not sent to another name |
| from another origin | refused | refused unless it is a GET, HEAD or OPTIONS: browsers remember Basic passwords |
| from an origin in `cors_origins` | allowed | allowed |
| link to a page of the service (not of the API) | allowed | allowed |
| not from a browser | allowed | allowed |
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final
from urllib.parse import urlsplit

from starlette.types import Scope

from poiesis.api.errors import Refused
from poiesis.config import ApiSettings
from poiesis.domain.errors import Forbidden
from poiesis.domain.hosts import is_loopback

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]/@\s]+)(?::(?P<port>[0-9]{0,5}))?", re.ASCII)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


class RequestGuard:
    def __init__(self, settings: ApiSettings) -> None:
        self._authenticates = bool(settings.auth)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.cors_origins)
        self._names = {name.lower() for name in settings.allowed_hosts if not name.startswith("*")}
        self._suffixes = tuple(name[1:].lower() for name in settings.allowed_hosts if name.startswith("*."))
        self._any_host = "*" in settings.allowed_hosts
        self._only_loopback = _is_of_this_machine(settings.host.lower())
        if not self._only_loopback:
            self._names |= {settings.host.lower(), socket.gethostname().lower()}

    def check(self, scope: Scope, *, is_page: bool) -> None:
        """Raises: Refused, Forbidden."""
        values = {n: v.decode("latin-1").lower() for n, v in scope["headers"] if n in (b"origin", b"sec-fetch-site")}
        hosts = [v.decode("latin-1").lower() for n, v in scope["headers"] if n == b"host"]
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None and (hosts or scope["http_version"] != "1.0"):
            raise Refused(400, "a request needs one header Host with the name of the service")
        if match is not None and not self._authenticates and not self._is_known(match["name"]):
            raise Forbidden(
                f"unknown host name {match['name'][:100]!r}: use a name of the service, or add this one to POIESIS_API__ALLOWED_HOSTS"
            )
        if self._authenticates and scope["method"] in SAFE_METHODS:
            return
        origin, site = values.get(b"origin"), values.get(b"sec-fetch-site", "none")
        if origin is not None and (origin in self._origins or "*" in self._origins):
            return
        if origin is not None and not _is_same(origin, match):
            raise Forbidden(
                f"requests from web pages of {origin[:100]!r} are not allowed; add it to POIESIS_API__CORS_ORIGINS to allow them"
            )
        if site not in ("none", "same-origin") and not (is_page and _is_link(scope)):
            raise Forbidden("requests from web pages of other sites are not allowed; see POIESIS_API__CORS_ORIGINS")

    def _is_known(self, name: str) -> bool:
        name = name.rstrip(".")
        if self._any_host or _is_of_this_machine(name) or name in self._names or name.endswith(self._suffixes):
            return True
        # a page cannot make a browser send an address that is not its own
        return not self._only_loopback and _is_address(name)


def came_from_browser(scope: Scope) -> bool:
    return any(
        name in (b"origin", b"referer", b"cookie", b"sec-fetch-site", b"sec-fetch-mode") for name, _ in scope["headers"]
    )


def _is_same(origin: str, host: re.Match[str] | None) -> bool:
    """Whether an origin is that of the request. The scheme does not count: a proxy may have ended TLS."""
    if host is None:
        return False
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(parts.scheme)
    found = _HOST.fullmatch(parts.netloc)
    return (
        found is not None
        and default is not None
        and found["name"] == host["name"]
        and (found["port"] or default) == (host["port"] or default)
    )


def _is_link(scope: Scope) -> bool:
    """Whether a user followed a link: the answer becomes the page in the window, and the page with the link cannot read it."""
    headers = dict(scope["headers"])
    return (
        scope["method"] in ("GET", "HEAD")
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )


def _is_of_this_machine(name: str) -> bool:
    return name.endswith(".localhost") or is_loopback(name.strip("[]"))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
