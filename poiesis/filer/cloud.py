"""`gs://` and `az://`: Google Cloud Storage and Azure Blob Storage.

obstore (Rust's object_store) is the client: requests, credentials with their renewal, retries of single requests. It normalizes keys, so
a key with an empty part (`a//b`) or a slash at its end cannot be read or written; each has an error that says so. Reads of large objects
are resumed in ranges that are bound to one ETag, uploads show when they are complete.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore

from poiesis.domain.errors import (
    AccessDenied,
    ConfigurationError,
    NotFound,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.atomic_write import PartialFile, atomic_file
from poiesis.filer.bound_credentials import AMBIENT
from poiesis.filer.network import CA_BUNDLES
from poiesis.filer.registry import Context
from poiesis.filer.settings import MIB, CloudStore
from poiesis.filer.transfer import Changed
from poiesis.filer.urls import scheme_of, shown
from poiesis.ports.filer import RemoteFile, Sent

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

PART_BYTES: Final = 8 * MIB  # of an upload
MAX_PARTS: Final = 9_000
PARTS_AT_ONCE: Final = 3  # of one upload
UPLOADS_AT_ONCE: Final = 3  # of those with parts: obstore holds each part in memory
SMALL_BYTES: Final = MIB  # up to which an upload is not counted among those
STREAM_BYTES: Final = MIB // 4
CHANGED: Final = "the object changed during the transfer"
_BUCKET: Final = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{2,221}")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<\n]{1,300})|\"message\":\s*\"([^\"]{1,300})")
_EMPTY_PART: Final = re.compile(r"Path \"(.*)\" contained empty path segment")
_URL: Final = re.compile(r"https?://\S+")
_AZURE_VARIABLES: Final = {  # of Azure's own tools, beyond those that obstore reads
    "AZURE_STORAGE_ACCOUNT": "account_name",
    "AZURE_STORAGE_KEY": "account_key",
}
_AZURE_CONNECTION: Final = {  # fields of AZURE_STORAGE_CONNECTION_STRING
    "AccountName": "account_name",
    "AccountKey": "account_key",
    "SharedAccessSignature": "sas_key",
    "BlobEndpoint": "endpoint",
}


class CloudFiler:
    def __init__(self, context: Context) -> None:
        self._settings, self._control, self._pool = context.settings, context.control, context.pool
        self._stores: dict[tuple[str, str], GCSStore | AzureStore] = {}
        self._lock = threading.Lock()
        self._uploads = threading.BoundedSemaphore(UPLOADS_AT_ONCE)

    def close(self) -> None:
        self._stores.clear()

    def stat(self, url: str) -> RemoteFile | None:
        store, key = self._opened(url)
        if not key or key.endswith("/"):
            return None
        try:
            with _errors(url):
                found = obstore.head(store, key)
        except NotFound:
            return None
        return RemoteFile(url, key.rsplit("/", 1)[-1], found["size"], _version(found["e_tag"]))

    def walk(self, url: str) -> Iterator[RemoteFile]:
        store, key = self._opened(url)
        directory = key.rstrip("/")
        base = url[: len(url) - len(key)].rstrip("/") + "/"
        with _errors(url):
            pages = obstore.list(store, directory or None, chunk_size=1000)
        while True:
            with _errors(url):
                page: Any = next(pages, None)
            if page is None:
                return
            for item in page:
                yield self._entry(base, directory, item)

    def _entry(self, base: str, directory: str, item: Mapping[str, Any]) -> RemoteFile:
        key, size = str(item["path"]), int(item["size"])
        url, name = base + key, key.removeprefix(directory).lstrip("/")
        # an empty object may be a directory marker, whose key ends in a slash that obstore does not show
        if size and not name:
            raise _slash(f"{url}/", size)
        if not name or (size == 0 and self.stat(url) is None):
            return RemoteFile(f"{url}/", name, 0, is_directory=True)
        return RemoteFile(url, name, size, _version(item["e_tag"]))

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        store, key = self._opened(file.url)
        if not key:
            raise NotFound(f"{shown(file.url)}: missing key")
        if key.endswith("/"):
            raise UnsupportedUrl(f'{shown(file.url)}: the key of a file cannot end with "/"; use type DIRECTORY')
        size, version = file.size_bytes, file.version
        if size is None:
            found = self.stat(file.url)
            if found is None:
                raise NotFound(f"{shown(file.url)}: there is no such object")
            size, version = found.size_bytes or 0, version or found.version
        self._control.check_size(file.url, size)
        step = self._settings.part_bytes
        with atomic_file(target, sync=self._control.sync, size_bytes=size) as part:
            ranges = [(start, min(start + step, size)) for start in range(0, size, step)]
            if len(ranges) > 2 and version is None:
                raise StagingFailed(
                    f"{shown(file.url)}: the store sent no ETag, so the parts might belong to different objects"
                )
            self._pool.together(
                lambda span=span: self._get(file, store, key, span, version, part)  # type: ignore[misc]
                for span in (ranges if len(ranges) > 2 else [(0, size)])
            )
        return Sent(file.url, size)

    def _get(
        self, file: RemoteFile, store: Any, key: str, span: tuple[int, int], version: str | None, part: PartialFile
    ) -> None:
        """One range of an object, continued where a connection broke."""
        reached, end = span

        def once() -> None:
            nonlocal reached
            options: dict[str, Any] = {"range": (reached, end)} if end > reached else {}
            if version is not None:
                options["if_match"] = version
            try:
                with _errors(file.url):
                    found = obstore.get(store, key, options=options)  # type: ignore[arg-type]
                    if version is not None and _version(found.meta["e_tag"]) not in (version, None):
                        raise Changed(f"{shown(file.url)}: {CHANGED}")  # despite If-Match, which some servers ignore
                    for chunk in found.stream(min_chunk_size=STREAM_BYTES):
                        data = memoryview(chunk)[: end - reached]
                        part.write(data, reached)
                        reached += len(data)
                        self._control.moved(len(data))
            except (NotFound, Changed) as error:  # Azure answers 412 for a condition on a missing object
                if file.version is None or self.stat(file.url) is not None:
                    raise
                raise StagingFailed(
                    f"{shown(file.url)}: is listed but cannot be read: it was removed, or its key ends with"
                    ' "/", which is not supported'
                ) from error
            if reached != end:
                raise StorageUnavailable(f"{shown(file.url)}: the connection ended early")

        self._control.repeat(once, lambda: reached, final=(Changed,))

    def send(self, source: int, url: str) -> Sent:
        store, key = self._opened(url)
        if not key or key.endswith("/"):
            raise UnsupportedUrl(f"{shown(url)}: missing key")
        size = os.fstat(source).st_size
        if size <= SMALL_BYTES:
            self._put(store, key, url, os.pread(source, size, 0), 0)
            self._control.moved(size)
            return Sent(url, size)
        with self._uploads:
            self._put(store, key, url, self._chunks(source, size), max(PART_BYTES, -(-size // MAX_PARTS)))
        return Sent(url, size)

    def _put(self, store: Any, key: str, url: str, body: Any, part_bytes: int) -> None:
        try:
            key.encode()
        except UnicodeEncodeError:
            raise StagingFailed(f"{shown(url)}: the name is not valid UTF-8") from None
        with _errors(url):
            obstore.put(
                store,
                key,
                body,
                attributes={"Content-Type": "application/octet-stream"},
                use_multipart=part_bytes > 0,
                chunk_size=part_bytes or PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )

    def _chunks(self, source: int, size: int) -> Iterator[bytes]:
        """The file's content. An exception ends the upload, and nothing shows under its name."""
        done = 0
        while done < size:
            chunk = os.pread(source, min(MIB, size - done), done)
            if not chunk:
                raise StagingFailed("the file was truncated during the transfer")
            done += len(chunk)
            self._control.moved(len(chunk))
            yield chunk

    def make_directory(self, url: str) -> None:
        """Nothing: these stores have no directories, and obstore cannot write the marker of an empty one."""

    def _opened(self, url: str) -> tuple[GCSStore | AzureStore, str]:
        """The bucket's store, and the key. Raises: UnsupportedUrl, ConfigurationError."""
        scheme, (bucket, _, key) = scheme_of(url), url.partition("://")[2].partition("/")
        if not _BUCKET.fullmatch(bucket):
            problem = f"invalid bucket name {bucket.rpartition('@')[2]!r}" if bucket else "missing bucket"
            raise UnsupportedUrl(f'{problem} in "{shown(url)}": use {scheme}://bucket/key')
        with self._lock:
            if (scheme, bucket) not in self._stores:
                self._stores[scheme, bucket] = self._store(scheme, bucket)
            return self._stores[scheme, bucket], key

    def _store(self, scheme: str, bucket: str) -> GCSStore | AzureStore:
        options = self._settings.cloud_stores.get(scheme) or CloudStore()
        values: dict[str, Any] = {"skip_signature": True} if options.anonymous else dict(options.credentials)
        is_bound = self._settings.credentials_dir is not None
        if is_bound and (shared := next((n for n in os.environ if AMBIENT.match(n)), None)):
            raise AccessDenied(
                f"{scheme}:// cannot be used with a user's credentials: the service has shared ones in {shared}"
            )
        client, retry = self._client_options(options.endpoint), self._retries()
        try:
            if scheme == "gs":
                if options.endpoint:
                    values["base_url"] = options.endpoint.rstrip("/")
                return GCSStore(bucket, client_options=client, retry_config=retry, **values)
            return AzureStore(
                bucket,
                client_options=client,
                retry_config=retry,
                **{**({} if is_bound else _azure_values()), **_azure(options), **values},
            )
        except (exceptions.BaseError, ValueError, OSError) as error:
            raise ConfigurationError(f"filer: {scheme}:// cannot be used: {_brief(error)}") from error

    def _client_options(self, endpoint: str | None) -> ClientConfig:
        """Proxies are those of the environment."""
        options: ClientConfig = {
            "connect_timeout": self._settings.connect_timeout,
            "read_timeout": self._settings.stall_timeout,
            "timeout": timedelta(days=1),  # of the whole; silence is bounded above
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "http1_only": True,
        }
        bundle = next((path for name in CA_BUNDLES if (path := os.environ.get(name))), None)
        try:
            certificates = [Path(path).read_bytes() for path in (bundle, self._settings.ca_file) if path]
        except OSError as error:
            raise ConfigurationError(f"filer: cannot read certificates: {error}") from error
        if certificates:
            options["root_certificate"] = b"\n".join(certificates)
        return options

    def _retries(self) -> RetryConfig:
        """Of single requests, within `Control.repeat` of a whole object."""
        return {
            "max_retries": min(2, self._settings.attempts - 1),
            "retry_timeout": timedelta(seconds=60),
            "backoff": {
                "init_backoff": self._settings.retry_delay,
                "max_backoff": min(self._settings.max_retry_delay, timedelta(seconds=5)),
            },
        }


def _azure(options: CloudStore) -> dict[str, str]:
    found = {"account_name": options.account, "endpoint": options.endpoint}
    return {name: value for name, value in found.items() if value}


def _azure_values() -> dict[str, str]:
    """The values of the variables of Azure's own tools, which obstore does not read."""
    values = {field: os.environ[name] for name, field in _AZURE_VARIABLES.items() if os.environ.get(name)}
    for item in os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";"):
        name, _, value = item.partition("=")
        if field := _AZURE_CONNECTION.get(name.strip()):
            values[field] = value.strip()
    return values


def _version(etag: str | None) -> str | None:
    """In the form of If-Match; listings of Azure omit the quotes."""
    return f'"{etag.strip(chr(34))}"' if etag else None


def _slash(url: str, size: int) -> StagingFailed:
    return StagingFailed(
        f'{shown(url)}: the key ends with "/" but the object is not empty ({size} bytes); such objects are not supported'
    )


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Translate obstore's errors."""
    text = f"{shown(url)}: "
    try:
        yield
    except FileNotFoundError as error:
        code = _CODE.search(str(error))
        if code and code[1] in ("NoSuchBucket", "ContainerNotFound"):
            raise NotFound(f"{text}there is no such bucket") from error
        raise NotFound(f"{text}there is no such object") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise AccessDenied(f"{text}access denied ({_brief(error)})") from error
    except exceptions.PreconditionError as error:
        raise Changed(text + CHANGED) from error
    except exceptions.InvalidPathError as error:
        raise StagingFailed(f"{text}a key below it is not supported: {_path_problem(error)}") from error
    except ValueError as error:
        raise UnsupportedUrl(f"{text}the key is not supported: {_path_problem(error)}") from error
    except (exceptions.BaseError, OSError) as error:
        raise _generic(text, str(error)) from error


def _path_problem(error: Exception) -> str:
    empty = _EMPTY_PART.search(str(error))
    return f'"{empty[1]}" has an empty part ("//")' if empty else _brief(error)


def _generic(text: str, problem: str) -> Exception:
    if "certificate" in problem.lower() and "status code" not in problem:
        return StagingFailed(f"{text}the server's certificate is not trusted")
    status = _STATUS.search(problem)
    code = int(status[1]) if status else 503
    if "token request" in problem and code < 500:
        return AccessDenied(f"{text}cannot get credentials ({_brief(problem)})")
    if code == 416:  # where If-Match is ignored: the object has become shorter
        return Changed(text + CHANGED)
    if code in (408, 429) or code >= 500:
        return StorageUnavailable(text + _brief(problem))
    return StagingFailed(text + _brief(problem))


def _brief(error: object) -> str:
    """Without addresses, which may hold a signature, and without Rust's details."""
    text = str(error).partition("\n\nDebug source")[0]
    code, message, status = _CODE.search(text), _MESSAGE.search(text), _STATUS.search(text)
    if status:
        parts = [code[1] if code else f"status {status[1]}", (message[1] or message[2]) if message else ""]
        return ": ".join(part for part in parts if part)
    return _URL.sub("", " ".join(text.split()))[:200]
