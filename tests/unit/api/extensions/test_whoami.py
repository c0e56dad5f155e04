"""GET /whoami."""

from __future__ import annotations

import json
from pathlib import Path

from poiesis.api.credentials import hash_secret
from poiesis.config import ApiSettings
from tests.unit.api.service import Site, assert_error

WHOAMI = "/poiesis/v1/whoami"


def test_shows_the_callers_name_method_groups_and_rights(tmp_path: Path) -> None:
    file = tmp_path / "users.json"
    users = [
        {"name": "ada", "token_hash": hash_secret("t", "bearer"), "groups": ["lab", "core"]},
        {"name": "root", "api_key_hash": hash_secret("k", "api_key"), "admin": True},
    ]
    file.write_text(json.dumps(users))
    site = Site(api=ApiSettings(auth=("bearer", "api_key"), credentials_file=str(file)))
    found = site.client.get(WHOAMI, headers={"Authorization": "Bearer t"}).json()
    assert (found["name"], found["method"], found["admin"], found["groups"]) == (
        "ada",
        "bearer",
        False,
        ["core", "lab"],
    )
    assert found["scopes"] == ["read", "write"]
    found = site.client.get(WHOAMI, headers={"X-API-Key": "k"}).json()
    assert (found["name"], found["method"], found["admin"]) == ("root", "api_key", True)
    assert found["scopes"] == ["admin", "read", "write"]
    assert_error(site.client.get(WHOAMI), 401, "unauthenticated")


def test_without_authentication_everyone_may_do_everything_and_has_no_name(site: Site) -> None:
    found = site.client.get(WHOAMI).json()
    assert "name" not in found and "method" not in found
    assert found["admin"] is True and "admin" in found["scopes"]
