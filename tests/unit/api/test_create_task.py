"""POST /tasks: what is stored, what is refused and how, and what is tolerated."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from poiesis.config import ApiSettings
from poiesis.domain.policy import Limits, Policy
from poiesis.domain.states import Stage, State
from poiesis.domain.task import FileType, Resources, TaskId
from tests.unit.api.service import BASE, HELLO, Site, assert_error, paths

FULL: dict[str, Any] = {
    "name": "count",
    "description": "counts lines",
    "inputs": [
        {"name": "in", "description": "d", "url": "s3://b/in", "path": "/data/in", "type": "FILE", "streamable": True},
        {"content": "text", "path": "/data/text"},
    ],
    "outputs": [
        {"name": "o", "description": "d", "url": "s3://b/out", "path": "/data/out", "type": "DIRECTORY"},
        {"url": "s3://b/globs/", "path": "/data/*.txt", "path_prefix": "/data"},
    ],
    "resources": {
        "cpu_cores": 2,
        "preemptible": True,
        "ram_gb": 3.5,
        "disk_gb": 20,
        "zones": ["a", "b"],
        "backend_parameters": {"TIME_limit": "2h"},
        "backend_parameters_strict": False,
    },
    "executors": [
        {
            "image": "alpine",
            "command": ["wc", "-l"],
            "workdir": "/data",
            "stdin": "/data/in",
            "stdout": "/data/out/n",
            "stderr": "/data/out/e",
            "env": {"A": "$B"},
            "ignore_error": True,
        }
    ],
    "volumes": ["/vol"],
    "tags": {"lab": "x", "": "empty key"},
}


class TestACreatedTask:
    def test_is_stored_queued_and_published(self, site: Site) -> None:
        task_id = site.create(FULL)
        task = site.repository.get(TaskId(task_id))
        assert task.state is State.QUEUED
        assert site.queue.published == [(task.id, Stage.PREPARE)]

    def test_has_every_field_that_was_sent(self, site: Site) -> None:
        spec = site.repository.get(TaskId(site.create(FULL))).spec
        assert (spec.name, spec.description, spec.volumes) == ("count", "counts lines", ("/vol",))
        assert spec.tags == {"lab": "x", "": "empty key"}
        assert spec.resources == Resources(2.0, 3.5, 20.0, True, ("a", "b"), {"time_limit": "2h"}, False)
        executor = spec.executors[0]
        assert (executor.command, executor.workdir, executor.stdin) == (("wc", "-l"), "/data", "/data/in")
        assert (executor.stdout, executor.stderr) == ("/data/out/n", "/data/out/e")
        assert (executor.env, executor.ignore_error) == ({"A": "$B"}, True)
        assert [i.type for i in spec.inputs] == [FileType.FILE, None]
        assert [i.content for i in spec.inputs] == [None, "text"]
        assert spec.inputs[0].streamable is True
        assert [o.path_prefix for o in spec.outputs] == [None, "/data"]

    def test_is_kept_although_the_queue_is_down(self, site: Site) -> None:
        site.queue.down = True
        site.create()
        assert site.stored() == 1

    def test_is_the_same_below_v1(self, site: Site) -> None:
        task_id = site.client.post("/v1/tasks", json=HELLO).json()["id"]
        assert site.get(f"/tasks/{task_id}").status_code == 200


class TestTolerance:
    def test_nulls_count_as_missing_at_every_depth(self, site: Site) -> None:
        document = {
            "id": None, "state": None, "name": None, "logs": None, "creation_time": None, "volumes": None,
            "inputs": [{"content": "x", "url": None, "path": "/data/x", "type": None, "name": None}],
            "outputs": None,
            "resources": {"cpu_cores": None, "ram_gb": None, "zones": None, "backend_parameters": {"a": None}},
            "executors": [{"image": "i", "command": ["c"], "env": {"A": "1", "B": None}, "stdin": None}],
            "tags": {"x": None, "y": "z"},
        }  # fmt: skip
        spec = site.repository.get(TaskId(site.create(document))).spec
        assert spec.tags == {"y": "z"}
        assert spec.executors[0].env == {"A": "1"}
        assert spec.resources == Resources()

    def test_a_null_in_a_command_is_refused_since_it_would_change_the_command(self, site: Site) -> None:
        response = site.post("/tasks", {"executors": [{"image": "i", "command": ["rm", None, "/tmp/x"]}]})
        assert_error(response, 400, "invalid_task")
        assert paths(response) == ["$.executors[0].command[1]"]

    def test_unknown_and_read_only_keys_are_ignored(self, site: Site) -> None:
        document = HELLO | {
            "id": 5, "state": "NONSENSE", "logs": "none", "creation_time": 7, "project": {"deep": [{}]},
            "executors": [HELLO["executors"][0] | {"gpu": True}],
        }  # fmt: skip
        task = site.repository.get(TaskId(site.create(document)))
        assert task.id != "5"
        assert task.state is State.QUEUED

    @pytest.mark.parametrize(
        ("sent", "kept", "shown"),
        [("1.0", 1.0, 1), ("0.5", 0.5, 1), ("2.25", 2.25, 3), ("0", None, None), ("3", 3.0, 3)],
    )
    def test_cores_may_be_fractions(self, site: Site, sent: str, kept: float | None, shown: int | None) -> None:
        document = json.dumps(HELLO)[:-1] + ', "resources": {"cpu_cores": %s}}' % sent  # noqa: UP031
        task_id = site.create(document)
        resources = site.repository.get(TaskId(task_id)).spec.resources
        assert resources is not None and resources.cpu_cores == kept
        answer = site.get(f"/tasks/{task_id}?view=FULL")
        assert answer.json()["resources"].get("cpu_cores") == shown
        assert '"cpu_cores":%s.' % shown not in answer.text  # noqa: UP031

    def test_a_charset_in_the_content_type_does_not_matter(self, site: Site) -> None:
        for charset in ("utf-8", "UTF-8", "no-such-charset"):
            site.create(HELLO, headers={"Content-Type": f"application/json; charset={charset}"})

    def test_a_body_without_content_type_is_read_as_json(self, site: Site) -> None:
        response = site.client.post(f"{BASE}/tasks", content=json.dumps(HELLO))
        assert response.status_code == 200

    def test_a_chunked_body_is_read(self, site: Site) -> None:
        def chunks() -> Iterator[bytes]:
            text = json.dumps(HELLO).encode()
            yield text[:10]
            yield text[10:]

        response = site.client.post(f"{BASE}/tasks", content=chunks(), headers={"Content-Type": "application/json"})
        assert response.status_code == 200


def _without(path: str) -> dict[str, Any]:
    return _with(path, ...)


def _with(path: str, value: Any) -> dict[str, Any]:
    """FULL with the value at `a.0.b` replaced, or removed for `...`."""
    document = copy.deepcopy(FULL)
    *above, last = (int(p) if p.isdigit() else p for p in path.split("."))
    place: Any = document
    for part in above:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


SHAPE: list[tuple[Any, str, str]] = [
    (_without("executors"), "$.executors", "missing"),
    (_without("executors.0.image"), "$.executors[0].image", "missing"),
    (_without("executors.0.command"), "$.executors[0].command", "missing"),
    (_without("inputs.0.path"), "$.inputs[0].path", "missing"),
    (_without("outputs.1.url"), "$.outputs[1].url", "missing"),
    (_without("outputs.0.path"), "$.outputs[0].path", "missing"),
    (_with("executors", None), "$.executors", "missing"),
    (_with("name", 1), "$.name", "must be a string, not a number"),
    (_with("executors", {}), "$.executors", "must be an array, not an object"),
    (_with("executors.0", "sh"), "$.executors[0]", "must be an object, not a string"),
    (_with("executors.0.command", "echo hi"), "$.executors[0].command", "must be an array, not a string"),
    (_with("executors.0.command", ["x", 1]), "$.executors[0].command[1]", "must be a string, not a number"),
    (_with("executors.0.env", ["x"]), "$.executors[0].env", "must be an object, not an array"),
    (_with("executors.0.env", {"A": 1}), "$.executors[0].env.A", "must be a string, not a number"),
    (_with("executors.0.ignore_error", "yes"), "$.executors[0].ignore_error", "must be true or false, not a string"),
    (_with("inputs.0.type", "file"), "$.inputs[0].type", "must be one of: FILE, DIRECTORY"),
    (_with("inputs.0.streamable", 1), "$.inputs[0].streamable", "must be true or false, not a number"),
    (_with("resources", []), "$.resources", "must be an object, not an array"),
    (_with("resources.cpu_cores", "2"), "$.resources.cpu_cores", "must be a whole number, not a string"),
    (_with("resources.cpu_cores", True), "$.resources.cpu_cores", "must be a whole number, not true or false"),
    (_with("resources.ram_gb", "4 GB"), "$.resources.ram_gb", "must be a number, not a string"),
    (_with("resources.zones", "a"), "$.resources.zones", "must be an array, not a string"),
    (_with("resources.backend_parameters", {"a": 1}), "$.resources.backend_parameters.a", "must be a string"),
    (_with("volumes", ["/v", 1]), "$.volumes[1]", "must be a string, not a number"),
    (_with("tags", {"a": True}), "$.tags.a", "must be a string, not true or false"),
    ([], "$", "must be an object, not an array"),
    ("task", "$", "must be an object, not a string"),
    (None, "$", "must be an object, not null"),
]

RULES: list[tuple[Any, str, str]] = [
    (_with("executors", []), "$.executors", "at least one"),
    (_with("executors.0.command", []), "$.executors[0].command", "program"),
    (_with("executors.0.image", ""), "$.executors[0].image", "image"),
    (_with("executors.0.workdir", "data"), "$.executors[0].workdir", "must be absolute"),
    (_with("executors.0.stdin", "in"), "$.executors[0].stdin", "must be absolute"),
    (_with("executors.0.stdout", "out/"), "$.executors[0].stdout", "must be absolute"),
    (_with("executors.0.env", {"A=B": "1"}), "$.executors[0].env", "invalid variable name"),
    (_with("inputs.0.path", "data/in"), "$.inputs[0].path", "must be absolute"),
    (_with("inputs.0.path", "/data/../in"), "$.inputs[0].path", "'..'"),
    (_with("inputs.0.path", "/proc/x"), "$.inputs[0].path", "belongs to the system"),
    (_with("inputs.1.path", "/data/in"), "$.inputs[1].path", "conflict"),
    (_with("volumes", ["/data/in"]), "$.volumes[0]", "conflict"),
    (_with("volumes", ["relative"]), "$.volumes[0]", "must be absolute"),
    (_without("inputs.0.url"), "$.inputs[0].url", "missing"),
    (_with("inputs.0.url", "gopher://x/y"), "$.inputs[0].url", "scheme 'gopher'"),
    (_with("inputs.0.url", "file:///etc/passwd"), "$.inputs[0].url", "outside the directories"),
    (_with("outputs.0.url", "http://x/y"), "$.outputs[0].url", "scheme 'http'"),
    (_without("outputs.1.path_prefix"), "$.outputs[1].path_prefix", "required"),
    (_with("outputs.1.path_prefix", "/elsewhere"), "$.outputs[1].path_prefix", "must be a leading part"),
    (_with("resources.ram_gb", -1), "$.resources.ram_gb", "must be at least 0"),
    (_with("resources.cpu_cores", 1e300), "$.resources.cpu_cores", "must be at least 0"),
    (_with("resources.backend_parameters", {"time_limit": "soon"}), "$.resources.backend_parameters.time_limit", "duration"),
    (_with("resources", {"backend_parameters": {"x": "1"}, "backend_parameters_strict": True}),
     "$.resources.backend_parameters.x", "unsupported"),
    (_with("executors.0.command", ["a\0b"]), "$.executors[0].command[0]", "NUL"),
    (_with("name", "\ud800"), "$.name", "surrogate"),
]  # fmt: skip


class TestARefusedTask:
    @pytest.mark.parametrize(("document", "path", "message"), SHAPE + RULES)
    def test_gets_the_path_and_the_reason_and_is_not_stored(
        self, site: Site, document: Any, path: str, message: str
    ) -> None:
        response = site.post("/tasks", json.dumps(document))
        body = assert_error(response, 400, "invalid_task")
        assert [p["path"] for p in body["problems"]] == [path]
        assert message in body["problems"][0]["message"]
        assert path in body["message"]
        assert site.stored() == 0
        assert site.queue.published == []

    def test_gets_all_schema_problems_at_once(self, site: Site) -> None:
        response = site.post("/tasks", {"executors": [{"image": 1}, {"command": [2]}], "tags": 3})
        assert sorted(paths(response)) == [
            "$.executors[0].command",
            "$.executors[0].image",
            "$.executors[1].command[0]",
            "$.executors[1].image",
            "$.tags",
        ]

    def test_gets_all_broken_rules_at_once(self, site: Site) -> None:
        response = site.post(
            "/tasks", {"executors": [{"image": "i", "command": ["c"], "workdir": "w"}], "inputs": [{"path": "p"}]}
        )
        assert paths(response) == ["$.executors[0].workdir", "$.inputs[0].path", "$.inputs[0].url"]

    def test_is_not_repeated_in_the_response(self, site: Site) -> None:
        secret = "hunter2" * 1000
        response = site.post("/tasks", HELLO | {"tags": secret, "inputs": [{"path": 1, "content": secret}]})
        assert "hunter2" not in response.text

    def test_above_a_limit_of_the_site_gets_the_limit(self) -> None:
        site = Site(policy=Policy(limits=Limits(max_executors=1, max_content_bytes=3)))
        document = {
            "executors": HELLO["executors"] * 2,
            "inputs": [{"path": "/data/x", "content": "long"}],
        }
        response = site.post("/tasks", document)
        assert_error(response, 400, "invalid_task")
        assert paths(response) == ["$.executors", "$.inputs[0].content"]


class TestAnInvalidBody:
    @pytest.mark.parametrize(
        "body",
        [
            b"", b" ", b"{", b"echo hi", b'{"executors": [}', b"\xff\xfe\xfa", b'{"a": NaN}', b'{"a": -Infinity}',
            b"[" * 100_000, b'{"a":' * 50_000,
        ],
    )  # fmt: skip
    def test_is_refused_as_not_json(self, site: Site, body: bytes) -> None:
        response = site.client.post(f"{BASE}/tasks", content=body, headers={"Content-Type": "application/json"})
        assert_error(response, 400, "not_json")
        assert site.stored() == 0

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
    def test_of_another_content_type_is_415(self, site: Site, kind: str) -> None:
        response = site.post("/tasks", HELLO, headers={"Content-Type": kind})
        body = assert_error(response, 415, "unsupported_media_type")
        assert "application/json" in body["message"]
        assert site.stored() == 0

    def test_that_is_compressed_is_415(self, site: Site) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        response = site.client.post(f"{BASE}/tasks", content=gzip.compress(json.dumps(HELLO).encode()), headers=headers)
        assert "Content-Encoding" in assert_error(response, 415, "unsupported_media_type")["message"]
        assert site.stored() == 0
        assert site.post("/tasks", HELLO, headers={"Content-Encoding": "identity"}).status_code == 200

    def test_above_the_limit_is_413(self) -> None:
        site = Site(api=ApiSettings(max_body_bytes=1000))
        response = site.post("/tasks", HELLO | {"description": "x" * 1000})
        assert_error(response, 413, "body_too_large")
        assert site.stored() == 0
        assert site.post("/tasks", HELLO).status_code == 200

    def test_above_the_limit_in_chunks_is_413_before_all_is_read(self) -> None:
        site = Site(api=ApiSettings(max_body_bytes=1000))
        response = site.client.post(
            f"{BASE}/tasks", content=(b" " * 500 for _ in range(5)), headers={"Content-Type": "application/json"}
        )
        assert_error(response, 413, "body_too_large")

    def test_of_ten_megabytes_is_413_by_default(self, site: Site) -> None:
        response = site.post("/tasks", HELLO | {"description": "x" * 10 * 1024 * 1024})
        assert_error(response, 413, "body_too_large")


class TestWhenSomethingFails:
    def test_a_store_that_is_down_is_503_with_retry_after(self, site: Site) -> None:
        site.repository.down = True
        response = site.post("/tasks", HELLO)
        assert_error(response, 503, "repository_unavailable")
        assert int(response.headers["retry-after"]) > 0

    def test_a_bug_is_500_without_internals_and_logged_once(
        self, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: Any, **__: Any) -> TaskId:
            raise RuntimeError("password=hunter2")

        monkeypatch.setattr(site.tasks, "create", broken)
        with caplog.at_level(logging.WARNING):
            response = site.post("/tasks", HELLO)
        assert_error(response, 500, "internal")
        assert "hunter2" not in response.text
        assert len([r for r in caplog.records if r.exc_info]) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"resources": {"ram_gb": NaN}}', "invalid JSON: NaN is not a number"),
        (b'{"resources": {"ram_gb": -Infinity}}', "invalid JSON: -Infinity is not a number"),
        (b"{\n  'name': 1}", "invalid JSON at line 2, column 3"),
        (b'{"name": "a\0b"}', "invalid JSON at line 1, column 12"),
        (b'{"name": "\xff"}', "invalid JSON: not UTF-8"),
        (b"[" * 100_000, "invalid JSON: nested too deeply"),
        (b" ", "the body is empty: send the task as a JSON object"),
    ],
)
def test_invalid_json_is_refused_with_its_position(site: Site, body: bytes, message: str) -> None:
    found = assert_error(site.post("/tasks", body), 400, "not_json")
    assert found["problems"] == [{"path": "$", "message": message}]


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1e-999", b"9" * 5_000, b"1" + b"0" * 400 + b".5"])
@pytest.mark.parametrize("key", ["ram_gb", "disk_gb", "cpu_cores"])
def test_numbers_out_of_range_have_our_own_messages(site: Site, key: str, number: bytes) -> None:
    body = json.dumps(HELLO | {"resources": {key: 0}}).replace(": 0}", ": " + number.decode() + "}")
    response = site.post("/tasks", body)
    if number != b"1e-999":
        message = assert_error(response, 400, "invalid_task")["message"]
        assert key in message and "inf" not in message and "int" not in message and len(message) < 200


def test_what_was_created_last_is_published_when_the_application_ends(site: Site) -> None:
    ended: list[bool] = []
    site.tasks.on_close = lambda: ended.append(True)
    asyncio.run(site.services().close())
    assert ended
