"""The page of a task in a browser."""

from __future__ import annotations

import hashlib
import json

import pytest

from poiesis.config import ApiSettings
from poiesis.domain.states import State
from poiesis.domain.task import Executor
from tests.browser import samples
from tests.browser.waiting import eventually, to_next_page

webdriver = pytest.importorskip("selenium.webdriver")
ActionChains, Keys = webdriver.ActionChains, webdriver.Keys
FOCUSED = """
const focused = document.activeElement, box = focused.getBoundingClientRect();
return [focused.getAttribute('aria-label') || focused.innerText.trim() || focused.tagName, box.width, box.height];
"""


def test_values_of_resources_have_room_on_a_narrow_screen(site, browser, show):
    task_id = samples.completed(site)
    browser.get(f"{site.url}/ui/tasks/{task_id}")
    show("narrow")
    heights = browser.execute_script(
        "return [...document.querySelectorAll('.resources td[data-label]')].map((cell) => cell.getBoundingClientRect().height)"
    )
    assert heights and max(heights) < 56, f"a value has more than two lines: {heights}"


@pytest.mark.parametrize("page", ["", "/logs", "/json"])
def test_long_names_tags_and_commands_do_not_widen_the_page(site, browser, show, page):
    command = ("sh", "-c", "x" * 10_000)
    task_id = site.create("W" * 300, tags={"k" * 200: "v" * 2000}, executors=(Executor("i" * 200, command),))
    browser.get(f"{site.url}/ui/tasks/{task_id}{page}")
    for size in ("light", "narrow"):
        show(size)
        assert browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth") <= 0, size


def test_a_printed_task_has_absolute_times_and_nothing_to_press(site, browser):
    task_id = samples.completed(site)
    browser.get(f"{site.url}/ui/tasks/{task_id}")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        pressed = [
            b.text
            for b in browser.find_elements("css selector", "button, a.button, nav.task-tabs a")
            if b.is_displayed()
        ]
        script = "return getComputedStyle(document.querySelector('time[title]'), '::after').content"
        shown = browser.execute_script(script)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert not pressed and "20" in shown and "UTC" in shown


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

    def press(key: str) -> None:
        ActionChains(browser).send_keys(key).perform()

    def go_to(name: str) -> None:
        """By Tab, each stop of which must be seen."""
        for _ in range(80):
            press(Keys.TAB)
            label, width, height = browser.execute_script(FOCUSED)
            assert width > 0 and height > 0, f"{label} has the focus and is not visible"
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
    press(Keys.ENTER)
    eventually(lambda: "OMP_NUM_THREADS" in browser.find_element("id", "task-commands").text, "the open part")
    go_to("History (2)")
    browser.get(f"{site.url}/ui/tasks/{task_id}")
    go_to("Cancel task")
    dialog = browser.find_element("id", "cancel-dialog")
    press(Keys.ENTER)
    eventually(dialog.is_displayed, "the question")
    press(Keys.ESCAPE)
    eventually(lambda: not dialog.is_displayed(), "the end of the question")
    eventually(lambda: browser.switch_to.active_element.text == "Cancel task", "the focus after the dialog")
    press(Keys.ENTER)
    eventually(dialog.is_displayed, "the question")
    go_to("Cancel the task")
    to_next_page(browser, lambda: press(Keys.ENTER))
    assert "Cancel task" not in browser.find_element("id", "task-actions").text
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

    def shows(part: str) -> None:
        eventually(lambda: part in text(), part)

    shows("row 0199999")
    view = browser.find_element("css selector", ".log")
    view.send_keys(Keys.HOME)
    shows("row 0000000")
    view.send_keys(Keys.END)
    shows("row 0199999")
    view.send_keys("/")
    needle = browser.find_element("css selector", "[aria-label='Text to find in stdout']")
    eventually(lambda: browser.switch_to.active_element == needle, "the focus on the search")
    needle.send_keys("row 0000777", Keys.ENTER)
    shows("row 0000777")


def test_a_live_part_keeps_the_focus_and_what_is_open(site, browser):
    task_id = samples.waiting(site)
    browser.get(f"{site.url}/ui/tasks/{task_id}")
    summary = browser.find_element("css selector", "#history > summary")
    is_open = (
        "return document.getElementById('history').open && document.activeElement.closest('details')?.id === 'history'"
    )
    summary.send_keys(Keys.ENTER)
    eventually(lambda: browser.execute_script(is_open), "the open history")
    site.change(task_id, state=State.INITIALIZING, waiting=None)
    eventually(lambda: "Initializing" in browser.find_element("id", "task-state").text, "the state")
    eventually(lambda: "History (3)" in browser.find_element("id", "history").text, "the history")
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
    key = browser.find_element("css selector", "input[name=key]")
    to_next_page(browser, lambda: key.send_keys("eve", Keys.ENTER))
    assert "/ui/login" not in browser.current_url
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
    eventually(lambda: browser.find_element("id", "announce").get_attribute("textContent") == "Copied", "the copy")
    copied = browser.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (e) => arguments[0](String(e)))"
    )
    assert copied == "s3://results/run-7/NA12878.bam"
