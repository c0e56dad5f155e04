"""`poiesis login`, `logout` and `whoami` with real OpenID providers; the user's browser is an HTTP client."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from poiesis.api.server import BackgroundServer
from poiesis.cli import login
from poiesis.cli import main as cli
from poiesis.cli.logins import Login, Logins
from poiesis.cli.oidc import Tokens
from poiesis.config import ApiSettings
from tests.servers import Keycloak
from tests.servers.oidc import RESOURCE, OidcServer
from tests.unit.api.service import Site

TIMEOUT_S = 60
SCOPE = "openid profile groups offline_access tes"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def poiesis(home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`poiesis ARGUMENTS` in a process of its own, to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "poiesis", *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment(home),
            check=False,
        )

    return run


def environment(home: Path) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("POIESIS_", "TES_", "COV", "XDG_"))}
    return {**own, "HOME": str(home), "PYTHONUNBUFFERED": "1"}


def issuer_of(provider: OidcServer | Keycloak, **more: Any) -> dict[str, Any]:
    if isinstance(provider, Keycloak):
        return provider.settings(**more)
    settings = {"name": "lab", "url": provider.issuer, "audiences": [RESOURCE], "group_claims": ["groups"]}
    return {**settings, "login_client": "cli", "login_scope": SCOPE, **more}


@contextmanager
def serving(issuer: dict[str, Any]) -> Iterator[BackgroundServer]:
    settings = ApiSettings(port=0, auth=("oidc",), oidc_issuers=json.dumps([issuer]))
    with BackgroundServer(Site(api=settings).app, settings) as server:
        yield server


@pytest.fixture(
    params=[
        "oidc",
        pytest.param("keycloak", marks=[pytest.mark.xdist_group("oidc"), pytest.mark.timeout(600)]),
    ]
)
def provider(request: pytest.FixtureRequest) -> OidcServer | Keycloak:
    found: OidcServer | Keycloak = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def service(oidc: OidcServer) -> Iterator[BackgroundServer]:
    """A TES server that accepts the provider's tokens, and advertises the client for the command line."""
    with serving(issuer_of(oidc)) as server:
        yield server


@pytest.fixture
def provided(provider: OidcServer | Keycloak) -> Iterator[BackgroundServer]:
    """The same for each of the providers."""
    with serving(issuer_of(provider)) as server:
        yield server


def log_in(
    oidc: OidcServer | Keycloak, home: Path, user: str, *arguments: str, approve: bool = True
) -> tuple[int, str]:
    """Exit code and output of `poiesis login`, whose instructions the user follows."""
    process = subprocess.Popen(
        [sys.executable, "-m", "poiesis", "login", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(home),
    )
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if "check" in line:
            break
    found = re.search(r"open +(http\S+)", shown)
    if found is not None and approve:
        oidc.approve(found[1], user)
    rest, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, shown + rest


def saved(home: Path) -> tuple[Path, dict[str, Any]]:
    [path] = (home / ".config" / "poiesis" / "logins").glob("*.json")
    return path, json.loads(path.read_text())


def change(home: Path, **tokens: Any) -> None:
    path, document = saved(home)
    document["tokens"] |= tokens
    path.write_text(json.dumps(document))


class TestLogin:
    def test_needs_only_the_servers_url_and_tasks_then_belong_to_the_user(
        self,
        provider: OidcServer | Keycloak,
        provided: BackgroundServer,
        home: Path,
        poiesis: Callable[..., Any],
        tmp_path: Path,
    ) -> None:
        name = f"lab:{provider.subject('ada')}"
        refused = poiesis("task", "list", "--url", provided.url)
        assert refused.returncode == 77 and "run `poiesis login`" in refused.stderr

        code, out = log_in(provider, home, "ada", "--url", provided.url)
        assert code == 0, out
        assert f"Log in to {provided.url} at {provider.issuer}" in out
        assert f"Logged in to {provided.url} as {name}." in out

        (tmp_path / "task.json").write_text(json.dumps({"executors": [{"image": "alpine", "command": ["true"]}]}))
        created = poiesis("task", "create", str(tmp_path / "task.json"), "--url", provided.url)
        assert created.returncode == 0, created.stderr
        listed = poiesis("task", "list", "--url", f"{provided.url}/ga4gh/tes/v1")
        assert created.stdout.strip() in listed.stdout

        who = json.loads(poiesis("whoami", "--json", "--url", provided.url).stdout)
        assert (who["name"], who["groups"], who["method"], who["admin"]) == (name, ["lab:imaging"], "oidc", False)
        assert f"{name}\n  method: oidc" in poiesis("whoami", "--url", provided.url).stdout

    def test_is_kept_for_its_owner_only_and_shows_no_token(
        self, oidc: OidcServer, service: BackgroundServer, home: Path, poiesis: Callable[..., Any]
    ) -> None:
        _, out = log_in(oidc, home, "ada", "--url", service.url)
        path, document = saved(home)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        tokens = document["tokens"]
        assert tokens["refresh_token"]
        for token in (tokens["access_token"], tokens["refresh_token"]):
            assert token not in out
            assert token not in poiesis("whoami", "--url", service.url).stdout
        path.chmod(0o644)
        refused = poiesis("task", "list", "--url", service.url)
        assert refused.returncode == 2 and "other users can read the saved login" in refused.stderr

    def test_of_one_server_is_not_sent_to_another(
        self, oidc: OidcServer, service: BackgroundServer, home: Path, poiesis: Callable[..., Any]
    ) -> None:
        log_in(oidc, home, "ada", "--url", service.url)
        settings = ApiSettings(port=0)
        site = Site(api=settings)
        seen: list[bytes] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.extend(value for name, value in scope.get("headers", []) if name == b"authorization")
            await site.app(scope, receive, send)

        with BackgroundServer(app, settings) as other:
            assert poiesis("task", "list", "--url", other.url).returncode == 0
            assert poiesis("task", "list", "--url", other.url.replace("127.0.0.1", "localhost")).returncode == 0
        assert seen == []

    def test_whose_token_the_server_refuses_fails_with_the_reason(self, oidc: OidcServer, home: Path) -> None:
        with serving(issuer_of(oidc, audiences=["another-service"])) as server:
            code, out = log_in(oidc, home, "ada", "--url", server.url)
        assert code == 77, out
        assert f"{server.url} does not accept the token of {oidc.issuer}: " in out
        assert "the token is for another audience\n" in out and "Logged in" not in out

    def test_that_is_not_approved_fails(
        self, oidc: OidcServer, service: BackgroundServer, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from poiesis.cli.oidc import OidcClient
        from poiesis.domain.errors import Unauthenticated

        client = OidcClient(oidc.issuer, "cli")
        login = client.begin(SCOPE)
        clock = iter([0.0, 1.0, 2.0, login.expires_s + 1])
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        with pytest.raises(Unauthenticated, match="not approved in time"):
            client.finish(login, sleep=lambda _: None)

    def test_works_with_flags_for_a_server_that_advertises_nothing(
        self, oidc: OidcServer, home: Path, poiesis: Callable[..., Any]
    ) -> None:
        settings = ApiSettings(port=0)
        with BackgroundServer(Site(api=settings).app, settings) as other:
            flags = (
                "--url",
                other.url,
                "--issuer",
                oidc.issuer,
                "--client-id",
                "cli-opaque",
                "--scope",
                "openid offline_access",
            )
            missing = poiesis("login", "--url", other.url)
            assert missing.returncode == 2 and "--issuer and --client-id" in missing.stderr
            code, out = log_in(oidc, home, "bob", *flags)
            assert code == 0, out

    @pytest.mark.parametrize(
        ("flags", "words", "code"),
        [
            (("--issuer", "http://127.0.0.1:1", "--client-id", "cli"), "no response from http://127.0.0.1:1", 69),
            (("--issuer", "http://192.0.2.1", "--client-id", "cli"), "must begin with https://", 2),
            (("--client-id", "nobody", "--issuer", "{issuer}"), "refuses the login: invalid_client", 77),
            (("--client-id", "dashboard", "--issuer", "{issuer}"), "refuses the login", 77),
            (("--client-id", "cli", "--issuer", "{issuer}/"), "it calls itself", 2),
            (("--url", "http://192.0.2.1", "--client-id", "cli", "--issuer", "{issuer}"), "unencrypted", 2),
        ],
    )
    def test_what_cannot_work_is_said(
        self, oidc: OidcServer, poiesis: Callable[..., Any], flags: tuple[str, ...], words: str, code: int
    ) -> None:
        done = poiesis("login", *(flag.format(issuer=oidc.issuer) for flag in flags))
        assert done.returncode == code and words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


class TestRefresh:
    def test_an_expired_token_is_renewed_once_by_many_processes(
        self, provider: OidcServer | Keycloak, provided: BackgroundServer, home: Path, poiesis: Callable[..., Any]
    ) -> None:
        """The provider rotates refresh tokens, and would end the login at the second use of one."""
        log_in(provider, home, "ada", "--url", provided.url)
        _, before = saved(home)
        change(home, expires_at=time.time() - 5)
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda _: poiesis("task", "list", "--url", provided.url), range(4)))
        assert [d.returncode for d in done] == [0] * 4, [d.stderr for d in done]
        path, after = saved(home)
        assert after["tokens"]["access_token"] != before["tokens"]["access_token"]
        assert after["tokens"]["refresh_token"] != before["tokens"]["refresh_token"]
        assert after["tokens"]["expires_at"] > time.time() + 60
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        change(home, expires_at=0)
        assert poiesis("task", "list", "--url", provided.url).returncode == 0

    @pytest.mark.parametrize("token", ["gone", None])
    def test_a_login_that_cannot_be_renewed_asks_for_another(
        self, oidc: OidcServer, service: BackgroundServer, home: Path, poiesis: Callable[..., Any], token: str | None
    ) -> None:
        log_in(oidc, home, "ada", "--url", service.url)
        change(home, expires_at=0, refresh_token=token)
        done = poiesis("task", "list", "--url", service.url)
        assert done.returncode == 77
        assert "the login has expired" in done.stderr and f"run `poiesis login --url {service.url}`" in done.stderr


class TestLogout:
    def test_forgets_and_revokes(
        self, provider: OidcServer | Keycloak, provided: BackgroundServer, home: Path, poiesis: Callable[..., Any]
    ) -> None:
        log_in(provider, home, "ada", "--url", provided.url)
        path, document = saved(home)
        done = poiesis("logout", "--url", provided.url)
        assert done.returncode == 0 and done.stdout == f"Logged out of {provided.url}.\n", done.stdout
        assert not path.exists()
        assert poiesis("task", "list", "--url", provided.url).returncode == 77
        assert "There is no login" in poiesis("logout", "--url", provided.url).stdout
        # the refresh token is of no more use
        path.write_text(json.dumps(document | {"tokens": document["tokens"] | {"expires_at": 0}}))
        path.chmod(0o600)
        assert "the login has expired" in poiesis("task", "list", "--url", provided.url).stderr

    def test_works_with_a_damaged_file_and_without_the_provider(
        self, oidc: OidcServer, service: BackgroundServer, home: Path, poiesis: Callable[..., Any]
    ) -> None:
        log_in(oidc, home, "ada", "--url", service.url)
        path, document = saved(home)
        path.write_text("{")
        assert "damaged saved login" in poiesis("task", "list", "--url", service.url).stderr
        assert poiesis("logout", "--url", service.url).returncode == 0 and not path.exists()
        path.write_text(json.dumps(document | {"issuer": "http://127.0.0.1:1"}))
        path.chmod(0o600)
        done = poiesis("logout", "--url", service.url)
        assert done.returncode == 0 and "did not revoke" in done.stdout and not path.exists()

    def test_does_not_wait_for_a_provider_that_does_not_respond(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(login, "REVOKE_S", 0.2)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            issuer = f"http://127.0.0.1:{silent.getsockname()[1]}"
            tokens = Tokens("access-1", "refresh-1", 0.0)
            logins = Logins()
            logins.save(Login("http://127.0.0.1:1", issuer, "cli", "openid", tokens))
            assert cli.main(["logout", "--url", "http://127.0.0.1:1"]) == 0
            shown = capsys.readouterr()
        assert "did not revoke" in shown.out and "-1" not in shown.out + shown.err
        assert logins.get("http://127.0.0.1:1") is None
