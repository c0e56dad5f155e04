"""An S3 endpoint in one region: its connections, its signatures, where its buckets are."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from binascii import b2a_base64
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from poiesis import __version__
from poiesis.domain.errors import ConfigurationError
from poiesis.filer.http_connection import ConnectionPool
from poiesis.filer.proxy_tls import proxy_of, tls_context
from poiesis.filer.s3_credentials import provider
from poiesis.filer.s3_signature import EMPTY_SHA256, Signer
from poiesis.filer.settings import FilerSettings, S3Endpoint
from poiesis.filer.tcp_connection import Proxy, TcpConnection
from poiesis.filer.urls import shown

if TYPE_CHECKING:
    from poiesis.filer.minio_client import Client

SSE: Final = "x-amz-server-side-encryption"
_PLAIN_AWS: Final = r"s3\.(dualstack\.)?([a-z0-9-]+\.)?(amazonaws\.com(?:\.cn)?)"


class RegionalEndpoint:
    """One endpoint in one region."""

    def __init__(self, endpoint: S3Endpoint, region: str, settings: FilerSettings) -> None:
        """Raises: ConfigurationError."""
        self.config, self.region, self._settings = endpoint, region, settings
        parts = urlsplit(endpoint.url)
        wrong = f"filer: s3 endpoint {endpoint.name!r}: {shown(endpoint.url)} "
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(wrong + "is no http URL")
        try:
            port = parts.port
        except ValueError:
            raise ConfigurationError(wrong + "has no proper port") from None
        if "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigurationError(wrong + "may have no user, path or query")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", region):
            raise ConfigurationError(f"filer: s3 endpoint {endpoint.name!r}: {region!r} is no region")
        self.is_secure = parts.scheme == "https"
        self.host = parts.hostname
        self.netloc = parts.netloc
        if port is not None and port == (443 if self.is_secure else 80):
            self.netloc = self.netloc.rpartition(":")[0]  # as clients write it, and as it is signed
        via = proxy_of(parts.scheme, self.host)
        self.proxy = Proxy(via) if via else None
        self.tls = tls_context(endpoint.ca_file, verify=endpoint.verify) if self.is_secure else None
        self.proxy_tls = tls_context() if self.proxy and self.proxy.is_secure else None
        self.timeout_s = settings.connect_timeout.total_seconds()
        self.stall_s = settings.stall_timeout.total_seconds()
        self.provider = provider(endpoint)
        self.read_headers, self.write_headers = _sse(endpoint)
        self._client: Client | None = None
        self._pools: dict[str, ConnectionPool] = {}
        self._addresses: dict[str, tuple[str, str]] = {}
        self._signer = Signer(region)
        self._lock = threading.Lock()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        for pool in self._pools.values():
            pool.close()

    @property
    def client(self) -> Client:
        """The SDK's, made when first needed."""
        with self._lock:
            if self._client is None:
                from poiesis.filer.minio_client import Client

                self._client = Client(self)
            return self._client

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
        """What a request's first line names, and its headers. Raises: what providers of credentials raise."""
        netloc, prefix = self.address(bucket)
        path = prefix + quote(key, safe="/~")
        asked = "&".join(f"{quote(k, safe='~')}={quote(v, safe='~')}" for k, v in sorted((query or {}).items()))
        sent = {"host": netloc}
        for name, value in (headers or {}).items():
            sent[name.lower()] = value
        if self.provider is not None:
            credentials = self.provider()
            sent["x-amz-content-sha256"] = sha256
            if credentials.session_token:
                sent["x-amz-security-token"] = credentials.session_token
            self._signer.sign(method, path, asked, sent, sha256, credentials.access_key, credentials.secret_key)
        sent["user-agent"] = f"poiesis/{__version__}"
        target = f"{path}?{asked}" if asked else path
        if self.proxy and not self.is_secure:
            target = f"http://{netloc}{target}"
            sent |= self.proxy.headers
        return target, sent

    def address(self, bucket: str) -> tuple[str, str]:
        """Host and beginning of the path, by the SDK's rules for AWS, virtual style and dots; a test holds them to it."""
        found = self._addresses.get(bucket)
        if found is None:
            found = self._addresses[bucket] = self._made_address(bucket)
        return found

    def _made_address(self, bucket: str) -> tuple[str, str]:
        netloc, virtual = self.netloc, self.config.virtual_style
        if "amazonaws.com" in self.host or self.host.endswith("aliyuncs.com"):
            match = re.fullmatch(_PLAIN_AWS, netloc)
            if match is None:
                return self.client.address(bucket)
            netloc, virtual = f"s3.{match[1] or ''}{self.region}.{match[3]}", True
        if virtual and not ("." in bucket and self.is_secure):
            return f"{bucket}.{netloc}", "/"
        return netloc, f"/{bucket}/"

    def pool(self, bucket: str) -> ConnectionPool:
        """The connections to where the bucket is."""
        netloc = self.address(bucket)[0]
        with self._lock:
            if netloc not in self._pools:
                self._pools[netloc] = ConnectionPool(
                    lambda: self._connection(netloc),
                    buffer_bytes=self._settings.buffer_bytes,
                    stall_s=self.stall_s,
                    keep=self._settings.parallel,
                )
            return self._pools[netloc]

    def _connection(self, netloc: str) -> TcpConnection:
        parts = urlsplit(f"//{netloc}")
        return TcpConnection(
            str(parts.hostname),
            parts.port or (443 if self.is_secure else 80),
            timeout_s=self.timeout_s,
            tls=self.tls,
            proxy=self.proxy,
            proxy_tls=self.proxy_tls,
        )


@dataclass(frozen=True)
class ObjectRef:
    url: str
    endpoint: RegionalEndpoint
    bucket: str
    key: str


def get_headers(endpoint: RegionalEndpoint, version: str | None) -> dict[str, str]:
    """Of a request for a whole object, of that version (ETag)."""
    headers = {**endpoint.read_headers, "x-amz-checksum-mode": "ENABLED"}
    if version:
        headers["if-match"] = f'"{version}"'
    return headers


def put_headers(endpoint: RegionalEndpoint, sha256: bytes) -> dict[str, str]:
    """Of a request that stores a whole object."""
    content = {"content-type": "application/octet-stream", "x-amz-checksum-sha256": base64(sha256)}
    return {**endpoint.write_headers, **content}


def default_region() -> str:
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if named:
        return named
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
            raise ConfigurationError(
                f"filer: s3 endpoint {endpoint.name!r}: sse_key_file: has to hold exactly 32 bytes"
            )
        headers = {
            f"{SSE}-customer-algorithm": "AES256",
            f"{SSE}-customer-key": base64(key),
            f"{SSE}-customer-key-md5": base64(hashlib.md5(key, usedforsecurity=False).digest()),
        }
        return headers, headers
    if endpoint.sse is None:
        return {}, {}
    kind, _, kms_key = endpoint.sse.partition(":") if endpoint.sse == "AES256" else endpoint.sse.partition("kms:")
    if endpoint.sse == "AES256":
        return {}, {SSE: "AES256"}
    if kind == "aws:" or endpoint.sse == "aws:kms":
        named = {f"{SSE}-aws-kms-key-id": kms_key} if kms_key else {}
        return {}, {SSE: "aws:kms", **named}
    raise ConfigurationError(
        f"filer: s3 endpoint {endpoint.name!r}: sse {endpoint.sse!r} is neither AES256 nor aws:kms"
    )


def base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()
