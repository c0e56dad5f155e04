"""Whether a transfer would send credentials over a connection that others can read.

In the `single` layout on Kubernetes the filers share their pod's network with the task's commands, so credentials may cross it encrypted
only. Two places ask: the planner, which gives such a task the `staged` layout where the filers have separate pods
(`first_unencrypted`, without any network access), and the filer itself before it uses a URL (`poiesis.filer.registry.Filers`), which
refuses when its document says `"allow_unencrypted_credentials": false` and the site's `FilerSettings.allow_unencrypted_credentials` is
off.

The planner cannot see what only filer containers have: where the netrc file cannot be read, it counts as holding a login for every
host, an S3 endpoint that is not `anonymous` as having keys, and proxies from the containers' environment are unknown. A URL's query
is not checked: a signed `http://` URL in a task is visible to the network anyway.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import SplitResult, urlsplit

from poiesis.domain.errors import ConfigurationError, PoiesisError
from poiesis.filer.network import logins, proxy_of
from poiesis.filer.settings import FilerSettings

PUBLIC_USERS = frozenset({"anonymous", "ftp"})


def first_unencrypted(urls: Iterable[str], settings: FilerSettings) -> str | None:
    """The first URL whose transfer would send credentials unencrypted. Asks once for each scheme and host."""
    from poiesis.filer.registry import sends_unencrypted

    seen: set[str] = set()
    for url in urls:
        origin = "/".join(url.split("/", 3)[:3])
        if origin not in seen:
            seen.add(origin)
            try:
                if sends_unencrypted(url, settings):
                    return url
            except PoiesisError:
                continue  # not a URL that can be used at all
    return None


# one function for each family of schemes, used by the registry


def s3_unencrypted(url: str, settings: FilerSettings) -> bool:
    from poiesis.filer.s3_urls import parse_s3_url, s3_endpoints

    endpoint = parse_s3_url(url, s3_endpoints(settings))[0]
    parts = urlsplit(endpoint.url)
    has_keys = not endpoint.anonymous or endpoint.sse_key_file is not None
    return (has_keys and parts.scheme == "http") or _proxy_password(None, parts)


def cloud_unencrypted(url: str, settings: FilerSettings) -> bool:
    store = settings.cloud_stores.get(urlsplit(url).scheme.lower())
    return store is not None and not store.anonymous and (store.endpoint or "").startswith("http://")


def http_unencrypted(url: str, settings: FilerSettings) -> bool:
    parts = _parts(url)
    return (parts.scheme == "http" and _has_login(parts, settings)) or _proxy_password(settings.proxy, parts)


def ftp_unencrypted(url: str, settings: FilerSettings) -> bool:
    parts = _parts(url)
    return parts.scheme == "ftp" and (parts.username or "") not in PUBLIC_USERS and _has_login(parts, settings)


def drs_unencrypted(url: str, settings: FilerSettings) -> bool:
    """Of the requests to the DRS host. The access URL is checked when it is known."""
    host = _parts(url).netloc.lower()
    base = _parts(
        next((h for h in settings.drs_hosts if "://" in h and _parts(h).netloc.lower() == host), f"https://{host}")
    )
    sends = base.scheme == "http" and (settings.drs_token_file is not None or _has_login(base, settings))
    return sends or _proxy_password(settings.proxy, base)


def _has_login(parts: SplitResult, settings: FilerSettings) -> bool:
    if parts.username:
        return True
    if settings.netrc_file is None:
        return False
    try:
        state = os.stat(settings.netrc_file)
    except OSError:
        return True
    hosts = _hosts(settings.netrc_file, state.st_ino, state.st_mtime_ns)
    return hosts is None or (parts.hostname or "") in hosts


@lru_cache(maxsize=8)
def _hosts(netrc_file: str, _inode: int, _mtime_ns: int) -> frozenset[str] | None:
    """None: the file cannot be read."""
    try:
        return frozenset(logins(netrc_file))
    except ConfigurationError:
        return None


def _proxy_password(configured: str | None, parts: SplitResult) -> bool:
    """Whether the proxy on the way requires a password and is itself reached without TLS."""
    proxy = configured or proxy_of(parts.scheme, parts.hostname or "")
    if not proxy:
        return False
    found = _parts(proxy if "://" in proxy else f"http://{proxy}")
    return found.scheme == "http" and found.username is not None


def _parts(url: str) -> SplitResult:
    """A URL that cannot be parsed has no host; its filer refuses it with a reason."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
