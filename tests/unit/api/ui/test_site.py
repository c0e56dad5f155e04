"""What every page of the dashboard has: headers, errors as pages, CSRF tokens, the files for browsers."""

from __future__ import annotations

import hashlib
import json
import re
from asyncio import Event, create_task, gather, run, sleep, wait_for
from pathlib import Path
from threading import Event as ThreadEvent
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import Environment

from poiesis.api import ui
from poiesis.api.requests import REQUEST, RequestRecord
from poiesis.api.ui import assets
from poiesis.api.ui.cookies import Cookies
from poiesis.api.ui.gate import Gate
from poiesis.api.ui.visit import next_path
from poiesis.api.users import User
from poiesis.config import ApiSettings, DashboardSettings
from poiesis.domain.errors import ConfigurationError
from tests.unit.api.service import Site


def test_the_list_shows_tasks_and_the_start_page_leads_there(site):
    task_id = site.create()
    assert 'href="ui"' in site.client.get("/").text
    assert site.client.get("/ui").url.path == "/ui/overview"
    page = site.client.get("/ui/tasks")
    assert task_id in page.text and page.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("path", ["//ui", "//ui/", "//ui/tasks", "///ui/overview"])
def test_more_slashes_lead_to_the_same_pages(site, path):
    for method in ("GET", "HEAD"):
        assert site.client.request(method, f"http://127.0.0.1:8000{path}").status_code < 400


def test_a_new_process_compiles_its_templates_before_the_first_page(site, monkeypatch):
    missing = {path.name for path in Path(ui.__file__).parent.joinpath("templates").iterdir()} | {"start.html"}
    is_complete = ThreadEvent()
    compile_source = Environment.compile

    def compile_template(self, source, name=None, *args, **kwargs):
        missing.discard(name)
        if not missing:
            is_complete.set()
        return compile_source(self, source, name, *args, **kwargs)

    monkeypatch.setattr(Environment, "compile", compile_template)
    with site.client:
        assert is_complete.wait(60), missing


def test_a_page_has_strict_headers(site):
    headers = site.client.get("/ui/tasks").headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy and "form-action 'self'" in policy
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
    assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "same-origin")


def test_no_page_has_inline_scripts_or_styles(site):
    site.create()
    for path in ("/ui/tasks", "/ui/login", "/ui/none"):
        text = site.client.get(path).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text), path


def test_an_error_is_a_page_for_a_person(site):
    page = site.client.get("/ui/no/such/page")
    assert page.status_code == 404 and "There is no page at /ui/no/such/page" in page.text
    assert page.headers["x-request-id"] in page.text and "content-security-policy" in page.headers
    assert site.client.get("/ui/tasks?state=NO").status_code == 400


def test_text_of_users_is_escaped(site):
    site.create({"name": "<script>alert(1)</script>", "executors": [{"image": "a", "command": ["b"]}]})
    page = site.client.get("/ui/tasks", params={"name": '"><script>'})
    assert "<script>alert" not in page.text and '"><script>' not in page.text


def csrf_token(page: str) -> str:
    found = re.search(r'"X-CSRF-Token": "(\w+)"', page)
    assert found
    return found[1]


def test_a_form_needs_the_token_of_its_browser(site):
    refused = site.client.post("/ui/tasks")
    assert refused.status_code == 403 and "out of date" in refused.text
    other = site.client.get("/ui/tasks").text
    token = csrf_token(other)
    site.client.cookies.clear()
    assert site.client.post("/ui/none", headers={"X-CSRF-Token": token}).status_code == 403
    site.client.get("/ui/tasks")
    assert site.client.post("/ui/none", headers={"X-CSRF-Token": token}).status_code == 403
    token = csrf_token(site.client.get("/ui/tasks").text)
    assert site.client.post("/ui/none", headers={"X-CSRF-Token": token}).status_code == 404


def test_pages_of_other_origins_cannot_post(site):
    page = site.client.post("/ui/tasks", headers={"Origin": "https://evil.example"})
    assert page.status_code == 403 and "evil.example" in page.json()["message"]


def test_only_the_beginning_of_very_many_cookies_is_read():
    many = b"; ".join(b"other-%d=%s" % (n, b"x" * 100) for n in range(1000))
    header = b"poiesis_session=first; " + many + b"; poiesis_form=last"
    found = Cookies({"headers": [(b"cookie", header)]}, is_secure=False)
    assert (found.get("poiesis_session"), found.get("poiesis_form")) == ("first", "")


def test_the_dashboard_can_be_switched_off():
    site = Site(ApiSettings(dashboard=DashboardSettings(enabled=False)))
    assert site.client.get("/ui/tasks").status_code == 404
    assert 'href="ui"' not in site.client.get("/").text


def test_one_user_never_has_all_threads_of_pages():
    """Pages run in four threads: a user who cancels thousands of tasks, several times at once, must not keep others waiting."""
    open_pages: list[str] = []
    gates: dict[str, Event] = {}

    async def pages(scope, receive, send):
        open_pages.append(scope[REQUEST].user.name)
        await gates["end"].wait()

    async def user(headers, query, address):
        return User(headers[0][1].decode())

    async def nothing(*_):
        return None

    async def visits() -> None:
        gates["end"] = Event()
        parts: dict[str, Any] = {
            "authenticator": SimpleNamespace(user=user, is_required=True),
            "sessions": SimpleNamespace(cookies=lambda scope: Cookies(scope, is_secure=False)),
            "entrance": SimpleNamespace(handle=nothing),
        }
        gate = Gate(pages, **parts, limiter=None)
        scopes = [
            {"path": "/ui/tasks", "method": "GET", "headers": [(b"x-api-key", name)], REQUEST: RequestRecord("x")}
            for name in [b"ada"] * 10 + [b"bob"]
        ]
        visiting = [create_task(gate(scope, nothing, nothing)) for scope in scopes]
        while "bob" not in open_pages:
            await sleep(0)
        assert open_pages == ["ada", "ada", "bob"]
        gates["end"].set()
        await wait_for(gather(*visiting), 10)
        assert len(open_pages) == 11

    run(wait_for(visits(), 10))


def test_files_are_kept_by_their_digest(site):
    url = assets.assets().url("ui.css")
    assert "immutable" in site.client.get(url).headers["cache-control"]
    old = site.client.get("/ui/static/0/ui.css")
    assert (old.status_code, old.headers["cache-control"]) == (200, "no-cache")
    for path in ("/ui/static/0/../site.py", "/ui/static/0/%2e%2e/site.py", "/ui/static/", "/ui/static/0/none.js"):
        assert site.client.get(path).status_code == 404


def test_files_of_others_are_those_of_the_list_with_their_licences():
    vendor = assets.DIRECTORY / "vendor"
    listed: dict[str, str] = {}
    for package in json.loads((vendor / "versions.json").read_text()).values():
        assert package["version"]
        listed |= package["files"]
    found = {path.relative_to(vendor).as_posix() for path in vendor.rglob("*") if path.is_file()} - {"versions.json"}
    assert found == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name
        assert any((vendor / name).parent.glob("LICENSE*"))


@pytest.mark.parametrize(
    "text",
    [
        *("https://evil.example/ui", "//evil.example/ui", "/\\evil.example", "/uix", "/ui/\\..", "/ui/../x"),
        *("/ui\r\nx: y", "javascript:alert(1)", "", "/", "/ui/" + "x" * 3000, "/ui#x", "/ui/日"),
    ],
)
def test_a_login_never_leads_elsewhere(text):
    assert next_path(text) == "/ui"


def test_a_login_leads_back_to_a_page():
    assert next_path("/ui/tasks?state=RUNNING&name=a%2Fb") == "/ui/tasks?state=RUNNING&name=a%2Fb"


@pytest.mark.parametrize("url", ["tes.example.org", "ftp://x", "https://x/path", "https://", "https://x?"])
def test_an_unusable_address_of_the_dashboard_is_refused(url):
    with pytest.raises(ConfigurationError, match="API__DASHBOARD__URL"):
        DashboardSettings(url=url)
