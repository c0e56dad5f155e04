"""Credentials for S3 requests: from the endpoint's settings, variables, a profile file, or a role (through the SDK)."""

from __future__ import annotations

import os
import threading

from poiesis.domain.errors import ConfigurationError
from poiesis.filer.s3_signature import Credentials, Provider
from poiesis.filer.settings import S3Endpoint

ROLES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


def provider(endpoint: S3Endpoint) -> Provider | None:
    """The source of credentials; None: requests are anonymous."""
    if endpoint.anonymous:
        return None
    if endpoint.access_key and endpoint.secret_key:
        fixed = Credentials(endpoint.access_key, endpoint.secret_key, endpoint.session_token)
        return lambda: fixed
    if endpoint.credentials_file or endpoint.profile:
        return _ProfileFile(endpoint.credentials_file or _default_file(), endpoint.profile)
    if found := _from_variables():
        return lambda: found
    if any(os.environ.get(name) for name in ROLES):
        from poiesis.filer.minio_client import role_credentials

        return role_credentials()
    path = _default_file()
    return _ProfileFile(path, None) if os.path.isfile(path) else None


def _from_variables() -> Credentials | None:
    access_key = os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_ACCESS_KEY")
    if not access_key:
        return None
    secret_key = os.environ.get("AWS_SECRET_ACCESS_KEY") or os.environ.get("AWS_SECRET_KEY")
    if not secret_key:
        raise ConfigurationError("filer: AWS_ACCESS_KEY_ID is set but AWS_SECRET_ACCESS_KEY is not")
    return Credentials(access_key, secret_key, os.environ.get("AWS_SESSION_TOKEN") or None)


def _default_file() -> str:
    return os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")


class _ProfileFile:
    """One profile of a file like ~/.aws/credentials, read again when the file changes (a mounted Secret is renewed that way)."""

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
                raise ConfigurationError(f"filer: cannot read the credentials file: {error.strerror}") from error
            return self._found

    def _read(self) -> Credentials:
        import configparser

        parser = configparser.RawConfigParser()  # keys may contain a percent sign
        try:
            with open(self._path, encoding="utf-8") as file:
                parser.read_file(file)
        except (configparser.Error, UnicodeError):
            # its message would show the line, with the key
            raise ConfigurationError(
                "filer: invalid credentials file: must have the format of ~/.aws/credentials"
            ) from None
        values = [
            parser.get(self._profile, f"aws_{name}", fallback=None)
            for name in ("access_key_id", "secret_access_key", "session_token")
        ]
        if not values[0] or not values[1]:
            raise ConfigurationError(f"filer: the credentials file has no keys in profile {self._profile!r}")
        return Credentials(values[0], values[1], values[2] or None)
