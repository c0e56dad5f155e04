"""Pages that have lost the service, or their session, say so, recover by themselves, and keep what was typed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poiesis.config import ApiSettings
from poiesis.domain.secret_hashes import hash_secret
from poiesis.domain.states import Stage, State
from tests.browser.test_tasks import css
from tests.browser.waiting import eventually, to_next_page


@pytest.mark.parametrize("page", ["overview", "tasks", "tasks/{id}"])
def test_a_live_page_says_that_the_service_does_not_respond_until_it_does(site, browser, expected_errors, page):
    expected_errors += ["net::ERR_", "htmx"]
    task_id = site.create("runs")
    site.change(task_id, state=State.RUNNING, stage=Stage.RUN)
    browser.get(f"{site.url}/ui/{page.format(id=task_id)}")
    assert css(browser, "#contact").text == ""
    with site.away():
        eventually(lambda: "does not respond" in css(browser, "#contact").text, "the notice")
        site.change(task_id, state=State.SYSTEM_ERROR, stage=Stage.DONE)
    eventually(lambda: css(browser, "#contact").text == "", "the end of the notice")
    if page != "overview":
        eventually(lambda: "System error" in css(browser, "main").text, "the state of now")


@pytest.fixture
def site_of_ada(make_site, tmp_path):
    (tmp_path / "users.json").write_text(json.dumps([{"name": "ada", "password_hash": hash_secret("secret", "basic")}]))
    return make_site(ApiSettings(auth=("basic",), credentials_file=str(tmp_path / "users.json")))


def _log_in(browser: Any) -> None:
    css(browser, "input[name=name]").send_keys("ada")
    css(browser, "input[name=password]").send_keys("secret")
    to_next_page(browser, css(browser, "main form button").click)


@pytest.mark.parametrize("first", ["typing", "create"])
def test_a_form_outlives_its_session(site_of_ada, browser, expected_errors, first):
    expected_errors += ["status of 401", "Error Code 401"]
    expected_errors += ["status of 403", "Error Code 403"]  # of a check of the form between the login and the new token
    browser.get(f"{site_of_ada.url}/ui/new")
    _log_in(browser)
    css(browser, "[name=name]").send_keys(" typed")
    browser.delete_cookie("poiesis_session")
    if first == "typing":
        css(browser, "[name=description]").send_keys("more")
    else:
        css(browser, "#create").click()
    eventually(lambda: "Your session has ended" in css(browser, "#contact").text, "the notice")
    assert css(browser, "[name=name]").get_property("value") == "hello typed"
    form = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.get(f"{site_of_ada.url}/ui/login")
    _log_in(browser)
    browser.close()
    browser.switch_to.window(form)
    eventually(lambda: css(browser, "#contact").text == "", "the end of the notice")
    to_next_page(browser, css(browser, "#create").click)
    assert "hello typed" in css(browser, "h1").text
