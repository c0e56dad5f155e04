"""Logging in and out in a browser, and attacks on it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from httpx import Response

from poiesis.api import logins
from poiesis.api.attempts import Rate
from poiesis.api.bodies import BodyBudget
from poiesis.api.credentials import hash_secret
from poiesis.api.ui import session as module
from poiesis.api.ui.visit import csrf_token
from poiesis.config import ApiSettings, DashboardSettings
from poiesis.domain.sessions import Session
from tests.unit.api.service import HELLO, Site

PASSWORD = "correct horse"
ADA = {"name": "ada", "password_hash": hash_secret(PASSWORD, "basic"), "groups": ["lab"]}
BOB = {
    "name": "bob",
    "token_hash": hash_secret("bob-token", "bearer"),
    "api_key_hash": hash_secret("bob-key", "api_key"),
}
ROOT = {"name": "root", "password_hash": hash_secret("root", "basic"), "admin": True}
COOKIE = "poiesis_session"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("poiesis.api.credentials._CHECK_FILE_S", 0.0)
    path = tmp_path / "users.json"
    path.write_text(json.dumps([ADA, BOB, ROOT]))
    return path


@pytest.fixture
def site(file: Path) -> Site:
    return Site(ApiSettings(auth=("basic", "bearer", "api_key"), credentials_file=str(file)))


def token_of(site: Site, path: str = "/ui/login") -> str:
    found = re.search(r'"X-CSRF-Token": "(\w+)"', site.client.get(path).text)
    assert found is not None
    return found[1]


def log_in(site: Site, **form: str) -> Response:
    """The answer to the login form, not followed."""
    form = form or {"name": "ada", "password": PASSWORD}
    form = {"csrf_token": token_of(site), **form}
    response: Response = site.client.post("/ui/login", data=form, follow_redirects=False)
    return response


def is_in(site: Site) -> bool:
    return bool(site.client.get("/ui/tasks", follow_redirects=False).status_code == 200)


def failure(response: Response) -> str:
    found = re.search(r"error=(\w+)", response.headers["location"])
    assert found is not None, response.headers
    return found[1]


class TestLogin:
    def test_a_page_leads_to_the_login_and_back(self, site: Site) -> None:
        page = site.client.get("/ui/tasks?name=a%20b")
        assert page.url.path == "/ui/login" and 'name="next" value="/ui/tasks?name=a%20b"' in page.text
        answer = log_in(site, name="ada", password=PASSWORD, next="/ui/tasks?name=a%20b")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/tasks?name=a%20b")
        page = site.client.get("/ui/tasks")
        assert page.status_code == 200 and "Log out" in page.text and "ada" in page.text

    @pytest.mark.parametrize("key", ["bob-key", "bob-token", " bob-key\n"])
    def test_by_a_key_or_token_of_the_file(self, site: Site, key: str) -> None:
        assert log_in(site, key=key).headers["location"] == "/ui"
        assert is_in(site)

    def test_by_a_key_of_the_store_whose_rights_count(self, site: Site) -> None:
        assert site.keys is not None
        key, secret = site.keys.create("ada", "reader", {"read"}, in_file=True)
        log_in(site, key=secret)
        assert "may only read" in site.client.get("/ui/tasks").text
        refused = site.client.post("/ui/none", headers={"X-CSRF-Token": token_of(site, "/ui/tasks")})
        assert refused.status_code == 403 and "scope write" in refused.text
        site.keys.revoke(key.id, user="ada")
        assert not is_in(site)

    @pytest.mark.parametrize(
        ("form", "code"),
        [
            ({"name": "ada", "password": "wrong"}, "credentials"),
            ({"name": "nobody", "password": PASSWORD}, "credentials"),
            ({"name": "bob", "password": "bob-token"}, "credentials"),
            ({"name": "ada"}, "credentials"),
            ({"key": "wrong"}, "key"),
            ({"key": ""}, "key"),
            ({"key": "poiesis_" + "x" * 43}, "key"),
        ],
    )
    def test_wrong_credentials_are_refused(self, site: Site, form: dict[str, str], code: str) -> None:
        answer = log_in(site, **form)
        assert failure(answer) == code and COOKIE not in answer.headers.get("set-cookie", "")
        assert not is_in(site) and not site.sessions.sessions

    def test_a_method_that_is_off_gives_no_session(self, file: Path) -> None:
        site = Site(ApiSettings(auth=("bearer",), credentials_file=str(file)))
        assert failure(log_in(site)) == "credentials"
        assert failure(log_in(site, key="bob-key")) == "key"
        assert "Password" not in site.client.get("/ui/login").text

    def test_attempts_are_limited(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(logins, "REFUSAL_DELAY_S", 0.0)
        monkeypatch.setattr(logins, "PER_ADDRESS", Rate(2, 1e6))
        codes = [failure(log_in(site, name="ada", password=f"guess {i}")) for i in range(3)]
        assert codes == ["credentials", "credentials", "too_many"]
        assert "too many attempts" in site.client.get("/ui/login?error=too_many").text

    def test_without_authentication_there_is_no_login(self) -> None:
        assert Site().client.get("/ui/login").url.path == "/ui/overview"

    def test_credentials_of_a_header_count_as_in_the_api(self, site: Site) -> None:
        assert site.client.get("/ui/tasks", headers={"X-API-Key": "bob-key"}).url.path == "/ui/tasks"
        refused = site.client.get("/ui/tasks", headers={"X-API-Key": "no"})
        assert refused.status_code == 401 and "text/html" in refused.headers["content-type"]

    def test_what_an_address_says_is_not_shown(self, site: Site) -> None:
        text = site.client.get("/ui/login?error=%3Cb%3Ehello&next=%22%3E%3Cscript%3E").text
        assert "hello" not in text and "<script>" not in text


class TestSession:
    def test_ends_with_the_logout_for_all_who_have_its_cookie(self, site: Site) -> None:
        log_in(site)
        token = site.client.cookies[COOKIE]
        form = {"csrf_token": token_of(site, "/ui/tasks")}
        answer = site.client.post("/ui/logout", data=form, follow_redirects=False)
        assert failure(answer) == "out" and "Max-Age=0" in answer.headers["set-cookie"]
        site.client.cookies.set(COOKIE, token)
        assert not is_in(site)

    def test_ends_after_its_lifetime(self, site: Site) -> None:
        log_in(site)
        site.clock.advance(timedelta(hours=12) - timedelta(seconds=1))
        assert is_in(site)
        site.clock.advance(timedelta(seconds=1))
        page = site.client.get("/ui/tasks")
        assert "session has ended" in page.text

    def test_expired_sessions_are_removed_with_the_next_login(self, site: Site) -> None:
        log_in(site)
        site.clock.advance(timedelta(hours=13))
        log_in(site)
        assert len(site.sessions.sessions) == 1

    def test_a_user_has_a_bounded_number(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_PER_USER", 2)
        for _ in range(4):
            site.client.cookies.clear()
            log_in(site)
            site.clock.advance(timedelta(seconds=1))
        assert len(site.sessions.sessions) == 2 and is_in(site)

    @pytest.mark.parametrize(
        "users",
        [[BOB, ROOT], [{**ADA, "password_hash": hash_secret("new", "basic")}], [{**BOB, "name": "ada"}]],
        ids=["left", "another password", "no password"],
    )
    def test_ends_when_its_password_no_longer_counts(self, site: Site, file: Path, users: list[Any]) -> None:
        log_in(site)
        file.write_text(json.dumps(users))
        assert not is_in(site) and not site.sessions.sessions

    def test_has_the_rights_and_groups_of_now(self, site: Site, file: Path) -> None:
        log_in(site, name="root", password="root")
        assert "admin" in site.client.get("/ui/tasks").text
        file.write_text(json.dumps([ADA, {**ROOT, "admin": False, "groups": ["late"]}]))
        page = site.client.get("/ui/tasks").text
        assert '<span class="chip">admin' not in page and "late" in page

    def test_is_only_known_by_its_digest(self, site: Site) -> None:
        log_in(site)
        token = site.client.cookies[COOKIE]
        [stored] = site.sessions.sessions.values()
        assert token not in repr(stored) and PASSWORD not in repr(stored)
        site.client.cookies.set(COOKIE, stored.digest)
        assert not is_in(site)

    def test_a_store_that_is_down_is_an_error_and_no_logout(self, site: Site) -> None:
        log_in(site)
        site.sessions.down = True
        assert site.client.get("/ui/tasks").status_code == 503
        site.sessions.down = False
        assert is_in(site)


class TestAttacks:
    def test_a_session_cannot_be_fixed_in_advance(self, site: Site) -> None:
        """An attacker plants a cookie, invented or of another session, and waits for the victim to log in."""
        log_in(site, key="bob-key")
        of_attacker = site.client.cookies[COOKIE]
        for planted in ("A" * 43, of_attacker):
            site.client.cookies.clear()
            form = {"csrf_token": csrf_token("victim"), "name": "ada", "password": PASSWORD}
            headers = {"Cookie": f"{COOKIE}={planted}; poiesis_form=victim"}
            answer = site.client.post("/ui/login", data=form, headers=headers, follow_redirects=False)
            assert planted not in answer.headers["set-cookie"]
            site.client.cookies.clear()
            page = site.client.get("/ui/tasks", headers={"Cookie": f"{COOKIE}={planted}"})
            assert page.url.path == "/ui/login"

    def test_a_login_ends_the_session_that_it_replaces(self, site: Site) -> None:
        log_in(site)
        first = site.client.cookies[COOKIE]
        form = {"csrf_token": token_of(site, "/ui/none"), "key": "bob-key"}
        assert failure(site.client.post("/ui/login", data=form, follow_redirects=False)) == "form"
        site.client.cookies.set("poiesis_form", "browser")
        site.client.post("/ui/login", data={"csrf_token": csrf_token("browser"), "key": "bob-key"})
        assert site.client.cookies[COOKIE] != first
        assert [s.user for s in site.sessions.sessions.values()] == ["bob"]

    def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(self, site: Site) -> None:
        cookie = log_in(site).headers["set-cookie"]
        assert re.search(r"poiesis_session=[\w-]{43}; Path=/; HttpOnly; SameSite=Lax; Max-Age=43200", cookie)
        assert "Secure" not in cookie and "Domain" not in cookie

    def test_over_tls_the_cookie_cannot_be_set_from_elsewhere(self, file: Path) -> None:
        settings = DashboardSettings(url="https://tes.example.org")
        site = Site(ApiSettings(auth=("basic",), credentials_file=str(file), dashboard=settings))
        site.client = site.app.test_client(base_url="https://tes.example.org")
        cookie = log_in(site).headers["set-cookie"]
        assert re.search(r"__Host-poiesis_session=[\w-]{43}; Path=/; HttpOnly; SameSite=Lax; Secure", cookie)
        assert is_in(site)
        token = site.client.cookies["__Host-poiesis_session"]
        site.client.cookies.clear()
        site.client.cookies.set(COOKIE, token)
        assert not is_in(site)

    @pytest.mark.parametrize("path", ["/ui/login", "/ui/logout", "/ui/tasks/cancel"])
    def test_a_form_of_another_site_does_nothing(self, site: Site, path: str) -> None:
        log_in(site)
        form = {"csrf_token": token_of(site, "/ui/tasks"), "name": "ada", "password": PASSWORD}
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            assert site.client.post(path, data=form, headers=headers).status_code == 403
        assert is_in(site)

    def test_a_login_without_the_token_of_this_browser_is_refused(self, site: Site) -> None:
        other = Site(site.api)
        form = {"name": "ada", "password": PASSWORD, "csrf_token": token_of(other)}
        assert failure(site.client.post("/ui/login", data=form, follow_redirects=False)) == "form"
        token_of(site)
        assert failure(site.client.post("/ui/login", data=form, follow_redirects=False)) == "form"
        assert not is_in(site)

    def test_a_logout_needs_the_token_of_its_session(self, site: Site) -> None:
        before = token_of(site)
        log_in(site)
        assert failure(site.client.post("/ui/logout", data={"csrf_token": before}, follow_redirects=False)) == "form"
        assert site.client.get("/ui/logout").status_code == 404
        assert is_in(site)

    @pytest.mark.parametrize("target", ["//evil.example", "https://evil.example/ui", "/\\evil.example", "/ui/../x"])
    def test_a_login_leads_only_to_the_dashboard(self, site: Site, target: str) -> None:
        assert log_in(site, name="ada", password=PASSWORD, next=target).headers["location"] == "/ui"
        site.client.cookies.clear()
        assert failure(log_in(site, name="ada", password="no", next=target)) == "credentials"
        assert "evil" not in site.client.get("/ui/login", params={"next": target}).text

    def test_a_session_may_read_the_api_of_its_own_pages_and_change_nothing(self, site: Site) -> None:
        mine = site.create(headers={"X-API-Key": "bob-key"})
        log_in(site, key="bob-key")
        assert site.get(f"/tasks/{mine}", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
        assert site.get(f"/tasks/{mine}", headers={"Sec-Fetch-Site": "none"}).status_code == 200
        for foreign in ("cross-site", "same-site"):
            assert site.get(f"/tasks/{mine}", headers={"Sec-Fetch-Site": foreign}).status_code == 401
        for origin in ({"Origin": "http://127.0.0.1:8000"}, {}):
            assert site.post("/tasks", HELLO, headers=origin).status_code == 401
            assert site.post(f"/tasks/{mine}:cancel", headers=origin).status_code == 401
        assert site.stored() == 1

    def test_wrong_credentials_in_a_header_are_not_replaced_by_the_cookie(self, site: Site) -> None:
        log_in(site)
        assert site.get("/tasks", headers={"Authorization": "Bearer wrong"}).status_code == 401

    def test_invented_cookies_are_limited_for_each_address(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "UNKNOWN_SESSIONS", Rate(2, 1e6))
        site.client.cookies.set(COOKIE, "A" * 43)
        answers = [site.client.get("/ui/tasks", follow_redirects=False).status_code for _ in range(3)]
        assert answers == [303, 303, 429]

    @pytest.mark.parametrize("cookie", ["", "x", "A" * 5000, '"; a=b', "A" * 42 + "é"])
    def test_malformed_cookies_are_refused(self, site: Site, cookie: str) -> None:
        headers = [(b"cookie", f"{COOKIE}={cookie}".encode("latin-1"))]
        answer = site.client.get("/ui/tasks", headers=headers, follow_redirects=False)
        assert answer.status_code == 303

    @pytest.mark.parametrize("other", ['a={"x":1}', 'a="q"r', "a=ü", "a[b]=1", "x", "a=b c", "=", 'a="'])
    def test_cookies_of_other_applications_of_the_host_change_nothing(self, site: Site, other: str) -> None:
        log_in(site)
        token = site.client.cookies[COOKIE]
        site.client.cookies.clear()
        for header in (f"{other}; {COOKIE}={token}", f"{COOKIE}={token}; {other}"):
            headers = [(b"cookie", header.encode("latin-1"))]
            assert site.client.get("/ui/tasks", headers=headers, follow_redirects=False).status_code == 200

    def test_a_large_body_is_not_read_before_the_user_is_known(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Large bodies wait for each other, so those of strangers would keep users from sending theirs."""

        async def take(*_: object) -> None:
            raise AssertionError("it waits for its turn")

        monkeypatch.setattr(BodyBudget, "take", take)
        for path, status in (("/ui/login", 413), ("/ui/logout", 413), ("/ui/new", 303)):
            answer = site.client.post(path, content=b"x" * 1_000_000, follow_redirects=False)
            assert answer.status_code == status, path

    def test_what_is_not_the_users_is_not_shown(self, site: Site) -> None:
        site.create({**HELLO, "name": "secret of bob"}, headers={"X-API-Key": "bob-key"})
        log_in(site)
        assert "secret of bob" not in site.client.get("/ui/tasks?owner=bob").text
        site.client.cookies.clear()
        log_in(site, name="root", password="root")
        assert "secret of bob" in site.client.get("/ui/tasks?owner=bob").text

    def test_a_session_of_a_name_is_not_that_of_another(self, site: Site) -> None:
        log_in(site)
        [stored] = site.sessions.sessions.values()
        site.sessions.sessions[stored.digest] = replace(stored, user="root")
        assert not is_in(site)
        assert isinstance(stored, Session)
