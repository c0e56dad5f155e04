"""What is checked: the settings as they are, also where some are invalid, and which of its parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from poiesis.bootstrap import ADAPTER_PREFIXES, FILER_PREFIX, KUBERNETES_PREFIX
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.config import PREFIX, Settings, read_all
from poiesis.filer.settings import FilerSettings
from poiesis.observability import without_credentials

Mode = Literal["kubernetes", "machine"]
LEAST_SECRET: Final = 4  # characters; a shorter text is replaced only where it is a password in a URL
HIDDEN: Final = "(hidden)"


@dataclass(frozen=True)
class Site:
    """`role` None: everything. `trial`: whether checks may create things. `url`: of the API, if it is to be checked.
    `accounts`: service accounts, `NAMESPACE:NAME` by role, whose rights are checked."""

    environ: Mapping[str, str] = field(repr=False)
    settings: Settings
    filer: FilerSettings
    kubernetes: KubernetesSettings
    problems: tuple[tuple[str, str], ...]
    mode: Mode
    role: str | None = None
    trial: bool = True
    url: str | None = None
    accounts: Mapping[str, str] = field(default_factory=dict)

    def is_for(self, *roles: str) -> bool:
        """Whether a check is wanted that only these roles need."""
        return self.role is None or self.role in roles

    def is_invalid(self, prefix: str) -> bool:
        """Whether a setting of that prefix is invalid, so that what depends on it cannot be checked."""
        return any(name.startswith(prefix) for name, _ in self.problems)

    @cached_property
    def _secrets(self) -> tuple[str, ...]:
        settings, found = self.settings, set()
        for uri in (settings.mongo_uri, settings.redis_uri):
            found |= {uri, *re.findall(r"//[^/@]*:([^/@]+)@", uri)}
        found |= {unquote(text) for text in found}
        found.add(str(settings.logs.secret_key or ""))
        for options in self.filer.s3.values():
            found |= {str(options.get(name) or "") for name in ("secret_key", "session_token")}
        found |= {self.environ.get(name, "") for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
        return tuple(sorted((s for s in found if len(s) >= LEAST_SECRET), key=len, reverse=True))

    def clean(self, text: str) -> str:
        """Remove every secret of the site from a text, in case a library's message quotes it."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return without_credentials(text)


def read_site(
    environ: Mapping[str, str],
    *,
    mode: str = "auto",
    role: str | None = None,
    trial: bool = True,
    url: str | None = None,
    accounts: Mapping[str, str] | None = None,
) -> Site:
    """Never raises for invalid settings: they are in `problems`."""
    settings, problems = read_all(Settings, environ, others=ADAPTER_PREFIXES)
    filer, more = read_all(FilerSettings, environ, FILER_PREFIX)
    kubernetes, rest = read_all(KubernetesSettings, environ, KUBERNETES_PREFIX)
    return Site(
        environ,
        settings,
        filer,
        kubernetes,
        (*problems, *more, *rest),
        _mode(environ, mode, role),
        role,
        trial,
        url,
        accounts or {},
    )


def _mode(environ: Mapping[str, str], mode: str, role: str | None) -> Mode:
    """auto: Kubernetes with a role, a store of the server mode, or any setting of Kubernetes."""
    if mode == "auto":
        names = (f"{PREFIX}MONGO_URI", f"{PREFIX}REDIS_URI", KUBERNETES_PREFIX)
        is_server = role is not None or any(name.startswith(names) for name in environ)
        return "kubernetes" if is_server else "machine"
    return "kubernetes" if mode == "kubernetes" else "machine"


def host_of(uri: str) -> tuple[str, int | None]:
    """Host and port of the first server of a connection string, without credentials."""
    place = urlsplit(uri).netloc.rpartition("@")[2].split(",")[0]
    host, _, port = place.rpartition(":") if re.search(r":\d+$", place) else (place, "", "")
    return host.strip("[]"), int(port) if port else None
