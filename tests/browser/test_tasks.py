"""The list of tasks in a browser: every action, by mouse, by keyboard and without JavaScript."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from poiesis.api.credentials import hash_secret
from poiesis.config import ApiSettings
from poiesis.domain.states import State
from poiesis.domain.task import Outcome, TaskId
from tests.browser.site import Site
from tests.browser.waiting import eventually, to_next_page

CONFIRM = "form[method=post][action='/ui/tasks/bulk'] button"
OUT_OF_MEMORY = Outcome(State.EXECUTOR_ERROR, "OutOfMemory", "the command used more than its 4 GB of memory")


def fill(site: Site, owner: str | None = None) -> dict[str, TaskId]:
    """Tasks as a site has them."""
    names = ("align-NA12878", "align-NA12891", "call-variants", "merge-bam", "fastqc", "index-reference", "report")
    made = {
        name: site.create(name, owner=owner, tags={"project": "1000g" if i < 4 else "qc", "run": f"{i // 2}"})
        for i, name in enumerate(names)
    }
    site.move(made["index-reference"], State.INITIALIZING, State.RUNNING, State.COMPLETE)
    site.move(made["fastqc"], State.INITIALIZING, State.RUNNING, State.COMPLETE)
    site.move(made["merge-bam"], State.INITIALIZING, State.RUNNING)
    site.change(made["merge-bam"], outcome=OUT_OF_MEMORY)
    site.move(made["merge-bam"], State.EXECUTOR_ERROR)
    site.move(made["align-NA12878"], State.INITIALIZING, State.RUNNING)
    site.move(made["call-variants"], State.INITIALIZING)
    site.change(made["report"], waiting="Queued: 12 tasks are before it, and the group uses all of its 64 cores")
    return made


def css(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def click(browser: Any, selector: str) -> None:
    """What leads to another page."""
    to_next_page(browser, css(browser, selector).click)


def follow(browser: Any, text: str) -> None:
    to_next_page(browser, browser.find_element("link text", text).click)


def heading(browser: Any) -> str:
    return str(css(browser, "h1").text)


def listed(browser: Any, *expected: str) -> None:
    """Wait for a list of exactly these tasks."""
    eventually(lambda: names(browser) == [*expected], f"the list of {expected}")


def names(browser: Any) -> list[str]:
    return [cell.text for cell in browser.find_elements("css selector", "#tasks .main-cell a")]


def test_the_list_in_light_dark_and_narrow_without_a_finding(site, browser, show, assert_accessible, screenshot):
    for i, task_id in enumerate(reversed(fill(site).values())):
        site.age(task_id, timedelta(minutes=2 + 13 * i * i))
    browser.get(f"{site.url}/ui/tasks")
    for kind in ("light", "dark", "narrow"):
        show(kind)
        assert_accessible(browser)
        width = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0, f"the page is wider than the window ({kind})"
    screenshot("tasks")


def test_groups_and_confirmation_in_light_dark_and_narrow_without_a_finding(
    site, browser, assert_accessible, screenshot
):
    fill(site)
    for path, name in (("?group=project", "tasks-by-tag"), ("/bulk?do=cancel&all=1", "tasks-cancel")):
        browser.get(f"{site.url}/ui/tasks{path}")
        assert_accessible(browser)
        screenshot(name)


def test_filters_narrow_the_list_in_place_and_stay_in_the_address(site, browser):
    fill(site)
    browser.get(f"{site.url}/ui/tasks")
    css(browser, "input[name=state][value=RUNNING]").click()
    listed(browser, "align-NA12878")
    eventually(lambda: browser.current_url == f"{site.url}/ui/tasks?state=RUNNING", "the address")
    css(browser, "input[name=state][value=QUEUED]").click()
    eventually(lambda: len(names(browser)) == 3, "the list of both states")
    css(browser, "input[name=name]").send_keys("align")
    listed(browser, "align-NA12891", "align-NA12878")
    eventually(lambda: "name=align" in browser.current_url and "tag=" not in browser.current_url, "the address")
    browser.refresh()
    assert names(browser) == ["align-NA12891", "align-NA12878"]
    browser.back()
    eventually(lambda: len(names(browser)) == 3, "the list before")


def test_a_state_changes_and_new_tasks_are_announced_while_the_page_is_open(site, browser):
    made = fill(site)
    browser.get(f"{site.url}/ui/tasks")
    badge = f"#task-{made['align-NA12878']} .badge"
    assert css(browser, badge).text == "Running"
    site.move(made["align-NA12878"], State.COMPLETE)
    site.create("late")
    done = f"#task-{made['align-NA12878']} .badge.done"
    eventually(lambda: css(browser, done).text == "Complete", "the next state")
    eventually(lambda: css(browser, "#news").is_displayed(), "the new task")
    assert css(browser, "#news-count").text == "1 new task."
    assert css(browser, "#announce").get_attribute("textContent") == "1 new task."
    css(browser, "#news-show").click()
    eventually(lambda: names(browser)[:1] == ["late"], "the list with the new task")


def test_chosen_tasks_are_canceled_after_a_count(site, browser):
    made = fill(site)
    browser.get(f"{site.url}/ui/tasks")
    cancel = css(browser, "button[value=cancel]")
    assert not cancel.is_enabled()
    for name in ("align-NA12878", "align-NA12891"):
        css(browser, f"#task-{made[name]} input").click()
    assert css(browser, "#chosen-count").text == "2 chosen:"
    to_next_page(browser, cancel.click)
    assert heading(browser) == "Cancel 2 tasks?"
    click(browser, CONFIRM)
    assert heading(browser) == "2 tasks are being canceled"
    assert site.parts.repository.get(made["align-NA12878"]).cancel_requested_at


def test_all_that_match_run_again(site, browser):
    fill(site)
    browser.get(f"{site.url}/ui/tasks?name=align")
    follow(browser, "Run all again…")
    assert heading(browser) == "Run 2 tasks again?"
    click(browser, CONFIRM)
    assert heading(browser) == "2 new tasks"
    follow(browser, "Show the tasks")
    assert len(names(browser)) == 9


def test_longest_running_and_oldest_waiting_and_groups_lead_back_to_the_list(site, browser):
    fill(site)
    browser.get(f"{site.url}/ui/tasks")
    follow(browser, "Oldest waiting first")
    assert names(browser) == ["align-NA12891", "call-variants", "report"]
    follow(browser, "Longest running first")
    assert names(browser) == ["align-NA12878"]
    browser.get(f"{site.url}/ui/tasks")
    to_next_page(browser, lambda: css(browser, ".group-by input[name=group]").send_keys("project\n"))
    assert names(browser) == ["1000g", "qc"]
    follow(browser, "qc")
    assert names(browser) == ["report", "index-reference", "fastqc"]


def test_by_keyboard_only(site, browser):
    """Skip to the content, filter, choose a task, cancel it, and come back."""
    from selenium.webdriver import ActionChains, Keys

    made = fill(site)
    browser.get(f"{site.url}/ui/tasks")

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    def press_back() -> None:
        ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()

    def tab_to(is_there: Callable[[Any], bool], step: Callable[[], None] = lambda: press(Keys.TAB)) -> None:
        for _ in range(60):
            step()
            if is_there(browser.switch_to.active_element):
                return
        raise AssertionError("not reached by the Tab key")

    press(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the content"
    press(Keys.ENTER)
    eventually(lambda: browser.current_url.endswith("#main"), "the content")
    tab_to(lambda e: e.get_attribute("value") == "QUEUED")
    press(Keys.SPACE)
    eventually(lambda: len(names(browser)) == 2, "the list of waiting tasks")
    tab_to(lambda e: e.get_attribute("value") == made["report"])
    press(Keys.SPACE)
    eventually(lambda: css(browser, "#chosen-count").text == "1 chosen:", "the choice")
    tab_to(lambda e: e.get_attribute("value") == "cancel", press_back)
    to_next_page(browser, lambda: press(Keys.ENTER))
    assert heading(browser) == "Cancel 1 task?"
    tab_to(lambda e: e.text == "Cancel 1 task")
    to_next_page(browser, lambda: press(Keys.ENTER))
    assert heading(browser) == "1 task is being canceled"
    tab_to(lambda e: e.text == "Show the tasks")
    to_next_page(browser, lambda: press(Keys.ENTER))
    assert len(names(browser)) == 7


def test_without_javascript(site, browser):
    fill(site)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(f"{site.url}/ui/tasks")
    css(browser, "input[name=state][value=RUNNING]").click()
    click(browser, ".filters .actions button")
    assert names(browser) == ["align-NA12878"]
    css(browser, "#tasks tbody input[name=id]").click()
    click(browser, "button[value=cancel]")
    assert heading(browser) == "Cancel 1 task?"
    click(browser, CONFIRM)
    assert heading(browser) == "1 task is being canceled"


@pytest.fixture
def users(tmp_path, make_site) -> Site:
    """With logins by password; passwords and names are the same."""
    file = tmp_path / "users.json"
    people: list[dict[str, Any]] = [
        {"name": "ada", "groups": ["imaging"]},
        {"name": "eve"},
        {"name": "root", "admin": True},
    ]
    entries = [{**u, "password_hash": hash_secret(str(u["name"]), "basic")} for u in people]
    file.write_text(json.dumps(entries))
    return make_site(ApiSettings(auth=("basic", "api_key"), credentials_file=str(file)))


def log_in(browser: Any, site: Site, name: str) -> None:
    browser.get(f"{site.url}/ui/tasks")
    css(browser, "input[name=name]").send_keys(name)
    to_next_page(browser, lambda: css(browser, "input[name=password]").send_keys(name + "\n"))
    assert heading(browser) == "Tasks"


def test_a_password_login_its_tasks_and_the_logout(users, browser, assert_accessible):
    fill(users, "ada")
    log_in(browser, users, "ada")
    assert browser.current_url == f"{users.url}/ui/tasks" and len(names(browser)) == 7
    css(browser, ".menu summary").click()
    assert_accessible(browser)
    assert "imaging" in css(browser, ".menu-body").text
    click(browser, ".menu-body button")
    assert "You have logged out." in css(browser, "main").text
    browser.get(f"{users.url}/ui/tasks")
    assert "/ui/login" in browser.current_url


def test_tasks_of_another_user_are_invisible(users, browser, expected_errors):
    secret = users.create("secret-of-eve", owner="eve")
    log_in(browser, users, "ada")
    assert names(browser) == []
    expected_errors.append("status of 404")
    for path in (f"/ui/tasks/{secret}", "/ui/tasks?owner=eve", f"/ui/tasks/bulk?do=cancel&id={secret}", "/ui"):
        browser.get(users.url + path)
        assert "secret-of-eve" not in browser.page_source
    css(browser, ".menu summary").click()
    click(browser, ".menu-body button")
    log_in(browser, users, "root")
    assert names(browser) == ["secret-of-eve"] and "eve" in css(browser, ".owner-cell").text


def test_a_wrong_password_and_the_login_in_light_dark_and_narrow(users, browser, show, assert_accessible, screenshot):
    browser.get(f"{users.url}/ui/login")
    screenshot("login")
    css(browser, "input[name=name]").send_keys("ada")
    to_next_page(browser, lambda: css(browser, "input[name=password]").send_keys("wrong\n"))
    assert "not right" in css(browser, "[role=alert]").text
    for kind in ("light", "dark", "narrow"):
        show(kind)
        assert_accessible(browser)
