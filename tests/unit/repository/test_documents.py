import dataclasses
import json
import sys
from dataclasses import MISSING, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poiesis.domain.errors import IllegalTransition, RepositoryUnavailable
from poiesis.domain.history import Change, Phase
from poiesis.domain.quotas import Amount, Claim
from poiesis.domain.states import TERMINAL, Stage, State, path
from poiesis.domain.task import (
    Executor,
    ExecutorLog,
    FileType,
    Input,
    Outcome,
    Output,
    OutputFileLog,
    Resources,
    Task,
    TaskId,
    TaskLog,
    TaskSpec,
    Version,
)
from poiesis.repository import documents
from poiesis.repository.documents import (
    MAX_BYTES,
    after_prefix,
    decode_json,
    encode_json,
    encode_within_bounds,
    format_time,
    from_document,
    shortened,
    sources,
    tag_token,
    tag_tokens,
    to_document,
    upgrade,
)
from poiesis.repository.mongo import tasks as mongo
from poiesis.repository.sqlite import tasks as sqlite
from tests.unit.repository.strategies import TEXTS, TIMES, tasks

NOW = datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)

# no field has its default, so that a field missing in the documents is detected
EVERY_FIELD = Task(
    id=TaskId("one"),
    spec=TaskSpec(
        executors=(Executor("image", ("a", "b"), "/w", "/in", "/out", "/err", {"A.$": "b"}, True),),
        name="name",
        description="description",
        inputs=(Input("/a", "s3://b/a", "content", FileType.FILE, "name", "description", False),),
        outputs=(Output("/o", "s3://b/o", "/p", FileType.DIRECTORY, "name", "description"),),
        resources=Resources(0.5, 1.5, 2.5, False, ("z",), {"a.b": "$c"}, False),
        volumes=("/v",),
        tags={"k.1": "$v"},
    ),
    created_at=NOW,
    state=State.RUNNING,
    stage=Stage.RUN,
    stage_since=NOW,
    wake_at=NOW,
    attempt=2,
    version=Version(3),
    nonce="nonce",
    owner="owner",
    groups=("group",),
    cancel_requested_at=NOW,
    layout="single",
    part="task",
    waiting="waiting for a node",
    waiting_since=NOW,
    memory_scale=2,
    uploads=2,
    launching_at=NOW,
    claim=Claim("owner", Amount(1, 2, 3, 4, 5), "class", ("group",)),
    preemptions=1,
    on_demand=True,
    most_ram_gb=4.5,
    history=(Change(3, NOW, State.RUNNING, "Reason: message"),),
    changes=2,
    trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    phases=(Phase("cleanup", 1, NOW, NOW, "ok", "Reason"),),
    outcome=Outcome(State.SYSTEM_ERROR, "Reason", "message", True),
    log=TaskLog(
        logs=(ExecutorLog(1, NOW, NOW, "out", "err"),),
        outputs=(OutputFileLog("s3://b/o", "/o", 2**63 - 1),),
        metadata={"a.b": "c"},
        start_time=NOW,
        end_time=NOW,
        system_logs=("line",),
    ),
)


def parts(value):
    """A dataclass and all that are in it."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from parts(item)


def test_the_example_leaves_no_field_at_its_default():
    for part in parts(EVERY_FIELD):
        for field in dataclasses.fields(part):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            assert getattr(part, field.name) != default, f"{type(part).__name__}.{field.name}: give it a value here"


@example(EVERY_FIELD)
@given(tasks())
def test_a_task_survives_a_document_exactly(task):
    assert from_document(to_document(task)) == task
    assert from_document(decode_json(encode_json(to_document(task)).decode())) == task


def test_a_task_with_nothing_but_defaults_survives_twice():
    task = Task(id=TaskId("x"), spec=TaskSpec(executors=(), inputs=(Input("/a"),)), created_at=NOW)
    once = from_document(to_document(task))
    assert once == from_document(to_document(once)) == task


def test_a_parsed_pattern_is_not_part_of_a_document():
    task = replace(EVERY_FIELD)
    assert task.spec.outputs[0].pattern.literal == "/o"
    assert "pattern" not in to_document(task)["spec"]["outputs"][0]


@given(tasks())
def test_without_the_bulk_a_document_is_what_basic_shows(task):
    document = to_document(task)
    del document["bulk"]
    basic = from_document(document)
    assert all(item.content is None for item in basic.spec.inputs)
    assert all((item.stdout, item.stderr) == ("", "") for item in basic.log.logs)
    assert basic.log.system_logs == ()
    assert replace(basic, spec=task.spec, log=task.log) == task


def test_only_what_is_not_done_is_due():
    assert to_document(EVERY_FIELD)["due_at"] == format_time(NOW)
    assert to_document(EVERY_FIELD)["due_stage"] == "finish"
    done = to_document(replace(EVERY_FIELD, stage=Stage.DONE))
    assert done["due_at"] is None
    assert done["due_stage"] is None
    assert done["wake_at"] == format_time(NOW)


# times


@given(TIMES, TIMES)
def test_times_are_exact_and_sort_as_text(one, other):
    assert datetime.fromisoformat(format_time(one)) == one
    assert (format_time(one) < format_time(other)) == (one < other)
    assert len(format_time(one)) == len(format_time(other)) == 27


def test_times_of_other_zones_become_utc():
    local = datetime(2026, 1, 31, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert format_time(local) == "2026-01-30T23:00:00.000000Z"


def test_a_naive_datetime_is_a_bug():
    with pytest.raises(ValueError, match="naive"):
        format_time(datetime(2026, 1, 31))


# schema


def test_a_document_of_a_newer_release_is_refused_with_a_reason_and_may_be_tried_again():
    with pytest.raises(RepositoryUnavailable, match="newer release") as caught:
        from_document({**to_document(EVERY_FIELD), "schema": documents.SCHEMA + 1})
    assert caught.value.retryable


def test_an_older_document_is_upgraded_one_schema_at_a_time():
    migrations = {1: lambda d: {**d, "steps": ["to 2"]}, 2: lambda d: {**d, "steps": [*d["steps"], "to 3"]}}
    assert upgrade({"_id": "x", "schema": 1}, migrations) == {"_id": "x", "schema": 3, "steps": ["to 2", "to 3"]}
    assert upgrade({"_id": "x", "schema": 2, "steps": []}, migrations)["steps"] == ["to 3"]
    present = {"_id": "x", "schema": 3}
    assert upgrade(present, migrations) is present


@pytest.mark.parametrize("store", ["sqlite", "mongo"])
def test_a_document_of_the_previous_release_is_read(store):
    """Written by its code, `data/schema_1.json`."""
    stored = json.loads((Path(__file__).parent / "data/schema_1.json").read_text())[store]
    added = ("groups", "claim", "preemptions", "on_demand", "most_ram_gb", "history", "changes", "trace", "phases")
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Task) if field.name in added}
    expected = replace(EVERY_FIELD, **defaults)
    if store == "mongo":
        assert mongo._decode(stored) == expected
    else:
        assert sqlite._decode((3, stored["head"]["wake_at"], stored["core"], stored["bulk"])) == expected


def test_every_older_schema_has_its_migration():
    assert set(documents.MIGRATIONS) == set(range(1, documents.SCHEMA))


# fields that stores filter and compare by


@given(TEXTS, TEXTS, TEXTS, TEXTS)
@example("a=b", "", "a", "b")
@example("a", "b=c", "a=b", "c")
def test_no_two_tags_share_a_token(key, value, other_key, other_value):
    assert (tag_token(key, value) == tag_token(other_key, other_value)) == ((key, value) == (other_key, other_value))


@pytest.mark.parametrize("length", [127, 128, 129, 5000])
def test_tokens_of_long_tags_are_short_and_differ(length):
    token = tag_token("k" * length, "v" * length)
    assert len(token) < 300
    assert len({token, tag_token("k" * length, "v" * length + "w"), tag_token("k" * length + "l", "v" * length)}) == 3


def test_a_tag_is_found_by_its_key_and_by_both():
    assert set(tag_tokens({"a": "b", "c": ""})) == {tag_token("a"), tag_token("a", "b"), tag_token("c")}


@given(TEXTS.filter(bool), st.text(max_size=3), TEXTS)
@example("\ud7ff", "", "\ue000")
@example("a\U0010ffff", "x", "b")
def test_texts_with_a_prefix_lie_between_it_and_its_end(prefix, rest, other):
    end = after_prefix(prefix)
    for text in (prefix + rest, other):
        assert text.startswith(prefix) == (prefix <= text and (end is None or text < end))


def test_nothing_comes_after_the_last_character():
    assert after_prefix(chr(sys.maxunicode) * 2) is None


def test_sources_are_the_states_with_a_path():
    for to in State:
        for seen in State:
            try:
                path(seen, to)
                reachable = True
            except IllegalTransition:
                reachable = False
            assert (seen.value in sources(to)) == reachable
    for end in TERMINAL:
        assert not any(end.value in sources(to) for to in State if to is not end)


# bounds


def encode(document):
    raw = encode_json(document)
    return raw, len(raw)


def decode(raw):
    return from_document(decode_json(raw))


def with_log(**changes):
    return replace(EVERY_FIELD, log=TaskLog(**changes))


@pytest.mark.parametrize(
    "task",
    [
        with_log(logs=tuple(ExecutorLog(0, stdout="ü" * 500_000, stderr="😀" * 500_000) for _ in range(100))),
        with_log(outputs=tuple(OutputFileLog("u" * 20, "p" * 20, i) for i in range(400_000))),
        with_log(outputs=(OutputFileLog("u" * 20_000_000, "p", 1),)),
        with_log(metadata={str(i): "m" * 1000 for i in range(30_000)}),
        with_log(system_logs=("x" * 20_000_000,)),
        replace(
            with_log(system_logs=("x" * 9_000_000,)), spec=TaskSpec((), inputs=(Input("/a", content="x" * 11_000_000),))
        ),
    ],
)
def test_a_log_that_grew_too_large_is_shortened_below_the_bound(task):
    raw = encode_within_bounds(task, encode)
    assert len(raw) <= MAX_BYTES
    stored = decode(raw)
    assert replace(stored, log=task.log) == task
    assert "too large" in stored.log.system_logs[-1]


def test_a_log_that_fits_is_kept_unchanged():
    assert decode(encode_within_bounds(EVERY_FIELD, encode)) == EVERY_FIELD


def test_a_tail_is_cut_between_characters():
    log = shortened(TaskLog(logs=(ExecutorLog(0, stdout="é" * 100),)), 4 * 2 * 21)
    assert log.logs[0].stdout == "é" * 10
