"""Redirects stay on the service, whatever name and path a request has."""

from __future__ import annotations

from pathlib import Path

import pytest

from poiesis.config import ApiSettings
from tests.unit.api.service import Site

PATHS = """
/v1/tasks/ //v1/tasks/ /v1//evil.example/ //evil.example/ //evil.example/v1/tasks /v1/ui /ga4gh/tes/v1/ui /v1
/v1/%2F%2Fevil.example/ /v1/tasks// /v1/\\evil.example/ /v1/ui//evil.example/.. /v1/tasks/%5Cevil.example/
/ui/%2F /ui//tasks /v1/service-info/?a=http://evil.example /v1/ui/%2e%2e//evil.example/
"""


@pytest.mark.parametrize("path", PATHS.split())
@pytest.mark.parametrize("auth", [(), ("basic",)])
def test_redirects_have_no_host(path: str, auth: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text("[]")
    site = Site(
        api=ApiSettings(auth=auth, credentials_file=str(tmp_path / "users.json"), allowed_hosts=("evil.example",))
    )
    for host in ("127.0.0.1:8000", "evil.example", "evil.example:80"):
        # as raw bytes: httpx would normalise the path
        response = site.client.get(f"http://127.0.0.1:8000{path}", headers={"Host": host}, follow_redirects=False)
        location = response.headers.get("location", "/")
        assert location.startswith("/") and not location.startswith(("//", "/\\"))
        assert "evil.example:80" not in location + response.text
