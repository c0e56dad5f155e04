"""An S3 endpoint in one region: connections, signatures, addresses of buckets."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from poiesis import __version__
from poiesis.domain.errors import ConfigurationError
from poiesis.filer.http_connection import ConnectionPool
from poiesis.filer.network import PORTS, Proxy, open_connection, proxy_of, tls_context
from poiesis.filer.s3_credentials import provider
from poiesis.filer.s3_signature import EMPTY_SHA256, Signer, base64
from poiesis.filer.settings import FilerSettings, S3Endpoint
from poiesis.filer.urls import shown

CONTENT_TYPE: Final = "application/octet-stream"
SSE: Final = "x-amz-server-side-encryption"
_USUAL_AWS: Final = r"s3\.(dualstack\.)?([a-z0-9-]+\.)?(amazonaws\.com(?:\.cn)?)"


class RegionalEndpoint:
    """One endpoint in one region."""

    def __init__(self, endpoint: S3Endpoint, region: str, settings: FilerSettings) -> None:
        """Raises: ConfigurationError."""
        self.config, self.region, self._settings = endpoint, region, settings
        parts = urlsplit(endpoint.url)
        wrong = f"filer: s3 endpoint {endpoint.name!r}: invalid url {shown(endpoint.url)}: "
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(wrong + "must be an http or https URL")
        try:
            port = parts.port
        except ValueError:
            raise ConfigurationError(wrong + "the port must be between 0 and 65535") from None
        if "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigurationError(wrong + "must not have a user, path or query")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", region):
            raise ConfigurationError(f"filer: s3 endpoint {endpoint.name!r}: invalid region {region!r}")
        self.scheme, self.is_secure = parts.scheme, parts.scheme == "https"
        self.host = parts.hostname
        self.netloc = parts.netloc
        if port == PORTS[parts.scheme]:
            self.netloc = self.netloc.rpartition(":")[0]  # the default port is not signed
        via = proxy_of(parts.scheme, self.host)
        self.proxy = Proxy(via) if via else None
        self.tls = tls_context(endpoint.ca_file, verify=endpoint.verify) if self.is_secure else None
        self.proxy_tls = tls_context() if self.proxy and self.proxy.is_secure else None
        self.timeout_s = settings.connect_timeout.total_seconds()
        self.stall_s = settings.stall_timeout.total_seconds()
        self.provider = provider(endpoint)
        self.read_headers, self.write_headers = _sse(endpoint)
        self._pools: dict[str, ConnectionPool] = {}
        self.address = cache(self._address)
        """Host and start of the path for a bucket."""
        self._signer = Signer(region)
        self._lock = threading.Lock()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def signed(
        self,
        method: str,
        bucket: str,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        sha256: str = EMPTY_SHA256,
    ) -> tuple[str, dict[str, str]]:
        """The target of a request's first line, and its headers. Raises: what credential providers raise."""
        netloc, prefix = self.address(bucket)
        path = prefix + quote(key, safe="/~")
        encoded = "&".join(f"{quote(k, safe='~')}={quote(v, safe='~')}" for k, v in sorted((query or {}).items()))
        sent = {"host": netloc}
        for name, value in (headers or {}).items():
            sent[name.lower()] = value
        if self.provider is not None:
            credentials = self.provider()
            sent["x-amz-content-sha256"] = sha256
            if credentials.session_token:
                sent["x-amz-security-token"] = credentials.session_token
            self._signer.sign(method, path, encoded, sent, sha256, credentials.access_key, credentials.secret_key)
        sent["user-agent"] = f"poiesis/{__version__}"
        target = f"{path}?{encoded}" if encoded else path
        if self.proxy and not self.is_secure:
            target = f"http://{netloc}{target}"
            sent |= self.proxy.headers
        return target, sent

    def _address(self, bucket: str) -> tuple[str, str]:
        """By the SDK's rules for AWS, virtual style and dots; a test compares the two."""
        netloc, virtual = self.netloc, self.config.virtual_style
        if "amazonaws.com" in self.host or self.host.endswith("aliyuncs.com"):
            match = re.fullmatch(_USUAL_AWS, netloc)
            if match is None:
                from poiesis.filer.minio_client import bucket_address

                return bucket_address(self.config.url, self.region, bucket, virtual_style=virtual)
            netloc, virtual = f"s3.{match[1] or ''}{self.region}.{match[3]}", True
        if virtual and not ("." in bucket and self.is_secure):
            return f"{bucket}.{netloc}", "/"
        return netloc, f"/{bucket}/"

    def pool(self, bucket: str) -> ConnectionPool:
        """The connections to the bucket's host."""
        netloc = self.address(bucket)[0]
        with self._lock:
            if netloc not in self._pools:
                self._pools[netloc] = ConnectionPool(
                    lambda: self._connect(netloc),
                    buffer_bytes=self._settings.buffer_bytes,
                    stall_s=self.stall_s,
                    keep=self._settings.parallel,
                )
            return self._pools[netloc]

    def _connect(self, netloc: str) -> socket.socket:
        parts = urlsplit(f"//{netloc}")
        return open_connection(
            str(parts.hostname),
            parts.port or PORTS[self.scheme],
            timeout_s=self.timeout_s,
            tls=self.tls,
            proxy=self.proxy,
            proxy_tls=self.proxy_tls,
        )


@dataclass(frozen=True)
class ObjectRef:
    """An object, or a bucket where `key` is empty. `url` is the user's."""

    url: str
    endpoint: RegionalEndpoint
    bucket: str
    key: str


def get_headers(endpoint: RegionalEndpoint, version: str | None) -> dict[str, str]:
    """Headers of a request for a whole object. `version`: the ETag it must have."""
    headers = {**endpoint.read_headers, "x-amz-checksum-mode": "ENABLED"}
    if version:
        headers["if-match"] = f'"{version}"'
    return headers


def put_headers(endpoint: RegionalEndpoint, sha256: bytes) -> dict[str, str]:
    """Headers of a request that stores a whole object."""
    content = {"content-type": CONTENT_TYPE, "x-amz-checksum-sha256": base64(sha256)}
    return {**endpoint.write_headers, **content}


def default_region() -> str:
    configured = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if configured:
        return configured
    path = os.environ.get("AWS_CONFIG_FILE") or os.path.expanduser("~/.aws/config")
    if os.path.isfile(path):
        import configparser

        parser = configparser.ConfigParser()
        profile = os.environ.get("AWS_PROFILE", "default")
        with suppress(OSError, configparser.Error, UnicodeError):
            parser.read(path)
            for section in (f"profile {profile}", profile):
                if found := parser.get(section, "region", fallback=None):
                    return found
    return "us-east-1"


def _sse(endpoint: S3Endpoint) -> tuple[dict[str, str], dict[str, str]]:
    """Headers of server-side encryption for reading (and parts), and for new objects. Raises: ConfigurationError."""
    if endpoint.sse_key_file is not None:
        try:
            key = Path(endpoint.sse_key_file).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"filer: s3 endpoint {endpoint.name!r}: sse_key_file: {error}") from None
        if len(key) != 32:
            raise ConfigurationError(f"filer: s3 endpoint {endpoint.name!r}: sse_key_file: must have exactly 32 bytes")
        headers = {
            f"{SSE}-customer-algorithm": "AES256",
            f"{SSE}-customer-key": base64(key),
            f"{SSE}-customer-key-md5": base64(hashlib.md5(key, usedforsecurity=False).digest()),
        }
        return headers, headers
    if endpoint.sse is None:
        return {}, {}
    if endpoint.sse == "AES256":
        return {}, {SSE: "AES256"}
    prefix, _, kms_key = endpoint.sse.partition("aws:kms")
    if not prefix and (not kms_key or kms_key.startswith(":")) and endpoint.sse != "":
        key_id = {f"{SSE}-aws-kms-key-id": kms_key[1:]} if kms_key[1:] else {}
        return {}, {SSE: "aws:kms", **key_id}
    raise ConfigurationError(
        f"filer: s3 endpoint {endpoint.name!r}: invalid sse {endpoint.sse!r}: use AES256, aws:kms or aws:kms:KEY"
    )
