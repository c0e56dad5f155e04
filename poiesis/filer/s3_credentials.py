"""Keys for S3 requests: of the endpoint, the variables, a file of profiles; of roles by the SDK, which is imported for them alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from poiesis.domain.errors import ConfigurationError
from poiesis.filer.settings import S3Endpoint


class Credentials(NamedTuple):
    access_key: str
    secret_key: str
    session_token: str | None = None


Provider = Callable[[], Credentials]
"""Asked before each request, by many threads. Raises: ConfigurationError, and for roles StorageUnavailable, StagingFailed."""

ROLES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


def provider(endpoint: S3Endpoint) -> Provider | None:
    """Where credentials come from; None: requests are anonymous."""
    if endpoint.anonymous:
        return None
    if endpoint.access_key and endpoint.secret_key:
        fixed = Credentials(endpoint.access_key, endpoint.secret_key, endpoint.session_token)
        return lambda: fixed
    if endpoint.credentials_file or endpoint.profile:
        return _File(endpoint.credentials_file or _usual_file(), endpoint.profile)
    if found := _of_variables():
        return lambda: found
    if any(os.environ.get(name) for name in ROLES):
        from poiesis.filer.minio_client import of_roles

        return of_roles()
    path = _usual_file()
    return _File(path, None) if os.path.isfile(path) else None


def _of_variables() -> Credentials | None:
    access_key = os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_ACCESS_KEY")
    if not access_key:
        return None
    secret_key = os.environ.get("AWS_SECRET_ACCESS_KEY") or os.environ.get("AWS_SECRET_KEY")
    if not secret_key:
        raise ConfigurationError("filer: AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not")
    return Credentials(access_key, secret_key, os.environ.get("AWS_SESSION_TOKEN") or None)


def _usual_file() -> str:
    return os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")


class _File:
    """One profile of a file like ~/.aws/credentials, read again when the file is another one (a mounted Secret is renewed so)."""

    def __init__(self, path: str, profile: str | None) -> None:
        self._path, self._profile = path, profile or os.environ.get("AWS_PROFILE") or "default"
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._found: Credentials | None = None

    def __call__(self) -> Credentials:
        with self._lock:
            try:
                state = os.stat(self._path)
                seen = (state.st_ino, state.st_mtime_ns, state.st_size)
                if self._found is None or seen != self._seen:
                    self._found, self._seen = self._read(), seen
            except OSError as error:
                raise ConfigurationError(f"filer: the file of credentials cannot be read: {error.strerror}") from error
            return self._found

    def _read(self) -> Credentials:
        import configparser

        parser = configparser.RawConfigParser()  # keys may hold a percent sign
        try:
            with open(self._path, encoding="utf-8") as file:
                parser.read_file(file)
        except (configparser.Error, UnicodeError):
            # its message would show the line
            raise ConfigurationError(
                "filer: the file of credentials is not in the form of ~/.aws/credentials"
            ) from None
        values = [
            parser.get(self._profile, f"aws_{name}", fallback=None)
            for name in ("access_key_id", "secret_access_key", "session_token")
        ]
        if not values[0] or not values[1]:
            raise ConfigurationError(f"filer: the file of credentials has no keys in the profile {self._profile!r}")
        return Credentials(values[0], values[1], values[2] or None)
