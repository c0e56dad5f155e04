"""What the MinIO SDK is used for: the credentials of roles, and the less usual host names of AWS.

Its import takes as long as everything else of a filer's start together, so it is imported only when one of these is needed. Half of that
time goes to `minio.minioadmin` (a cipher library, a C parser), which `minio/__init__` imports; a stub takes the place of that module unless
the process has loaded it already.
"""

# ruff: noqa: E402 - the stub has to be there before the first import

from __future__ import annotations

import os
import re
import sys
import threading
import types
from typing import Final

ADMINISTRATION: Final = "minio.minioadmin"
if "minio" not in sys.modules:
    sys.modules[ADMINISTRATION] = types.ModuleType(ADMINISTRATION)
    sys.modules[ADMINISTRATION].MinioAdmin = None  # type: ignore[attr-defined]

from minio.credentials.providers import IamAwsProvider
from minio.error import MinioException
from minio.helpers import BaseURL
from urllib3.exceptions import HTTPError

if getattr(sys.modules.get(ADMINISTRATION), "__spec__", None) is None:
    sys.modules.pop(ADMINISTRATION, None)  # the real one can still be imported

from poiesis.domain.errors import ConfigurationError
from poiesis.filer.network import network_error
from poiesis.filer.s3_signature import Credentials, Provider

_ADDRESSES: Final = re.compile(r"<[^>]*>|https?://\S+|HTTPS?ConnectionPool\([^)]*\):? ?")  # may hold a signature


def role_credentials() -> Provider:
    """Credentials of web identity (IRSA) or of the container, renewed before they expire."""
    inner = IamAwsProvider(custom_endpoint=os.environ.get("AWS_ENDPOINT_URL_STS"))
    lock = threading.Lock()  # the provider is not thread-safe

    def retrieve() -> Credentials:
        try:
            with lock:
                found = inner.retrieve()
        except (MinioException, HTTPError, ValueError, OSError) as error:
            text = _ADDRESSES.sub("", str(error))[:200] or type(error).__name__
            raise network_error("credentials of the role", error, text) from error
        return Credentials(found.access_key, found.secret_key, found.session_token)

    return retrieve


def bucket_address(url: str, region: str, bucket: str, *, virtual_style: bool) -> tuple[str, str]:
    """Host and start of the path for a bucket, by the SDK's rules for AWS, virtual style and dots. Raises: ConfigurationError."""
    try:
        base = BaseURL(url, region)
    except ValueError as error:
        raise ConfigurationError(f"filer: invalid s3 endpoint {url}: {error}") from error
    base.virtual_style_flag = base.virtual_style_flag or virtual_style
    found = base.build(method="GET", region=region, bucket_name=bucket)
    return found.netloc, found.path.rstrip("/") + "/"
