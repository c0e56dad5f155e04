"""Keys from files and variables; for roles see tests/integration/filer/test_s3_faults.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poiesis.domain.errors import ConfigurationError
from poiesis.filer.s3_credentials import provider
from poiesis.filer.s3_signature import Credentials
from poiesis.filer.settings import S3Endpoint


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def written(path: Path, access: str, secret: str, token: str = "") -> Path:
    more = f"aws_session_token = {token}\n" if token else ""
    path.write_text(f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n{more}")
    return path


def of(path: Path) -> S3Endpoint:
    return S3Endpoint("x", credentials_file=str(path))


def test_a_secret_key_may_contain_a_percent_sign(tmp_path: Path) -> None:
    found = provider(of(written(tmp_path / "f", "a", "50%(x)s%", "t")))
    assert found is not None
    assert found() == Credentials("a", "50%(x)s%", "t")


def test_a_rotated_credentials_file_is_read_again(tmp_path: Path) -> None:
    found = provider(of(written(tmp_path / "f", "a", "one")))
    assert found is not None
    assert found().secret_key == "one"
    written(tmp_path / "g", "a", "two").rename(tmp_path / "f")
    assert found().secret_key == "two"


@pytest.mark.parametrize(
    "text", ["hushhush", "[other]\naws_access_key_id = hushhush\n", "[default]\naws_access_key_id = hushhush\n"]
)
def test_a_file_without_keys_is_an_error_without_its_content(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    found = provider(of(tmp_path / "f"))
    assert found is not None
    with pytest.raises(ConfigurationError) as caught:
        found()
    assert "hush" not in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    found = provider(of(tmp_path / "f"))
    assert found is not None
    with pytest.raises(ConfigurationError, match="No such file"):
        found()


def test_an_access_key_without_a_secret_key_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY"):
        provider(S3Endpoint("x"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    found = provider(S3Endpoint("x"))
    assert found is not None
    assert found() == Credentials("a", "s", None)


def test_without_credentials_requests_are_anonymous() -> None:
    assert provider(S3Endpoint("x")) is None
