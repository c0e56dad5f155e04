"""The page of a task in a browser."""

from __future__ import annotations

import hashlib
import json
import time

import pytest

from poiesis.config import ApiSettings
from poiesis.domain.states import State
from tests.browser import samples

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys


@pytest.mark.parametrize("kind", ["completed", "failed", "waiting"])
def test_a_task_in_light_dark_and_narrow_without_a_finding(site, browser, show, assert_accessible, screenshot, kind):
    task_id = getattr(samples, kind)(site)
    browser.get(f"{site.url}/ui/tasks/{task_id}")
    for size in ("light", "dark", "narrow"):
        show(size)
        assert_accessible(browser)
        width = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0, f"the page is wider than the window ({size})"
    screenshot(f"task-{kind}")


def test_a_task_is_read_and_canceled_with_the_keyboard_only(site, browser):
    task_id = samples.waiting(site)
    browser.get(f"{site.url}/ui/tasks/{task_id}")
    seen: list[str] = []

    def go_to(name: str) -> None:
        """By Tab, each stop of which must be seen."""
        for _ in range(80):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            now = browser.switch_to.active_element
            label = now.get_attribute("aria-label") or now.text or now.tag_name
            box = now.rect
            assert box["width"] > 0 and box["height"] > 0, f"{label} has the focus and is not visible"
            seen.append(label)
            if label == name:
                return
        raise AssertionError(f"{name} cannot be reached: {seen}")

    for name in (
        "Skip to the content",
        "Tasks",
        "Copy the id",
        "Rerun with changes",
        "Cancel task",
        "Task",
        "Logs",
        "JSON",
        "Timeline",
    ):
        go_to(name)
    go_to("Command of executor 0")
    go_to("Environment (1)")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert "OMP_NUM_THREADS" in browser.find_element("id", "task-commands").text
    go_to("History (2)")
    browser.get(f"{site.url}/ui/tasks/{task_id}")
    go_to("Cancel task")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.find_element("id", "cancel-dialog").is_displayed()
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not browser.find_element("id", "cancel-dialog").is_displayed()
    assert browser.switch_to.active_element.text == "Cancel task", "the focus is lost after the dialog"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    go_to("Cancel the task")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    until = time.monotonic() + 10
    while "Cancel task" in browser.find_element("id", "task-actions").text and time.monotonic() < until:
        time.sleep(0.1)
    assert site.parts.repository.get(task_id).cancel_requested_at is not None


def test_the_logs_are_moved_through_with_the_keyboard_only(make_site, browser, tmp_path):
    from tests.browser.log_samples import Written, settings_of

    site = make_site(logs=settings_of(tmp_path))
    task_id = site.create()
    log = Written(site.parts.log_store, task_id)
    log.add(b"".join(b"row %07d\n" % n for n in range(200_000)))
    log.end()
    site.move(task_id, State.INITIALIZING, State.RUNNING, State.COMPLETE)
    browser.get(f"{site.url}/ui/tasks/{task_id}/logs?stream=stdout")

    def text() -> str:
        return str(browser.execute_script("return document.querySelector('.log').textContent"))

    def wait_for(part: str) -> None:
        until = time.monotonic() + 15
        while part not in text():
            assert time.monotonic() < until, f"no {part}"
            time.sleep(0.1)

    wait_for("row 0199999")
    view = browser.find_element("css selector", ".log")
    view.send_keys(Keys.HOME)
    wait_for("row 0000000")
    view.send_keys(Keys.END)
    wait_for("row 0199999")
    view.send_keys("/")
    needle = browser.switch_to.active_element
    assert needle.get_attribute("aria-label") == "Text to find in stdout"
    needle.send_keys("row 0000777", Keys.ENTER)
    wait_for("row 0000777")


def test_a_live_part_keeps_the_focus_and_what_is_open(site, browser):
    task_id = samples.waiting(site)
    browser.get(f"{site.url}/ui/tasks/{task_id}")
    summary = browser.find_element("css selector", "#history > summary")
    summary.send_keys(Keys.ENTER)
    site.change(task_id, state=State.INITIALIZING, waiting=None)
    until = time.monotonic() + 15
    while "Initializing" not in browser.find_element("id", "task-state").text:
        assert time.monotonic() < until, "the state does not change"
        time.sleep(0.1)
    time.sleep(0.5)
    is_open = (
        "return document.getElementById('history').open && document.activeElement.closest('details')?.id === 'history'"
    )
    assert browser.execute_script(is_open)
    assert "Initializing" in browser.find_element("id", "announce").get_attribute("textContent")


def test_a_task_of_another_user_is_not_found(make_site, browser, tmp_path, expected_errors):
    users = tmp_path / "users.json"
    names = ("ada", "eve")
    users.write_text(
        json.dumps([{"name": n, "api_key_hash": "sha256$" + hashlib.sha256(n.encode()).hexdigest()} for n in names])
    )
    users.chmod(0o600)
    site = make_site(ApiSettings(auth=("api_key",), credentials_file=str(users)))
    mine, other = site.create("mine", owner="eve"), site.create("hers", owner="ada")
    browser.get(f"{site.url}/ui/login")
    browser.find_element("css selector", "input[name=key]").send_keys("eve", Keys.ENTER)
    until = time.monotonic() + 15
    while "/ui/login" in browser.current_url and time.monotonic() < until:
        time.sleep(0.1)
    expected_errors.append("404")
    browser.get(f"{site.url}/ui/tasks/{mine}")
    assert browser.find_element("css selector", "h1").text == "mine"
    for path in ("", "/logs", "/json", "/task.json", "/cancel"):
        browser.get(f"{site.url}/ui/tasks/{other}{path}")
        assert "hers" not in browser.page_source and "Not found" in browser.page_source, path


def test_what_is_copied_is_the_text_itself(site, browser):
    task_id = samples.completed(site)
    browser.get(f"{site.url}/ui/tasks/{task_id}")
    browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    browser.find_element("css selector", "#task-outputs [aria-label='Copy the URL']").click()
    time.sleep(0.5)
    copied = browser.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (e) => arguments[0](String(e)))"
    )
    assert copied == "s3://results/run-7/NA12878.bam"
