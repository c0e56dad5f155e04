"""Profiles: servers by name in `$XDG_CONFIG_HOME/poiesis/profiles.json`, readable for its owner only, and which server a command means.

Credentials of a profile are sent to its server only, and never printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from poiesis.domain.errors import ConfigurationError

DEFAULT_URL: Final = "http://127.0.0.1:8000"
MAX_FILE_BYTES: Final = 1024 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Profile:
    """`url` may have `user:password@`; `token` is a bearer token."""

    url: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def shown_url(self) -> str:
        return url_without_user(self.url)


@dataclass(frozen=True)
class Server:
    """What a command talks to. `source` is where the address comes from, for messages; `token` None: POIESIS_TOKEN or a login."""

    url: str = field(repr=False)
    source: str
    token: str | None = field(default=None, repr=False)

    @property
    def suffix(self) -> str:
        """What to add to a command so that it means the same server in the same shell."""
        if self.source == "--url":
            return f" --url {url_without_user(self.url)}"
        return f" --profile {self.source.removeprefix('--profile ')}" if self.source.startswith("--profile ") else ""


def config_directory(environ: Mapping[str, str]) -> Path | None:
    root, home = environ.get("XDG_CONFIG_HOME"), environ.get("HOME")
    directory = Path(root) if root else Path(home, ".config") if home else None
    return directory / "poiesis" if directory is not None else None


def url_without_user(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.sub(r"(?<=//)[^/]*@", "", url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def find_server(url: str | None, profile: str | None, environ: Mapping[str, str] = os.environ) -> Server:
    """--url or --profile; POIESIS_URL or TES_URL; POIESIS_PROFILE; the profile in use; this machine. Raises: ConfigurationError."""
    if url and profile:
        raise ConfigurationError("--url and --profile exclude each other")
    if url:
        return Server(url, "--url")
    profiles = Profiles(environ)
    if profile:
        return _of_profile(profiles, profile, "--profile")
    for variable in ("POIESIS_URL", "TES_URL"):
        if value := environ.get(variable):
            return Server(value, variable)
    if name := environ.get("POIESIS_PROFILE") or profiles.current:
        return _of_profile(profiles, name)
    return Server(DEFAULT_URL, "the default")


def _of_profile(profiles: Profiles, name: str, source: str = "profile") -> Server:
    profile = profiles.get(name)
    return Server(profile.url, f"{source} {name}", profile.token)


class Profiles:
    """The file, read once. Raises on construction: ConfigurationError, for a file that is damaged or that others can read."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        directory = config_directory(environ)
        self._path = directory / "profiles.json" if directory is not None else None
        document = self._read()
        self.current: str | None = document.get("current")
        self.all: dict[str, Profile] = {name: Profile(**each) for name, each in document.get("profiles", {}).items()}

    def get(self, name: str) -> Profile:
        """Raises: ConfigurationError."""
        if name not in self.all:
            known = f"known are {', '.join(sorted(self.all))}" if self.all else "add one with `poiesis profile add`"
            raise ConfigurationError(f"no such profile: {name!r}; {known}")
        return self.all[name]

    def add(self, name: str, profile: Profile) -> None:
        """Add or replace; the first one is in use at once. Raises: ConfigurationError."""
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"invalid profile name {name!r}: 1 to 64 letters, digits, '.', '_' and '-'")
        self.all[name] = profile
        self.current = self.current or name
        self._write()

    def use(self, name: str) -> None:
        """Raises: ConfigurationError."""
        self.get(name)
        self.current = name
        self._write()

    def remove(self, name: str) -> None:
        """Raises: ConfigurationError."""
        self.get(name)
        del self.all[name]
        if self.current == name:
            self.current = None
        self._write()

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        data = read_private(self._path, "the profiles", f"run `chmod 600 {self._path}`")
        if data is None:
            return {}
        try:
            document = json.loads(data)
            _check(document)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ConfigurationError(f"damaged profiles in {self._path}: repair the JSON, or remove the file") from None
        return dict(document)

    def _write(self) -> None:
        if self._path is None:
            raise ConfigurationError("no directory for profiles: set XDG_CONFIG_HOME or HOME")
        profiles = {
            name: {key: value for key, value in asdict(each).items() if value is not None}
            for name, each in sorted(self.all.items())
        }
        document = {"profiles": profiles} | ({"current": self.current} if self.current else {})
        write_private(self._path, json.dumps(document, indent=2) + "\n", "the profiles")


def _check(document: Any) -> None:
    """Raises: TypeError, KeyError, AttributeError, for another structure."""
    if not isinstance(document.get("current"), str | None):
        raise TypeError
    for each in document.get("profiles", {}).values():
        if set(each) - {"url", "token"} or not all(isinstance(value, str) for value in (each["url"], *each.values())):
            raise TypeError


def read_private(path: Path, what: str, repair: str) -> bytes | None:
    """The content; None without a file. Raises: ConfigurationError, with `repair` for a file that another user can read or owns."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"cannot read {what} in {path}: {error.strerror}") from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ConfigurationError(f"other users can read {what} in {path}, which may contain credentials: {repair}")
    return data


def write_private(path: Path, text: str, what: str) -> None:
    """Replace the file at once, readable for its owner only. Raises: ConfigurationError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigurationError(f"cannot save {what} in {path.parent}: {error.strerror}") from None
