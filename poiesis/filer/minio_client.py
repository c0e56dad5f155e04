"""What the MinIO SDK does for us: roles (web identity, container credentials), multipart uploads, the less usual addresses of AWS.

Importing it takes as long as everything else of a filer's start together, so `s3` imports this module when one of those is met, and
never for a small file with plain keys. `minio/__init__` imports its administration client, and with it a cipher library and a C parser:
half of that time. A stand-in takes that one module's place, unless the process has it already.
"""

# ruff: noqa: E402 - the stand-in has to be there before the first import

from __future__ import annotations

import os
import re
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

ADMINISTRATION: Final = "minio.minioadmin"
if "minio" not in sys.modules:
    sys.modules[ADMINISTRATION] = types.ModuleType(ADMINISTRATION)
    sys.modules[ADMINISTRATION].MinioAdmin = None  # type: ignore[attr-defined]

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials as SdkCredentials
from minio.credentials.providers import IamAwsProvider
from minio.credentials.providers import Provider as SdkProvider
from minio.datatypes import Part
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError

if getattr(sys.modules.get(ADMINISTRATION), "__spec__", None) is None:
    sys.modules.pop(ADMINISTRATION, None)  # whoever wants the real one may still import it

from poiesis.domain.errors import ConfigurationError
from poiesis.filer.s3_credentials import Credentials, Provider
from poiesis.filer.s3_errors import REGION, problem, translated

if TYPE_CHECKING:
    from poiesis.filer.s3_endpoint import RegionalEndpoint


class _Ours(SdkProvider):
    """Our credentials as the SDK wants them."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def retrieve(self) -> SdkCredentials:
        found = self._provider()
        return SdkCredentials(found.access_key, found.secret_key, found.session_token)


def of_roles() -> Provider:
    """Credentials of web identity (IRSA) or of the container, renewed as they expire."""
    inner = IamAwsProvider(custom_endpoint=os.environ.get("AWS_ENDPOINT_URL_STS"))
    lock = threading.Lock()  # it is not made for many threads

    def retrieve() -> Credentials:
        with lock, errors("the credentials of the role"):
            found = inner.retrieve()
        return Credentials(found.access_key, found.secret_key, found.session_token)

    return retrieve


class Client:
    """The SDK's client of one endpoint."""

    def __init__(self, endpoint: RegionalEndpoint) -> None:
        """Raises: ConfigurationError."""
        options: dict[str, Any] = {
            "maxsize": 8,
            "retries": False,
            "timeout": urllib3.Timeout(connect=endpoint.timeout_s, read=endpoint.stall_s),
            "ssl_context": endpoint.tls,
        }
        if endpoint.proxy is None:
            self._manager = urllib3.PoolManager(**options)
        else:
            self._manager = urllib3.ProxyManager(
                endpoint.proxy.url,
                proxy_headers=endpoint.proxy.headers,
                proxy_ssl_context=endpoint.proxy_tls,
                **options,
            )
        if not endpoint.config.verify:  # the endpoint knows
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        provider = endpoint.provider
        try:
            self._client = Minio(
                endpoint.netloc,
                credentials=_Ours(provider) if provider else None,
                secure=endpoint.is_secure,
                region=endpoint.region,
                http_client=self._manager,
            )
        except ValueError as error:
            raise ConfigurationError(f"filer: s3 endpoint {endpoint.config.name!r} cannot be used: {error}") from error
        if endpoint.config.virtual_style:
            self._client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        self._region = endpoint.region

    def close(self) -> None:
        self._manager.clear()

    def address(self, bucket: str) -> tuple[str, str]:
        """Host and beginning of the path, by its rules for AWS, virtual style and dots."""
        url = self._client._base_url.build(method="GET", region=self._region, bucket_name=bucket)
        return url.netloc, url.path.rstrip("/") + "/"

    def begin(self, url: str, bucket: str, key: str, headers: dict[str, str]) -> str:
        """A multipart upload's id. `url` is for errors."""
        with errors(url):
            return self._client._create_multipart_upload(bucket, key, {**headers})

    def complete(self, url: str, bucket: str, key: str, upload: str, etags: list[str]) -> bool:
        """Whether the server confirmed it."""
        parts = [Part(i + 1, etag) for i, etag in enumerate(etags)]
        with errors(url):
            return bool(self._client._complete_multipart_upload(bucket, key, upload, parts).etag)

    def abort(self, bucket: str, key: str, upload: str) -> None:
        with suppress(MinioException, HTTPError, ValueError, OSError):
            self._client._abort_multipart_upload(bucket, key, upload)


@contextmanager
def errors(url: str) -> Iterator[None]:
    """The SDK's errors as ours."""
    try:
        yield
    except S3Error as error:
        region = error.response.headers.get("x-amz-bucket-region") or ""
        found = REGION.search(error.response.data or b"") if not region else None
        region = found[1].decode() if found else region
        status = error.response.status
        raise problem(url, status, str(error.code or ""), str(error.message or ""), region) from error
    except ServerError as error:
        raise problem(url, error.status_code, "", "", "") from error
    except InvalidResponseError as error:
        status = int(getattr(error, "_code", 500) or 500)
        raise problem(url, status, "", "the answer is no S3", "") from error
    except (MinioException, HTTPError, ValueError, OSError) as error:
        raise translated(url, error, brief(error)) from error


def brief(error: Exception) -> str:
    """Without addresses, which may hold a signature."""
    text = re.sub(r"<[^>]*>|https?://\S+|HTTPS?ConnectionPool\([^)]*\):? ?", "", str(error))
    return text[:200] or type(error).__name__
