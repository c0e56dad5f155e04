"""API keys over HTTP: who may make which, and what they are good for. The numbers are those of the table in docs/security.md."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from httpx import Response

from poiesis.api import credentials
from poiesis.api.credentials import hash_secret
from poiesis.config import ApiSettings
from poiesis.domain.task import TaskId
from tests.unit.api.service import BASE, HELLO, Site, assert_error

KEYS = "/poiesis/v1/keys"
USERS: list[dict[str, Any]] = [
    {"name": "ada", "groups": ["imaging"], "token_hash": hash_secret("ada-token", "bearer")},
    {"name": "bob", "token_hash": hash_secret("bob-token", "bearer")},
    {"name": "root", "admin": True, "token_hash": hash_secret("root-token", "bearer")},
]
ADA, BOB, ROOT = ({"Authorization": f"Bearer {name}-token"} for name in ("ada", "bob", "root"))


class Keys:
    def __init__(self, directory: Path) -> None:
        self.file = directory / "users.json"
        self.write(USERS)
        self.site = Site(api=ApiSettings(auth=("bearer", "api_key"), credentials_file=str(self.file)))

    def write(self, users: list[dict[str, Any]]) -> None:
        self.file.write_text(json.dumps(users))

    def create(self, headers: dict[str, str], **body: Any) -> Response:
        response: Response = self.site.client.post(KEYS, json={"name": "n", **body}, headers=headers)
        return response

    def made(self, headers: dict[str, str], **body: Any) -> dict[str, Any]:
        response = self.create(headers, **body)
        assert response.status_code == 200, response.text
        document: dict[str, Any] = response.json()
        return document

    def use(self, key: str, method: str = "GET", path: str = "/tasks") -> Response:
        return self.site.client.request(
            method,
            BASE + path,
            headers={"X-API-Key": key},
            json=HELLO if path == "/tasks" and method == "POST" else None,
        )


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    monkeypatch.setattr(credentials, "_CHECK_FILE_S", 0.0)  # every request reads the file again if it has changed
    return Keys(tmp_path)


def _header(made: dict[str, Any]) -> dict[str, str]:
    return {"X-API-Key": made["key"]}


@pytest.mark.parametrize("field", [{"scope": ["read"]}, {"days": 1}, {"expires": "2026-12-01"}])
def test_a_limit_that_is_misspelled_makes_no_key(keys: Keys, field: dict[str, Any]) -> None:
    response = keys.create(ADA, **field)
    assert_error(response, 400)
    assert f"unknown field '{next(iter(field))}'" in response.json()["message"]


class TestAKey:
    def test_works_in_each_place_of_a_request(self, keys: Keys) -> None:
        secret = keys.made(ADA)["key"]
        task = keys.use(secret, "POST").json()["id"]
        assert keys.site.repository.get(TaskId(task)).owner == "ada"
        assert keys.site.repository.get(TaskId(task)).groups == ("imaging",)
        assert keys.site.get("/tasks", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        assert keys.site.get(f"/tasks?api_key={secret}").status_code == 200

    def test_is_shown_once(self, keys: Keys) -> None:
        made = keys.made(ADA, name="nightly", scopes=["read"], lifetime_days=30)
        listed = keys.site.client.get(KEYS, headers=ADA)
        assert made["key"] not in listed.text
        assert listed.json()["keys"] == [{name: value for name, value in made.items() if name != "key"}]
        assert made["scopes"] == ["read"] and made["groups"] == ["imaging"] and "expires" in made

    def test_records_its_last_use(self, keys: Keys) -> None:
        made = keys.made(ADA)
        assert "last_used" not in made
        keys.use(made["key"])
        assert "last_used" in keys.site.client.get(KEYS, headers=ADA).json()["keys"][0]

    def test_is_not_in_the_log(self, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG, "poiesis"):
            secret = keys.made(ADA)["key"]
            keys.use(secret)
            keys.use(secret[:-1] + "x")
        assert secret[8:] not in caplog.text + "".join(str(record.__dict__) for record in caplog.records)


class TestAKeyIsRefused:
    def test_after_it_was_revoked(self, keys: Keys) -> None:
        """I59"""
        made = keys.made(ADA)
        assert keys.use(made["key"]).status_code == 200
        assert keys.site.client.delete(f"{KEYS}/{made['id']}", headers=ADA).status_code == 200
        assert_error(keys.use(made["key"]), 401, "unauthenticated")

    def test_after_it_has_expired(self, keys: Keys) -> None:
        """I60"""
        made = keys.made(ADA, lifetime_days=1)
        keys.site.clock.advance(timedelta(days=1))
        assert_error(keys.use(made["key"]), 401)

    def test_beyond_its_scopes(self, keys: Keys) -> None:
        """I61"""
        reading, writing = (keys.made(ADA, scopes=[scope])["key"] for scope in ("read", "write"))
        task = keys.use(writing, "POST").json()["id"]
        assert keys.use(reading, path=f"/tasks/{task}").status_code == 200
        assert_error(keys.use(writing, path=f"/tasks/{task}"), 403, "insufficient_scope")
        for path in ("/tasks", f"/tasks/{task}:cancel"):
            assert_error(keys.use(reading, "POST", path), 403, "insufficient_scope")
        assert_error(keys.site.client.post(KEYS, json={"name": "n"}, headers={"X-API-Key": reading}), 403)

    def test_when_its_user_has_left_the_file(self, keys: Keys) -> None:
        """I62"""
        made = keys.made(ADA)
        keys.write(USERS[1:])
        assert_error(keys.use(made["key"]), 401)

    def test_when_it_is_almost_right(self, keys: Keys) -> None:
        """I63: other text of the same form, the id, the digest, parts of a key."""
        made = keys.made(ADA)
        digest = keys.site.keys.repository.list(None, limit=1)[0].digest  # type: ignore[union-attr]
        last = "A" if made["key"][-1] != "A" else "B"
        for secret in (made["key"][:-1] + last, made["id"], digest, made["key"][:-1], "poiesis_", made["key"][8:]):
            assert_error(keys.use(secret), 401)

    def test_for_tasks_of_other_users(self, keys: Keys) -> None:
        """I64"""
        task = keys.site.create(headers=BOB)
        secret = keys.made(ADA)["key"]
        assert_error(keys.use(secret, path=f"/tasks/{task}"), 404)
        assert_error(keys.use(secret, "POST", f"/tasks/{task}:cancel"), 404)

    def test_when_api_keys_are_not_enabled(self, keys: Keys, tmp_path: Path) -> None:
        """I65"""
        secret = keys.made(ADA)["key"]
        closed = Site(api=ApiSettings(auth=("bearer",), credentials_file=str(keys.file)), keys=keys.site.keys)
        assert_error(closed.get("/tasks", headers={"X-API-Key": secret}), 401)
        assert_error(closed.get("/tasks", headers={"Authorization": f"Bearer {secret}"}), 401)
        assert_error(closed.client.post(KEYS, json={"name": "n"}, headers=ADA), 403)

    def test_invented_ones_are_limited_for_each_address(self, keys: Keys) -> None:
        """I66"""
        answers = [keys.use(f"poiesis_{i:043}").status_code for i in range(120)]
        assert answers[:100] == [401] * 100 and 429 in answers[100:]
        assert set(answers) == {401, 429}


class TestRights:
    def test_of_an_admin_need_the_scope(self, keys: Keys) -> None:
        """I67"""
        task = keys.site.create(headers=ADA)
        plain, full = (keys.made(ROOT, scopes=s)["key"] for s in (["read", "write"], ["read", "write", "admin"]))
        assert_error(keys.use(plain, path=f"/tasks/{task}"), 404)
        assert keys.use(full, path=f"/tasks/{task}").status_code == 200

    def test_of_an_admin_are_lost_with_those_of_the_user(self, keys: Keys) -> None:
        """I68"""
        task = keys.site.create(headers=ADA)
        secret = keys.made(ROOT, scopes=["read", "admin"])["key"]
        keys.write([*USERS[:2], {**USERS[2], "admin": False}])
        assert_error(keys.use(secret, path=f"/tasks/{task}"), 404)

    def test_of_an_admin_cannot_be_asked_for_by_others(self, keys: Keys) -> None:
        """I69"""
        assert_error(keys.create(ADA, scopes=["read", "admin"]), 403, "forbidden")
        assert_error(keys.create(ADA, user="bob"), 403)
        assert_error(keys.create(ADA, groups=["genomics"]), 403)
        assert keys.site.client.get(KEYS, headers=ADA).json() == {"keys": []}

    def test_do_not_grow_from_key_to_key(self, keys: Keys) -> None:
        """I70: a key makes no other key, unless an admin has allowed that; never one with more scopes."""
        assert_error(keys.create(_header(keys.made(ADA))), 403)
        assert_error(keys.create(_header(keys.made(ROOT))), 403)
        admin = _header(keys.made(ROOT, scopes=["write", "admin"]))
        assert keys.create(admin, scopes=["write"]).status_code == 200
        assert_error(keys.create(admin, scopes=["read", "write"]), 403)

    def test_of_groups_that_were_left_are_lost(self, keys: Keys) -> None:
        """I71"""
        keys.write([USERS[0], {**USERS[1], "groups": ["imaging"]}, USERS[2]])
        task, secret = keys.site.create(headers=ADA), keys.made(BOB)["key"]
        assert keys.use(secret, path=f"/tasks/{task}").status_code == 200
        keys.write(USERS)
        assert_error(keys.use(secret, path=f"/tasks/{task}"), 404)


class TestKeysOfOthers:
    def test_are_not_there(self, keys: Keys) -> None:
        """I72"""
        made = keys.made(ADA)
        assert keys.site.client.get(KEYS, headers=BOB).json() == {"keys": []}
        assert keys.site.client.get(f"{KEYS}?user=ada", headers=BOB).json() == {"keys": []}
        assert_error(keys.site.client.delete(f"{KEYS}/{made['id']}", headers=BOB), 404, "unknown_key")
        assert keys.use(made["key"]).status_code == 200

    def test_are_managed_by_admins(self, keys: Keys) -> None:
        made = keys.made(ROOT, user="lab:eve", groups=["lab:imaging"], scopes=["read"])
        assert (made["user"], made["groups"]) == ("lab:eve", ["lab:imaging"])
        assert keys.use(made["key"]).status_code == 200
        assert [k["id"] for k in keys.site.client.get(f"{KEYS}?user=lab:eve", headers=ROOT).json()["keys"]] == [
            made["id"]
        ]
        assert keys.site.client.delete(f"{KEYS}/{made['id']}", headers=ROOT).status_code == 200


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": 1}, {"scopes": ["root"]}, {"lifetime_days": 0}, {"lifetime_days": 400}, []]
)
def test_invalid_documents_are_refused(keys: Keys, body: Any) -> None:
    body = {"name": "n", **body} if body and isinstance(body, dict) and "name" not in body else body
    assert_error(keys.site.client.post(KEYS, json=body, headers=ADA), 400)


def test_a_store_that_does_not_respond_is_503(keys: Keys) -> None:
    secret = keys.made(ADA)["key"]
    keys.site.keys.repository.down = True  # type: ignore[union-attr]
    assert_error(keys.use(secret), 503)


def test_there_are_no_keys_without_authentication(site: Site) -> None:
    assert_error(site.client.post(KEYS, json={"name": "n"}), 403)
