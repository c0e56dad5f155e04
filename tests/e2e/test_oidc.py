"""Users of a real OpenID provider, on the cluster: their tokens, their groups, their tasks, and the login in the dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.e2e.conftest import BASE_PATH, OURS, Cluster, Installation, Json, installation, until
from tests.e2e.site import shell
from tests.servers.oidc import RESOURCE, OidcServer, browser_client, follow_forms, make_oidc_server
from tests.servers.tls import authority

SECRET: Final = "provider-of-tests"
PUBLIC: Final = "https://tes.example.org"
"""Address of the dashboard, which only the provider compares: nothing is connected to it."""
CALLBACK: Final = "/ui/login/oidc/lab/callback"
HELLO: Final[Json] = {"executors": [shell("echo hello")]}


@dataclass(frozen=True)
class Lab:
    service: Installation
    provider: OidcServer

    def call(self, user: str, method: str, path: str, body: Json | None = None) -> tuple[int, Any]:
        return self.call_with(self.provider.token(user), method, path, body)

    def call_with(self, token: str | None, method: str, path: str, body: Json | None = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        address = path if path.startswith("/poiesis") else BASE_PATH + path
        answer = httpx.request(method, self.service.url + address, json=body, headers=headers, timeout=30)
        return answer.status_code, answer.json()


@pytest.fixture(scope="module")
def lab(cluster: Cluster, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The provider runs beside the cluster, on the address of the node, over TLS with an authority that only the API knows."""
    node = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"][0]
    host = next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")
    ours = authority(tmp_path_factory.mktemp("tls"), host)
    try:
        provider = make_oidc_server(host=host, authority=ours, redirects=[PUBLIC + CALLBACK])
        provider.start()
    except OSError as error:
        pytest.skip(f"no server for pods can be started here, on {host}: {error}")
    client, secret = provider.dashboard
    files = "/run/secrets/poiesis-oidc"
    issuer = {"name": "lab", "url": provider.issuer, "audiences": [RESOURCE], "ca_file": f"{files}/ca.pem"}
    issuer |= {"group_claims": ["groups"], "admin_values": ["tes-admins"], "browser_scope": "openid profile groups"}
    issuer |= {"browser_client": client, "browser_secret_file": f"{files}/browser-secret"}

    def create_secret(service: Installation) -> None:
        given = {"ca.pem": Path(ours.ca_file).read_text(), "browser-secret": secret}
        metadata = {"name": SECRET, "labels": OURS}
        service.kubectl(
            "apply",
            "-f",
            "-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": given}),
        )

    auth = {"allowAnonymous": False, "methods": ["oidc"], "issuers": [issuer], "issuersSecret": SECRET}
    try:
        with installation(
            cluster, image, before=create_secret, api={"dashboard": {"url": PUBLIC}, "auth": auth}
        ) as service:
            yield Lab(service, provider)
    finally:
        provider.stop()


def ids(document: Any) -> set[str]:
    return {task["id"] for task in document["tasks"]}


def test_a_task_belongs_to_its_user_and_the_users_groups(lab: Lab) -> None:
    lab.provider.set_claims("ada", {"groups": ["imaging"]})
    lab.provider.set_claims("eve", {"groups": ["imaging"]})
    status, created = lab.call("ada", "POST", "/tasks", HELLO)
    assert status == 200, created
    task_id = created["id"]
    path = f"/tasks/{task_id}?view=FULL"

    until(
        lambda: lab.call("ada", "GET", f"/poiesis/v1/tasks/{task_id}/wait?timeout=20")[1]["reached"],
        120,
        lab.service.story,
    )
    status, ended = lab.call("ada", "GET", path)
    assert ended["state"] == "COMPLETE", ended
    assert ended["logs"][0]["logs"][0]["stdout"] == "hello\n", ended

    for user in ("eve", "root"):  # of the same group; an admin
        status, found = lab.call(user, "GET", path)
        assert status == 200, (user, found)
        assert task_id in ids(lab.call(user, "GET", "/tasks")[1])
    assert lab.call("bob", "GET", path)[0] == 404
    assert lab.call("bob", "POST", f"/tasks/{task_id}:cancel")[0] == 404
    assert task_id not in ids(lab.call("bob", "GET", "/tasks")[1])

    lab.provider.set_claims("eve", {"groups": []})  # has left the group
    assert lab.call("eve", "GET", path)[0] == 404


def test_tokens_that_are_not_for_this_service_are_refused(lab: Lab) -> None:
    header, claims, signature = lab.provider.token("ada").split(".")
    refused = {
        "none": None,
        "of another audience": lab.provider.token("ada", audience="urn:other"),
        "with another signature": f"{header}.{claims}.{signature[::-1]}",
        "an opaque one": lab.provider.token("ada", audience="opaque"),
    }
    for what, token in refused.items():
        status, answer = lab.call_with(token, "GET", "/tasks")
        assert status == 401, (what, answer)
    assert lab.call("ada", "GET", "/tasks")[0] == 200


def test_the_dashboard_logs_in_by_the_provider(lab: Lab) -> None:
    with browser_client() as browser:
        answer = browser.get(f"{lab.service.url}/ui/login/oidc/lab")
        assert answer.status_code == 303, answer.text
        callback = follow_forms(answer.headers["location"], "ada", until=CALLBACK, verify=lab.provider.verify)
        assert callback.startswith(PUBLIC + CALLBACK), callback
        answer = browser.get(lab.service.url + callback.removeprefix(PUBLIC))
        assert answer.status_code == 303, answer.text
        assert "error=" not in answer.headers["location"], answer.headers["location"]
        page = browser.get(f"{lab.service.url}/ui/tasks")
        assert page.status_code == 200, page.text
        assert "lab:ada" in page.text
    with browser_client() as stranger:
        assert stranger.get(f"{lab.service.url}/ui/tasks").is_redirect
