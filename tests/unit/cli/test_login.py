"""Saved logins, and what the client accepts of a provider; the flow with a real one is in tests/integration/cli."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from poiesis.cli.client import TesClient
from poiesis.cli.logins import Login, Logins, server_key
from poiesis.cli.oidc import GRANT, DeviceLogin, OidcClient, Tokens, is_safe
from poiesis.domain.errors import ConfigurationError, PoiesisError, Unauthenticated, Unavailable
from tests.unit.cli.conftest import Answer, Asked, Done, TesServer

SERVER = "https://tes.example:443"
LOGIN = Login(SERVER, "https://id.example", "cli", "openid", Tokens("access-1", "refresh-1", time.time() + 3600))


@pytest.fixture
def logins(tmp_path: Path) -> Logins:
    return Logins({"HOME": str(tmp_path)})


@pytest.fixture
def file(logins: Logins, tmp_path: Path) -> Path:
    logins.save(LOGIN)
    [path] = (tmp_path / ".config/poiesis/logins").glob("*.json")
    return path


class TestSavedLogins:
    def test_are_found_by_any_spelling_of_the_server(self, logins: Logins, file: Path) -> None:
        for url in ("https://TES.example", "https://tes.example:443/", "https://u:p@tes.example/ga4gh/tes/v1"):
            assert logins.get(url) == LOGIN
        for url in (
            "http://tes.example",
            "https://tes.example:8443",
            "https://tes.example/other",
            "https://tes.example.org",
        ):
            assert logins.get(url) is None

    def test_are_for_their_owner_only(self, logins: Logins, file: Path) -> None:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        file.chmod(0o640)
        with pytest.raises(ConfigurationError, match="other users can read the saved login"):
            logins.get(SERVER)

    def test_hide_their_tokens(self) -> None:
        assert "access-1" not in repr(LOGIN) and "refresh-1" not in repr(LOGIN)

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"tokens": {}}', '{"server": 1, "tokens": null}'])
    def test_that_are_damaged_are_an_error(self, logins: Logins, file: Path, text: str) -> None:
        file.write_text(text)
        with pytest.raises(ConfigurationError, match="damaged saved login"):
            logins.get(SERVER)

    def test_of_another_server_under_this_name_are_not_used(self, logins: Logins, file: Path) -> None:
        file.write_text(file.read_text().replace(SERVER, "https://evil.example:443"))
        with pytest.raises(ConfigurationError, match="damaged"):
            logins.get(SERVER)

    def test_follow_xdg_config_home(self, tmp_path: Path) -> None:
        logins = Logins({"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "HOME": "/nonexistent"})
        logins.save(LOGIN)
        assert len(list((tmp_path / "xdg/poiesis/logins").glob("*.json"))) == 1

    def test_need_a_directory_only_to_be_saved(self) -> None:
        assert Logins({}).access_token(SERVER) is None
        with pytest.raises(ConfigurationError, match="set XDG_CONFIG_HOME or HOME"):
            Logins({}).save(LOGIN)

    def test_are_replaced_whole(self, logins: Logins, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ConfigurationError, match="No space left"):
            logins.save(replace(LOGIN, scope="other"))
        assert logins.get(SERVER) == LOGIN
        assert [p.name for p in file.parent.iterdir()] == [file.name]

    def test_give_way_to_other_credentials(self, server: TesServer, tmp_path: Path) -> None:
        environ = {"HOME": str(tmp_path)}
        Logins(environ).save(replace(LOGIN, server=server_key(server.url)))
        server.serve({})
        for url, more in ((server.url, {}), (server.url, {"TES_TOKEN": "t"}), (server.url.replace("//", "//u:p@"), {})):
            TesClient(url, environ | more).service_info()
        assert [a.headers["Authorization"].split()[-1] for a in server.asked][::2] == ["access-1", "t", "dTpw"]


class Provider:
    """`answers` by path; a list one after the other."""

    def __init__(self, server: TesServer) -> None:
        self.url, self.asked = server.url, server.asked
        self.document: dict[str, Any] = {
            "issuer": server.url,
            "token_endpoint": f"{server.url}/token",
            "device_authorization_endpoint": f"{server.url}/device",
        }
        self.answers: dict[str, list[Answer]] = {}
        server.answer = self.answer

    def answer(self, asked: Asked) -> Answer:
        if asked.path == "/.well-known/openid-configuration":
            return 200, self.document
        found = self.answers[asked.path]
        return found.pop(0) if len(found) > 1 else found[0]

    def forms(self, path: str) -> list[dict[str, str]]:
        return [dict(urllib.parse.parse_qsl(a.body.decode())) for a in self.asked if a.path == path]


@pytest.fixture
def provider(server: TesServer) -> Provider:
    return Provider(server)


DEVICE: dict[str, Any] = {
    "device_code": "d", "user_code": "ABCD", "verification_uri": "https://id.example/device", "expires_in": 600,
}  # fmt: skip
TOKEN: dict[str, Any] = {"access_token": "a", "refresh_token": "r", "expires_in": 60, "token_type": "Bearer"}
PENDING: Answer = (400, {"error": "authorization_pending"})


class TestProvider:
    @pytest.mark.parametrize("issuer", ["https://other", None, 5])
    def test_that_calls_itself_otherwise_is_refused(self, provider: Provider, issuer: object) -> None:
        provider.document["issuer"] = issuer
        with pytest.raises(ConfigurationError, match="it calls itself"):
            OidcClient(provider.url, "cli")

    @pytest.mark.parametrize(
        "endpoint", ["http://id.example/device", "ftp://id.example", "https:///x", 5, None, "https://a\nb"]
    )
    def test_whose_endpoints_are_not_encrypted_is_refused(self, provider: Provider, endpoint: object) -> None:
        provider.document["device_authorization_endpoint"] = endpoint
        with pytest.raises(ConfigurationError, match=r"must begin with https|does not offer the device flow"):
            OidcClient(provider.url, "cli").begin("openid")

    def test_gets_a_challenge_and_then_its_verifier(self, provider: Provider) -> None:
        import base64
        import hashlib

        provider.answers = {"/device": [(200, DEVICE)], "/token": [PENDING, (200, TOKEN)]}
        client = OidcClient(provider.url, "cli")
        login = client.begin("openid tes")
        assert client.finish(login, sleep=lambda _: None).access_token == "a"
        [asked], [_, finished] = provider.forms("/device"), provider.forms("/token")
        assert (asked["client_id"], asked["scope"], asked["code_challenge_method"]) == ("cli", "openid tes", "S256")
        digest = hashlib.sha256(finished["code_verifier"].encode()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == asked["code_challenge"]
        assert (finished["grant_type"], finished["device_code"], finished["client_id"]) == (GRANT, "d", "cli")

    def test_that_asks_to_slow_down_or_fails_for_a_while_is_asked_less_often(self, provider: Provider) -> None:
        provider.answers = {
            "/device": [(200, DEVICE | {"interval": 2})],
            "/token": [PENDING, (400, {"error": "slow_down"}), (502, b"<html>"), PENDING, (200, TOKEN)],
        }
        client, waits = OidcClient(provider.url, "cli"), list[float]()
        client.finish(client.begin("openid"), sleep=waits.append)
        assert waits == [2, 2, 7, 7, 7]

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            ({"error": "access_denied"}, "the login was refused"),
            ({"error": "expired_token"}, "not approved in time"),
            ({"error": "invalid_grant", "error_description": "no"}, "invalid_grant: no"),
            ({}, "HTTP status 400"),
        ],
    )
    def test_that_refuses_ends_the_login(self, provider: Provider, error: dict[str, str], words: str) -> None:
        provider.answers = {"/device": [(200, DEVICE)], "/token": [(400, error)]}
        client = OidcClient(provider.url, "cli")
        with pytest.raises(Unauthenticated, match=words):
            client.finish(client.begin("openid"), sleep=lambda _: None)

    @pytest.mark.parametrize(
        "answer",
        [{}, {"access_token": 5}, {"access_token": "a\nb"}, {"access_token": "ä"}, TOKEN | {"token_type": "mac"}],
    )
    def test_without_a_usable_token_is_an_error(self, provider: Provider, answer: dict[str, Any]) -> None:
        provider.answers = {"/token": [(200, answer)]}
        login = DeviceLogin("https://x", True, "A", "d", "v", 1, 60)
        with pytest.raises(PoiesisError, match="no bearer token"):
            OidcClient(provider.url, "cli").finish(login, sleep=lambda _: None)

    @pytest.mark.parametrize(
        "answer",
        [{}, DEVICE | {"expires_in": "soon"}, {k: v for k, v in DEVICE.items() if k != "user_code"}],
    )
    def test_with_an_incomplete_answer_is_an_error(self, provider: Provider, answer: dict[str, Any]) -> None:
        provider.answers = {"/device": [(200, answer)]}
        with pytest.raises(PoiesisError, match="invalid response"):
            OidcClient(provider.url, "cli").begin("openid")

    def test_a_redirect_is_not_followed(self, provider: Provider) -> None:
        class Redirects(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(307)
                self.send_header("Location", f"{provider.url}/stolen")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as other:
            thread = threading.Thread(target=other.serve_forever, args=(0.02,))
            thread.start()
            provider.document["device_authorization_endpoint"] = f"http://127.0.0.1:{other.server_address[1]}/device"
            try:
                with pytest.raises(Unauthenticated, match="HTTP status 307"):
                    OidcClient(provider.url, "cli").begin("openid")
            finally:
                other.shutdown()
                thread.join()
        assert [asked.path for asked in provider.asked] == ["/.well-known/openid-configuration"]


class TestRefreshing:
    @pytest.fixture
    def expired(self, provider: Provider, logins: Logins) -> Login:
        login = replace(LOGIN, issuer=provider.url, tokens=Tokens("access-1", "refresh-1", time.time() + 10))
        logins.save(login)
        return login

    def test_happens_before_the_token_expires(self, provider: Provider, logins: Logins, expired: Login) -> None:
        provider.answers = {"/token": [(200, TOKEN)]}
        assert logins.access_token(SERVER) == logins.access_token(SERVER) == "a"
        assert [form["refresh_token"] for form in provider.forms("/token")] == ["refresh-1"]
        saved = logins.get(SERVER)
        assert saved is not None and saved.tokens.refresh_token == "r"

    def test_keeps_a_refresh_token_that_is_not_rotated(
        self, provider: Provider, logins: Logins, expired: Login
    ) -> None:
        provider.answers = {"/token": [(200, {"access_token": "a", "expires_in": 60})]}
        logins.access_token(SERVER)
        saved = logins.get(SERVER)
        assert saved is not None and saved.tokens.refresh_token == "refresh-1"

    @pytest.mark.parametrize(
        ("answer", "kind"), [((400, {"error": "invalid_grant"}), Unauthenticated), ((503, b""), Unavailable)]
    )
    def test_that_fails_keeps_the_login(
        self, provider: Provider, logins: Logins, expired: Login, answer: Answer, kind: type[Exception]
    ) -> None:
        provider.answers = {"/token": [answer]}
        with pytest.raises(kind):
            logins.access_token(SERVER)
        assert logins.get(SERVER) == expired


class TestWhoami:
    def test_of_poiesis_shows_name_and_rights(self, server: TesServer, poiesis: Callable[..., Done]) -> None:
        found = {"name": "lab:ada", "admin": False, "groups": ["lab:x", "lab:\x1b[31m"], "scopes": ["read", "write"]}
        server.serve({"GET /whoami": (200, found)}, "/poiesis/v1")
        done = poiesis("whoami", "--url", f"{server.url}/ga4gh/tes/v1", HOME="/nonexistent")
        assert done.out == "lab:ada\n  groups: lab:x, lab:\\u001b[31m\n  scopes: read, write\n"

    def test_of_another_server_without_a_login_says_so(self, server: TesServer, poiesis: Callable[..., Done]) -> None:
        done = poiesis("whoami", "--url", server.url, HOME="/nonexistent")
        assert done.code == 77 and "no login to" in done.err


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://id.example", True),
        ("http://127.0.0.1:8080/x", True),
        ("http://[::1]:1", True),
        ("http://localhost", True),
        ("http://id.example", False),
        ("http://localhost.evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("https://", False),
        ("file:///etc/passwd", False),
        ("https://a\x1b[31m", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_tokens_are_sent_encrypted_or_to_this_machine(url: str, expected: bool) -> None:
    assert is_safe(url) is expected


def test_the_file_has_what_a_login_needs(file: Path) -> None:
    assert set(json.loads(file.read_text())) == {"server", "issuer", "client_id", "scope", "tokens"}
