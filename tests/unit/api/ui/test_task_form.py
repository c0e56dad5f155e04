"""A task as a form and back: nothing is lost, and problems have a place."""

from __future__ import annotations

import json
import shlex
import subprocess

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.api.normalize import normalize
from poiesis.api.ui.task_form import (
    MAX_BASE_BYTES,
    MAX_ROWS,
    Form,
    cli_command,
    curl_command,
    reason_against,
)
from tests.unit.repository.strategies import tasks

TASK = {
    "name": "align",
    "executors": [
        {"image": "alpine", "command": ["sh", "-c", 'echo "$HOME" && exit 0'], "env": {"A": "1 = 2", "B": ""}},
        {
            "image": "busybox",
            "command": ["true", "", "line\nbreak", "return\r"],
            "stdout": "/out",
            "ignore_error": True,
        },
    ],
    "inputs": [{"path": "/in", "url": "s3://b/in", "description": "kept", "streamable": True}],
    "outputs": [{"path": "/out", "url": "s3://b/out", "type": "FILE", "name": "kept"}],
    "resources": {"cpu_cores": 1.5, "zones": ["a", "b"], "backend_parameters": {"gpu": "1"}, "preemptible": False},
    "volumes": ["/v"],
    "tags": {"project": "x"},
}


def sent(form: Form, **changes: str) -> dict[str, str]:
    """The fields as a browser sends them: one-line fields without line breaks, the others with CRLF, flags only if set."""
    one_line = ("name", "image", "url", "path", "workdir", "stdin", "stdout", "stderr", "type", "path_prefix", "zones")
    fields = {"base": form.base, **form.values}
    for name, rows in form.rows.items():
        fields[f"{name}-count"] = str(len(rows))
        for i, row in enumerate(rows):
            fields[f"{name}-{i}-base"] = row.base
            fields |= {f"{name}-{i}-{key}": text for key, text in row.values.items()}
    fields |= changes
    found = {}
    for name, text in fields.items():
        if name.rpartition("-")[2] in ("preemptible", "ignore_error") and not text:
            continue
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        found[name] = text.replace("\n", "") if name.rpartition("-")[2] in one_line else text.replace("\n", "\r\n")
    return found


def read(fields: dict[str, str]) -> dict:
    document, problems = Form.of_fields(fields).document()
    assert problems == []
    return document


def test_an_unchanged_form_gives_the_same_task():
    assert read(sent(Form.of_document(TASK))) == TASK


@given(tasks())
def test_no_task_loses_anything_in_a_form(task):
    document = normalize(json.loads(msgspec.json.encode(task.spec)))
    if reason_against(document) is None:
        once = Form.of_document(document)
        assert read(sent(once)) == document
        again = Form.of_fields(sent(once, **{"name": "another name"}))
        assert again.document()[0] == {**document, "name": "another name"}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=20), min_size=1))
def test_any_command_is_read_as_it_was_written(command):
    form = Form.of_document({"executors": [{"image": "a", "command": []}]})
    assert read(sent(form, **{"executors-0-command": shlex.join(command)}))["executors"][0]["command"] == command


def test_only_the_changed_field_changes():
    fields = sent(Form.of_document(TASK), **{"resources-cpu_cores": "4", "executors-1-image": "debian", "tags": ""})
    expected = json.loads(json.dumps(TASK))
    expected["resources"]["cpu_cores"] = 4
    expected["executors"][1]["image"] = "debian"
    del expected["tags"]
    assert read(fields) == expected


def test_rows_are_added_and_removed_with_what_the_form_does_not_show():
    form = Form.of_document({**TASK, "inputs": [*TASK["inputs"], {"path": "/two", "url": "s3://b/2", "name": "two"}]})
    assert form.change_rows("remove-inputs-0") == "inputs-0-url"
    assert form.change_rows("add-outputs") == "outputs-1-path"
    fields = sent(form, **{"outputs-1-path": "/log", "outputs-1-url": "s3://b/log"})
    document = read(fields)
    assert document["inputs"] == [{"path": "/two", "url": "s3://b/2", "name": "two"}]
    assert document["outputs"] == [*TASK["outputs"], {"path": "/log", "url": "s3://b/log"}]
    assert form.change_rows("create") is None and form.change_rows("add-nothing") is None
    assert form.change_rows("remove-inputs-99") and len(form.rows["inputs"]) == 1


def test_an_empty_new_row_is_not_part_of_the_task():
    form = Form.of_document(TASK)
    form.change_rows("add-inputs")
    form.change_rows("add-executors")
    assert read(sent(form)) == TASK


def test_rows_have_a_limit():
    form = Form.of_document(TASK)
    for _ in range(3 * MAX_ROWS):
        form.change_rows("add-inputs")
    assert sum(map(len, form.rows.values())) == MAX_ROWS
    many = Form.of_fields({"inputs-count": "999", "executors-count": "9" * 400, "outputs-count": "-1"})
    assert sum(map(len, many.rows.values())) <= MAX_ROWS


@pytest.mark.parametrize(
    ("name", "text", "path", "message"),
    [
        ("executors-0-command", 'echo "x', "$.executors[0].command", "invalid quoting"),
        ("executors-1-env", "A=1\nnothing", "$.executors[1].env", "invalid line 2: must be NAME=VALUE"),
        ("tags", "a=1\na=2", "$.tags", "duplicate 'a' in line 2"),
        ("resources-cpu_cores", "two", "$.resources.cpu_cores", "must be a number"),
        ("resources-ram_gb", "nan", "$.resources.ram_gb", "must be a number"),
        ("resources-disk_gb", "1e400", "$.resources.disk_gb", "must be a number"),
    ],
)
def test_a_text_that_cannot_be_read_is_a_problem_of_its_field(name, text, path, message):
    form = Form.of_fields(sent(Form.of_document(TASK), **{name: text}))
    _, problems = form.document()
    assert [problem.path for problem in problems] == [path]
    assert message in problems[0].message
    assert form.places()[path] == name


def test_problems_find_their_field_behind_an_empty_row():
    form = Form.of_document({"executors": []})
    form.change_rows("add-executors")
    form.rows["executors"][1].values["image"] = "alpine"
    assert form.places()["$.executors[0].command"] == "executors-1-command"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "a task is an object"),
        ({"executors": "x"}, "executors is not a list of objects"),
        ({"executors": [{"command": "echo"}]}, "executors[0].command has the wrong type"),
        ({"tags": {"a": 1}}, "tags has the wrong type"),
        ({"resources": []}, "resources is not an object"),
        ({"resources": {"preemptible": "yes"}}, "resources.preemptible has the wrong type"),
        ({"resources": {"cpu_cores": True}}, "resources.cpu_cores has the wrong type"),
        ({"inputs": [{}] * (MAX_ROWS + 1)}, "more than"),
        ({"name": "x" * MAX_BASE_BYTES}, "larger than"),
    ],
)
def test_what_is_not_a_form_stays_json(document, reason):
    assert reason in (reason_against(document) or "")


@pytest.mark.parametrize(
    "base",
    [
        "",
        "[]",
        "nonsense",
        '{"executors": 5}',
        "[" * 100_000,
        '{"resources": {"cpu_cores": NaN}}',
        '{"executors": [{"image": "\\ud800"}]}',
    ],
)
def test_a_base_that_this_service_has_not_made_is_ignored(base):
    assert Form.of_fields({"base": base, "name": "x"}).document()[0] == {"name": "x"}


@pytest.mark.parametrize("place", ["99", "-1", "x", "1" * 4000])
def test_a_row_of_no_item_is_a_new_one(place):
    fields = sent(Form.of_document(TASK), **{"inputs-0-base": place})
    assert read(fields)["inputs"] == [{"path": "/in", "url": "s3://b/in"}]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_commands_to_copy_give_the_shell_the_same_task(name):
    document = {**TASK, "name": f"{name} $(id) `id` ' \" \\ END-OF-TASK\nEND-OF-TASK"}
    for command in (
        curl_command(document, "http://h/x y", '-u "$TES_USER:$TES_PASSWORD"'),
        cli_command(document, "http://h/';id"),
        cli_command(document, "http://h/';id", "basic"),
        cli_command(document, "http://h/';id", "api_key"),
    ):
        script = f"curl() {{ cat; }}; poiesis() {{ cat; }}; {command}"
        done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True)
        assert json.loads(done.stdout) == document
