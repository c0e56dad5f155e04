"""The dashboard's login by a real OpenID provider: the code flow, attacks on it, and what becomes of a session later."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from poiesis.api.oidc import provider as provider_module
from poiesis.api.oidc.provider import Provider
from poiesis.api.oidc.settings import Issuer
from poiesis.api.server import BackgroundServer
from poiesis.api.ui import session as sessions
from poiesis.api.ui.visit import csrf_token
from poiesis.config import ApiSettings
from poiesis.domain.sessions import Session
from poiesis.testing.clock import ManualClock
from tests.servers import OidcServer
from tests.servers.oidc import RESOURCE, follow_forms
from tests.unit.api.service import Site

pytestmark = pytest.mark.xdist_group("oidc")
COOKIE = "poiesis_session"


def settings_for(oidc: OidcServer, *others: dict[str, Any], **more: Any) -> ApiSettings:
    client, secret = oidc.dashboard
    issuer = {"name": "lab", "url": oidc.issuer, "audiences": [RESOURCE], "group_claims": ["groups"]}
    issuer |= {"admin_values": ["tes-admins"], "browser_client": client, "browser_secret": secret}
    issuer |= {"browser_scope": "openid profile groups offline_access", "title": "the lab", **more}
    return ApiSettings(auth=("oidc",), oidc_issuers=json.dumps([issuer, *others]))


@dataclass
class Tes:
    """A server with its dashboard, and a browser without pages of its own."""

    site: Site
    client: httpx.Client

    @property
    def stored(self) -> list[Session]:
        return list(self.site.sessions.sessions.values())

    def wait_for_expiry(self) -> None:
        """Until the access token of the browser's session has 10 seconds left."""
        [stored] = self.stored
        left_s = sessions._unseal(self.client.cookies[COOKIE], stored).expires_at - self.site.clock.now().timestamp()
        self.site.clock.advance(timedelta(seconds=left_s - 10))


@contextmanager
def serving(api: ApiSettings, **options: Any) -> Iterator[Tes]:
    clock = options.pop("clock", None) or ManualClock(datetime.fromtimestamp(time.time(), UTC))
    site = Site(replace(api, port=0), clock=clock, **options)
    with (
        BackgroundServer(site.app, site.api) as server,
        httpx.Client(base_url=server.url, follow_redirects=True, timeout=30) as client,
    ):
        yield Tes(site, client)


@pytest.fixture
def serve() -> Iterator[Callable[..., Tes]]:
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(serving(*args, **options))


@pytest.fixture
def site(oidc: OidcServer, serve: Callable[..., Tes]) -> Tes:
    oidc.set_claims("ada", {"groups": ["imaging"]})
    return serve(settings_for(oidc))


def begin(site: Tes, next_page: str = "") -> str:
    """The address at the provider."""
    answer = site.client.get("/ui/login/oidc/lab", params={"next": next_page}, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def approve(address: str, user: str) -> str:
    """Log in at the provider; the path and query of the callback."""
    callback = follow_forms(address, user, until="/ui/login/")
    return callback[callback.index("/ui/") :]


def come_back(site: Tes, callback: str) -> httpx.Response:
    answer: httpx.Response = site.client.get(callback, follow_redirects=False)
    return answer


def log_in(site: Tes, user: str = "ada", next_page: str = "") -> httpx.Response:
    return come_back(site, approve(begin(site, next_page), user))


def failure(answer: httpx.Response) -> str:
    assert "poiesis_session=" not in answer.headers.get("set-cookie", "")
    found = re.search(r"error=(\w+)", answer.headers["location"])
    assert found is not None, answer.headers
    return found[1]


def log_out(site: Tes) -> str:
    """The word for how it went."""
    form = {"csrf_token": csrf_token(site.client.cookies[COOKIE])}
    answer = site.client.post("/ui/logout", data=form, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return str(parse_qs(urlsplit(answer.headers["location"]).query)["error"][0])


def shown(site: Tes) -> str:
    page = site.client.get("/ui/tasks")
    return page.text if page.url.path == "/ui/tasks" else ""


class TestLogin:
    def test_leads_back_to_the_page(self, site: Tes) -> None:
        assert "Log in with the lab" in site.client.get("/ui/tasks").text
        answer = log_in(site, next_page="/ui/tasks?name=x")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/tasks?name=x")
        assert "lab:ada" in shown(site) and "lab:imaging" in shown(site)

    def test_asks_for_a_code_with_pkce_state_and_nonce(self, site: Tes, oidc: OidcServer) -> None:
        address = begin(site)
        query = {name: value for name, [value] in parse_qs(urlsplit(address).query).items()}
        assert address.startswith(oidc.issuer)
        assert (query["response_type"], query["code_challenge_method"]) == ("code", "S256")
        assert all(len(query[name]) == 43 for name in ("state", "nonce", "code_challenge"))
        assert query["redirect_uri"] == f"{str(site.client.base_url).rstrip('/')}/ui/login/oidc/lab/callback"
        assert begin(site) != address

    def test_nothing_of_the_provider_is_readable_in_the_store(self, site: Tes) -> None:
        log_in(site)
        [stored] = site.stored
        token = site.client.cookies[COOKIE]
        tokens = sessions._unseal(token, stored)
        assert tokens.refresh and tokens.access.count(".") == 2
        assert tokens.access not in str(stored.sealed) and tokens.refresh not in str(stored.sealed)
        with pytest.raises(Exception, match=r"."):
            sessions._unseal("A" * 43, stored)

    def test_a_user_without_access_is_refused(self, oidc: OidcServer, serve: Callable[..., Tes]) -> None:
        site = serve(settings_for(oidc, scopes=["unknown"]))
        assert failure(log_in(site)) in ("refused", "denied")

    def test_a_token_for_another_audience_is_refused(self, oidc: OidcServer, serve: Callable[..., Tes]) -> None:
        site = serve(settings_for(oidc, audiences=["urn:other"]))
        assert failure(log_in(site)) == "refused"

    def test_a_provider_that_is_away_is_named(self, oidc: OidcServer, serve: Callable[..., Tes]) -> None:
        site = serve(settings_for(oidc, url="http://127.0.0.1:9", name="lab"))
        answer = site.client.get("/ui/login/oidc/lab", follow_redirects=False)
        assert failure(answer) == "unavailable"

    def test_an_unknown_provider_leads_to_the_login(self, site: Tes) -> None:
        answer = site.client.get("/ui/login/oidc/evil", follow_redirects=False)
        assert answer.headers["location"].startswith("/ui/login?")


class TestAttacks:
    def test_a_callback_without_the_browsers_own_login_is_refused(self, site: Tes) -> None:
        """Login CSRF: the victim's browser is sent to the callback of the attacker's login."""
        callback = approve(begin(site), "bob")
        site.client.cookies.clear()
        assert failure(come_back(site, callback)) == "pending"
        begin(site)
        assert failure(come_back(site, callback)) == "pending"
        assert not site.stored

    def test_a_code_of_another_login_is_refused(self, site: Tes) -> None:
        """Code injection: the attacker's code with the victim's state; PKCE and the nonce do not fit."""
        stolen = parse_qs(urlsplit(approve(begin(site), "bob")).query)["code"][0]
        own = urlsplit(approve(begin(site), "ada"))
        query = parse_qs(own.query)
        forged = f"{own.path}?{httpx.QueryParams({'code': stolen, 'state': query['state'][0]})}"
        assert failure(come_back(site, forged)) == "refused"
        assert not site.stored

    def test_a_callback_counts_once(self, site: Tes) -> None:
        callback = approve(begin(site), "ada")
        cookies = dict(site.client.cookies)
        assert come_back(site, callback).headers["location"] == "/ui"
        site.client.cookies.clear()
        assert failure(come_back(site, callback)) == "pending"
        site.client.cookies.update(cookies)
        assert failure(come_back(site, callback)) == "refused"

    def test_an_answer_of_another_issuer_is_refused(self, site: Tes) -> None:
        """Mix-up (RFC 9207)."""
        callback = re.sub(r"iss=[^&]+", "iss=https%3A%2F%2Fevil.example", approve(begin(site), "ada"))
        assert "evil" in callback and failure(come_back(site, callback)) == "pending"

    def test_a_login_begun_at_one_issuer_does_not_end_at_another(
        self, oidc: OidcServer, serve: Callable[..., Tes]
    ) -> None:
        other = {"name": "other", "url": "http://127.0.0.1:9", "audiences": ["x"], "browser_client": "c"}
        site = serve(settings_for(oidc, other))
        callback = approve(begin(site), "ada").replace("/lab/", "/other/")
        assert failure(come_back(site, callback)) == "pending"

    def test_a_refusal_of_the_provider_is_shown_without_its_text(self, site: Tes) -> None:
        state = parse_qs(urlsplit(begin(site)).query)["state"][0]
        query = {"error": "access_denied", "error_description": "<b>evil", "state": state}
        answer = site.client.get("/ui/login/oidc/lab/callback", params=query, follow_redirects=False)
        assert failure(answer) == "denied" and "evil" not in answer.headers["location"]

    @pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example/ui", "/ui/../evil"])
    def test_a_login_leads_only_to_the_dashboard(self, site: Tes, target: str) -> None:
        assert log_in(site, next_page=target).headers["location"] == "/ui"

    def test_the_answer_cannot_choose_where_to_go(self, site: Tes) -> None:
        callback = approve(begin(site, "/ui/tasks"), "ada") + "&next=//evil.example"
        assert come_back(site, callback).headers["location"] == "/ui/tasks"

    def test_a_session_from_before_the_login_is_not_kept(self, site: Tes) -> None:
        log_in(site, "bob")
        of_attacker = site.client.cookies[COOKIE]
        log_in(site, "ada")
        assert site.client.cookies[COOKIE] != of_attacker
        assert [s.user for s in site.stored] == ["lab:ada"]


class TestLater:
    def test_a_lost_group_is_seen_with_the_next_token(self, site: Tes, oidc: OidcServer) -> None:
        log_in(site)
        oidc.set_claims("ada", {"groups": ["tes-admins"]})
        assert "lab:imaging" in shown(site)
        site.wait_for_expiry()
        page = shown(site)
        assert "lab:imaging" not in page and '<span class="chip">admin' in page

    def test_two_processes_renew_once(self, site: Tes, oidc: OidcServer, serve: Callable[..., Tes]) -> None:
        """The provider ends a grant whose refresh token comes twice."""
        log_in(site)
        other = serve(site.site.api, sessions=site.site.sessions, clock=site.site.clock)
        headers = {"Cookie": f"{COOKIE}={site.client.cookies[COOKIE]}"}
        addresses = [f"{str(tes.client.base_url).rstrip('/')}/ui/tasks" for tes in (site, other)] * 3
        for _ in range(2):
            site.wait_for_expiry()
            with ThreadPoolExecutor(6) as threads:
                found = list(
                    threads.map(lambda url: httpx.get(url, headers=headers, timeout=30).status_code, addresses)
                )
            assert found == [200] * 6

    def test_a_revoked_refresh_token_ends_the_session(self, site: Tes, oidc: OidcServer) -> None:
        log_in(site)
        [stored] = site.stored
        refresh = sessions._unseal(site.client.cookies[COOKIE], stored).refresh
        assert refresh is not None
        oidc.revoke(refresh)
        site.wait_for_expiry()
        assert shown(site) == "" and not site.stored

    def test_a_logout_ends_the_refresh_token_at_the_provider(
        self, site: Tes, oidc: OidcServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        log_in(site)
        [stored] = site.stored
        refresh = sessions._unseal(site.client.cookies[COOKIE], stored).refresh
        assert refresh is not None
        assert log_out(site) == "out" and not site.stored
        form = {"grant_type": "refresh_token", "refresh_token": refresh}
        renewed = httpx.post(f"{oidc.issuer}/token", data=form, auth=oidc.dashboard, timeout=30)
        assert (renewed.status_code, renewed.json()["error"]) == (400, "invalid_grant")
        assert refresh not in caplog.text + "".join(str(record.__dict__) for record in caplog.records)

    def test_a_logout_works_while_the_provider_is_away(
        self, own_oidc: OidcServer, serve: Callable[..., Tes], caplog: pytest.LogCaptureFixture
    ) -> None:
        site = serve(settings_for(own_oidc))
        log_in(site)
        own_oidc.stop()
        assert log_out(site) == "out" and not site.stored
        assert "provider_unavailable" in caplog.text

    @pytest.mark.parametrize("secret", ["dashboard-secret", None])
    def test_a_provider_that_does_not_respond_delays_no_logout(
        self, oidc: OidcServer, monkeypatch: pytest.MonkeyPatch, secret: str | None
    ) -> None:
        monkeypatch.setattr(provider_module, "REVOKE_S", 0.2)
        issuer = Issuer(
            name="lab", url=oidc.issuer, audiences=("x",), browser_client="dashboard", browser_secret=secret
        )

        async def revoke() -> tuple[bool, bool, bytes]:
            provider = Provider(issuer, time.monotonic)
            await provider.endpoint("authorization_endpoint")
            with socket.create_server(("127.0.0.1", 0)) as silent:
                provider._endpoints["revocation_endpoint"] = f"http://127.0.0.1:{silent.getsockname()[1]}/"
                hanging = await provider.revoke("token-1")
                connection, _ = silent.accept()
                received = connection.recv(65536)
                connection.close()
            del provider._endpoints["revocation_endpoint"]
            without = await provider.revoke("token-1")
            await provider.close()
            return hanging, without, received

        hanging, without, received = asyncio.run(revoke())
        assert (hanging, without) == (False, False)
        assert (b"authorization: basic" in received.lower()) is (secret is not None)

    def test_without_a_refresh_token_the_session_ends_with_its_token(
        self, oidc: OidcServer, serve: Callable[..., Tes]
    ) -> None:
        site = serve(settings_for(oidc, browser_scope="openid profile groups"))
        log_in(site)
        [stored] = site.stored
        assert sessions._unseal(site.client.cookies[COOKIE], stored).refresh is None
        assert "lab:ada" in shown(site)

    def test_a_provider_that_is_away_ends_no_session(self, own_oidc: OidcServer, serve: Callable[..., Tes]) -> None:
        site = serve(settings_for(own_oidc))
        log_in(site)
        site.wait_for_expiry()
        own_oidc.stop()
        page = site.client.get("/ui/tasks")
        assert page.status_code == 503, page.history
        assert site.stored
