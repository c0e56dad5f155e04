"""Fixtures of the filers' integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.filer.servers import HttpServer, http_server
from tests.servers.tls import Authority, authority


@pytest.fixture
def web() -> Iterator[HttpServer]:
    with http_server() as server:
        yield server


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private certificate authority."""
    return authority(tmp_path_factory.mktemp("ca"), "127.0.0.1", "localhost")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without proxies and certificates from the environment."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    return path
