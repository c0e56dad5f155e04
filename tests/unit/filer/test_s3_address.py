"""Addresses of buckets: by the SDK's rules, without importing it for the common ones."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from minio.helpers import BaseURL

from poiesis.domain.errors import ConfigurationError
from poiesis.filer.s3_endpoint import RegionalEndpoint
from poiesis.filer.settings import FilerSettings, S3Endpoint

USUAL = (
    "https://s3.amazonaws.com",
    "https://s3.eu-west-1.amazonaws.com",
    "https://s3.dualstack.eu-west-1.amazonaws.com",
    "https://s3.cn-north-1.amazonaws.com.cn",
    "http://s3.amazonaws.com",
    "https://s3.example.org",
    "https://s3.example.org/",
    "https://s3.example.org:443",
    "https://s3.example.org:9000",
    "http://minio.lab:80",
    "http://127.0.0.1:8333",
    "https://storage.googleapis.com",
)
ODD = (
    "https://s3-fips.us-gov-west-1.amazonaws.com",
    "https://s3-accelerate.amazonaws.com",
    "https://oss-eu-central-1.aliyuncs.com",
    "https://bucket.vpce-1a2b3c4d-5e6f.s3.us-east-1.vpce.amazonaws.com",
)


def site(url: str, region: str = "eu-central-1", **more: Any) -> RegionalEndpoint:
    return RegionalEndpoint(S3Endpoint("x", url, anonymous=True, **more), region, FilerSettings())


@pytest.mark.parametrize("virtual", [False, True])
@pytest.mark.parametrize("bucket", ["bucket", "a.dotted.bucket"])
@pytest.mark.parametrize("url", [*USUAL, *ODD])
def test_a_bucket_address_equals_the_sdks(url: str, bucket: str, virtual: bool) -> None:
    theirs = BaseURL(url, "eu-central-1")
    if virtual:
        theirs.virtual_style_flag = True
    try:
        expected = theirs.build(method="GET", region="eu-central-1", bucket_name=bucket)
    except ValueError:
        with pytest.raises(ValueError, match="not allowed"):
            site(url, virtual_style=virtual).address(bucket)
        return
    assert site(url, virtual_style=virtual).address(bucket) == (expected.netloc, expected.path.rstrip("/") + "/")


def test_common_addresses_do_not_import_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "poiesis.filer.minio_client", None)
    for url in USUAL:
        site(url).address("bucket")
    with pytest.raises(ImportError):
        site(ODD[0]).address("bucket")


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://", "https://u:p@host", "https://host/path", "https://host?x=1", "https://host:port"]
)
def test_an_invalid_endpoint_url_is_refused_and_its_password_redacted(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        site(url)
    assert "u:p" not in str(caught.value)
