"""Keycloak, which `make keycloak` installs, with the realm, clients and groups of docs/howto/oidc-keycloak.md.

As a program it is a user with a browser: `python -m tests.servers.keycloak FILE USER` waits for the address that `poiesis login` writes
into FILE, logs in there and confirms.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.servers.emulators import FOLDER
from tests.servers.oidc import TIMEOUT_S, approve, password_of
from tests.servers.process import HOST, missing, running

PAGE: Final = Path(__file__).parents[2] / "docs" / "howto" / "oidc-keycloak.md"
REALM: Final = "lab"
ADMIN: Final = ("admin", "admin")
START_S: Final = (
    500.0  # seconds; measured on two busy cores: 46 to 150, and 80 to 105 more for the first start, which builds
)
USERS: Final = {"ada": ["/tes/imaging"], "eve": ["/tes/imaging"], "bob": [], "root": ["/tes-admins"]}
LOOPBACK: Final = f"http://{HOST}/ui/login/oidc/lab/callback"  # Keycloak accepts it with any port


def keycloak_programs() -> Path:
    """The directory of kc.sh and kcadm.sh; skips the test where Keycloak is not installed."""
    if not (FOLDER / "keycloak" / ".installed").is_file():
        missing("no Keycloak: run `make keycloak`, which needs mvn and Java 17")
    return FOLDER / "keycloak" / "bin"


@dataclass
class Keycloak:
    """`files`: those of the page, by name."""

    url: str
    files: dict[str, Any]
    client_id = "tes-cli"
    """Public; device flow."""
    dashboard = ("tes-dashboard", "dashboard-secret")
    """Client and secret for the code flow."""

    @property
    def issuer(self) -> str:
        return f"{self.url}/realms/{REALM}"

    def settings(self, **more: Any) -> dict[str, Any]:
        """The issuer of the page for this server."""
        [issuer] = self.files["issuers.json"]
        kept = {name: value for name, value in issuer.items() if name != "browser_secret_file"}
        return {**kept, "url": self.issuer, "browser_secret": self.dashboard[1], **more}

    def subject(self, user: str) -> str:
        [found] = self.admin("GET", f"/users?exact=true&username={user}").json()
        return str(found["id"])

    def approve(self, verification_uri: str, user: str) -> None:
        """Log in as `user` at the provider's page and approve what a device has asked for."""
        approve(verification_uri, user)

    def tokens(self, user: str, scope: str = "openid offline_access", client: str = client_id) -> dict[str, Any]:
        """What the device flow ends with: access_token, refresh_token, id_token."""
        endpoints = f"{self.issuer}/protocol/openid-connect"
        with httpx.Client(timeout=TIMEOUT_S) as device:
            begun = device.post(f"{endpoints}/auth/device", data={"client_id": client, "scope": scope})
            login = begun.raise_for_status().json()
            self.approve(login["verification_uri_complete"], user)
            form = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": login["device_code"]}
            answer = device.post(f"{endpoints}/token", data={**form, "client_id": client})
            tokens: dict[str, Any] = answer.raise_for_status().json()
            return tokens

    def token(self, user: str, client: str = client_id) -> str:
        return str(self.tokens(user, "openid", client)["access_token"])

    def admin(self, method: str, path: str, document: Any = None) -> httpx.Response:
        """A request to the administration of the realm, or with an empty path of all realms."""
        user, password = ADMIN
        form = {"grant_type": "password", "client_id": "admin-cli", "username": user, "password": password}
        with httpx.Client(timeout=TIMEOUT_S) as client:
            answer = client.post(f"{self.url}/realms/master/protocol/openid-connect/token", data=form)
            header = {"Authorization": f"Bearer {answer.raise_for_status().json()['access_token']}"}
            base = f"{self.url}/admin/realms" + (f"/{REALM}" if path else "")
            return client.request(method, base + path, json=document, headers=header).raise_for_status()

    def create(self, path: str, document: Any) -> str:
        """The id of what was created."""
        return self.admin("POST", path, document).headers["location"].rpartition("/")[2]

    def set_up(self) -> None:
        """What the page does with kcadm.sh; two users in a group, one in none, and an administrator."""
        self.create("", {"realm": REALM, "enabled": True, "accessTokenLifespan": 300})
        self.create("/client-scopes", self.files["tes-scope.json"])
        self.create("/clients", self.files["tes-cli.json"])
        client, secret = self.dashboard
        self.create(
            "/clients",
            {**self.files["tes-dashboard.json"], "clientId": client, "secret": secret, "redirectUris": [LOOPBACK]},
        )
        parent = self.create("/groups", {"name": "tes"})
        self.create(f"/groups/{parent}/children", {"name": "imaging"})
        self.create("/groups", {"name": "tes-admins"})
        for user, groups in USERS.items():
            self.create_user(user, *groups)

    def create_user(self, name: str, *groups: str, **more: Any) -> str:
        profile = {"username": name, "email": f"{name}@example.org", "firstName": name, "lastName": name}
        credentials = [{"type": "password", "value": password_of(name)}]
        return self.create("/users", {**profile, "enabled": True, "groups": groups, "credentials": credentials, **more})


def _files() -> dict[str, Any]:
    from tests.docs.pages import parse  # imported late: pytest rewrites the asserts of a plugin that it imports first

    return {block.detail: json.loads(block.text) for block in parse(PAGE).blocks if block.kind == "file"}


@pytest.fixture(scope="session")
def keycloak() -> Iterator[Keycloak]:
    """A Keycloak that all tests of this worker share, in memory; do not change its clients and the users of USERS."""
    script = keycloak_programs() / "kc.sh"
    user, password = ADMIN

    def command(_: Path, ports: list[int]) -> list[str]:
        # as the page starts it; the second compiler of the JVM does not pay for a server that lives for minutes
        variables = [f"KC_BOOTSTRAP_ADMIN_USERNAME={user}", f"KC_BOOTSTRAP_ADMIN_PASSWORD={password}"]
        options = ["start-dev", "--db", "dev-mem", "--http-host", HOST, "--http-port", str(ports[0])]
        return ["env", *variables, "JAVA_OPTS_APPEND=-XX:TieredStopAtLevel=1", str(script), *options]

    def connect(ports: list[int]) -> Keycloak:
        socket.create_connection((HOST, ports[0])).close()  # cheaper than a client for each of many attempts
        found = Keycloak(f"http://{HOST}:{ports[0]}", _files())
        httpx.get(f"{found.url}/realms/master/.well-known/openid-configuration", timeout=2).raise_for_status()
        return found

    with running("keycloak", 1, command, connect, start_s=START_S) as server:
        server.set_up()
        yield server


def main(file: str, user: str) -> None:
    end = time.monotonic() + TIMEOUT_S
    while (found := re.search(r"open +(http\S+)\n", _text(Path(file)))) is None:
        if time.monotonic() > end:
            raise SystemExit(f"no address in {file}")
        time.sleep(0.1)
    approve(found[1], user)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    main(*sys.argv[1:])
