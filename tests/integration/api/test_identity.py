"""Attempts against identity, on a real server with real OpenID providers. The numbers are those of the table in docs/security.md.

Tokens that a provider would not issue are signed with its own keys, so that only what is wrong with them is wrong.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from poiesis.api.audit import AuditLog
from poiesis.api.credentials import hash_secret
from poiesis.api.oidc import provider as provider_module
from poiesis.api.server import BackgroundServer
from poiesis.cluster.kubernetes import objects
from poiesis.config import ApiSettings
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.task import TaskId
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.events import SqliteEventLog
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from poiesis.repository.sqlite.webhooks import SqliteWebhookStore
from tests.servers import OidcServer, Zitadel
from tests.servers.oidc import RESOURCE, make_keys
from tests.unit.api.service import BASE, HELLO, Site

if TYPE_CHECKING:
    from joserfc.jwk import Key

pytestmark = pytest.mark.xdist_group("oidc")


@dataclass
class Tes:
    """A server with issuers, and a client of it for each token."""

    site: Site
    url: str
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def get(self, path: str, token: str | None, **headers: str) -> httpx.Response:
        return self.http.get(self.url + path, headers=_headers(token) | headers)

    def post(self, path: str, token: str | None, document: Any = None) -> httpx.Response:
        return self.http.post(self.url + path, headers=_headers(token), json=document)

    def create(self, token: str) -> str:
        answer = self.post("/tasks", token, HELLO)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def clear(self) -> None:
        self.site.repository.__init__()  # type: ignore[misc]

    def owner(self, task_id: str) -> str | None:
        return self.site.repository.get(TaskId(task_id)).owner

    def refuses(self, token: str, because: str = "", status: int = 401) -> None:
        for answer in (self.get("/tasks", token), self.post("/tasks", token, HELLO)):
            assert answer.status_code == status, answer.text
            assert because in answer.json()["message"], answer.text
            assert token not in answer.text + str(answer.headers)
            if status == 401:
                assert answer.headers["www-authenticate"].startswith("Bearer")
        assert self.site.stored() == 0


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _issuer(oidc: OidcServer, **more: Any) -> dict[str, Any]:
    settings = {"name": "lab", "url": oidc.issuer, "audiences": [RESOURCE], "group_claims": ["groups"]}
    return {**settings, "admin_values": ["tes-admins"], **more}


def _opaque(oidc: OidcServer, **more: Any) -> dict[str, Any]:
    client, secret = oidc.introspection
    introspection = {"introspection": "opaque", "client_id": client, "client_secret": secret}
    return _issuer(oidc, audiences=["*"], clients=["test"], cache_s=1, **introspection, **more)


@contextmanager
def serving(
    *issuers: dict[str, Any],
    auth: tuple[str, ...] = ("oidc",),
    parts: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> Iterator[Tes]:
    """`parts`: of the `Site`, instead of its fakes."""
    site = Site(api=ApiSettings(auth=auth, oidc_issuers=json.dumps(issuers), port=0, **settings), **parts)
    with BackgroundServer(site.app, site.api) as server:
        tes = Tes(site, server.url + BASE)
        yield tes
        tes.http.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Tes]]:
    """Starts a server with these issuers; further settings are those of the API."""
    with ExitStack() as stack:
        yield lambda *issuers, **settings: stack.enter_context(serving(*issuers, **settings))


@pytest.fixture(scope="module")
def shared(oidc: OidcServer) -> Iterator[Tes]:
    with serving(_issuer(oidc)) as tes:
        yield tes


@pytest.fixture
def tes(shared: Tes) -> Tes:
    """A server with the provider `oidc` as its issuer, without tasks."""
    shared.clear()
    return shared


def forged(
    oidc: OidcServer, *without: str, key: Key | None = None, header: dict[str, Any] | None = None, **claims: Any
) -> str:
    """A token with these claims instead of what the provider writes, signed with its key or another one."""
    from joserfc import jwt
    from joserfc.jws import JWSRegistry

    now = int(time.time())
    given = {"iss": oidc.issuer, "sub": "ada", "aud": RESOURCE, "iat": now, "exp": now + 300, "groups": [], **claims}
    key = key or oidc.keys.keys[0]
    registry = JWSRegistry(algorithms=["RS256", "HS256", "none", "ES256"], strict_check_header=False)
    registry.header_registry.pop("crit", None)
    head = {"alg": "RS256", "kid": key.kid, "typ": "at+jwt", **(header or {})}
    return jwt.encode(head, {n: v for n, v in given.items() if n not in without}, key, registry=registry)


def spliced(
    token: str, *, header: bytes | None = None, payload: bytes | None = None, signature: str | None = None
) -> str:
    """The token with parts replaced."""
    parts = token.split(".")
    for i, part in enumerate((header, payload)):
        if part is not None:
            parts[i] = base64.urlsafe_b64encode(part).decode().rstrip("=")
    if signature is not None:
        parts[2] = signature
    return ".".join(parts)


class TestTokensOfTheProvider:
    def test_name_the_owner_by_issuer_and_subject(self, tes: Tes, oidc: OidcServer) -> None:
        assert tes.owner(tes.create(oidc.token("ada"))) == "lab:ada"
        assert tes.owner(tes.create(forged(oidc))) == "lab:ada"

    def test_of_groups_with_admin_rights_see_all_tasks(self, tes: Tes, oidc: OidcServer) -> None:
        task = tes.create(oidc.token("ada"))
        assert tes.get(f"/tasks/{task}", oidc.token("bob")).status_code == 404
        assert tes.get(f"/tasks/{task}", oidc.token("root")).status_code == 200

    def test_that_are_opaque_are_introspected(self, serve: Callable[..., Tes], oidc: OidcServer) -> None:
        tes = serve(_opaque(oidc))
        assert tes.owner(tes.create(oidc.token("ada", audience="opaque"))) == "lab:ada"

    def test_get_their_groups_from_userinfo(self, serve: Callable[..., Tes], oidc: OidcServer) -> None:
        oidc.set_claims("eve", {"realm_access": {"roles": ["tes-admins"]}})
        tes = serve(_opaque(oidc, userinfo=True, admin_claims=["realm_access.roles"]))
        task = tes.create(oidc.token("ada", audience="opaque"))
        assert tes.get(f"/tasks/{task}", oidc.token("eve", audience="opaque")).status_code == 200

    def test_of_the_second_provider_work_the_same(self, serve: Callable[..., Tes], zitadel: Zitadel) -> None:
        client, secret = zitadel.client
        issuer = {"name": "other", "url": zitadel.issuer, "audiences": ["*"], "clients": ["web"], "userinfo": True}
        issuer |= {"introspection": "opaque", "client_id": client, "client_secret": secret}
        tes = serve(issuer | {"user_claim": "preferred_username"})
        task = tes.create(zitadel.token("test-user2"))
        assert tes.owner(task) == "other:test-user2"
        assert tes.get(f"/tasks/{task}", zitadel.token("test-user@localhost")).status_code == 404
        tes.clear()
        tes.refuses("not-a-token-of-that-provider", "does not know the token")

        grouped = serve(issuer | {"group_claims": ["custom_claim.other"]})
        task = grouped.create(zitadel.token("test-user2"))
        assert grouped.site.repository.get(TaskId(task)).groups == ("other:stuff",)
        assert grouped.get(f"/tasks/{task}", zitadel.token("test-user@localhost")).status_code == 200

    def test_and_keys_and_passwords_work_at_the_same_time(
        self, serve: Callable[..., Tes], oidc: OidcServer, tmp_path: Path
    ) -> None:
        file = tmp_path / "users.json"
        secrets = {"password_hash": hash_secret("pass", "basic"), "token_hash": hash_secret("file-token", "bearer")}
        file.write_text(json.dumps([{"name": "ada", **secrets, "api_key_hash": hash_secret("key", "api_key")}]))
        tes = serve(_issuer(oidc), auth=("basic", "bearer", "oidc", "api_key"), credentials_file=str(file))
        owners = {tes.owner(tes.create(token)) for token in (oidc.token("ada"), "file-token")}
        assert owners == {"lab:ada", "ada"}
        assert tes.http.get(f"{tes.url}/tasks", auth=("ada", "pass")).status_code == 200
        assert tes.get("/tasks", None, **{"X-API-Key": "key"}).status_code == 200


class TestForgedTokens:
    """Rows I1 to I33."""

    @pytest.mark.parametrize(
        ("claims", "without", "because"),
        [
            pytest.param({"exp": int(time.time()) - 60}, (), "has expired", id="I1-expired"),
            pytest.param({"nbf": int(time.time()) + 3600}, (), "not valid yet", id="I2-not-yet-valid"),
            pytest.param({"iat": int(time.time()) + 3600}, (), "not valid yet", id="I3-issued-in-the-future"),
            pytest.param({}, ("exp",), "no expiry", id="I4-no-expiry"),
            pytest.param({"exp": "9999999999"}, (), "invalid exp", id="I5-expiry-as-text"),
            pytest.param({"exp": True}, (), "invalid exp", id="I5-expiry-as-bool"),
            pytest.param({"exp": 1e300}, (), "invalid exp", id="I5-expiry-far-away"),
            pytest.param({"aud": "another-service"}, (), "another audience", id="I6-wrong-audience"),
            pytest.param({"aud": ["cli", "dashboard"]}, (), "another audience", id="I7-id-token-audience"),
            pytest.param({}, ("aud",), "another audience", id="I8-no-audience"),
            pytest.param({"aud": {RESOURCE: 1}}, (), "another audience", id="I8-audience-as-object"),
            pytest.param({"iss": "https://evil.example"}, (), "not configured", id="I9-wrong-issuer"),
            pytest.param({}, ("iss",), "not configured", id="I10-no-issuer"),
            pytest.param({"iss": ["http://x"]}, (), "not configured", id="I10-issuer-as-list"),
            pytest.param({}, ("sub",), "no subject", id="I11-no-subject"),
            pytest.param({"sub": ""}, (), "no subject", id="I11-empty-subject"),
            pytest.param({"sub": ["ada"]}, (), "no subject", id="I11-subject-as-list"),
            pytest.param({"sub": "ada\nroot"}, (), "no usable user name", id="I12-line-break-in-subject"),
            pytest.param({"sub": "a" * 300}, (), "no usable user name", id="I12-long-subject"),
            pytest.param({"sub": " ada"}, (), "no usable user name", id="I12-blank-before-subject"),
            pytest.param({"typ": "ID"}, (), "not an access token", id="I13-id-token-of-keycloak"),
            pytest.param({"typ": "Refresh"}, (), "not an access token", id="I14-refresh-token"),
            pytest.param({"cnf": {"jkt": "x"}}, (), "bound to a key", id="I15-stolen-dpop-token"),
            pytest.param({"groups": ["g"] * 2_000}, (), "more than 1000 values", id="I16-many-groups"),
        ],
    )
    def test_with_wrong_claims_are_refused(
        self, tes: Tes, oidc: OidcServer, claims: dict[str, Any], without: tuple[str, ...], because: str
    ) -> None:
        tes.refuses(forged(oidc, *without, **claims), because)

    @pytest.mark.parametrize(
        ("header", "because"),
        [
            pytest.param({"crit": ["exp"], "exp": 1}, "critical extensions", id="I17-crit"),
            pytest.param({"crit": []}, "critical extensions", id="I17-crit-empty"),
            pytest.param({"b64": False, "crit": ["b64"]}, "critical extensions", id="I18-unencoded-payload"),
            pytest.param({"typ": "logout+jwt"}, "not an access token", id="I19-logout-token"),
            pytest.param({"typ": "dpop+jwt"}, "not an access token", id="I19-dpop-proof"),
            pytest.param({"typ": 1}, "not an access token", id="I19-type-as-number"),
            pytest.param({"kid": "unknown"}, "key is not one", id="I20-unknown-kid"),
            pytest.param({"kid": "../../etc/passwd"}, "key is not one", id="I21-kid-as-path"),
            pytest.param({"kid": ["x"]}, "key is not one", id="I21-kid-as-list"),
        ],
    )
    def test_with_wrong_headers_are_refused(
        self, tes: Tes, oidc: OidcServer, header: dict[str, Any], because: str
    ) -> None:
        valid = forged(oidc)
        own = json.loads(base64.urlsafe_b64decode(valid.split(".")[0] + "=="))
        tes.refuses(_signed(oidc, {**own, **header}, valid.split(".")[1]), because)

    def test_without_a_signature_are_refused(self, tes: Tes, oidc: OidcServer) -> None:
        """I22, I23"""
        valid = forged(oidc)
        for algorithm in (b"none", b"None", b"NONE", b"nOnE", b""):
            header = b'{"alg":"%s","typ":"JWT"}' % algorithm
            tes.refuses(spliced(valid, header=header, signature=""), "algorithm is not allowed")
        tes.refuses(spliced(valid, signature=""), "signature is invalid")
        tes.refuses(valid[:-6] + ("AAAAAA" if valid[-6:] != "AAAAAA" else "BBBBBB"), "signature is invalid")

    def test_signed_with_the_public_key_as_a_secret_are_refused(self, tes: Tes, oidc: OidcServer) -> None:
        """I24"""
        import hashlib
        import hmac

        key = oidc.keys.keys[0]
        for secret in (key.as_pem(private=False), json.dumps(key.as_dict(private=False)).encode()):  # type: ignore[union-attr]
            for algorithm in ("HS256", "hs256"):
                head = json.dumps({"alg": algorithm, "kid": key.kid}).encode()
                token = spliced(forged(oidc), header=head)
                signed = token.rpartition(".")[0]
                mac = hmac.digest(secret, signed.encode(), hashlib.sha256)
                signature = base64.urlsafe_b64encode(mac).decode().rstrip("=")
                tes.refuses(f"{signed}.{signature}", "algorithm is not allowed")

    @pytest.mark.parametrize("where", ["jwk", "jku", "x5u", "x5c"])
    def test_that_bring_their_own_key_are_refused(self, tes: Tes, oidc: OidcServer, where: str) -> None:
        """I25 to I28: the header names the key of an attacker, with the `kid` of the provider's."""
        key = make_keys("RS256").keys[0]
        values: dict[str, Any] = {
            "jwk": key.as_dict(private=False),
            "jku": "http://127.0.0.1:1/jwks",
            "x5u": "http://127.0.0.1:1/certificate",
            "x5c": ["MIIB"],
        }
        header = {"alg": "RS256", "kid": oidc.keys.keys[0].kid, where: values[where]}
        tes.refuses(_signed(oidc, header, forged(oidc).split(".")[1], key), "signature is invalid")

    def test_with_changed_claims_are_refused(self, tes: Tes, oidc: OidcServer) -> None:
        """I29"""
        valid = oidc.token("ada")
        claims = json.loads(base64.urlsafe_b64decode(valid.split(".")[1] + "=="))
        tes.refuses(spliced(valid, payload=json.dumps({**claims, "sub": "root"}).encode()), "signature is invalid")

    @pytest.mark.parametrize(
        ("payload", "because"),
        [
            pytest.param(b'{"iss":"ISSUER","sub":"bob","sub":"ada"}', "malformed", id="I30-repeated-claim"),
            pytest.param(b'{"a":{"b":1,"b":2},"iss":"ISSUER"}', "malformed", id="I30-repeated-below"),
            pytest.param(b"[" * 6000, "malformed", id="I31-nested"),
            pytest.param(b'{"a":' * 1500 + b"1" + b"}" * 1500, "", id="I31-nested-objects"),
            pytest.param(b'{"exp":' + b"9" * 5000 + b"}", "malformed", id="I32-long-number"),
            pytest.param(b'{"exp":NaN}', "malformed", id="I32-nan"),
            pytest.param(b"\xff\xfe", "malformed", id="I32-not-utf-8"),
            pytest.param(b"[]", "malformed", id="I32-a-list"),
            pytest.param(b'"text"', "malformed", id="I32-a-text"),
        ],
    )
    def test_that_are_malformed_are_refused(self, tes: Tes, oidc: OidcServer, payload: bytes, because: str) -> None:
        valid = forged(oidc)
        payload = payload.replace(b"ISSUER", oidc.issuer.encode())
        header = json.loads(base64.urlsafe_b64decode(valid.split(".")[0] + "=="))
        tes.refuses(_signed(oidc, header, base64.urlsafe_b64encode(payload).decode().rstrip("=")), because)

    def test_that_are_huge_are_refused(self, tes: Tes, oidc: OidcServer) -> None:
        """I33: the head of a request is bounded before, so this one is just below that."""
        tes.refuses(forged(oidc, padding="x" * 20_000), "larger than")

    @pytest.mark.parametrize("token", [".", "..", "...", "a.b", "a.b.c", "e30.e30.e30", "é", "%2e%2e", "a b"])
    def test_that_are_not_tokens_are_refused(self, tes: Tes, token: str) -> None:
        """I34"""
        answer = tes.http.get(tes.url + "/tasks", headers=[(b"Authorization", b"Bearer " + token.encode("latin-1"))])
        assert answer.status_code in (400, 401)


def _signed(oidc: OidcServer, header: dict[str, Any], payload: str, key: Key | None = None) -> str:
    """Any header over any payload, with a right signature (RS256)."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    signed = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=") + "." + payload
    private: Any = (key or oidc.keys.keys[0]).private_key
    signature = private.sign(signed.encode(), PKCS1v15(), SHA256())
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


class TestIssuers:
    def test_with_the_same_subject_have_different_users(
        self, serve: Callable[..., Tes], oidc: OidcServer, own_oidc: OidcServer
    ) -> None:
        """I35"""
        tes = serve(_issuer(oidc), _issuer(own_oidc, name="other", admin_values=[]))
        task = tes.create(oidc.token("ada"))
        other = own_oidc.token("ada")
        assert tes.get(f"/tasks/{task}", other).status_code == 404
        assert tes.get("/tasks", other).json()["tasks"] == []
        assert tes.owner(tes.create(other)) == "other:ada"

    def test_cannot_sign_for_each_other(
        self, serve: Callable[..., Tes], oidc: OidcServer, own_oidc: OidcServer
    ) -> None:
        """I36: a token of one issuer, signed with the other's key, under either `kid`."""
        tes = serve(_issuer(oidc), _issuer(own_oidc, name="other"))
        foreign = own_oidc.keys.keys[0]
        tes.refuses(forged(oidc, key=foreign, header={"alg": "ES256"}), "key is not one")
        tes.refuses(forged(oidc, key=foreign, header={"alg": "ES256", "kid": oidc.keys.keys[0].kid}), "key is not one")

    def test_admins_of_one_have_no_rights_by_a_group_of_the_other(
        self, serve: Callable[..., Tes], oidc: OidcServer, own_oidc: OidcServer
    ) -> None:
        """I37"""
        tes = serve(_issuer(oidc), _issuer(own_oidc, name="other", admin_values=["other-admins"]))
        task = tes.create(oidc.token("ada"))
        assert tes.get(f"/tasks/{task}", own_oidc.token("root")).status_code == 404

    def test_without_prefix_cannot_take_names_of_another(
        self, serve: Callable[..., Tes], oidc: OidcServer, own_oidc: OidcServer
    ) -> None:
        """I38"""
        tes = serve(_issuer(oidc, prefix_names=False), _issuer(own_oidc, name="other"))
        tes.refuses(forged(oidc, sub="other:ada"), "of another issuer's user")

    def test_that_limit_clients_refuse_tokens_of_other_clients(
        self, serve: Callable[..., Tes], oidc: OidcServer
    ) -> None:
        """I39"""
        tes = serve(_issuer(oidc, clients=["cli"]))
        tes.refuses(oidc.token("ada"), "another client")
        tes.create(forged(oidc, azp="cli"))

    def test_that_require_scopes_refuse_tokens_without(self, serve: Callable[..., Tes], oidc: OidcServer) -> None:
        """I40"""
        tes = serve(_issuer(oidc, scopes=["tes"]))
        token = oidc.token("ada", scope="openid")
        tes.refuses(token, "must have the scope tes", 403)
        assert 'error="insufficient_scope"' in tes.get("/tasks", token).headers["www-authenticate"]
        tes.create(oidc.token("ada", scope="openid tes"))


class TestKeysOfTheProvider:
    def test_that_were_rotated_are_found_and_the_old_ones_refused(
        self, serve: Callable[..., Tes], own_oidc: OidcServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """I41"""
        monkeypatch.setattr(provider_module, "MIN_REFRESH_S", 0.2)
        monkeypatch.setattr(provider_module, "FRESH_S", 0.5)
        tes = serve(_issuer(own_oidc))
        old = own_oidc.token("ada")
        assert tes.get("/tasks", old).status_code == 200
        own_oidc.stop()
        own_oidc.keys = make_keys("ES256")
        own_oidc.start()
        assert tes.get("/tasks", own_oidc.token("ada")).status_code == 200
        tes.refuses(old, "key is not one")

    def test_are_read_once_however_many_tokens_have_unknown_ones(
        self, serve: Callable[..., Tes], oidc: OidcServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """I42"""
        fetched: list[str] = []
        original = provider_module.Provider._fetch

        async def fetch(self: provider_module.Provider, method: str, url: str, **options: Any) -> Any:
            fetched.append(url)
            return await original(self, method, url, **options)

        monkeypatch.setattr(provider_module.Provider, "_fetch", fetch)
        tes = serve(_issuer(oidc))
        for i in range(200):
            assert tes.get("/tasks", forged(oidc, header={"kid": f"unknown-{i}"})).status_code == 401
        assert sorted(url.rpartition("/")[2] for url in fetched) == ["jwks", "openid-configuration"]
        assert tes.get("/tasks", oidc.token("ada")).status_code == 200

    def test_are_kept_while_the_provider_is_down_for_a_bounded_time(
        self, serve: Callable[..., Tes], own_oidc: OidcServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """I43, I44"""
        for name, seconds in (("MIN_REFRESH_S", 0.0), ("FRESH_S", 0.0), ("MAX_STALE_S", 6.0)):
            monkeypatch.setattr(provider_module, name, seconds)
        tes = serve(_issuer(own_oidc))
        token = own_oidc.token("ada")
        assert tes.get("/tasks", token).status_code == 200
        start = time.monotonic()
        own_oidc.stop()
        assert tes.get("/tasks", token).status_code == 200
        unknown = tes.get("/tasks", forged(own_oidc, key=make_keys("ES256").keys[0], header={"alg": "ES256"}))
        assert (unknown.status_code, unknown.headers.get("retry-after")) == (503, "5")
        while time.monotonic() < start + 6.5:
            time.sleep(0.1)
        answer = tes.get("/tasks", token)
        assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
        assert "'lab' does not respond" in answer.json()["message"]

    def test_of_a_provider_that_was_down_from_the_start_are_read_when_it_is_up(
        self, serve: Callable[..., Tes], own_oidc: OidcServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """I45"""
        monkeypatch.setattr(provider_module, "MIN_REFRESH_S", 0.1)
        own_oidc.stop()
        tes = serve(_issuer(own_oidc))
        tes.refuses(forged(own_oidc, header={"alg": "ES256"}), "does not respond", 503)
        own_oidc.start()
        time.sleep(0.2)
        assert tes.get("/tasks", own_oidc.token("ada")).status_code == 200


class TestRevocation:
    def test_of_an_opaque_token_takes_effect_after_the_cache(self, serve: Callable[..., Tes], oidc: OidcServer) -> None:
        """I46"""
        tes = serve(_opaque(oidc))
        token = oidc.token("ada", audience="opaque")
        assert tes.get("/tasks", token).status_code == 200
        oidc.revoke(token)
        time.sleep(1.2)
        tes.refuses(token, "no longer valid")

    def test_of_a_user_takes_effect_with_the_next_token(self, tes: Tes, oidc: OidcServer) -> None:
        """I47, I48: an admin right and a group that were lost."""
        oidc.set_claims("mal", {"groups": ["tes-admins"]})
        task = tes.create(oidc.token("ada"))
        assert tes.get(f"/tasks/{task}", oidc.token("mal")).status_code == 200
        oidc.set_claims("mal", {"groups": []})
        assert tes.get(f"/tasks/{task}", oidc.token("mal")).status_code == 404

    def test_of_rights_in_userinfo_takes_effect_after_the_cache(
        self, serve: Callable[..., Tes], oidc: OidcServer
    ) -> None:
        """I49"""
        oidc.set_claims("moe", {"groups": ["tes-admins"]})
        tes = serve(_opaque(oidc, userinfo=True))
        task = tes.create(oidc.token("ada", audience="opaque"))
        token = oidc.token("moe", audience="opaque")
        assert tes.get(f"/tasks/{task}", token).status_code == 200
        oidc.set_claims("moe", {"groups": []})
        time.sleep(1.2)
        assert tes.get(f"/tasks/{task}", token).status_code == 404

    def test_cannot_be_escaped_while_introspection_is_down(
        self, serve: Callable[..., Tes], own_oidc: OidcServer
    ) -> None:
        """I50"""
        tes = serve(_opaque(own_oidc))
        token = own_oidc.token("ada", audience="opaque")
        assert tes.get("/tasks", token).status_code == 200
        own_oidc.stop()
        time.sleep(1.2)
        tes.refuses(token, "does not respond", 503)

    def test_invented_tokens_are_limited_for_each_address(self, serve: Callable[..., Tes], oidc: OidcServer) -> None:
        """I51: and asked about once."""
        tes = serve(_opaque(oidc))
        known = oidc.token("ada", audience="opaque")
        assert tes.get("/tasks", known).status_code == 200
        answers = [tes.get("/tasks", f"invented-{i}").status_code for i in range(130)]
        assert answers.count(401) < 120 and answers[-1] == 429
        assert set(answers) == {401, 429}

    def test_tokens_for_introspection_have_to_be_of_an_allowed_client(
        self, serve: Callable[..., Tes], oidc: OidcServer
    ) -> None:
        """I52"""
        tes = serve({**_opaque(oidc), "clients": ["cli-opaque"]})
        tes.refuses(oidc.token("ada", audience="opaque"), "another client")


class TestOtherUsersTasks:
    """I53 to I57: not there for anyone else, on every operation."""

    @pytest.fixture
    def theirs(self, tes: Tes, oidc: OidcServer) -> str:
        return tes.create(oidc.token("ada"))

    def test_cannot_be_read_or_cancelled(self, tes: Tes, oidc: OidcServer, theirs: str) -> None:
        bob = oidc.token("bob")
        for view in ("MINIMAL", "BASIC", "FULL"):
            mine = tes.get(f"/tasks/{theirs}?view={view}", bob)
            unknown = tes.get(f"/tasks/{'0' * 26}?view={view}", bob)
            assert mine.status_code == unknown.status_code == 404
            assert mine.json()["message"].replace(theirs, "") == unknown.json()["message"].replace("0" * 26, "")
        assert tes.post(f"/tasks/{theirs}:cancel", bob).status_code == 404
        assert tes.site.repository.get(TaskId(theirs)).cancel_requested_at is None

    def test_are_in_no_list(self, tes: Tes, oidc: OidcServer, theirs: str) -> None:
        bob = oidc.token("bob")
        for query in ("", "?view=FULL", "?state=QUEUED", "?name_prefix=hello", "?page_size=1"):
            assert tes.get(f"/tasks{query}", bob).json()["tasks"] == []

    def test_cannot_be_reached_by_a_page_token(self, tes: Tes, oidc: OidcServer, theirs: str) -> None:
        ada, bob = oidc.token("ada"), oidc.token("bob")
        tes.create(ada)
        page = tes.get("/tasks?page_size=1", ada).json()["next_page_token"]
        assert tes.get(f"/tasks?page_size=1&page_token={page}", bob).status_code == 400


class TestKeysOfUsersOfAProvider:
    def test_follow_the_rights_in_the_users_next_token(self, serve: Callable[..., Tes], oidc: OidcServer) -> None:
        """I73, I74: an admin right that is lost counts for the keys of the user too; so does a group."""
        tes = serve(_issuer(oidc), auth=("oidc", "api_key"))
        oidc.set_claims("kim", {"groups": ["tes-admins", "imaging"]})
        theirs, ofgroup = tes.create(oidc.token("bob")), tes.create(oidc.token("ada"))
        body = {"name": "n", "scopes": ["read", "admin"]}
        made = tes.http.post(tes.url.replace(BASE, "/poiesis/v1/keys"), json=body, headers=_headers(oidc.token("kim")))
        key = made.json()["key"]
        assert tes.get(f"/tasks/{theirs}", key).status_code == 200
        oidc.set_claims("kim", {"groups": ["imaging"]})
        assert tes.get("/tasks", oidc.token("kim")).status_code == 200
        _eventually(lambda: tes.get(f"/tasks/{theirs}", key).status_code == 404)
        assert tes.get(f"/tasks/{ofgroup}", key).status_code == 200
        oidc.set_claims("kim", {"groups": []})
        assert tes.get("/tasks", oidc.token("kim")).status_code == 200
        _eventually(lambda: tes.get(f"/tasks/{ofgroup}", key).status_code == 404)

    def test_are_never_sent_to_a_provider(self, serve: Callable[..., Tes], oidc: OidcServer) -> None:
        """I75"""
        asked: list[bytes] = []
        introspect = provider_module.Provider.introspect

        async def spy(self: provider_module.Provider, token: bytes) -> Any:
            asked.append(token)
            return await introspect(self, token)

        provider_module.Provider.introspect = spy  # type: ignore[method-assign]
        try:
            tes = serve(_opaque(oidc), auth=("oidc", "api_key"))
            tes.refuses("poiesis_" + "x" * 43, "invalid credentials")
            tes.refuses("invented", "does not know the token")
        finally:
            provider_module.Provider.introspect = introspect  # type: ignore[method-assign]
        assert asked == [b"invented"]


def _eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_of_a_token_is_logged(
    serve: Callable[..., Tes], oidc: OidcServer, caplog: pytest.LogCaptureFixture
) -> None:
    """I58"""
    caplog.set_level("DEBUG")
    tes = serve(_opaque(oidc, userinfo=True))
    tokens = [oidc.token("ada", audience="opaque"), forged(oidc, aud="x"), forged(oidc), "invented-token"]
    for token in tokens:
        tes.get("/tasks", token)
    written = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    for token in tokens:
        assert token not in written
        assert token.rpartition(".")[2] not in written
    assert oidc.introspection[1] not in written


@pytest.mark.parametrize("kind", ["jwt", "userinfo"])
def test_visas_reach_neither_store_nor_log_nor_audit_nor_events_nor_filers(
    serve: Callable[..., Tes], oidc: OidcServer, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """I82"""
    visa = "eyJhbGciOiJSUzI1NiJ9.dmlzYS1vZi1hZGE.c2lnbmF0dXJl"
    oidc.set_claims("visitor", {"groups": ["imaging"], "ga4gh_passport_v1": [visa]})
    token = oidc.token("visitor", audience="opaque") if kind == "userinfo" else oidc.token("visitor")
    if kind == "userinfo":
        reported = httpx.get(f"{oidc.issuer}/me", headers=_headers(token), timeout=30)
        assert reported.json()["ga4gh_passport_v1"] == [visa]
    else:
        assert visa in _payload(token)
    caplog.set_level("DEBUG")
    database, audit = SqliteDatabase(tmp_path / "tasks.sqlite"), AuditLog(str(tmp_path / "audit"))
    policy, events = Policy(url_schemes_in=frozenset({"drs"})), SqliteEventLog(database)
    parts = {"repository": SqliteTaskRepository(database), "events": events, "policy": policy, "audit": audit}
    parts |= {"webhook_store": SqliteWebhookStore(database)}
    issuer = _opaque(oidc, userinfo=True) if kind == "userinfo" else _issuer(oidc)
    tes = serve(issuer, parts=parts)
    base = tes.url.removesuffix(BASE) + "/poiesis/v1"
    document = {**HELLO, "inputs": [{"url": "drs://data.example.org/1", "path": "/data/in"}]}
    hook = tes.http.post(f"{base}/webhooks", headers=_headers(token), json={"url": "https://r.example/x"})
    assert hook.status_code == 200, hook.text
    created = tes.post("/tasks", token, document)
    assert created.status_code == 200, created.text
    task = tes.site.repository.get(TaskId(created.json()["id"]))
    for path in ("whoami", f"tasks/{task.id}/why", "usage"):
        assert tes.http.get(f"{base}/{path}", headers=_headers(token)).status_code == 200
    assert tes.http.post(f"{base}/tasks/{task.id}:rerun", headers=_headers(token)).status_code == 200
    tes.post(f"/tasks/{task.id}:cancel", token)
    audit.close()

    documents = objects.documents(task, plan(task.spec, policy), {})
    assert b"drs://data.example.org/1" in documents["tif.json"] and task.owner == "lab:visitor"
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert str(task.id).encode() in stored and b"CancelTask" in stored
    logged = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    changes = repr(events.after(0, limit=100))
    assert task.id in changes
    for part in (visa, *visa.split(".")[1:], "ga4gh_passport_v1"):
        assert part.encode() not in stored + b"".join(documents.values())
        assert part not in logged + changes


def _payload(token: str) -> str:
    part = token.split(".")[1]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()
