"""Which URL schemes there are, what each can do, and which module implements it. A module is imported at its first URL.

A third party adds a scheme with an entry point in the group `poiesis.filers`, whose name is the scheme and whose object is a `Scheme`.
Its factory gets a `Context`.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from poiesis.domain.errors import AccessDenied, ConfigurationError, StagingFailed, UnsupportedUrl
from poiesis.filer.urls import scheme_of, shown

if TYPE_CHECKING:
    from poiesis.filer.settings import FilerSettings
    from poiesis.filer.transfer import Control, Pool
    from poiesis.ports.filer import Filer

GROUP: Final = "poiesis.filers"
_CREDENTIALS: Final = "poiesis.filer.credentials"
UNENCRYPTED: Final = (
    "credentials would be sent unencrypted on a network that the task's commands share; use an encrypted connection, or ask"
    " the operator to set POIESIS_FILER__ALLOW_UNENCRYPTED_CREDENTIALS or the staged layout"
)


@dataclass(frozen=True)
class Context:
    """What a filer is built from."""

    settings: FilerSettings
    control: Control
    pool: Pool
    allow_unencrypted_credentials: bool
    """Whether credentials may be sent over connections that others might read."""
    reader: Callable[[str], Filer]
    """Returns the filer for another URL, for schemes that resolve to one."""


@dataclass(frozen=True)
class Scheme:
    """`factory`: `module:callable`, or the callable; it takes a `Context`. Schemes with the same `group` share a filer."""

    name: str
    factory: str | Callable[[Context], Filer]
    reads: bool = True
    writes: bool = True
    group: str = ""
    needs: Callable[[FilerSettings], bool] | None = None
    """Whether the settings allow writing; None: always."""
    library: str | None = None
    """Module of an optional extra; without it the scheme is not available."""
    unencrypted: str | Callable[[str, FilerSettings], bool] | None = None
    """Whether a transfer would send credentials over a connection without encryption; None: never. Needs no network access."""
    offered: Callable[[FilerSettings], bool] | None = None
    """Whether tasks may name it with these settings; None: always."""


def _http(name: str) -> Scheme:
    asks = f"{_CREDENTIALS}:http_unencrypted"
    return Scheme(name, "poiesis.filer.http:HttpFiler", group="http", needs=lambda s: s.http_put, unencrypted=asks)


def _cloud(name: str) -> Scheme:
    asks = f"{_CREDENTIALS}:cloud_unencrypted"
    return Scheme(
        name, "poiesis.filer.cloud:CloudFiler", group="cloud", offered=lambda s: name in s.cloud, unencrypted=asks
    )


BUILT_IN: Final[Mapping[str, Scheme]] = {
    s.name: s
    for s in (
        Scheme(
            "", "poiesis.filer.local:LocalFiler", group="file", offered=lambda _: False
        ),  # a path, in place of `file`
        Scheme("file", "poiesis.filer.local:LocalFiler", group="file", offered=lambda s: bool(s.file_roots)),
        Scheme("s3", "poiesis.filer.s3:S3Filer", unencrypted=f"{_CREDENTIALS}:s3_unencrypted"),
        _cloud("gs"),
        _cloud("az"),
        _http("http"),
        _http("https"),
        Scheme("ftp", "poiesis.filer.ftp:FtpFiler", group="ftp", unencrypted=f"{_CREDENTIALS}:ftp_unencrypted"),
        Scheme("ftps", "poiesis.filer.ftp:FtpFiler", group="ftp"),
        Scheme("sftp", "poiesis.filer.sftp:SftpFiler", library="paramiko"),
        Scheme("drs", "poiesis.filer.drs:DrsFiler", writes=False, unencrypted=f"{_CREDENTIALS}:drs_unencrypted"),
    )
}


def scheme(name: str) -> Scheme | None:
    """The scheme of that name, built in or from a third party."""
    return BUILT_IN.get(name) or _third_parties().get(name)


def sends_unencrypted(url: str, settings: FilerSettings) -> bool:
    """Whether a transfer of `url` would send credentials unencrypted (`poiesis.filer.credentials`). Raises: UnsupportedUrl."""
    found = scheme(scheme_of(url))
    return found is not None and _sends_unencrypted(found, url, settings)


def _sends_unencrypted(found: Scheme, url: str, settings: FilerSettings) -> bool:
    return found.unencrypted is not None and bool(_loaded(found.unencrypted)(url, settings))


def _loaded(target: str | Callable[..., Any]) -> Callable[..., Any]:
    """A callable, or what `module:callable` names. Raises: ImportError."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def readable(settings: FilerSettings) -> frozenset[str]:
    """Names of schemes that inputs may have."""
    return frozenset(s.name for s in _all() if s.reads and _usable(s, settings))


def writable(settings: FilerSettings) -> frozenset[str]:
    """Names of schemes that outputs may have."""
    return frozenset(s.name for s in _all() if s.writes and _usable(s, settings) and (not s.needs or s.needs(settings)))


def _usable(item: Scheme, settings: FilerSettings) -> bool:
    if item.library is not None:
        from importlib.util import find_spec  # slow, and not needed in filer containers

        if find_spec(item.library) is None:
            return False
    return item.offered is None or item.offered(settings)


def _all() -> list[Scheme]:
    return [*BUILT_IN.values(), *_third_parties().values()]


def _third_parties() -> dict[str, Scheme]:
    from importlib.metadata import entry_points  # slow, and only needed for third-party schemes

    found = {}
    for point in entry_points(group=GROUP):
        if point.name not in BUILT_IN:
            loaded = point.load()
            if not isinstance(loaded, Scheme) or loaded.name != point.name:
                raise ConfigurationError(f"entry point {point.name!r} of {GROUP} is not a Scheme of that name")
            found[point.name] = loaded
    return found


class Filers:
    """The filers of one run by URL, each created when it is first needed."""

    def __init__(
        self,
        settings: FilerSettings,
        control: Control,
        pool: Pool,
        allow_unencrypted_credentials: bool,
        schemes: Mapping[str, Scheme] | None = None,
    ) -> None:
        self._context = Context(settings, control, pool, allow_unencrypted_credentials, self.reader)
        self._schemes = schemes
        self._filers: dict[str, Filer] = {}
        self._lock = threading.Lock()

    def reader(self, url: str) -> Filer:
        """Raises: UnsupportedUrl."""
        found = self._find(url)
        if not found.reads:
            raise UnsupportedUrl(f"{shown(url)}: {found.name!r} URLs cannot be read")
        return self._filer(found, url)

    def writer(self, url: str) -> Filer:
        """Raises: UnsupportedUrl."""
        found = self._find(url)
        if not found.writes or (found.needs and not found.needs(self._context.settings)):
            raise UnsupportedUrl(f"{shown(url)}: this service cannot write {found.name!r} URLs")
        return self._filer(found, url)

    def close(self) -> None:
        for filer in self._filers.values():
            filer.close()

    def _find(self, url: str) -> Scheme:
        name = scheme_of(url)
        found = self._schemes.get(name) if self._schemes is not None else scheme(name)
        if found is None:
            raise UnsupportedUrl(f"{shown(url)}: unknown scheme {name!r}")
        return found

    def _filer(self, found: Scheme, url: str) -> Filer:
        context = self._context
        if not context.allow_unencrypted_credentials and _sends_unencrypted(found, url, context.settings):
            raise AccessDenied(f"{shown(url)}: {UNENCRYPTED}")
        key = found.group or found.name
        with self._lock:
            if key not in self._filers:
                self._filers[key] = self._build(found)
            return self._filers[key]

    def _build(self, found: Scheme) -> Filer:
        try:
            factory = _loaded(found.factory)
        except ImportError as error:
            raise StagingFailed(f"{found.name}: missing library: {error}") from error
        return factory(self._context)  # type: ignore[no-any-return]
