"""Random tasks: every field of every part, with texts, times and numbers that stores may corrupt."""

from datetime import UTC, datetime

from hypothesis import strategies as st

from poiesis.domain.history import Change
from poiesis.domain.quotas import Amount, Claim
from poiesis.domain.states import Stage, State
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

TEXTS = st.text(max_size=8) | st.sampled_from(
    ["", "a.b", "$set", "$", ".", "\x00", "%", "_", "\\", '"', "\r\n", "é", "😀", "\uffff", "null"]
)
OPTIONAL_TEXTS = st.none() | TEXTS
MAPPINGS = st.dictionaries(TEXTS, TEXTS, max_size=4)
TIMES = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC))
OPTIONAL_TIMES = st.none() | TIMES
FLOATS = st.none() | st.floats(min_value=0, allow_infinity=False)
BOOLS = st.none() | st.booleans()
SIZES = st.integers(0, 2**63 - 1)
TYPES = st.none() | st.sampled_from(FileType)


def tuples(items, max_size=3):
    return st.lists(items, max_size=max_size).map(tuple)


EXECUTORS = st.builds(
    Executor,
    image=TEXTS,
    command=tuples(TEXTS),
    workdir=OPTIONAL_TEXTS,
    stdin=OPTIONAL_TEXTS,
    stdout=OPTIONAL_TEXTS,
    stderr=OPTIONAL_TEXTS,
    env=MAPPINGS,
    ignore_error=st.booleans(),
)
INPUTS = st.builds(
    Input,
    path=TEXTS,
    url=OPTIONAL_TEXTS,
    content=OPTIONAL_TEXTS,
    type=TYPES,
    name=OPTIONAL_TEXTS,
    description=OPTIONAL_TEXTS,
    streamable=BOOLS,
)
OUTPUTS = st.builds(
    Output,
    path=TEXTS,
    url=TEXTS,
    path_prefix=OPTIONAL_TEXTS,
    type=TYPES,
    name=OPTIONAL_TEXTS,
    description=OPTIONAL_TEXTS,
)
RESOURCES = st.builds(
    Resources,
    cpu_cores=FLOATS,
    ram_gb=FLOATS,
    disk_gb=FLOATS,
    preemptible=BOOLS,
    zones=tuples(TEXTS),
    backend_parameters=MAPPINGS,
    backend_parameters_strict=BOOLS,
)
SPECS = st.builds(
    TaskSpec,
    executors=tuples(EXECUTORS),
    name=OPTIONAL_TEXTS,
    description=OPTIONAL_TEXTS,
    inputs=tuples(INPUTS),
    outputs=tuples(OUTPUTS),
    resources=st.none() | RESOURCES,
    volumes=tuples(TEXTS),
    tags=MAPPINGS,
)
EXECUTOR_LOGS = st.builds(
    ExecutorLog,
    exit_code=st.none() | st.integers(-(2**31), 2**31 - 1),
    start_time=OPTIONAL_TIMES,
    end_time=OPTIONAL_TIMES,
    stdout=TEXTS,
    stderr=TEXTS,
)
LOGS = st.builds(
    TaskLog,
    logs=tuples(EXECUTOR_LOGS),
    outputs=tuples(st.builds(OutputFileLog, url=TEXTS, path=TEXTS, size_bytes=SIZES)),
    metadata=MAPPINGS,
    start_time=OPTIONAL_TIMES,
    end_time=OPTIONAL_TIMES,
    system_logs=tuples(TEXTS),
)
OUTCOMES = st.builds(
    Outcome, state=st.sampled_from(State), reason=OPTIONAL_TEXTS, message=OPTIONAL_TEXTS, retry=st.booleans()
)
CHANGES = st.builds(Change, n=st.integers(1, 2**40), at=TIMES, state=st.sampled_from(State), reason=OPTIONAL_TEXTS)
IDS = TEXTS.filter(bool)


CLAIMS = st.builds(
    Claim,
    user=TEXTS,
    amount=st.builds(Amount, *[st.integers(0, 2**50)] * 5),
    service_class=TEXTS,
    groups=st.lists(TEXTS, max_size=2).map(tuple),
)


def tasks(ids=IDS):
    return st.builds(
        Task,
        id=ids.map(TaskId),
        spec=SPECS,
        created_at=TIMES,
        state=st.sampled_from(State),
        stage=st.sampled_from(Stage),
        stage_since=OPTIONAL_TIMES,
        wake_at=OPTIONAL_TIMES,
        attempt=st.integers(1, 1000),
        version=st.integers(0, 2**40).map(Version),
        nonce=TEXTS,
        owner=OPTIONAL_TEXTS,
        groups=st.lists(TEXTS, max_size=3).map(tuple),
        cancel_requested_at=OPTIONAL_TIMES,
        layout=OPTIONAL_TEXTS,
        part=OPTIONAL_TEXTS,
        waiting=OPTIONAL_TEXTS,
        waiting_since=OPTIONAL_TIMES,
        memory_scale=st.integers(1, 64),
        uploads=st.integers(1, 3),
        claim=st.none() | CLAIMS,
        trace=st.none() | st.just("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        preemptions=st.integers(0, 3),
        on_demand=st.booleans(),
        most_ram_gb=st.none() | st.floats(0, 100),
        outcome=st.none() | OUTCOMES,
        log=LOGS,
        history=st.lists(CHANGES, max_size=3).map(tuple),
        changes=st.integers(0, 1000),
    )
