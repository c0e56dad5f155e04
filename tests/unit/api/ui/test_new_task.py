"""The page New task: checked like CreateTask, created once, nothing lost, nothing executed."""

from __future__ import annotations

import hashlib
import html
import json
import re
from html.parser import HTMLParser

import pytest

from poiesis.api.audit import AuditLog
from poiesis.api.limits import RateLimiter
from poiesis.api.ui.new_task import EXAMPLES
from poiesis.api.ui.task_form import MAX_BASE_BYTES
from poiesis.config import ApiSettings, RateLimits
from poiesis.domain.naming import new_task_id
from tests.unit.api.service import HELLO, Site

HOSTILE = "</textarea><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Fields(HTMLParser):
    """The fields of the form as a browser would send them, without a button."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self._inside = self._area = ""
        self._is_form = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "form":
            self._is_form = given.get("id") == "task-form"
        if not self._is_form:
            return
        if tag == "input" and given.get("name") and (given.get("type") != "checkbox" or "checked" in given):
            self.values[given["name"]] = given.get("value") or ("on" if given.get("type") == "checkbox" else "")
        if tag == "select":
            self._inside = given["name"]
            self.values[self._inside] = ""
        if tag == "option" and "selected" in given:
            self.values[self._inside] = given["value"]
        if tag == "textarea":
            self._area = given["name"]
            self.values[self._area] = ""

    def handle_data(self, data):
        if self._area:
            self.values[self._area] += data

    def handle_endtag(self, tag):
        if tag == "textarea" and self._area:  # browsers leave out the first line break
            self.values[self._area] = self.values[self._area].removeprefix("\n")
            self._area = ""
        if tag == "form":
            self._is_form = False


class Attributes(HTMLParser):
    """The names of all attributes, and of elements that are not the page's own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names |= {name for name, _ in attributes}
        assert tag != "script" or dict(attributes)["src"].startswith("/ui/static/")


def opened(site, query="", **kwargs):
    page = site.client.get(f"/ui/new{query}", **kwargs)
    assert page.status_code == 200, page.text
    return page, Fields(page.text).values


def send(site, fields, action, *, multipart=True, **kwargs):
    values = {**fields, "action": action}
    body = {"files": {name: (None, text) for name, text in values.items()}} if multipart else {"data": values}
    return site.client.post("/ui/new", follow_redirects=False, **body, **kwargs)


def preview(page):
    found = re.search(r'<pre id="code-json"[^>]*>(.*?)</pre>', page.text, re.S)
    assert found is not None
    return json.loads(html.unescape(found[1]))


def spec_of(site, task_id):
    return site.get(f"/tasks/{task_id}?view=FULL").json()


def test_the_form_makes_the_task_of_its_example_and_leads_to_its_page(site):
    _, fields = opened(site, "?example=steps")
    answer = send(site, fields, "create")
    assert answer.status_code == 303
    task_id = answer.headers["location"].removeprefix("/ui/tasks/")
    task = spec_of(site, task_id)
    assert {key: task[key] for key in ("name", "executors", "volumes")} == {
        key: EXAMPLES["steps"][1][key] for key in ("name", "executors", "volumes")
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_in_the_form_as_it_is(site, name):
    page, fields = opened(site, f"?example={name}")
    assert preview(page) == EXAMPLES[name][1]
    assert preview(send(site, fields, "preview")) == EXAMPLES[name][1]
    assert "valid" in send(site, fields, "check").text


def test_a_double_click_makes_one_task(site):
    _, fields = opened(site)
    answers = [send(site, fields, "create") for _ in range(3)]
    assert len({answer.headers["location"] for answer in answers}) == 1 and site.stored() == 1
    changed = send(site, {**fields, "name": "other"}, "create")
    assert changed.status_code == 409 and "already created a task" in changed.text and site.stored() == 1
    assert send(site, Fields(changed.text).values, "create").status_code == 303 and site.stored() == 2


def test_a_problem_is_beside_its_field_and_nothing_is_stored(site):
    _, fields = opened(site)
    wrong = {
        "resources-cpu_cores": "-1",
        "executors-0-workdir": "not/absolute",
        "volumes": "/a\nb",
        "tags": "poiesis/x=1",
    }
    wrong["resources-backend_parameters"] = "time_limit=soon"
    for changes, action in (({"executors-0-image": ""}, "check"), (wrong, "create")):
        page = send(site, {**fields, **changes}, action)
        assert page.status_code == 200 and site.stored() == 0
        for name in changes.keys() - {"tags"}:
            field = re.search(rf'<(input|textarea)[^>]*id="f-{name}"[^>]*>', page.text)
            assert field and 'aria-invalid="true"' in field[0] and f"{name}-problem" in field[0], name
            assert f'class="problem" id="{name}-problem"' in page.text


def test_a_text_that_cannot_be_read_is_kept_for_correction(site):
    _, fields = opened(site)
    page = send(site, {**fields, "executors-0-command": "echo 'open"}, "create")
    assert "invalid quoting" in page.text and site.stored() == 0
    assert Fields(page.text).values["executors-0-command"] == "echo 'open"
    assert "invalid quoting" in send(site, Fields(page.text).values, "json").text


def test_rows_are_added_and_removed_without_javascript(site):
    _, fields = opened(site)
    page = send(site, fields, "add-inputs")
    assert re.search(r'id="f-inputs-0-url"[^>]*autofocus', page.text)
    fields = Fields(page.text).values | {"inputs-0-url": "s3://b/x", "inputs-0-path": "/x"}
    assert preview(send(site, fields, "preview"))["inputs"] == [{"url": "s3://b/x", "path": "/x"}]
    assert "inputs" not in preview(send(site, fields, "remove-inputs-0"))


FULL = {
    **HELLO,
    "description": "d",
    "executors": [{"image": "a", "command": ["sh", "-c", "a\nb"], "env": {"A": "1\n2"}, "ignore_error": True}],
    "inputs": [{"path": "/in", "content": "\n\ntext\r\n", "description": "kept", "streamable": True, "name": "n"}],
    "outputs": [{"path": "/out", "url": "s3://b/o", "name": "kept", "description": "kept"}],
    "resources": {"cpu_cores": 2, "backend_parameters": {"time_limit": "1h"}, "backend_parameters_strict": False},
    "tags": {"project": "x"},
}


def test_a_rerun_keeps_everything_that_is_not_changed(site):
    original = site.create(FULL)
    page, fields = opened(site, f"?from={original}")
    assert "Rerun with changes" in page.text
    answer = send(site, {**fields, "resources-cpu_cores": "4"}, "create")
    assert answer.status_code == 303, answer.text
    old, new = (spec_of(site, i) for i in (original, answer.headers["location"].removeprefix("/ui/tasks/")))
    assert new["tags"] == {"project": "x", "rerun_of": original}
    assert new["resources"] == {**old["resources"], "cpu_cores": 4}
    for name in ("executors", "inputs", "outputs", "description", "name"):
        assert new[name] == old[name], name


def test_json_and_form_are_two_views_of_one_task(site):
    _, fields = opened(site, "?example=s3")
    page = send(site, fields, "json")
    fields = Fields(page.text).values
    document = json.loads(fields["json"])
    assert document == EXAMPLES["s3"][1]
    document["inputs"][0]["streamable"] = True
    fields["json"] = json.dumps(document)
    back = send(site, fields, "form")
    assert preview(back) == document and "f-inputs-0-url" in back.text
    assert send(site, fields, "create").status_code == 303


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "invalid JSON at line 1"),
        ("[]", "must be an object"),
        ('{"executors": "x"}', "invalid type"),
        ("[" * 50_000, "nested too deeply"),
        ("NaN", "NaN is not a number"),
    ],
)
def test_json_that_is_not_a_task_is_shown_again_with_the_problem(site, text, message):
    _, fields = opened(site)
    page = send(site, {**fields, "mode": "json", "json": text}, "create")
    assert page.status_code == 200 and message in page.text and site.stored() == 0
    assert Fields(page.text).values["json"] == text
    assert send(site, {**fields, "mode": "json", "json": text}, "form").status_code == 200


@pytest.mark.parametrize("action", ["check", "create", "form", "preview"])
def test_half_of_a_character_is_shown_as_json_and_refused(site, action):
    _, fields = opened(site)
    text = '{"name": "\\ud800", "executors": [{"image": "a", "command": ["b"]}]}'
    page = send(site, {**fields, "mode": "json", "json": text}, action)
    assert page.status_code == 200 and "ud800" in page.text and site.stored() == 0


def test_numbers_that_json_does_not_have_never_reach_the_store(site):
    _, fields = opened(site)
    base = json.dumps({**HELLO, "resources": {"cpu_cores": float("nan"), "ram_gb": float("inf")}})
    fields = {**fields, "base": base, "resources-cpu_cores": "nan", "resources-ram_gb": "inf"}
    page = send(site, fields, "create")
    assert page.status_code == 200 and "must be a number" in page.text and site.stored() == 0


def test_what_is_copied_steers_no_terminal(site):
    task_id = site.create({**HELLO, "name": "a\u202eb\x9bc"})
    page, _ = opened(site, f"?from={task_id}")
    assert "a\\u202eb\\u009bc" in page.text.partition('id="preview"')[2]
    assert "\u202e" not in page.text.partition('id="preview"')[2]


def test_text_of_users_is_text(site):
    hostile = {**HELLO, "name": HOSTILE, "tags": {HOSTILE: HOSTILE}, "description": HOSTILE}
    original = site.create(hostile)
    page, fields = opened(site, f"?from={original}")
    for text in (page.text, send(site, fields, "json").text, send(site, fields, "check").text):
        assert "<script>alert" not in text
        assert not Attributes(text).names & {"style", "onerror", "onclick"}
    assert preview(page)["name"] == HOSTILE
    assert (
        send(site, {**fields, "original": HOSTILE, "key": HOSTILE, "base": HOSTILE}, "check").text.count(
            "<script>alert"
        )
        == 0
    )


def test_commands_have_no_secret(tmp_path):
    file = tmp_path / "users.json"
    file.write_text(json.dumps([{"name": "ada", "token_hash": "sha256$" + hashlib.sha256(b"very-secret").hexdigest()}]))
    site = Site(ApiSettings(auth=("bearer",), credentials_file=str(file)))
    page, _ = opened(site, headers={"Authorization": "Bearer very-secret"})
    assert "very-secret" not in page.text and "Bearer $TES_TOKEN" in page.text
    assert page.text.count("First set TES_TOKEN in the shell") == 2  # for curl and for the command line
    assert "First set" not in opened(Site())[0].text


def test_only_the_creation_is_audited(tmp_path):
    audit = AuditLog(str(tmp_path / "audit"))
    site = Site(audit=audit)
    _, fields = opened(site)
    for action in ("preview", "check", "add-inputs", "json", "create"):
        send(site, fields, action)
    send(site, {**fields, "csrf_token": "0"}, "check")
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [line["status"] for line in lines] == [303, 403]
    assert lines[0]["task"] is not None


def test_the_task_of_another_user_is_unknown(tmp_path):
    file = tmp_path / "users.json"
    users = [{"name": n, "token_hash": "sha256$" + hashlib.sha256(n.encode()).hexdigest()} for n in ("ada", "eve")]
    file.write_text(json.dumps(users))
    site = Site(ApiSettings(auth=("bearer",), credentials_file=str(file)))
    task_id = site.create(headers={"Authorization": "Bearer ada"})
    texts = set()
    for asked in (task_id, new_task_id(site.clock.now()), "x" * 500):
        page = site.client.get(f"/ui/new?from={asked}", headers={"Authorization": "Bearer eve"})
        assert page.status_code == 404
        texts.add(re.sub(r"[0-9a-f]{32}", "", page.text.replace(asked, "").replace(asked[:100], "")))
    assert "Bearer" not in "".join(texts) and "hello" not in "".join(texts)


def test_a_form_needs_the_token(site):
    _, fields = opened(site)
    answer = send(site, {**fields, "csrf_token": "0" * 64}, "create")
    assert answer.status_code == 403 and site.stored() == 0


@pytest.mark.parametrize("multipart", [True, False])
def test_bodies_have_a_limit(site, multipart):
    _, fields = opened(site)
    answer = send(site, {**fields, "description": "x" * 600_000}, "create", multipart=multipart)
    assert answer.status_code == 413 and site.stored() == 0
    many = {f"field{i}": "x" for i in range(3000)}
    answer = send(site, {**fields, **many}, "create", multipart=multipart)
    assert answer.status_code in (413, 303)


def test_bodies_count_for_the_limits_of_their_user():
    site = Site(limiter=RateLimiter(RateLimits(body_bytes_per_s=1, body_burst_bytes=300_000)))
    _, fields = opened(site)
    fields["description"] = "x" * 250_000
    assert [send(site, fields, "preview").status_code for _ in range(3)] == [200, 200, 429]


def test_a_large_task_is_edited_as_json_and_a_huge_one_elsewhere(site):
    large = site.create({**HELLO, "inputs": [{"path": "/in", "content": "x" * MAX_BASE_BYTES}]})
    page, fields = opened(site, f"?from={large}")
    assert "Shown as JSON, because it is larger than" in page.text
    answer = send(site, fields, "create")
    assert answer.status_code == 303
    huge = site.create({**HELLO, "inputs": [{"path": f"/in{i}", "content": "x" * 120_000} for i in range(5)]})
    page, _ = opened(site, f"?from={huge}")
    assert f"poiesis task rerun {huge}" in page.text and len(page.text) < 100_000
