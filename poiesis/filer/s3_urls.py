"""Which endpoint, bucket and key an `s3://` URL names. Cheap to import, because the planner uses it too."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from poiesis.domain.errors import UnsupportedUrl
from poiesis.filer.settings import FilerSettings, S3Endpoint
from poiesis.filer.urls import shown

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}")


def s3_endpoints(settings: FilerSettings) -> tuple[S3Endpoint, ...]:
    """Never empty. Raises: ConfigurationError."""
    return settings.endpoints or (_default_endpoint(),)


def parse_s3_url(url: str, endpoints: Sequence[S3Endpoint]) -> tuple[S3Endpoint, str, str]:
    """Endpoint, bucket, key. The key is all that follows, as it is. Raises: UnsupportedUrl."""
    first, _, tail = url.partition("://")[2].partition("/")
    endpoint = next((e for e in endpoints if first in (e.name, urlsplit(e.url).netloc)), None)
    if endpoint is not None:
        first, _, tail = tail.partition("/")
    else:
        claiming = (e for e in endpoints if any(_claims(pattern, first) for pattern in e.buckets))
        endpoint = next(claiming, endpoints[0])
    if not _BUCKET.fullmatch(first):
        problem = f"invalid bucket name {first.rpartition('@')[2]!r}" if first else "missing bucket"
        raise UnsupportedUrl(f'{problem} in "{shown(url)}": use s3://bucket/key')
    return endpoint, first, tail


def _default_endpoint() -> S3Endpoint:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    return S3Endpoint("aws", url)


def _claims(pattern: str, bucket: str) -> bool:
    from fnmatch import fnmatchcase  # few sites need it, and every filer would pay

    return fnmatchcase(bucket, pattern)
