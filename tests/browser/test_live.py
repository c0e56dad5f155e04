"""A real task of the embedded service, watched in a browser from its submission to its end; canceled; run again with changes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.browser import waiting
from tests.browser.waiting import to_next_page
from tests.integration.embedded.conftest import GRACE, can_run  # noqa: F401
from tests.integration.embedded.service import Service, sh

eventually = partial(waiting.eventually, seconds=60)  # for a whole service
pytestmark = pytest.mark.timeout(300)  # starts a whole service


@pytest.fixture(scope="module")
def service(can_run: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:  # noqa: F811
    root = tmp_path_factory.mktemp("live")
    files = root / "files"
    files.mkdir()
    with Service(
        root / "service", allow=[files], POIESIS_POLICY__GRACE=GRACE, POIESIS_LOGS__URL=f"file://{root}/logs"
    ) as made:
        yield made


def text_of(browser: Any, selector: str) -> str:
    """At once, because parts of the page are replaced while it is read."""
    return str(browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def test_a_task_is_watched_from_its_submission_to_its_end(service, browser):
    source = service.allow[0] / "in.txt"
    source.write_text("hello")
    result = service.allow[0] / "out.txt"
    task_id = service.post(
        {
            "name": "watched",
            "inputs": [{"path": "/in/x", "url": f"file://{source}"}],
            "outputs": [{"path": "/out/y", "url": f"file://{result}"}],
            "executors": [
                sh("cat /in/x > /out/y; for i in 1 2 3 4 5 6 7 8; do echo step $i; sleep 1; done"),
                sh("echo second >&2"),
            ],
        }
    )
    browser.get(f"{service.url}/ui/tasks/{task_id}")
    browser.execute_script("window.isTheSamePage = true")
    states = [text_of(browser, "#task-state")]

    def ended() -> bool:
        state = text_of(browser, "#task-state")
        if state and states[-1] != state:
            states.append(state)
        return state == "Complete"

    eventually(ended, f"the end; seen {states}")
    assert "Running" in states, states
    assert browser.execute_script("return window.isTheSamePage"), "the page was loaded again"
    eventually(lambda: "The task is complete" in text_of(browser, "#task-why"), "the sentence")
    eventually(lambda: "Cleanup" in text_of(browser, "#task-timeline"), "the timeline")
    timeline = text_of(browser, "#task-timeline")
    for phase in ("Queued", "Inputs", "Executor 0", "Executor 1", "Outputs"):
        assert phase in timeline, timeline
    assert "/out/y" in text_of(browser, "#task-outputs") and "5 B" in text_of(browser, "#task-outputs")
    assert "exit code 0" in text_of(browser, "#task-commands")
    to_next_page(browser, browser.find_element("link text", "Logs").click)
    eventually(lambda: "second" in text_of(browser, "[data-stream=stderr] .log"), "the log of the last command")
    browser.get(f"{service.url}/ui/tasks/{task_id}/logs?executor=0&stream=stdout")
    eventually(lambda: "step 8" in text_of(browser, ".log"), "the log of the first command")


def test_the_log_of_a_running_command_is_followed(service, browser):
    task_id = service.post(
        {"name": "counts", "executors": [sh("for i in $(seq 200); do echo line $i; sleep 0.05; done")]}
    )
    browser.get(f"{service.url}/ui/tasks/{task_id}/logs?stream=stdout")
    seen: list[int] = []

    def grown() -> bool:
        lines = [line for line in text_of(browser, ".log").splitlines() if line.startswith("line")]
        if lines and (not seen or len(lines) > seen[-1]):
            seen.append(len(lines))
        return bool(lines) and lines[-1] == "line 200"

    eventually(grown, "the last line")
    assert len(seen) >= 3, f"it did not grow while it ran: {seen}"
    eventually(lambda: text_of(browser, "#task-state") == "Complete", "the state on the page of logs")


def test_a_task_is_canceled_after_a_question(service, browser, assert_accessible):
    task_id = service.post({"name": "too long", "executors": [sh("sleep 600")]})
    service.wait(task_id, "RUNNING")
    browser.get(f"{service.url}/ui/tasks/{task_id}")
    dialog = browser.find_element("id", "cancel-dialog")

    def ask() -> bool:
        browser.find_element("link text", "Cancel task").click()  # a part that may be replaced meanwhile
        return True

    eventually(ask, "the button")
    eventually(dialog.is_displayed, "the question")
    assert_accessible(browser)
    dialog.find_element("link text", "Keep it").click()
    eventually(lambda: not dialog.is_displayed(), "the end of the question")
    assert service.state(task_id) == "RUNNING"
    eventually(ask, "the button")
    button = dialog.find_element("xpath", ".//button[text()='Cancel the task']")
    to_next_page(browser, button.click)
    eventually(lambda: text_of(browser, "#task-state") == "Canceled", "the state")
    assert service.state(task_id) == "CANCELED"
    eventually(lambda: "canceled by request" in text_of(browser, "#task-why"), "the sentence")
    assert "Cancel task" not in text_of(browser, "#task-actions")


def test_a_task_is_canceled_without_javascript(service, browser):
    task_id = service.post({"executors": [sh("sleep 600")]})
    service.wait(task_id, "RUNNING")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(f"{service.url}/ui/tasks/{task_id}")
    to_next_page(browser, browser.find_element("link text", "Cancel task").click)
    to_next_page(browser, browser.find_element("xpath", "//main//button[text()='Cancel the task']").click)
    eventually(lambda: service.state(task_id) == "CANCELED", "the end")


def test_why_a_task_failed_is_read_without_leaving_its_page(service, browser):
    task_id = service.post({"executors": [sh("echo 'no such genome: GRCh39' >&2; exit 3")]})
    browser.get(f"{service.url}/ui/tasks/{task_id}")
    eventually(lambda: "no such genome: GRCh39" in text_of(browser, "#task-why"), "the reason")
    assert "exit code 3" in text_of(browser, "#task-why")


def test_a_failed_task_is_run_again_with_changes(service, browser):
    original = service.post({"name": "first try", "executors": [sh("exit 3")]})
    service.wait(original, "EXECUTOR_ERROR")
    browser.get(f"{service.url}/ui/tasks/{original}")
    to_next_page(browser, browser.find_element("link text", "Rerun with changes").click)
    name = browser.find_element("id", "f-name")
    assert name.get_attribute("value") == "first try"
    name.clear()
    name.send_keys("second try")
    command = browser.find_element("id", "f-executors-0-command")
    command.clear()
    command.send_keys("sh -c 'echo it works'")
    to_next_page(browser, browser.find_element("id", "create").click)
    assert "/ui/tasks/" in browser.current_url and original not in browser.current_url
    eventually(lambda: text_of(browser, "#task-state") == "Complete", "the end")
    assert text_of(browser, "h1") == "second try"
    to_next_page(browser, browser.find_element("css selector", f"#task-facts a[href$='{original}']").click)
    eventually(lambda: "Reruns:" in text_of(browser, "#task-details"), "the link to the rerun")
