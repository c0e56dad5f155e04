"""The page of one task: what it says, who may see and change it, and what texts of users cannot do."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta

import pytest

from poiesis.api.ui.drawing import draw
from poiesis.api.ui.figures import figures
from poiesis.api.ui.text import link_of, plain_log, visible
from poiesis.config import ApiSettings
from poiesis.domain.history import Phase
from poiesis.domain.states import Stage, State
from poiesis.domain.task import ExecutorLog, Outcome, OutputFileLog, Resources, TaskLog
from tests.unit.api.service import HELLO, Site
from tests.unit.domain.samples import THREE, stored

FILES = {
    **HELLO,
    "description": "what it is for",
    "tags": {"project": "x"},
    "inputs": [{"path": "/in/a", "url": "https://example.org/a"}, {"path": "/in/b", "content": "hello"}],
    "outputs": [{"path": "/out/c", "url": "file:///srv/data/c"}, {"path": "/out/d", "url": "file:///srv/data/d"}],
    "resources": {"cpu_cores": 4, "ram_gb": 8},
}


def token_of(site: Site, path: str) -> str:
    found = re.search(r'name="csrf_token" value="(\w+)"', site.client.get(path).text)
    assert found is not None
    return found[1]


def ended(site: Site, task_id: str, **changes) -> None:
    at = site.clock.now()
    log = TaskLog(
        (ExecutorLog(0, at, at + timedelta(seconds=90), "out", "err"),),
        (OutputFileLog("file:///srv/data/c", "/out/c", 12345),),
        {"checksum:/out/c": "sha256:aa", "executor_0_peak_memory_bytes": "7900000000", "executor_0_cpu_seconds": "45"},
        at,
        at + timedelta(seconds=95),
    )
    site.change(task_id, **{"state": State.COMPLETE, "stage": Stage.DONE, "wake_at": None, "log": log, **changes})


def test_a_transfer_of_nothing_is_not_shown_as_figures(site):
    task_id = site.create(FILES)
    nothing = {f"{way}_{what}": "0" for way in ("inputs", "outputs") for what in ("files", "bytes", "seconds")}
    ended(site, task_id, state=State.SYSTEM_ERROR, log=TaskLog(metadata=nothing))
    text = site.client.get(f"/ui/tasks/{task_id}").text
    assert "0 files" not in text and "at least" not in text


def test_a_task_shows_its_sentence_files_resources_and_commands(site):
    task_id = site.create(FILES)
    ended(site, task_id)
    text = site.client.get(f"/ui/tasks/{task_id}").text
    for part in (
        "The task is complete",
        "what it is for",
        'href="/ui/tasks?tag=project%3Dx"',
        'href="https://example.org/a"',
        "12.3 kB",
        "sha256:aa",
        "not uploaded",
        "5 B, content of the task",
        "7.9 GB at its peak",
        "close to the request",
        "0.5 cores on average",
        "echo hello",
        "exit code 0",
        f'href="/ui/new?from={task_id}"',
    ):
        assert part in text, part
    assert "Cancel task" not in text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_a_failed_task_shows_the_end_of_the_output_of_its_command(site):
    task_id = site.create()
    log = TaskLog(
        (ExecutorLog(2, site.clock.now(), site.clock.now(), "", "line\n" * 50 + "\x1b[31mno such file\x1b[0m\n"),)
    )
    log = replace(
        log, metadata={"failure_reason": "ExecutorFailed", "failure_message": "executor 0 failed with exit code 2"}
    )
    site.change(task_id, state=State.EXECUTOR_ERROR, stage=Stage.DONE, wake_at=None, log=log)
    text = site.client.get(f"/ui/tasks/{task_id}").text
    assert "The task failed because a command failed: executor 0 failed with exit code 2." in text
    assert "no such file" in text and "\x1b" not in text
    assert text.count("line\n") <= 12


def test_the_page_of_a_task_with_very_many_files_and_long_texts_is_bounded(site):
    executor = {"image": "alpine", "command": ["echo", "c" * 60_000], "env": {f"E{n}": "e" * 60_000 for n in range(3)}}
    task_id = site.create(
        {
            "executors": [executor],
            "inputs": [{"path": f"/in/{n}", "url": f"https://example.org/{n}"} for n in range(250)],
            "outputs": [{"path": f"/out/{n}", "url": f"file:///srv/data/{n}"} for n in range(260)],
        }
    )
    log = TaskLog(metadata={f"key-{n}": "m" * 60_000 for n in range(3)})
    site.change(task_id, log=log)
    text = site.client.get(f"/ui/tasks/{task_id}").text
    inputs, outputs = (
        text.partition(f'id="task-{what}"')[2].partition("</section>")[0] for what in ("inputs", "outputs")
    )
    assert inputs.count("<li>") == outputs.count("<li>") == 200
    assert "50 more are in the" in inputs and "60 more are in the" in outputs
    assert max(map(len, re.findall(r"c{100,}|e{100,}|m{100,}", text))) == 4096


def test_the_document_is_shown_and_downloaded(site):
    task_id = site.create(FILES)
    page = site.client.get(f"/ui/tasks/{task_id}/json")
    assert page.status_code == 200 and "creation_time" in page.text
    file = site.client.get(f"/ui/tasks/{task_id}/task.json")
    assert file.headers["content-disposition"] == f'attachment; filename="task-{task_id}.json"'
    assert file.json() == site.get(f"/tasks/{task_id}?view=FULL").json()


def test_a_large_document_is_not_shown_whole(site):
    task_id = site.create({**HELLO, "inputs": [{"path": "/in/a", "content": "x" * 1_000_000}]})
    page = site.client.get(f"/ui/tasks/{task_id}/json")
    assert len(page.text) < 700_000 and "only in the download" in page.text
    assert len(site.client.get(f"/ui/tasks/{task_id}").text) < 30_000


def test_canceling_asks_first_and_needs_the_token(site):
    task_id = site.create()
    path = f"/ui/tasks/{task_id}/cancel"
    assert site.client.get(path).text.count("Cancel this task?") == 1
    assert site.repository.get(task_id).cancel_requested_at is None
    assert site.client.post(path).status_code == 403
    answer = site.client.post(path, data={"csrf_token": token_of(site, path)}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/tasks/{task_id}")
    assert site.repository.get(task_id).cancel_requested_at is not None
    assert "The task is being canceled" in site.client.get(f"/ui/tasks/{task_id}").text
    assert "cannot be canceled" in site.client.get(path).text


def test_a_task_that_does_not_exist_is_404_on_every_page(site):
    for name in ("", "/json", "/task.json", "/cancel"):
        for task_id in ("0" * 26, "x", "..%2f..", "%00", "a" * 5000):
            assert site.client.get(f"/ui/tasks/{task_id}{name}").status_code == 404, (task_id, name)


def _two_users(tmp_path) -> Site:
    import hashlib

    users = [
        {
            "name": name,
            "token_hash": "sha256$" + hashlib.sha256(name.encode()).hexdigest(),
            "groups": ["lab"] if name != "eve" else [],
        }
        for name in ("ada", "bob", "eve")
    ]
    file = tmp_path / "users.json"
    file.write_text(json.dumps(users))
    return Site(ApiSettings(auth=("bearer",), credentials_file=str(file)))


def _as(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def test_a_task_of_another_user_is_404_and_one_of_the_group_cannot_be_canceled(tmp_path):
    site = _two_users(tmp_path)
    task_id = site.create(headers=_as("ada"))
    copy = site.create({**HELLO, "tags": {"rerun_of": task_id}}, headers=_as("eve"))
    for name in ("", "/json", "/task.json", "/cancel"):
        assert site.client.get(f"/ui/tasks/{task_id}{name}", headers=_as("eve")).status_code == 404, name
    seen = site.client.get(f"/ui/tasks/{copy}", headers=_as("eve")).text
    assert f"/ui/tasks/{task_id}" not in seen
    assert copy not in site.client.get(f"/ui/tasks/{task_id}", headers=_as("ada")).text
    of_the_group = site.client.get(f"/ui/tasks/{task_id}", headers=_as("bob"))
    assert of_the_group.status_code == 200 and "Cancel task" not in of_the_group.text


def test_reruns_and_their_original_are_linked(site):
    original = site.create()
    copy = site.create({**HELLO, "tags": {"rerun_of": original}})
    assert f'href="/ui/tasks/{copy}"' in site.client.get(f"/ui/tasks/{original}").text
    assert f'href="/ui/tasks/{original}"' in site.client.get(f"/ui/tasks/{copy}").text
    for text in ("javascript:alert(1)", "../../x", "0" * 26, '"><script>'):
        other = site.create({**HELLO, "tags": {"rerun_of": text}})
        assert "Rerun of" not in site.client.get(f"/ui/tasks/{other}").text


ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "{{ 7 * 7 }}",
    "</pre></code><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "\u202egnp.exe\u202c",
    "\u2066x\u2069",
    "\x1b]0;owned\x07\x1b[2J",
    "\x9b31m",
    "&lt;script&gt;",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_texts_of_users_do_nothing(site, attack):
    safe = attack.replace("\x1b", "").replace("\x9b", "").replace("\x07", "")
    document = {
        "name": attack,
        "description": attack,
        "tags": {attack: attack},
        "inputs": [{"path": f"/in/{attack}".replace("//", "/"), "content": attack}],
        "executors": [{"image": f"x{safe}", "command": [attack], "env": {"A": attack}, "stdout": "/out/x"}],
    }
    answer = site.post("/tasks", document)
    if answer.status_code != 200:  # an image or a path that TES refuses
        document["executors"][0]["image"] = "alpine"
        document["inputs"] = []
        answer = site.post("/tasks", document)
    task_id = answer.json()["id"]
    at = site.clock.now()
    log = TaskLog(
        (ExecutorLog(1, at, at, attack, attack),),
        (OutputFileLog(attack, attack, 1),),
        {
            "node": attack,
            "failure_reason": attack,
            "failure_message": attack,
            "checksum:" + attack: attack,
            attack: attack,
        },
        at,
        at,
        (attack,),
    )
    site.change(
        task_id, state=State.SYSTEM_ERROR, stage=Stage.DONE, wake_at=None, log=log, waiting=attack,
        outcome=Outcome(State.SYSTEM_ERROR, attack, attack), phases=(Phase("cleanup", 1, at, at, "ok", attack),),
    )  # fmt: skip
    for name in ("", "/json", "/cancel", "/logs"):
        page = site.client.get(f"/ui/tasks/{task_id}{name}")
        assert page.status_code == 200
        text = page.text
        assert not re.search(r"<script(?![^>]*\ssrc=\"/ui/static/)", text)
        assert not re.search(r"<(img src=x|svg/)", text)
        assert not re.search(r"(href|src|action)=\"?\s*(javascript|data|vbscript):", text, re.I)
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text)
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", text), name
        assert "49" not in re.findall(r"<bdi>(.*?)</bdi>", text)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)",
            " javascript:alert(1)",
            "java\nscript:alert(1)",
            "\x01javascript:alert(1)",
        ),
        *(
            "data:text/html,x",
            "vbscript:x",
            "file:///etc/passwd",
            "s3://bucket/key",
            "//evil.example/x",
            "/ui/logout",
            "",
        ),
        *(
            "http://",
            "https:///x",
            "http://user:password@example.org/",
            "http://exa\\mple.org",
            "http://[::1",
            "https:javascript:alert(1)",
        ),
    ],
)
def test_such_a_url_is_not_a_link(url):
    assert link_of(url) is None


def test_web_addresses_are_links():
    assert link_of("https://example.org/a?b=c#d") == "https://example.org/a?b=c#d"
    assert link_of("HTTP://example.org") == "HTTP://example.org"


def test_what_steers_is_made_visible():
    assert (
        visible("a\x00\x1b\x7f\x9b\u202e\u2066\ttab\nline ü\u200fרtl")
        == "a␀␛␡⟨U+009B⟩⟨U+202E⟩⟨U+2066⟩\ttab\nline ü\u200fרtl"
    )
    assert (
        plain_log("\x1b[1;31mred\x1b[0m \x1b]8;;javascript:alert(1)\x1b\\link\x1b]8;;\x1b\\ 10%\r20%\r\nend\x1b")
        == "red link 10%\n20%\nend␛"
    )


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "hostile", ["\x1b[" * 100_000, "\x1b]" * 100_000, "\x1b[" + "0;" * 200_000, "\r" * 300_000, "\x1b" * 300_000]
)
def test_hostile_output_takes_linear_time(hostile):
    assert "\x1b" not in plain_log(hostile)


def test_a_drawing_fits_its_width_whatever_the_times_are():
    begin = stored().created_at
    day = timedelta(days=1)
    phases = [Phase("queued", 1, begin, begin + day, "ok"), Phase("executor 0", 1, begin + day, begin + day, "failed")]
    drawing = draw(phases, begin)
    assert drawing is not None
    (_, _, bars) = drawing.attempts[0]
    for bar in bars:
        assert float(bar.left[:-1]) >= 0 and float(bar.left[:-1]) + float(bar.width[:-1]) <= 100.001
    assert bars[1].kind == "failed" and bars[1].seconds == 0
    assert 2 <= len(drawing.ticks) <= 6
    assert draw([], begin) is None
    many = draw([replace(phases[0], attempt=n) for n in range(1000)], begin)
    assert many is not None and many.omitted == 850


def test_used_is_compared_with_asked():
    task = stored(replace(THREE, resources=Resources(cpu_cores=8, ram_gb=16, disk_gb=1)))
    at = task.created_at
    metadata = {
        "executor_0_peak_memory_bytes": "1000000000",
        "executor_0_cpu_seconds": "100",
        "inputs_bytes": "5e9",
        "outputs_bytes": "1e300",
    }
    log = TaskLog((ExecutorLog(0, at, at + timedelta(seconds=100)),), metadata=metadata)
    cpu, memory, disk = figures(replace(task, log=log))
    assert (cpu.asked, cpu.used, cpu.part) == ("8 cores", "1 cores on average", 12.5)
    assert (memory.asked, memory.part, memory.level) == ("16 GB", 6.2, "low")
    assert "request less" in (memory.hint or "") and "request fewer" in (cpu.hint or "")
    assert disk.part is None  # odd text in the metadata is not a number
