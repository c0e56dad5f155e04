"""Every rule with the path of its problem; whatever is accepted can be planned."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.errors import InvalidTask
from poiesis.domain.plan import Layout, plan
from poiesis.domain.policy import Limits
from poiesis.domain.staging import tif_document, tof_document
from poiesis.domain.task import Executor, FileType, Input, Output, Resources, TaskSpec
from poiesis.domain.validate import check
from tests.unit.domain.samples import FILES, POLICY, executor, input_file, output_file, spec, stored, with_parameters
from tests.unit.domain.test_plan import CWL, NEXTFLOW, PULSAR, SNAKEMAKE

DIRECTORY, FILE = FileType.DIRECTORY, FileType.FILE
SMALL_LIMITS = replace(
    POLICY,
    limits=Limits(
        max_executors=2, max_inputs=2, max_outputs=2, max_volumes=2, max_tags=2, max_content_bytes=10,
        max_total_content_bytes=15, max_command_bytes=50, max_text_bytes=30, max_cpu_cores=4, max_ram_gb=8, max_disk_gb=9,
    ),
)  # fmt: skip


def content(path: str, text: str = "x") -> Input:
    return Input(path, content=text)


def paths(task_spec: TaskSpec, policy=POLICY) -> list[str]:
    try:
        check(task_spec, policy)
    except InvalidTask as error:
        assert all(problem.message for problem in error.problems)
        assert str(error)
        return [problem.path for problem in error.problems]
    return []


@pytest.mark.parametrize("task_spec", [FILES, NEXTFLOW, SNAKEMAKE, CWL, PULSAR], ids=range(5))
def test_what_real_clients_send_is_accepted(task_spec):
    kept, notes = check(task_spec, POLICY)
    assert (kept.executors, kept.inputs, kept.outputs, notes) == (
        task_spec.executors, task_spec.inputs, task_spec.outputs, ())  # fmt: skip


BROKEN = [
    (TaskSpec(()), ["$.executors"]),
    (spec((executor(image=""),)), ["$.executors[0].image"]),
    (spec((executor(image="../../etc"),)), ["$.executors[0].image"]),
    (spec((executor(command=()),)), ["$.executors[0].command"]),
    (spec((executor(command=("",)),)), ["$.executors[0].command"]),
    (spec((executor(command=("a\0b",)),)), ["$.executors[0].command[0]"]),
    (spec((executor(command=("\ud800",)),)), ["$.executors[0].command[0]"]),
    (spec((executor(env={"": "x"}),)), ["$.executors[0].env"]),
    (spec((executor(env={"A=B": "x"}),)), ["$.executors[0].env"]),
    (spec((executor(env={"A\nB": "x"}),)), ["$.executors[0].env"]),
    (spec((executor(env={"\u00e4": "x"}),)), ["$.executors[0].env"]),
    (spec(resources=Resources(zones=("eu-west-1a", "a b", "", "x" * 64))), [f"$.resources.zones[{i}]" for i in (1, 2, 3)]),
    (spec((executor(env={"content": "\0"}),)), ["$.executors[0].env.content"]),
    (spec((executor(), executor(workdir="work"))), ["$.executors[1].workdir"]),
    (spec((executor(stdin="in"),)), ["$.executors[0].stdin"]),
    (spec((executor(stdout="out"),)), ["$.executors[0].stdout"]),
    (spec((executor(stderr="/out/"),)), ["$.executors[0].stderr"]),
    (spec((executor(stdout="/proc/x"),)), ["$.executors[0].stdout"]),
    (spec(inputs=(input_file("data"),)), ["$.inputs[0].path"]),
    (spec(inputs=(input_file("/data/../x"),)), ["$.inputs[0].path"]),
    (spec(inputs=(input_file("/data/./x"),)), ["$.inputs[0].path"]),
    (spec(inputs=(input_file("/data//x"),)), ["$.inputs[0].path"]),
    (spec(inputs=(input_file("/"),)), ["$.inputs[0].path"]),
    (spec(inputs=(input_file("/" + "x" * 256),)), ["$.inputs[0].path"]),
    (spec(inputs=(input_file("/x" * 2100),)), ["$.inputs[0].path"]),
    (spec(inputs=(input_file("/poiesis/x"),)), ["$.inputs[0].path"]),
    (spec(inputs=(Input("/data/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(Input("/data/x", ""),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="gs://b/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="bucket/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url=" https://h/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="\x01https://h/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="htt\nps://h/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="https://h\n/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="https://h/x\ty"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="https://h h/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="s3://user:password@b/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="http://[::1"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="http://h:99999/"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="s3:///key"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="s3://b/" + "x" * 20_000),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="file:///etc/passwd"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="file:///srv/share/../x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="file:///srv/shared/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(input_file(url="file://host/srv/share/x"),)), ["$.inputs[0].url"]),
    (spec(inputs=(Input("/data/x", content="x", type=DIRECTORY),)), ["$.inputs[0].type"]),
    (spec(inputs=(Input("/data/x/", content="x"),)), ["$.inputs[0].path"]),
    (spec(outputs=(output_file(url="http://h/x"),)), ["$.outputs[0].url"]),
    (spec(outputs=(output_file("/*.txt", path_prefix="/"),)), ["$.outputs[0].path"]),
    (spec(outputs=(output_file("/o/*.txt"),)), ["$.outputs[0].path_prefix"]),
    (spec(outputs=(output_file("/o/*.txt", path_prefix="/p"),)), ["$.outputs[0].path_prefix"]),
    (spec(outputs=(output_file("/o/*.txt", path_prefix="o"),)), ["$.outputs[0].path_prefix"]),
    (spec(outputs=(output_file("/o/*/a.txt", path_prefix="/o/*"),)), ["$.outputs[0].path_prefix"]),
    (spec(volumes=("data",)), ["$.volumes[0]"]),
    (spec(inputs=(content("/a/b", "x"), content("/a/b", "y"))), ["$.inputs[1].path"]),
    (spec(inputs=(input_file("/a/b", "s3://b/1"), input_file("/a/b/", "s3://b/2"))), ["$.inputs[1].path"]),
    (spec(inputs=(content("/a"),), volumes=("/a",)), ["$.volumes[0]"]),
    (spec(inputs=(content("/a/b"), content("/a/b/c"))), ["$.inputs[1].path"]),
    (spec(inputs=(content("/a/b"),), outputs=(output_file("/a/b/c"),)), ["$.outputs[0].path"]),
    (spec(inputs=(input_file("/a/b", type=FILE),), outputs=(output_file("/a/b/*", path_prefix="/a"),)),
     ["$.outputs[0].path"]),
    (spec((executor(stdout="/w/f/o"),), inputs=(content("/w/f"),)), ["$.executors[0].stdout"]),
    (spec((executor(stdin="/w/f/o"),), inputs=(content("/w/f"),)), ["$.executors[0].stdin"]),
    (spec((executor(workdir="/w/f"),), inputs=(content("/w/f"),)), ["$.executors[0].workdir"]),
    (spec((executor(workdir="/w/f/g"), executor(stderr="/w/f"))), ["$.executors[0].workdir"]),
    (spec((executor(stdout="/w/f"),), volumes=("/w/f/v",)), ["$.volumes[0]"]),
    (spec((executor(stdout="/w/f"),), volumes=("/w/f",)), ["$.volumes[0]"]),
    (spec((executor(stdout="/w/f"),), outputs=(output_file("/w/f/o"),)), ["$.outputs[0].path"]),
    (spec((executor(stdout="/w/f"),), outputs=(output_file("/w/f", type=DIRECTORY),)), ["$.outputs[0].path"]),
    (spec((executor(stdout="/w/f"),), inputs=(input_file("/w/f/i"),)), ["$.inputs[0].path"]),
    (spec((executor(stdout="/w/f"), executor(stdin="/w/f/i"))), ["$.executors[1].stdin"]),
    (spec((executor(stdout="/w/a*b"),), outputs=(output_file("/w/a\\*b/c"),)), ["$.outputs[0].path"]),
    (spec((executor(stdin="/w/" + "x" * 4096),)), ["$.executors[0].stdin"]),
    (spec(outputs=(output_file("/o/\\.\\./x"),)), ["$.outputs[0].path"]),
    (spec(outputs=(output_file("/o/*", path_prefix="/" + "o" * 5000),)), ["$.outputs[0].path_prefix"]),
    (spec(volumes=("/v",), outputs=(output_file("/v", type=FILE),)), ["$.outputs[0].path"]),
    (spec(outputs=(output_file("/o/a"), output_file("/o/b"))), ["$.outputs[0].url", "$.outputs[1].url"]),
    (spec(resources=Resources(cpu_cores=-1)), ["$.resources.cpu_cores"]),
    (spec(resources=Resources(ram_gb=float("nan"))), ["$.resources.ram_gb"]),
    (spec(resources=Resources(disk_gb=float("inf"))), ["$.resources.disk_gb"]),
    (spec(resources=with_parameters(gpu="many")), ["$.resources.backend_parameters.gpu"]),
    (spec(resources=with_parameters(time_limit="9" * 17 + "d")), ["$.resources.backend_parameters.time_limit"]),
    (spec(resources=with_parameters(gpu="1", GPU="2")), ["$.resources.backend_parameters.GPU"]),
    (spec(resources=replace(with_parameters(x="1"), backend_parameters_strict=True)),
     ["$.resources.backend_parameters.x"]),
    (spec(tags={"a\0": "x"}), ["$.tags"]),
    (spec(tags={"\ud800": "\ud800"}), ["$.tags", "$.tags.?"]),
    (spec(name="\0"), ["$.name"]),
    (spec((executor(image=""),), name="\udfff"), ["$.name"]),
]  # fmt: skip


@pytest.mark.parametrize(("task_spec", "expected"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_rule_is_reported_with_its_path(task_spec, expected):
    assert paths(task_spec) == expected


LIMITED = [
    (spec(3), ["$.executors"]),
    (spec(inputs=tuple(content(f"/a/{i}") for i in range(3))), ["$.inputs"]),
    (spec(outputs=tuple(output_file(f"/a/{i}", f"s3://b/{i}") for i in range(3))), ["$.outputs"]),
    (spec(volumes=("/a", "/b", "/c")), ["$.volumes"]),
    (spec(tags=dict.fromkeys("abc", "")), ["$.tags"]),
    (spec(inputs=(content("/a/x", "é" * 6),)), ["$.inputs[0].content"]),
    (spec(inputs=(content("/a/x", "x" * 10), content("/a/y", "x" * 10))), ["$.inputs"]),
    (spec((executor(command=("x", "y" * 50)),)), ["$.executors[0].command[1]"]),
    (spec((executor(env={"A": "y" * 50}),)), ["$.executors[0].env.A"]),
    (spec((executor(command=("x" * 49,) * 6),)), ["$.executors[0]"]),
    (spec(name="x" * 31), ["$.name"]),
    (spec(description="x" * 31), ["$.description"]),
    (spec(tags={"k": "x" * 31}), ["$.tags['k']"]),
    (spec(resources=Resources(5, 9, 10)), ["$.resources.cpu_cores", "$.resources.ram_gb", "$.resources.disk_gb"]),
]


@pytest.mark.parametrize(("task_spec", "expected"), LIMITED, ids=range(len(LIMITED)))
def test_an_exceeded_limit_is_reported_with_its_path(task_spec, expected):
    assert paths(task_spec, SMALL_LIMITS) == expected
    assert paths(task_spec) == []


SAME = [
    spec(inputs=(content("/a/b"), content("/a/b"))),
    spec(inputs=(input_file("/a/b", name="x"), input_file("/a/b/", name="y"))),
    spec(volumes=("/v", "/v", "/v/")),
    spec(outputs=(output_file(), output_file())),
    spec(volumes=("/v",), inputs=(input_file("/v", type=DIRECTORY),)),
    spec((executor(stdin="/w/f", stdout="/w/f"), executor(stderr="/w/f")), inputs=(input_file("/w/f"),)),
    spec((executor(workdir="/w"),), volumes=("/w",), outputs=(output_file("/w", type=DIRECTORY),)),
    spec(outputs=(output_file("/w/d", "s3://b/d", type=FILE), output_file("/w/d/x", "s3://b/d/x", type=FILE))),
]


@pytest.mark.parametrize("task_spec", SAME, ids=range(len(SAME)))
def test_the_same_content_twice_at_one_path_is_not_a_conflict(task_spec):
    assert paths(task_spec) == []


def test_a_conflict_is_reported_with_both_paths():
    with pytest.raises(InvalidTask) as caught:
        check(spec((executor(stdout="/w/f/o"),), inputs=(content("/w/f"),)), POLICY)
    assert str(caught.value) == ("$.executors[0].stdout: conflict: '/w/f/o' is below $.inputs[0].path, which is a file")


@pytest.mark.parametrize(
    ("path", "prefix"),
    [("/w/s\\[1\\]/*", "/w/s\\[1\\]"), ("/w/s\\[1\\]/*", "/w/s[1]/"), ("/w/a\\ b/*.txt", "/w/a\\ b"),
     ("/w/a\\*b", None), ("/w/x_*", "/w/x_"), ("/w/a[1]", None), ("/w/{a,b}", None)],
)  # fmt: skip
def test_an_escaped_character_is_a_plain_one(path, prefix):
    assert paths(spec(outputs=(output_file(path, path_prefix=prefix),))) == []


@pytest.mark.parametrize("path", ["/o/" + "[/" * 2047 + "*", "/o/" + "[" * 256, "/o/" + "\\\\" * 256, "o/*", "/o/../*"])
def test_an_invalid_path_is_reported_once_and_not_parsed(path):
    outputs = (output_file("/o"), output_file(path, type=FILE))
    assert paths(spec(outputs=outputs)) == ["$.outputs[1].path"]
    assert "pattern" not in vars(outputs[1])


@pytest.mark.parametrize(
    ("files", "executors", "expected"), [(5_000, 1, []), (5_001, 1, ["$"]), (60, 80, []), (60, 100, ["$"])]
)
def test_what_needs_more_mounts_than_a_pod_can_have_is_refused(files, executors, expected):
    inputs = tuple(input_file(f"/opt/{i}") for i in range(files))
    assert paths(spec(executors, inputs=inputs)) == expected
    assert paths(spec(executors, inputs=tuple(input_file(f"/data/{i}/x") for i in range(files)))) == []


def test_all_problems_are_reported_at_once():
    task_spec = spec((executor(image=""), executor(command=())), inputs=(input_file("x"),), volumes=("y",))
    assert paths(task_spec) == [
        "$.executors[0].image", "$.executors[1].command", "$.inputs[0].path", "$.volumes[0]"]  # fmt: skip


def test_a_file_of_any_bytes_may_come_as_content():
    assert paths(spec(inputs=(content("/a/b", "\0"),))) == []


def test_unsupported_parameters_are_dropped_with_a_note():
    kept, notes = check(spec(resources=with_parameters(GPU="1", colour="red")), POLICY)
    assert kept.resources is not None and kept.resources.backend_parameters == {"gpu": "1"}
    assert len(notes) == 1 and "colour" in notes[0]


def test_a_parameter_that_only_the_configuration_has_does_not_crash():
    policy = replace(POLICY, backend_parameters=frozenset({"made_up"}))
    kept, _ = check(spec(resources=with_parameters(made_up="1")), policy)
    assert kept.resources is not None and kept.resources.backend_parameters == {}


def test_empty_resources_request_nothing():
    kept, _ = check(spec(resources=Resources(cpu_cores=0, ram_gb=0.0, disk_gb=0)), POLICY)
    assert kept.resources == Resources()


def test_no_message_contains_a_secret_of_a_url():
    with pytest.raises(InvalidTask) as caught:
        check(spec(inputs=(input_file(url="gs://user:secret@host/x?token=secret"),)), POLICY)
    assert "secret" not in str(caught.value)


PATHS = st.sampled_from(
    ["/", "/data", "/data/", "/data/x", "/data/x/y", "/etc/x", "/x", "x", "/o/*.txt", "/o/[a]/b", "/*", "/proc/1", "/opt/a/",
     "/a//b", "/a/../b"]
) | st.text("/ax*.[?\0\ud800", max_size=8)  # fmt: skip
URLS = st.sampled_from(
    ["s3://b/k", "file:///srv/share/x", "/srv/share/x", "http://h/x", "http://[", "", "x", "s3://b/d/"]
)
TEXTS = st.text(max_size=5) | st.sampled_from(["\0", "\ud800", "=", "1", "2h", "9" * 18 + "d", "true"])
SPECS = st.builds(
    TaskSpec,
    executors=st.lists(
        st.builds(
            Executor,
            image=st.just("alpine") | TEXTS,
            command=st.lists(TEXTS, max_size=2).map(tuple),
            workdir=st.none() | PATHS,
            stdin=st.none() | PATHS,
            stdout=st.none() | PATHS,
            stderr=st.none() | PATHS,
            env=st.dictionaries(TEXTS, TEXTS, max_size=2),
        )
        | st.just(executor()),
        max_size=3,
    ).map(tuple),
    name=st.none() | TEXTS,
    inputs=st.lists(
        st.builds(
            Input,
            path=PATHS,
            url=st.none() | URLS,
            content=st.none() | TEXTS,
            type=st.none() | st.sampled_from(FileType),
        ),
        max_size=3,
    ).map(tuple),
    outputs=st.lists(
        st.builds(
            Output,
            path=PATHS,
            url=URLS,
            path_prefix=st.none() | PATHS,
            type=st.none() | st.sampled_from(FileType),
        ),
        max_size=3,
    ).map(tuple),
    resources=st.none()
    | st.builds(
        Resources,
        cpu_cores=st.none() | st.floats(),
        disk_gb=st.none() | st.floats(),
        backend_parameters=st.dictionaries(
            st.sampled_from(["gpu", "time_limit", "optional_outputs", "GPU"]) | TEXTS, TEXTS, max_size=2
        ),
        backend_parameters_strict=st.booleans(),
    ),
    volumes=st.lists(PATHS, max_size=2).map(tuple),
    tags=st.dictionaries(TEXTS, TEXTS, max_size=2),
)


@given(SPECS, st.sampled_from(["auto", *Layout]))
def test_refusals_have_a_reason_and_accepted_tasks_can_be_planned(task_spec, layout):
    policy = replace(POLICY, layout=layout)
    try:
        kept, _ = check(task_spec, policy)
    except InvalidTask as error:
        assert error.problems
        str(error).encode()
        return
    made = plan(kept, policy)
    assert made == plan(kept, policy)
    assert made.volume_bytes is None or made.volume_bytes > 0
    assert all(mount.path.startswith("/") and mount.path != "/" for mount in made.mounts)
    assert sorted(c.executor for pod in made.pods for c in pod.containers if c.executor is not None) == list(
        range(len(kept.executors))
    )
    for one in made.mounts:
        for other in made.mounts:
            assert one == other or not one.path.startswith(other.path + "/"), "a mount hides another"
    assert check(kept, policy) == (kept, ())
    tif_document(stored(kept), made)
    tof_document(stored(kept), made)
