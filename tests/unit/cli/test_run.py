"""`poiesis run`: the task that options make, refusals, and the exit code."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poiesis.cli import follow, logs
from poiesis.cli.build import task_of
from poiesis.cli.parser import parse
from poiesis.domain.errors import ConfigurationError
from tests.unit.cli.conftest import Done, TesServer

Poiesis = Callable[..., Done]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_FROM_S", 0.001)
    monkeypatch.setattr(follow, "POLL_TO_S", 0.002)
    monkeypatch.setattr(logs, "RETRY_FROM_S", 0.01)


def built(*arguments: str) -> dict[str, Any]:
    return task_of(parse(["run", *arguments]))


def test_the_smallest_task() -> None:
    expected = {"executors": [{"image": "alpine", "command": ["echo", "-n", "--", "x"]}]}
    assert built("alpine", "--", "echo", "-n", "--", "x") == expected
    assert built("alpine", "echo", "x")["executors"][0]["command"] == ["echo", "x"]


def test_every_option_has_its_place_in_the_task(tmp_path: Path) -> None:
    (tmp_path / "a:b.txt").write_text("é\n")
    options = shlex.split("""
      --name n --description d --tag k=v=w --tag e= --env A=b=c --workdir /w --stdin /in/i --stdout /out/o --stderr /out/e
      --cpu 4 --ram 512M --disk 10 --gpu 2 --preemptible --backend-parameter gpu_type=a100 --volume /scratch
      --input s3://b/k:/in/k --input 'https://h:8/x?y=a:b:/in/d/' --output '/out/*.bam:s3://b/r/' --output /out/d/:s3://b/d/
    """)
    content = f"{tmp_path}/a:b.txt:/in/c"
    assert built(*options, "--input-content", content, "img", "--", "c") == {
        "name": "n",
        "description": "d",
        "tags": {"k": "v=w", "e": ""},
        "inputs": [
            {"url": "s3://b/k", "path": "/in/k"},
            {"url": "https://h:8/x?y=a:b", "path": "/in/d", "type": "DIRECTORY"},
            {"path": "/in/c", "content": "é\n"},
        ],
        "outputs": [
            {"path": "/out/*.bam", "url": "s3://b/r/", "path_prefix": "/out"},
            {"path": "/out/d", "url": "s3://b/d/", "type": "DIRECTORY"},
        ],
        "volumes": ["/scratch"],
        "resources": {
            "cpu_cores": 4,
            "ram_gb": 0.512,
            "disk_gb": 10.0,
            "preemptible": True,
            "backend_parameters": {"gpu_type": "a100", "gpu": "2"},
        },
        "executors": [
            {
                "image": "img",
                "command": ["c"],
                "workdir": "/w",
                "stdin": "/in/i",
                "stdout": "/out/o",
                "stderr": "/out/e",
                "env": {"A": "b=c"},
            }
        ],
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--input", "reads.fq:/in/r"), "'reads.fq' is a local path.*--input-content reads.fq:/PATH.*file:///"),
        (("--input", "/data/reads.fq"), "is a local path"),
        (("--input", "s3://b/k"), "missing path in the container"),
        (("--output", "s3://b/k:/out"), "/PATH:URL is needed"),
        (("--output", "/out/x:results"), "/PATH:URL is needed"),
        (("--env", "A"), "KEY=VALUE"),
        (("--tag", "=x"), "KEY=VALUE"),
        (("--input-content", "/nonexistent:/in/x"), "cannot read --input-content /nonexistent: No such file"),
        (("--input-content", "/etc/hosts"), "FILE:/PATH"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_way_to_do_it(options: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        built(*options, "alpine", "--", "true")
    assert re.search(words, str(caught.value))


@pytest.mark.parametrize(("content", "words"), [(b"\xff", "not UTF-8"), (b"x" * (128 * 1024 + 1), "more than 131072")])
def test_a_file_that_cannot_be_content_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=words):
        built("--input-content", f"{path}:/in/x", "alpine", "--", "true")


@pytest.mark.parametrize(
    "options",
    [["--ram", "much"], ["--ram", "0"], ["--cpu", "-1"], ["--cpu", "nan"], ["--timeout", "soon"], ["--unknown"]],
)
def test_an_invalid_option_is_a_usage_error(poiesis: Poiesis, options: list[str]) -> None:
    done = poiesis("run", *options, "alpine", "--", "true")
    assert done.code == 2 and done.err.startswith("usage: poiesis")


def test_a_command_without_dashes_is_explained(poiesis: Poiesis) -> None:
    done = poiesis("run", "alpine", "echo", "-n", "x")
    assert done.code == 2 and "the command comes after --" in done.err


def test_a_dry_run_posts_nothing(poiesis: Poiesis) -> None:
    done = poiesis("run", "--dry-run", "--url", "http://127.0.0.1:1", "alpine", "--", "true")
    assert done.code == 0 and json.loads(done.out)["executors"][0]["command"] == ["true"]
    assert poiesis("run", "alpine", "--url", "http://127.0.0.1:1").code == 2  # no command


def ended(state: str, code: int | None, **log: Any) -> dict[str, Any]:
    output = {"stdout": "out\n", "stderr": "err\x1b\n", **({} if code is None else {"exit_code": code})}
    return {"id": "t", "state": state, "logs": [{"logs": [output], **log}]}


@pytest.mark.parametrize(
    ("task", "code", "words"),
    [
        (ended("COMPLETE", 0), 0, ""),
        (ended("EXECUTOR_ERROR", 7), 7, "exit code 7"),
        (ended("EXECUTOR_ERROR", None), 100, "EXECUTOR_ERROR"),
        (ended("EXECUTOR_ERROR", 300), 100, "EXECUTOR_ERROR"),
        (ended("SYSTEM_ERROR", 0, system_logs=["first", "no such file"]), 101, "SYSTEM_ERROR: no such file"),
        (ended("CANCELED", None, metadata={"failure_message": "why\x1b"}), 102, "why\\u001b"),
        (ended("PREEMPTED", None), 103, "PREEMPTED"),
    ],
)
def test_run_shows_the_output_and_exits_as_the_command_did(
    poiesis: Poiesis, server: TesServer, task: dict[str, Any], code: int, words: str
) -> None:
    server.serve({"POST /tasks": (200, {"id": "t"}), "GET /tasks/t": [(200, {"state": "QUEUED"}), (200, task)]})
    done = poiesis("run", "alpine", "--url", server.url, "--", "true")
    assert (done.code, done.out) == (code, "out\n")
    assert words in done.err and "err\\u001b\n" in done.err and "created task t" in done.err and "QUEUED" in done.err
    assert poiesis("run", "-q", "alpine", "--url", server.url, "--", "true").out == "out\n"


def test_run_prints_only_the_document_with_a_format(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"POST /tasks": (200, {"id": "t"}), "GET /tasks/t": (200, ended("COMPLETE", 0))})
    done = poiesis("run", "--json", "alpine", "--url", server.url, "--", "true")
    assert json.loads(done.out) == ended("COMPLETE", 0)
    assert poiesis("run", "-d", "alpine", "--url", server.url, "--", "true") == Done(0, "t\n", "")
    assert poiesis("run", "-d", "-o", "json", "alpine", "--url", server.url, "--", "true").out == '{"id": "t"}\n'


def test_run_stops_waiting_at_its_timeout(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"POST /tasks": (200, {"id": "t"}), "GET /tasks/t": (200, {"state": "RUNNING"})})
    done = poiesis("run", "--timeout", "0.05", "alpine", "--url", server.url, "--", "true")
    assert done.code == 124 and "the task t continues" in done.err


def test_run_is_interrupted_with_the_way_back(
    poiesis: Poiesis, server: TesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow.Follower, "run", interrupted)
    server.serve({"POST /tasks": (200, {"id": "t"})})
    done = poiesis("run", "alpine", "--url", server.url, "--", "true")
    assert done.code == 130 and "the task t continues" in done.err
    for command in ("task wait t", "task logs -f t", "task cancel t"):
        assert f"poiesis {command} --url {server.url}\n" in done.err


def test_whole_logs_are_shown_while_they_are_written(poiesis: Poiesis, server: TesServer) -> None:
    running, over = (200, {"state": "RUNNING"}), (200, ended("COMPLETE", 0))
    server.serve({"POST /tasks": (200, {"id": "t"}), "GET /tasks/t": [running] * 40 + [over]})
    plain = server.answer
    pieces = {
        "/poiesis/v1/tasks/t/logs/0/stdout": b"whole \xc3\xa9\x1b\r\n",
        "/poiesis/v1/tasks/t/logs/0/stderr": b"loud\n",
    }
    server.answer = lambda asked: (200, pieces[p]) if (p := asked.path.partition("?")[0]) in pieces else plain(asked)
    done = poiesis("run", "-q", "alpine", "--url", server.url, "--", "true")
    assert done.code == 0 and done.out == "whole é\\u001b\r\n" and "loud\n" in done.err and "err" not in done.err
