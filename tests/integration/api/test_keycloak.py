"""Keycloak's tokens, set up and configured by the files of docs/howto/oidc-keycloak.md; `make keycloak` installs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from poiesis.config import ApiSettings
from tests.integration.api import test_browser_login as browser_login
from tests.integration.api.test_identity import Tes, serve  # noqa: F401
from tests.integration.embedded.service import eventually
from tests.servers import Keycloak

pytestmark = [pytest.mark.xdist_group("oidc"), pytest.mark.timeout(600)]


@pytest.fixture
def tes(serve: Callable[..., Tes], keycloak: Keycloak) -> Tes:  # noqa: F811
    return serve(keycloak.settings())


def test_users_see_their_tasks_and_those_of_their_groups_and_admins_see_all(tes: Tes, keycloak: Keycloak) -> None:
    task = tes.create(keycloak.token("ada"))
    assert tes.owner(task) == f"lab:{keycloak.subject('ada')}"
    seen = {user: tes.get(f"/tasks/{task}", keycloak.token(user)).status_code for user in ("ada", "eve", "bob", "root")}
    assert seen == {"ada": 200, "eve": 200, "bob": 404, "root": 200}


def test_id_tokens_and_refresh_tokens_are_refused(tes: Tes, keycloak: Keycloak) -> None:
    tokens = keycloak.tokens("ada")
    tes.refuses(tokens["id_token"], "not an access token")
    tes.refuses(tokens["refresh_token"])


def test_tokens_of_another_client_of_the_realm_are_refused(tes: Tes, keycloak: Keycloak) -> None:
    """The scope belongs to the clients of the page, not to the realm."""
    keycloak.create(
        "/clients", {**keycloak.files["tes-cli.json"], "clientId": "another", "defaultClientScopes": ["basic"]}
    )
    tes.refuses(keycloak.token("ada", "another"), "another audience")


def test_realm_roles_can_be_groups_and_make_administrators(
    serve: Callable[..., Tes],  # noqa: F811
    keycloak: Keycloak,
) -> None:
    """As docs/operators.md says for realms that have roles in place of groups."""
    keycloak.create("/roles", {"name": "tes-admin"})
    role = keycloak.admin("GET", "/roles/tes-admin").json()
    operator = keycloak.create_user("operator")
    keycloak.admin("POST", f"/users/{operator}/role-mappings/realm", [role])
    scopes = {"defaultClientScopes": ["basic", "tes", "roles"], "fullScopeAllowed": True}
    keycloak.create("/clients", {**keycloak.files["tes-cli.json"], "clientId": "with-roles", **scopes})
    tes = serve(keycloak.settings(group_claims=["realm_access.roles"], group_pattern=None, admin_values=["tes-admin"]))
    task = tes.create(keycloak.token("ada"))
    assert tes.get(f"/tasks/{task}", keycloak.token("operator", "with-roles")).status_code == 200
    assert tes.get(f"/tasks/{task}", keycloak.token("bob", "with-roles")).status_code == 404


def test_rights_that_a_user_loses_are_gone_with_the_next_token(tes: Tes, keycloak: Keycloak) -> None:
    task = tes.create(keycloak.token("ada"))
    kim = keycloak.create_user("kim", "/tes/imaging")
    assert tes.get(f"/tasks/{task}", keycloak.token("kim")).status_code == 200
    [group] = keycloak.admin("GET", f"/users/{kim}/groups").json()
    keycloak.admin("DELETE", f"/users/{kim}/groups/{group['id']}")
    assert tes.get(f"/tasks/{task}", keycloak.token("kim")).status_code == 404


def test_introspection_by_a_client_of_the_audience_refuses_tokens_of_a_session_that_has_ended(
    serve: Callable[..., Tes],  # noqa: F811
    keycloak: Keycloak,
) -> None:
    """Keycloak calls a token inactive where the client that asks is not in its audience."""
    flows = {"standardFlowEnabled": False, "directAccessGrantsEnabled": False}
    keycloak.create("/clients", {"clientId": "tes", "publicClient": False, "secret": "tes-secret", **flows})
    user = keycloak.create_user("zoe")
    token = keycloak.token("zoe")
    client, secret = keycloak.dashboard
    always = {"introspection": "always", "cache_s": 1}
    serve(keycloak.settings(**always, client_id=client, client_secret=secret)).refuses(token, "no longer valid")
    tes = serve(keycloak.settings(**always, client_id="tes", client_secret="tes-secret"))
    assert tes.get("/tasks", token).status_code == 200
    keycloak.admin("POST", f"/users/{user}/logout")
    eventually(lambda: tes.get("/tasks", token).status_code == 401, "refusal")
    tes.refuses(token, "no longer valid")


@pytest.fixture
def site(keycloak: Keycloak) -> Iterator[browser_login.Tes]:
    settings = keycloak.settings(browser_scope="openid profile")
    with browser_login.serving(ApiSettings(auth=("oidc",), oidc_issuers=json.dumps([settings]))) as site:
        yield site


def test_the_dashboard_logs_in_and_renews_its_tokens(site: browser_login.Tes, keycloak: Keycloak) -> None:
    assert "Log in with the lab" in site.client.get("/ui/tasks").text
    answer = browser_login.log_in(site, next_page="/ui/tasks?name=x")
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/tasks?name=x")
    name = f"lab:{keycloak.subject('ada')}"
    assert name in browser_login.shown(site) and "lab:imaging" in browser_login.shown(site)
    [before] = site.stored
    site.wait_for_expiry()
    assert name in browser_login.shown(site)
    [after] = site.stored
    assert after.sealed != before.sealed


def test_the_dashboard_shows_that_a_session_has_ended_at_the_provider(
    site: browser_login.Tes, keycloak: Keycloak
) -> None:
    user = keycloak.create_user("lea")
    browser_login.log_in(site, "lea")
    assert browser_login.shown(site)
    keycloak.admin("POST", f"/users/{user}/logout")
    site.wait_for_expiry()
    assert browser_login.shown(site) == ""
