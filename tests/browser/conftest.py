"""The dashboard in a real browser: Debian's Chromium, headless, driven by selenium.

At the end of every test nothing may have left the site, and no page may have violated the Content-Security-Policy or thrown an error.
Screenshots are written with POIESIS_SCREENSHOTS (`make screenshots`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pytest

from tests.browser.site import Site
from tests.servers.emulators import FOLDER
from tests.servers.process import missing

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SIZES: Final = {"light": (1280, 800), "dark": (1280, 800), "narrow": (320, 844)}
_NOT_FOR_US: Final = ("data:", "blob:", "about:", "chrome:", "chrome-extension:", "devtools:")


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts a site with the given settings of the API."""
    with ExitStack() as running:
        yield lambda *args, **settings: running.enter_context(Site(tmp_path / "store", *args, **settings))


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """Without authentication."""
    return make_site()


@pytest.fixture(scope="session")
def _chrome() -> Iterator[Chrome]:
    try:
        from selenium import webdriver
    except ImportError:
        missing("no selenium: run `make venv`")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        missing("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    # nothing outside this machine has a name, whatever a page or the browser itself asks for
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost")
    options.add_argument("--disable-background-networking")
    options.add_argument("--force-device-scale-factor=1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    chrome.set_page_load_timeout(30)
    yield chrome
    chrome.quit()


@pytest.fixture
def expected_origins() -> set[str]:
    """Origins that the browser may visit beside the first: a test adds its provider's."""
    return set()


@pytest.fixture
def expected_errors() -> list[str]:
    """Parts of messages in the browser's console that are right, such as `status of 403`."""
    return []


@pytest.fixture
def browser(_chrome: Chrome, expected_origins: set[str], expected_errors: list[str]) -> Iterator[Chrome]:
    """A browser without cookies, in light colours."""
    _chrome.execute_cdp_cmd("Network.clearBrowserCookies", {})
    _show(_chrome, "light")
    _drain(_chrome)
    yield _chrome
    requested, console = _drain(_chrome)
    _chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    _chrome.get("about:blank")
    origins = {f"{parts.scheme}://{parts.netloc}" for parts in map(urlsplit, requested)}
    assert len(origins - expected_origins) <= 1, f"requests left the site: {sorted(requested)}"
    bad = [line for line in console if not any(part in line for part in expected_errors)]
    assert not bad, "\n".join(bad)


def _drain(chrome: Chrome) -> tuple[list[str], list[str]]:
    """Addresses requested, and lines of the console that are violations or errors, since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    requested = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    lines = [e["message"] for e in chrome.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]
    return [url for url in requested if not url.startswith(_NOT_FOR_US)], lines


def _show(chrome: Chrome, kind: str) -> None:
    """`light`, `dark` or `narrow`."""
    width, height = SIZES[kind]
    scheme = {"name": "prefers-color-scheme", "value": "dark" if kind == "dark" else "light"}
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": kind == "narrow"}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture
def show(browser: Chrome) -> Callable[[str], None]:
    """Change the browser to `light`, `dark` or `narrow`."""
    return lambda kind: _show(browser, kind)


@pytest.fixture
def screenshot(browser: Chrome) -> Callable[[str], None]:
    """Take `NAME-light.png`, `NAME-dark.png` and `NAME-narrow.png` of the page that is open, where screenshots are wanted."""
    directory = os.environ.get("POIESIS_SCREENSHOTS")

    def take(name: str) -> None:
        for kind in SIZES if directory else ():
            _show(browser, kind)
            browser.execute_script("window.scrollTo(0, 0)")
            path = Path(directory or "") / f"{name}-{kind}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            browser.save_screenshot(str(path))
        _show(browser, "light")

    return take


@pytest.fixture(scope="session")
def assert_accessible() -> Callable[[Chrome], None]:
    """Check the page that is open by axe-core: nothing serious or critical."""
    script = FOLDER / "node_modules" / "axe-core" / "axe.min.js"

    def check(chrome: Chrome) -> None:
        if not script.is_file():
            missing("no axe-core: run `make emulators`, which needs npm")
        chrome.execute_script(script.read_text(encoding="utf-8"))
        run = "axe.run(document, {resultTypes: ['violations']}).then(arguments[0], (e) => arguments[0]({error: String(e)}))"
        found: dict[str, Any] = chrome.execute_async_script(run)
        assert "error" not in found, found
        bad = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
        shown = [f"{v['id']}: {v['help']}: {n['html'][:200]}" for v in bad for n in v["nodes"][:3]]
        assert not shown, "\n".join(shown)

    return check
