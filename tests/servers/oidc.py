"""Two real OpenID providers, which `make emulators` installs: `oidc-provider` (npm) and the server of zitadel/oidc (Go).

`oidc` is the first: clients, users and grants of `oidc_provider.mjs`. `zitadel` is the second; it issues opaque tokens by the code flow.
Both expect a browser; `approve` and `Zitadel.token` are small ones. A third provider is in `keycloak.py`.
"""

from __future__ import annotations

import html
import json
import re
import secrets
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote, urljoin, urlsplit

import httpx
import pytest

from tests.servers.emulators import FOLDER, program
from tests.servers.process import HOST, free_ports, missing, running

if TYPE_CHECKING:
    from joserfc.jwk import KeySet

    from tests.servers.tls import Authority

SCRIPT: Final = Path(__file__).with_name("oidc_provider.mjs")
RESOURCE: Final = "urn:poiesis"
"""The audience of the tokens that `cli` and `OidcServer.token` get."""
TTL_S: Final = 600
TIMEOUT_S: Final = 120.0
REDIRECTS: Final = (
    "http://127.0.0.1/oidc/callback",
    "http://localhost/oidc/callback",
    "http://127.0.0.1/ui/login/oidc/lab/callback",
)
"""Of the client `dashboard`; any port."""


@dataclass
class OidcServer:
    """`keys`: the private signing keys, for tokens that the provider would not issue."""

    issuer: str
    keys: KeySet
    _port: int = 0
    _host: str = HOST
    _authority: Authority | None = None
    _redirects: Sequence[str] = REDIRECTS
    _running: ExitStack = field(default_factory=ExitStack, repr=False)

    client_id = "cli"
    """Public; device flow. `cli-opaque` gets opaque tokens."""
    introspection = ("poiesis", "poiesis-secret")
    """Client and secret for introspection."""
    dashboard = ("dashboard", "dashboard-secret")
    """Client and secret for the code flow, redirected to REDIRECTS."""

    def token(self, user: str, *, audience: str = RESOURCE, scope: str = "openid groups tes") -> str:
        """An access token of a user: a JWT, or with the audience `opaque` a reference."""
        form = {"grant_type": "urn:poiesis:test", "username": user, "audience": audience, "scope": scope}
        return str(self.post("/token", form, ("test", "test-secret"))["access_token"])

    def subject(self, user: str) -> str:
        return user

    def revoke(self, token: str) -> None:
        self.post("/token/revocation", {"token": token}, ("test", "test-secret"))

    def set_claims(self, user: str, claims: Mapping[str, Any]) -> None:
        """Replace the claims of a user in tokens and UserInfo."""
        address = f"{self.issuer}/test/accounts/{quote(user)}"
        httpx.put(address, json=claims, timeout=TIMEOUT_S, verify=self.verify).raise_for_status()

    @property
    def verify(self) -> ssl.SSLContext | bool:
        """For clients of the provider."""
        return ssl.create_default_context(cafile=self._authority.ca_file) if self._authority else True

    def approve(self, verification_uri: str, user: str) -> None:
        """Log in as `user` at the provider's page and approve what a device has asked for."""
        approve(verification_uri, user)

    def post(self, path: str, form: Mapping[str, str], client: tuple[str, str]) -> dict[str, Any]:
        answer = httpx.post(self.issuer + path, data=dict(form), auth=client, timeout=TIMEOUT_S, verify=self.verify)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json() if answer.content else {}
        return document

    def start(self) -> None:
        """Start, also again: with the keys that are in `keys` by then, and nothing that was issued before."""
        module = FOLDER / "node_modules" / "oidc-provider" / "lib" / "index.js"

        def command(directory: Path, _: list[int]) -> list[str]:
            file = directory / "provider.json"
            configuration = {"issuer": self.issuer, "host": self._host, "port": self._port, "resource": RESOURCE}
            configuration |= {"jwks": self.keys.as_dict(private=True), "redirects": self._redirects, "ttl": TTL_S}
            if self._authority is not None:
                configuration["pem"] = str(self._authority.key_file)
            file.write_text(json.dumps(configuration))
            return ["node", "--max-old-space-size=128", str(SCRIPT), str(module), str(file)]

        def connect(_: list[int]) -> None:
            address = f"{self.issuer}/.well-known/openid-configuration"
            httpx.get(address, timeout=2, verify=self.verify).raise_for_status()

        self._running.enter_context(running("oidc", 0, command, connect))

    def stop(self) -> None:
        self._running.close()


def make_keys(*algorithms: str) -> KeySet:
    """New private keys for signing by `algorithms`, each with a random `kid`."""
    from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

    made: list[Any] = []
    for algorithm in algorithms:
        parameters: Any = {"kid": secrets.token_hex(8), "alg": algorithm, "use": "sig"}
        if algorithm.startswith("ES"):
            made.append(
                ECKey.generate_key({"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[algorithm], parameters)
            )
        elif algorithm in ("EdDSA", "Ed25519"):
            made.append(OKPKey.generate_key("Ed25519", parameters))
        else:
            made.append(RSAKey.generate_key(2048, parameters))
    return KeySet(made)


class _Loopback(httpx.HTTPTransport):
    """Cookies with `Secure` count on http://127.0.0.1 too, as in browsers."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        fields = [
            (name, re.sub(rb"(?i);\s*secure\b", b"", value) if name.lower() == b"set-cookie" else value)
            for name, value in answer.headers.raw
        ]
        answer.headers = httpx.Headers(fields)
        return answer


def browser_client(*, follow_redirects: bool = False, verify: ssl.SSLContext | bool = True) -> httpx.Client:
    """A small browser for the pages of providers."""
    return httpx.Client(transport=_Loopback(verify=verify), follow_redirects=follow_redirects, timeout=TIMEOUT_S)


def password_of(user: str) -> str:
    return f"{user}-secret"


def _submit(browser: httpx.Client, page: httpx.Response, form: tuple[str, dict[str, str]], user: str) -> httpx.Response:
    """Fill in a form for login, or agree to one."""
    action, values = form
    filled = {**values, "login": user, "username": user, "password": password_of(user)}
    return browser.post(urljoin(str(page.url), action), data=filled)


def approve(verification_uri: str, user: str) -> None:
    """Log in as `user` at a provider's page and approve what a device has asked for."""
    with browser_client(follow_redirects=True) as browser:
        page = browser.get(verification_uri)
        for _ in range(6):
            form = _form(page)
            if form is None:
                break
            page = _submit(browser, page, form, user)
        assert page.status_code == 200, page.text[-600:]
        assert "Sign-in Success" in page.text or "Device Login Successful" in page.text, page.text[-600:]


def follow_forms(address: str, user: str, *, until: str, verify: ssl.SSLContext | bool = True) -> str:
    """Log in as `user` at the provider's pages, and return the address with `until` in it that the browser is sent to in the end."""
    with browser_client(verify=verify) as browser:
        page = browser.get(address)
        for _ in range(12):
            if page.is_redirect:
                target = urljoin(str(page.url), page.headers["location"])
                if until in target:
                    return target
                page = browser.get(target)
                continue
            form = _form(page)
            assert form is not None, page.text[-600:]
            page = _submit(browser, page, form, user)
    raise AssertionError("the provider's pages do not end")


def _form(page: httpx.Response) -> tuple[str, dict[str, str]] | None:
    """Action and hidden values of the first form of a page that is not a cancellation."""
    found = re.search(r"<form[^>]*?action=\"([^\"]*)\"[^>]*>(.*?)</form>", page.text, re.S)
    if found is None:
        return None
    values = re.findall(r"<input[^>]*?name=\"([^\"]+)\"[^>]*?value=\"([^\"]*)\"", found[2])
    values += [(n, v) for v, n in re.findall(r"<input\s+value=\"([^\"]*)\"[^>]*?name=\"([^\"]+)\"", found[2])]
    return html.unescape(found[1]), {name: html.unescape(value) for name, value in values}


def make_oidc_server(
    *algorithms: str, host: str = HOST, authority: Authority | None = None, redirects: Sequence[str] = REDIRECTS
) -> OidcServer:
    """Not started. With an authority: over TLS. Skips the test where the provider is not installed."""
    program("node")
    if not (FOLDER / "node_modules" / "oidc-provider").is_dir():
        missing("no oidc-provider: run `make emulators`, which needs npm and go")
    [port] = free_ports(1)
    scheme = "https" if authority else "http"
    keys = make_keys(*(algorithms or ("RS256",)))
    return OidcServer(f"{scheme}://{host}:{port}", keys, port, host, authority, redirects)


@pytest.fixture(scope="session")
def oidc() -> Iterator[OidcServer]:
    """A provider that all tests of this worker share; do not stop it."""
    server = make_oidc_server("RS256")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_oidc() -> Iterator[OidcServer]:
    """A provider of this test only, which it may stop and start again; it signs by ES256."""
    server = make_oidc_server("ES256")
    server.start()
    yield server
    server.stop()


@dataclass(frozen=True)
class Zitadel:
    issuer: str
    client: tuple[str, str] = ("web", "secret")
    """Client and secret of the code flow, also for introspection."""
    users = ("test-user@localhost", "test-user2")
    redirect = "http://localhost:9999/auth/callback"

    def token(self, user: str, scope: str = "openid profile custom_scope") -> str:
        """An access token by the code flow."""
        query = {"client_id": self.client[0], "redirect_uri": self.redirect, "response_type": "code", "scope": scope}
        with httpx.Client(timeout=TIMEOUT_S) as browser:
            page = browser.get(f"{self.issuer}auth", params={**query, "state": "x"})
            page = browser.get(urljoin(str(page.url), page.headers["location"]))
            request = parse_qs(urlsplit(str(page.url)).query)["authRequestID"][0]
            form = {"id": request, "username": user, "password": "verysecure"}
            page = browser.post(f"{self.issuer}login/username", data=form)
            page = browser.get(urljoin(str(page.url), page.headers["location"]))
            code = parse_qs(urlsplit(page.headers["location"]).query)["code"][0]
            form = {"grant_type": "authorization_code", "code": code, "redirect_uri": self.redirect}
            answer = browser.post(f"{self.issuer}oauth/token", data=form, auth=self.client)
            return str(answer.raise_for_status().json()["access_token"])


@pytest.fixture(scope="session")
def zitadel() -> Iterator[Zitadel]:
    """The second provider, which all tests of this worker share."""
    server = program("zitadel-oidc-server")

    def command(_: Path, ports: list[int]) -> list[str]:
        return ["env", f"PORT={ports[0]}", server]

    def connect(ports: list[int]) -> Zitadel:
        found = Zitadel(f"http://localhost:{ports[0]}/")
        httpx.get(f"{found.issuer}.well-known/openid-configuration", timeout=2).raise_for_status()
        return found

    with running("zitadel", 1, command, connect) as provider:
        yield provider
