"""S3 by the minio SDK: any number of endpoints, each with credentials of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError

from poiesis.domain.errors import (
    AccessDenied,
    NotFound,
    PoiesisError,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.addresses import shown
from poiesis.filer.registry import Context
from poiesis.filer.settings import FilerSettings, S3Endpoint
from poiesis.filer.writing import partial
from poiesis.ports.filer import RemoteFile, Sent


class _Reader:
    def __init__(self, descriptor: int, moved: Any) -> None:
        self._descriptor, self._offset, self._moved = descriptor, 0, moved

    def read(self, size: int = -1) -> bytes:
        data = os.pread(self._descriptor, size if size >= 0 else 1 << 30, self._offset)
        self._offset += len(data)
        self._moved(len(data))
        return data


class S3Filer:
    def __init__(self, context: Context) -> None:
        self._settings = context.settings
        self._control = context.control
        self._endpoints = context.settings.endpoints() or (_default_endpoint(),)
        self._clients: dict[str, Minio] = {}

    def close(self) -> None:
        for client in self._clients.values():
            client._http.clear()

    def stat(self, url: str) -> RemoteFile | None:
        client, bucket, key = self._find(url)
        if not key or key.endswith("/"):
            return None
        try:
            found = client.stat_object(bucket, key)
        except (MinioException, HTTPError, ValueError, OSError) as error:
            problem = translated(url, error)
            if isinstance(problem, NotFound):
                return None
            raise problem from error
        return RemoteFile(url, key.rsplit("/", 1)[-1], found.size, found.etag)

    def walk(self, url: str) -> Iterator[RemoteFile]:
        client, bucket, key = self._find(url)
        prefix = key.rstrip("/") + "/" if key.strip("/") else ""
        base = url[: len(url) - len(key)]
        try:
            for found in client.list_objects(bucket, prefix, recursive=True):
                name = str(found.object_name)[len(prefix) :]
                inner = base + str(found.object_name)
                if not name or name.endswith("/"):
                    yield RemoteFile(inner, name.rstrip("/"), 0, is_directory=True)
                else:
                    yield RemoteFile(inner, name, found.size, found.etag)
        except (MinioException, HTTPError, ValueError, OSError) as error:
            raise translated(url, error) from error

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        client, bucket, key = self._find(file.url)
        try:
            answer = client.get_object(bucket, key)
            try:
                with partial(target, sync=self._settings.sync, size_bytes=file.size_bytes) as part:
                    offset = 0
                    while data := answer.read(self._settings.buffer_bytes):
                        part.write(data, offset)
                        offset += len(data)
                        self._control.moved(len(data))
            finally:
                answer.close()
                answer.release_conn()
        except (MinioException, HTTPError, ValueError, OSError) as error:
            raise translated(file.url, error) from error
        return Sent(file.url, offset)

    def send(self, source: int, url: str) -> Sent:
        client, bucket, key = self._find(url)
        size = os.fstat(source).st_size
        try:
            reader: Any = _Reader(source, self._control.moved)
            client.put_object(bucket, key, reader, size, part_size=self._settings.part_bytes if size > 5 << 20 else 0)
        except (MinioException, HTTPError, ValueError, OSError) as error:
            raise translated(url, error) from error
        return Sent(url, size)

    def make_directory(self, url: str) -> None:
        client, bucket, key = self._find(url)
        if key.strip("/"):
            import io

            try:
                client.put_object(bucket, key.rstrip("/") + "/", io.BytesIO(), 0)
            except (MinioException, HTTPError, ValueError, OSError) as error:
                raise translated(url, error) from error

    def _find(self, url: str) -> tuple[Minio, str, str]:
        rest = url[len("s3://") :]
        first, _, tail = rest.partition("/")
        endpoint = None
        for candidate in self._endpoints:
            if first in (candidate.name, urlsplit(candidate.url).netloc):
                endpoint = candidate
                first, _, tail = tail.partition("/")
                break
        if endpoint is None:
            matching = [e for e in self._endpoints if any(fnmatchcase(first, b) for b in e.buckets)]
            endpoint = matching[0] if matching else self._endpoints[0]
        if not first:
            raise UnsupportedUrl(f"{shown(url)}: names no bucket")
        return self._client(endpoint), first, tail

    def _client(self, endpoint: S3Endpoint) -> Minio:
        if endpoint.name not in self._clients:
            self._clients[endpoint.name] = _build(endpoint, self._settings)
        return self._clients[endpoint.name]


def _default_endpoint() -> S3Endpoint:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    return S3Endpoint("aws", url)


def _build(endpoint: S3Endpoint, settings: FilerSettings) -> Minio:
    parts = urlsplit(endpoint.url)
    return Minio(
        parts.netloc,
        access_key=endpoint.access_key or os.environ.get("AWS_ACCESS_KEY_ID"),
        secret_key=endpoint.secret_key or os.environ.get("AWS_SECRET_ACCESS_KEY"),
        session_token=endpoint.session_token or os.environ.get("AWS_SESSION_TOKEN"),
        secure=parts.scheme == "https",
        region=endpoint.region or os.environ.get("AWS_REGION") or "us-east-1",
        http_client=urllib3.PoolManager(
            maxsize=settings.parallel,
            retries=False,
            timeout=urllib3.Timeout(
                connect=settings.connect_timeout.total_seconds(), read=settings.stall_timeout.total_seconds()
            ),
        ),
    )


def translated(url: str, error: Exception) -> PoiesisError:
    text = shown(url)
    if isinstance(error, S3Error):
        code = str(error.code)
        if code in ("NoSuchKey", "NoSuchBucket", "NoSuchVersion", "ResourceNotFound"):
            return NotFound(f"{text}: {code}")
        if code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
            return AccessDenied(f"{text}: {code}: {error.message}")
        if code in ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout"):
            return StorageUnavailable(f"{text}: {code}: {error.message}")
        return StagingFailed(f"{text}: {code}: {error.message}")
    if isinstance(error, ServerError):
        return StorageUnavailable(f"{text}: the server answered {error.status_code}")
    if isinstance(error, InvalidResponseError | ValueError):
        return StagingFailed(f"{text}: {str(error)[:200]}")
    return StorageUnavailable(f"{text}: {str(error)[:200]}")
