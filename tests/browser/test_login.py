"""A login by real OpenID providers in a real browser: the code flow from our page to theirs and back."""

from __future__ import annotations

import json

import pytest

from poiesis.config import ApiSettings
from tests.browser.test_tasks import css, names
from tests.browser.waiting import eventually, to_next_page
from tests.servers import Keycloak, OidcServer
from tests.servers.oidc import RESOURCE, password_of

pytestmark = pytest.mark.xdist_group("oidc")


@pytest.fixture
def site(make_site, oidc: OidcServer):
    client, secret = oidc.dashboard
    issuer = {"name": "lab", "title": "Example University", "url": oidc.issuer, "audiences": [RESOURCE]}
    issuer |= {"group_claims": ["groups"], "browser_client": client, "browser_secret": secret}
    oidc.set_claims("ada", {"groups": ["imaging"]})
    return make_site(
        ApiSettings(auth=("oidc",), oidc_issuers=json.dumps([{**issuer, "browser_scope": "openid groups"}]))
    )


def test_a_login_by_a_provider_and_light_dark_and_narrow_pages(
    site, browser, oidc, expected_origins, expected_errors, assert_accessible, screenshot
):
    mine, other = site.create("of-ada", owner="lab:ada"), site.create("of-bob", owner="lab:bob")
    expected_origins |= {oidc.issuer, "https://fonts.googleapis.com"}  # their page asks for a font
    expected_errors += [oidc.issuer, "fonts.googleapis.com"]
    browser.get(f"{site.url}/ui/tasks?name=of-")
    assert_accessible(browser)
    screenshot("login-provider")
    to_next_page(browser, browser.find_element("link text", "Log in with Example University").click)
    assert browser.current_url.startswith(oidc.issuer)
    css(browser, "input[name=login]").send_keys("ada")
    css(browser, "input[name=password]").send_keys("any")
    to_next_page(browser, css(browser, "button[type=submit]").click)
    assert "consent" in browser.page_source  # what the client may know
    css(browser, "button[type=submit]").click()
    eventually(lambda: browser.current_url == f"{site.url}/ui/tasks?name=of-", "the page asked for first")
    eventually(lambda: names(browser) == ["of-ada"], "the list")
    assert mine != other
    css(browser, ".menu summary").click()
    assert "lab:imaging" in css(browser, ".menu-body").text
    cookies = {cookie["name"]: cookie for cookie in browser.get_cookies()}
    assert cookies["poiesis_session"]["httpOnly"] and cookies["poiesis_session"]["sameSite"] == "Lax"
    assert "poiesis_login" not in cookies
    assert browser.execute_script("return document.cookie") == ""
    to_next_page(browser, css(browser, ".menu-body button").click)
    assert "You have logged out." in css(browser, "main").text


@pytest.fixture
def site_of_keycloak(make_site, keycloak: Keycloak):
    return make_site(ApiSettings(auth=("oidc",), oidc_issuers=json.dumps([keycloak.settings()])))


@pytest.mark.timeout(600)
def test_a_login_by_keycloak(site_of_keycloak, browser, keycloak, expected_origins, expected_errors):
    site = site_of_keycloak
    site.create("of-ada", owner=f"lab:{keycloak.subject('ada')}")
    site.create("of-bob", owner="lab:bob")
    expected_origins |= {keycloak.url}
    expected_errors += [keycloak.url]
    browser.get(f"{site.url}/ui/tasks?name=of-")
    to_next_page(browser, browser.find_element("link text", "Log in with the lab").click)
    assert browser.current_url.startswith(keycloak.issuer)
    css(browser, "#username").send_keys("ada")
    css(browser, "#password").send_keys(password_of("ada"))
    css(browser, "#kc-login").click()
    eventually(lambda: browser.current_url == f"{site.url}/ui/tasks?name=of-", "the page asked for first")
    eventually(lambda: names(browser) == ["of-ada"], "the list")
    css(browser, ".menu summary").click()
    assert "lab:imaging" in css(browser, ".menu-body").text
