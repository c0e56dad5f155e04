"""Authentication: who may call, with which credentials, and what is kept secret."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from poiesis.api.auth import Authenticator
from poiesis.api.credentials import hash_secret, read_credentials
from poiesis.api.errors import Refused
from poiesis.api.middleware import Authentication
from poiesis.api.requests import REQUEST, RequestRecord
from poiesis.api.users import User
from poiesis.config import ApiSettings
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.task import TaskId
from tests.unit.api.service import HELLO, Site, assert_error

ALL = ("basic", "bearer", "api_key")


def _basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


ADA_PASSWORD = hash_secret("correct horse: battery", "basic")
USERS: list[dict[str, Any]] = [
    {"name": "ada", "password_hash": ADA_PASSWORD, "token_hash": hash_secret("ada-token", "bearer")},
    {
        "name": "bob",
        "token_hash": hash_secret("bob-token", "bearer"),
        "api_key_hash": hash_secret("bob-key", "api_key"),
    },
    {"name": "root", "admin": True, "token_hash": hash_secret("root-token", "bearer")},
]
ADA, BOB, ROOT = ({"Authorization": f"Bearer {name}-token"} for name in ("ada", "bob", "root"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users.json"
    path.write_text(json.dumps(USERS))
    return path


def _site(file: Path, *methods: str) -> Site:
    return Site(api=ApiSettings(auth=methods or ALL, credentials_file=str(file)))


class TestCredentials:
    @pytest.mark.parametrize(
        ("headers", "query"),
        [
            (_basic("ada", "correct horse: battery"), ""),
            (ADA, ""),
            ({"Authorization": "bearer   ada-token"}, ""),
            ({"X-API-Key": "bob-key"}, ""),
            ({"Authorization": "Bearer bob-key"}, ""),  # what clients that know only bearer tokens send
            ({}, "?api_key=bob-key"),
            ({}, "?view=BASIC&api_key=bob-key"),
            ({"Authorization": "Bearer wrong", "X-API-Key": "bob-key"}, ""),
        ],
    )
    def test_that_are_valid_are_accepted(self, file: Path, headers: dict[str, str], query: str) -> None:
        assert _site(file).get(f"/tasks{query}", headers=headers).status_code == 200

    def test_keys_as_bearer_tokens_need_the_method_api_key(self, file: Path) -> None:
        headers = {"Authorization": "Bearer bob-key"}
        assert _site(file, "api_key").get("/tasks", headers=headers).status_code == 200
        assert _site(file, "basic", "bearer").get("/tasks", headers=headers).status_code == 401

    @pytest.mark.parametrize(
        ("headers", "query"),
        [
            ({}, ""),
            (_basic("ada", "wrong"), ""),
            (_basic("nobody", "wrong"), ""),
            (_basic("bob", "bob-token"), ""),
            ({"Authorization": "Basic"}, ""),
            ({"Authorization": "Basic !!!"}, ""),
            ({"Authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()}, ""),
            ({"Authorization": "Basic " + base64.b64encode(b"ada").decode()}, ""),
            ({"Authorization": "Bearer"}, ""),
            ({"Authorization": "ada-token"}, ""),
            ({"Authorization": "Digest ada-token"}, ""),
            ({"X-API-Key": ""}, ""),
            ({"X-API-Key": "ada-token"}, ""),
            ({}, "?api_key="),
            ({}, "?api_key=wrong"),
        ],
    )
    def test_that_are_invalid_are_401_with_the_enabled_methods(
        self, file: Path, headers: dict[str, str], query: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        site = _site(file)
        with caplog.at_level(logging.DEBUG, "poiesis"):
            response = site.get(f"/tasks{query}", headers=headers)
        assert_error(response, 401, "unauthenticated")
        assert [w in response.headers["www-authenticate"] for w in ("Basic", "Bearer", "ApiKey")] == [True] * 3
        assert not any(word in caplog.text + response.text for word in ("wrong", "bob-key", "ada-token"))

    def test_of_a_disabled_method_are_401(self, file: Path) -> None:
        site = _site(file, "bearer")
        assert site.get("/tasks", headers=ADA).status_code == 200
        for headers in (_basic("ada", "correct horse: battery"), {"X-API-Key": "bob-key"}):
            response = site.get("/tasks", headers=headers)
            assert_error(response, 401)
            assert response.headers["www-authenticate"] == 'Bearer realm="poiesis"'

    def test_are_ignored_without_authentication(self, site: Site) -> None:
        assert site.get("/tasks", headers=_basic("a", "b")).status_code == 200

    def test_are_required_by_every_operation_but_service_info(self, file: Path) -> None:
        site = _site(file)
        for answer in (
            site.post("/tasks", HELLO),
            site.get("/tasks"),
            site.get("/tasks/x"),
            site.post("/tasks/x:cancel"),
            site.client.get("/v1/tasks"),
        ):
            assert_error(answer, 401)
        assert site.get("/service-info").status_code == 200
        assert site.stored() == 0

    def test_are_checked_before_the_body(self, file: Path) -> None:
        assert_error(_site(file).post("/tasks", b"no json"), 401)

    def test_are_not_required_by_pages_and_health(self, file: Path) -> None:
        site = _site(file)
        for path in ("/", "/healthz", "/readyz", "/v1/ui/", "/v1/openapi.json"):
            assert site.client.get(path).status_code == 200, path


class TestOwners:
    def test_see_only_their_own_tasks(self, file: Path) -> None:
        site = _site(file)
        of_ada, of_bob = site.create(headers=ADA), site.create(headers=BOB)
        assert site.repository.get(TaskId(of_ada)).owner == "ada"
        assert [t["id"] for t in site.get("/tasks", headers=ADA).json()["tasks"]] == [of_ada]
        for view in ("MINIMAL", "FULL"):
            assert site.get(f"/tasks/{of_ada}?view={view}", headers=ADA).status_code == 200
            assert_error(site.get(f"/tasks/{of_bob}?view={view}", headers=ADA), 404, "unknown_task")

    def test_cancel_only_their_own_tasks(self, file: Path) -> None:
        site = _site(file)
        task_id = site.create(headers=ADA)
        assert_error(site.post(f"/tasks/{task_id}:cancel", headers=BOB), 404, "unknown_task")
        assert site.repository.get(TaskId(task_id)).cancel_requested_at is None
        assert site.post(f"/tasks/{task_id}:cancel", headers=ADA).status_code == 200

    def test_that_are_admins_see_and_cancel_all(self, file: Path) -> None:
        site = _site(file)
        ids = [site.create(headers=who) for who in (ADA, BOB, ROOT)]
        assert site.repository.get(TaskId(ids[2])).owner == "root"
        assert len(site.get("/tasks", headers=ROOT).json()["tasks"]) == 3
        assert site.post(f"/tasks/{ids[0]}:cancel", headers=ROOT).status_code == 200

    def test_cannot_use_each_others_page_tokens(self, file: Path) -> None:
        site = _site(file)
        for who in (ADA, ADA, BOB, BOB):
            site.create(headers=who)
        token = site.get("/tasks?page_size=1", headers=ADA).json()["next_page_token"]
        assert_error(site.get(f"/tasks?page_token={token}", headers=BOB), 400, "invalid_request")


class TestTheFile:
    def _authenticator(self, file: Path, now: list[float]) -> Authenticator:
        return Authenticator(ApiSettings(auth=ALL, credentials_file=str(file)), clock=lambda: now[0])

    def _ask(self, who: Authenticator, headers: dict[str, str]) -> User:
        return asyncio.run(who.user([(k.lower().encode(), v.encode()) for k, v in headers.items()], b"", "192.0.2.1"))

    def test_is_read_again_when_it_changes(self, file: Path) -> None:
        now = [0.0]
        who = self._authenticator(file, now)
        file.write_text(json.dumps(USERS[:1]))
        assert self._ask(who, BOB) == User("bob")  # not checked yet
        now[0] += 2
        assert self._ask(who, ADA) == User("ada")
        with pytest.raises(Refused, match="401"):
            self._ask(who, BOB)

    def test_that_becomes_invalid_leaves_the_old_one_in_force(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        now = [0.0]
        who = self._authenticator(file, now)
        for broken in ("{", None):
            os.unlink(file) if broken is None else file.write_text(broken)
            now[0] += 2
            assert self._ask(who, ADA) == User("ada")
        assert [r.getMessage() for r in caplog.records] == ["credentials_unusable"] * 2

    def test_that_revokes_a_password_revokes_its_cached_result(self, file: Path) -> None:
        now = [0.0]
        who = self._authenticator(file, now)
        headers = _basic("ada", "correct horse: battery")
        assert self._ask(who, headers) == User("ada")
        file.write_text(json.dumps([USERS[0] | {"password_hash": hash_secret("new", "basic")}]))
        now[0] += 2
        with pytest.raises(Refused, match="401"):
            self._ask(who, headers)
        assert self._ask(who, _basic("ada", "new")) == User("ada")

    @pytest.mark.parametrize(
        "content",
        [
            "{}", "no json", "[1]", "[{}]", '[{"name": ""}]', '[{"name": "a"}]', '[{"name": "a:b", "token_hash": "x"}]',
            '[{"name": "a", "token_hash": "secret"}]', '[{"name": "a", "token_hash": "sha256$zz"}]',
            '[{"name": "a", "api_key_hash": "sha256$00"}]', '[{"name": "a", "password_hash": "scrypt$secret"}]',
            '[{"name": "a", "password_hash": "scrypt$!$!"}]', '[{"name": "a", "password_hash": 1}]',
            '[{"name": "a", "token": "secret"}]', '[{"name": "a", "admin": "yes", "token_hash": "x"}]',
            pytest.param(json.dumps([USERS[0], USERS[0]]), id="a name twice"),  # ids without the salt, alike in all workers
            pytest.param(json.dumps([USERS[0], USERS[0] | {"name": "other"}]), id="a secret twice"),
        ],
    )  # fmt: skip
    def test_that_is_invalid_is_reported_without_its_content(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "users.json"
        path.write_text(content)
        with pytest.raises(ConfigurationError) as caught:
            Authenticator(ApiSettings(auth=("bearer",), credentials_file=str(path)))
        assert "secret" not in str(caught.value)
        assert str(path) in str(caught.value)

    def test_is_required(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="CREDENTIALS_FILE"):
            Authenticator(ApiSettings(auth=("bearer",)))
        with pytest.raises(ConfigurationError, match="cannot read"):
            Authenticator(ApiSettings(auth=("bearer",), credentials_file=str(tmp_path / "none")))
        with pytest.raises(ConfigurationError, match="invalid authentication method 'oauth'"):
            Authenticator(ApiSettings(auth=("oauth",)))

    def test_is_not_required_without_methods_that_use_it(self) -> None:
        issuer = '[{"name": "lab", "url": "https://login.example.org", "audiences": ["tes"]}]'
        Authenticator(ApiSettings(auth=("oidc",), oidc_issuers=issuer))
        with pytest.raises(ConfigurationError, match="OIDC_ISSUERS"):
            Authenticator(ApiSettings(auth=("oidc",)))

    def test_holds_hashes_that_differ_for_the_same_password(self) -> None:
        assert hash_secret("x", "basic") != hash_secret("x", "basic")
        assert hash_secret("x", "bearer") == hash_secret("x", "api_key")
        assert "hunter2" not in hash_secret("hunter2", "basic") + hash_secret("hunter2", "bearer")

    def test_secrets_are_not_in_a_repr(self, file: Path) -> None:
        shown = repr(read_credentials(file))
        assert ADA_PASSWORD.rsplit("$", 1)[1] not in shown
        assert "token" not in shown


def test_attempts_of_one_ipv6_network_count_as_those_of_one_address(file: Path) -> None:
    authenticator = Authenticator(ApiSettings(auth=("basic",), credentials_file=str(file)))
    seen = []

    async def user(headers: object, query: object, address: str) -> User:
        seen.append(address)
        return User("ada")

    async def app(*_: object) -> None:
        pass

    authenticator.user = user  # type: ignore[method-assign]
    for client in ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1", "192.0.2.1"):
        scope: dict[str, Any] = {"type": "http", "extensions": {"connexion_routing": {"operation_id": "ListTasks"}}}
        scope |= {
            "client": (client, 1),
            "headers": [],
            "query_string": b"",
            "method": "GET",
            REQUEST: RequestRecord("x"),
        }
        asyncio.run(Authentication(app, authenticator=authenticator)(scope, None, None))  # type: ignore[arg-type]

    assert seen == ["2001:db8::/64", "2001:db8::/64", "2001:db8:0:1::/64", "192.0.2.1"]


class TestAnOpenApi:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "tes.example.org", ""])
    def test_on_an_address_of_the_network_has_to_be_asked_for(self, host: str) -> None:
        with pytest.raises(ConfigurationError, match="POIESIS_API__ALLOW_ANONYMOUS=true"):
            Authenticator(ApiSettings(host=host))
        Authenticator(ApiSettings(host=host, allow_anonymous=True))

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
    def test_on_a_loopback_address_is_the_default(self, host: str) -> None:
        Authenticator(ApiSettings(host=host))


@pytest.mark.parametrize(
    ("scopes", "method", "allowed"),
    [
        ({"read"}, "GET", True), ({"read"}, "HEAD", True), ({"read"}, "POST", False), ({"read"}, "DELETE", False),
        ({"write"}, "POST", True), ({"write"}, "GET", False), ({"admin"}, "GET", False), (set(), "GET", False),
    ],
)  # fmt: skip
def test_scopes_limit_what_credentials_are_for(file: Path, scopes: set[Any], method: str, allowed: bool) -> None:
    authenticator = Authenticator(ApiSettings(auth=("basic",), credentials_file=str(file)))
    reached = []

    async def user(*_: object) -> User:
        return User("ada", scopes=frozenset(scopes))

    async def app(scope: Any, *_: object) -> None:
        reached.append(scope["poiesis.user"].name)

    authenticator.user = user  # type: ignore[method-assign, assignment]
    scope: dict[str, Any] = {"type": "http", "method": method, "headers": [], "query_string": b""}
    scope[REQUEST] = RequestRecord("x")
    scope["extensions"] = {"connexion_routing": {"operation_id": "ListTasks"}}
    middleware = Authentication(app, authenticator=authenticator)
    if allowed:
        asyncio.run(middleware(scope, None, None))  # type: ignore[arg-type]
    else:
        with pytest.raises(Refused, match="lack the scope"):
            asyncio.run(middleware(scope, None, None))  # type: ignore[arg-type]
    assert reached == (["ada"] if allowed else [])
