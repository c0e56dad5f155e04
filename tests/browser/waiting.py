"""Waiting for what a page shows.

The driver waits for the next page after `get` and, while scripts are allowed, after a click that leaves the page: not after a key, and not
for what scripts change in place. A look that follows one of these is a condition of `eventually`, or comes after `to_next_page`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

T = TypeVar("T")
WAIT_S: Final = 15
PERIOD_S: Final = 0.1
_BETWEEN_PAGES: Final = ("inspector", "navigation", "execution context")
"""Parts of the driver's messages about a page that has gone while it was asked."""


def eventually(condition: Callable[[], T], what: str, seconds: float = WAIT_S) -> T:
    """The first result of `condition` that is true. A page, or a part of it, that is replaced meanwhile is looked at again."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, WebDriverException

    until = time.monotonic() + seconds
    while True:
        last: Exception | None = None
        try:
            if result := condition():
                return result
        except (NoSuchElementException, StaleElementReferenceException) as error:
            last = error
        except WebDriverException as error:
            if not any(part in str(error.msg) for part in _BETWEEN_PAGES):
                raise
            last = error
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds:g} s: {what}") from last
        time.sleep(PERIOD_S)


def to_next_page(browser: Chrome, act: Callable[[], object]) -> None:
    """Do what leads to another page, which may have the same address, and wait until that one is loaded."""
    seen = browser.execute_script("return performance.timeOrigin")
    act()
    is_next = f"return performance.timeOrigin !== {seen} && document.readyState === 'complete'"
    eventually(lambda: browser.execute_script(is_next), "the next page")
