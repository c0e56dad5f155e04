"""The page New task in a browser: every action, by keyboard only, and without JavaScript."""

from __future__ import annotations

import json

import pytest

from poiesis.domain.task import Executor, Resources
from tests.browser.waiting import eventually, to_next_page


def field(browser, name):
    return browser.find_element("id", f"f-{name}")


def fill(browser, **texts):
    for name, text in texts.items():
        element = field(browser, name.replace("__", "-"))
        element.clear()
        element.send_keys(text)


def has_focus(browser, name):
    return browser.switch_to.active_element.get_attribute("id") == name


def focused(browser, name):
    eventually(lambda: has_focus(browser, name), f"the focus on {name}")


def created(site, browser):
    eventually(lambda: "/ui/tasks/" in browser.current_url, "the page of the new task")
    return site.parts.repository.get(browser.current_url.rpartition("/")[2])


def without_javascript(browser):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})


def test_the_form_in_light_dark_and_narrow_without_a_finding(site, browser, show, screenshot, assert_accessible):
    browser.get(f"{site.url}/ui/new?example=s3")
    for kind in ("light", "dark", "narrow"):
        show(kind)
        assert_accessible(browser)
        width = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0, f"the page is wider than the window ({kind})"
    screenshot("new-task")
    show("light")
    fill(browser, executors__0__image="")
    browser.find_element("id", "check").click()
    focused(browser, "problems")
    browser.find_element("id", "executors-0-image-problem")
    assert_accessible(browser)


def test_a_task_is_filled_in_checked_and_created(site, browser):
    browser.get(f"{site.url}/ui/new")
    fill(browser, name="my task", executors__0__command="sh -c 'echo $HOME'", resources__cpu_cores="2")
    browser.find_element("id", "add-inputs").click()
    focused(browser, "f-inputs-0-url")
    fill(browser, inputs__0__url="https://example.org/x", inputs__0__path="/data/x")
    browser.find_element("id", "add-executors").click()
    focused(browser, "f-executors-1-image")
    fill(browser, executors__1__image="alpine", executors__1__command="true")

    def preview():
        text = browser.find_element("id", "code-json").text
        return json.loads(text) if '"alpine"' in text else None

    shown = eventually(preview, "the new command in the preview")
    assert shown["executors"][0]["command"] == ["sh", "-c", "echo $HOME"]
    assert shown["inputs"] == [{"url": "https://example.org/x", "path": "/data/x"}]
    browser.find_element("id", "check").click()
    focused(browser, "checked")
    browser.find_element("id", "create").click()
    task = created(site, browser)
    assert task.spec.name == "my task" and len(task.spec.executors) == 2
    assert task.spec.executors[0].command == ("sh", "-c", "echo $HOME")
    assert task.spec.resources == Resources(cpu_cores=2)


def test_rows_are_removed_and_what_is_open_in_the_preview_stays_open(site, browser):
    browser.get(f"{site.url}/ui/new?example=steps")
    browser.find_element("css selector", "#preview-curl summary").click()
    browser.find_element("id", "remove-executors-0").click()
    eventually(lambda: not browser.find_elements("id", "remove-executors-1"), "the form without the row")
    assert field(browser, "executors-0-image").get_attribute("value").endswith("python:3.12-slim")
    eventually(lambda: browser.find_element("id", "preview-curl").get_attribute("open"), "the open preview")


def test_a_double_click_makes_one_task(site, browser):
    from selenium.webdriver import ActionChains

    browser.get(f"{site.url}/ui/new")
    ActionChains(browser).double_click(browser.find_element("id", "create")).perform()
    task = created(site, browser)
    browser.get(f"{site.url}/ui/tasks")
    assert len(browser.find_elements("css selector", "#tasks tbody tr")) == 1 and task.id in browser.page_source


def test_a_rerun_with_changes(site, browser):
    original = site.create("original", tags={"project": "x"})
    browser.get(f"{site.url}/ui/new?from={original}")
    fill(browser, name="changed")
    browser.find_element("id", "create").click()
    task = created(site, browser)
    assert task.spec.name == "changed" and task.spec.tags == {"project": "x", "rerun_of": original}


def test_editing_as_json_and_back(site, browser):
    browser.get(f"{site.url}/ui/new")
    browser.find_element("id", "json").click()
    focused(browser, "f-json")
    document = json.loads(field(browser, "json").get_attribute("value")) | {"volumes": ["/v"]}
    fill(browser, json=json.dumps(document))
    browser.find_element("id", "form").click()
    eventually(lambda: browser.find_elements("id", "f-volumes"), "the form")
    assert field(browser, "volumes").get_attribute("value") == "/v"


def test_without_javascript(site, browser):
    def use(button):
        to_next_page(browser, browser.find_element("id", button).click)

    without_javascript(browser)
    browser.get(f"{site.url}/ui/new")
    add = browser.find_element("id", "add-outputs")
    to_next_page(browser, lambda: add.send_keys(" "))  # a click does not scroll it above the bar of buttons
    fill(browser, outputs__0__path="/tmp/out", outputs__0__url="s3://bucket/out", executors__0__image="")
    use("create")
    browser.find_element("id", "executors-0-image-problem")
    fill(browser, executors__0__image="alpine")
    use("json")
    assert json.loads(field(browser, "json").get_attribute("value"))["outputs"][0]["path"] == "/tmp/out"
    use("form")
    use("create")
    task = created(site, browser)
    assert task.spec.executors == (Executor("alpine", ("echo", "hello from a task")),)
    assert task.spec.outputs[0].url == "s3://bucket/out"


def test_by_keyboard_only(site, browser):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()

    def tab_to(name):
        for _ in range(60):
            if has_focus(browser, name):
                return
            press(Keys.TAB)
        pytest.fail(f"no way to {name} by the keyboard")

    browser.get(f"{site.url}/ui/new")
    tab_to("f-name")
    press("by keyboard")
    tab_to("add-executors")
    press(Keys.ENTER)
    focused(browser, "f-executors-1-image")
    press("alpine", Keys.TAB, "true")
    tab_to("check")
    press(" ")
    focused(browser, "checked")
    assert browser.find_element("id", "checked").is_displayed()
    tab_to("create")
    press(Keys.ENTER)
    task = created(site, browser)
    assert task.spec.name == "by keyboard" and [e.image for e in task.spec.executors][1:] == ["alpine"]


def test_enter_in_a_field_checks_and_creates_nothing(site, browser):
    from selenium.webdriver import Keys

    browser.get(f"{site.url}/ui/new")
    field(browser, "name").send_keys(Keys.ENTER)
    eventually(lambda: browser.find_elements("id", "checked"), "the result of the check")
    browser.get(f"{site.url}/ui/tasks")
    assert not browser.find_elements("css selector", "#tasks tbody tr")
