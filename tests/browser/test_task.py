"""The page of a task in a browser."""

from __future__ import annotations

import pytest

from tests.browser import samples


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
