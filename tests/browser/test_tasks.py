"""The list of tasks in a browser."""

from __future__ import annotations

from poiesis.domain.states import State


def test_the_list_in_light_dark_and_narrow_without_a_finding(site, browser, show, assert_accessible):
    ended, running = site.create("align sample 1"), site.create("a task with a rather long name " * 4)
    site.move(ended, State.INITIALIZING, State.RUNNING, State.COMPLETE)
    site.move(running, State.INITIALIZING, State.RUNNING)
    browser.get(f"{site.url}/ui/tasks")
    for kind in ("light", "dark", "narrow"):
        show(kind)
        assert_accessible(browser)
        width = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0, f"the page is wider than the window ({kind})"
