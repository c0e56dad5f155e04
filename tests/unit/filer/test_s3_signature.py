"""Our signatures equal the SDK's."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minio.credentials.credentials import Credentials
from minio.signer import sign_v4_s3

from poiesis.filer.s3_signature import EMPTY_SHA256, Signer

NOW = 1_700_000_000


@pytest.fixture(autouse=True)
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


SIGNER = Signer("eu-west-1")


@given(
    key=st.text(min_size=1, max_size=20).filter(lambda k: "\0" not in k and k.isprintable()),
    query=st.dictionaries(
        st.sampled_from(["partNumber", "uploadId", "prefix", "list-type"]), st.text("ab1/ +ü&=", max_size=5)
    ),
    secret=st.text("abc/+", min_size=1, max_size=8),
    more=st.dictionaries(
        st.sampled_from(["if-match", "range", "x-amz-security-token"]), st.text('ab=-"', min_size=1, max_size=5)
    ),
)
def test_a_signature_equals_the_sdks(key: str, query: dict[str, str], secret: str, more: dict[str, str]) -> None:
    path = "/bucket/" + quote(key, safe="/~")
    asked = "&".join(f"{quote(k, safe='~')}={quote(v, safe='~')}" for k, v in sorted(query.items()))
    moment = datetime.fromtimestamp(NOW, UTC)
    headers = {"host": "s3.example.org:9000", "x-amz-content-sha256": EMPTY_SHA256, **more}
    expected = sign_v4_s3(
        method="GET",
        url=urlsplit(f"http://s3.example.org:9000{path}" + (f"?{asked}" if asked else "")),
        region="eu-west-1",
        headers={**headers, "x-amz-date": moment.strftime("%Y%m%dT%H%M%SZ")},
        credentials=Credentials("access", secret),
        content_sha256=EMPTY_SHA256,
        date=moment,
    )
    SIGNER.sign("GET", path, asked, headers, EMPTY_SHA256, "access", secret)
    assert headers["authorization"] == expected["Authorization"]
