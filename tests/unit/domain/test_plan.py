"""Layouts and mounts, for small tasks and for those that real clients send."""

from dataclasses import replace

import pytest

from poiesis.domain.plan import Layout, Mount, belongs_to_image, plan
from poiesis.domain.policy import GIGABYTE, Policy
from poiesis.domain.staging import tif_document, tof_document
from poiesis.domain.task import FileType, Input, Output, Resources
from tests.unit.domain.samples import (
    FILES,
    GPUS,
    ID,
    POLICY,
    SMALL,
    executor,
    input_file,
    output_file,
    spec,
    stored,
    with_parameters,
)  # fmt: skip

DIRECTORY, FILE = FileType.DIRECTORY, FileType.FILE


def parts(task_spec, policy=POLICY) -> list[tuple[str, tuple[str, ...]]]:
    return [(pod.part, pod.names) for pod in plan(task_spec, policy).pods]


def mounts(task_spec) -> dict[str, bool]:
    made = plan(task_spec, POLICY).mounts
    assert all(mount.sub_path == f"root{mount.path}" for mount in made)
    return {mount.path: mount.is_file for mount in made}


@pytest.mark.parametrize(
    ("task_spec", "layout", "expected"),
    [
        (SMALL, "auto", [("task", ("executor-0",))]),
        (spec(2), "auto", [("task", ("executor-0", "executor-1"))]),
        (FILES, "auto", [("task", ("tif", "executor-0", "tof"))]),
        (spec(outputs=(output_file(),)), "auto", [("task", ("executor-0", "tof"))]),
        (spec(inputs=(input_file("/etc/x.conf"),)), "auto", [("task", ("tif", "executor-0"))]),
        (GPUS, "auto", [("tif", ("tif",)), ("executor-0", ("executor-0",)), ("executor-1", ("executor-1",)),
                        ("tof", ("tof",))]),
        (spec(resources=with_parameters(gpu="1")), "auto", [("task", ("executor-0",))]),
        (spec(2, resources=with_parameters(gpu="1")), "auto", [("executor-0", ("executor-0",)),
                                                               ("executor-1", ("executor-1",))]),
        (spec(2, inputs=(input_file(),)), "staged", [("tif", ("tif",)), ("executors", ("executor-0", "executor-1"))]),
        (SMALL, "staged", [("executors", ("executor-0",))]),
        (spec(resources=with_parameters(gpu="0"), outputs=(output_file(),)), "auto", [("task", ("executor-0", "tof"))]),
    ],
)  # fmt: skip
def test_the_layout_has_these_pods(task_spec, layout, expected):
    assert parts(task_spec, replace(POLICY, layout=layout)) == expected


def test_containers_take_turns_and_the_first_waits_until_all_have_started():
    tif, first, second, tof = plan(spec(2, inputs=(input_file(),), outputs=(output_file(),)), POLICY).pods[0].containers
    assert (tif.waits_up, tif.waits_for) == ((), ())
    assert (first.waits_up, first.waits_for) == (("executor-1",), ("tif",))  # TOF has TIF's image
    assert (second.waits_up, second.waits_for, second.executor) == ((), ("executor-0",), 1)
    assert (tof.waits_for, tof.always) == (("executor-1",), True)


def test_without_tif_the_first_executor_waits_for_tof_too():
    first, second, _ = plan(spec(2, outputs=(output_file(),)), POLICY).pods[0].containers
    assert (first.waits_up, second.waits_up) == (("executor-1", "tof"), ())


def test_files_that_must_exist_first_are_created_by_an_init_container():
    made = plan(spec(inputs=(input_file("/opt/ref.fa"),), outputs=(output_file("/home/user/out.txt"),)), POLICY)
    assert [c.name for c in made.pods[0].init] == ["tif"]
    assert made.pods[0].containers[0].waits_for == ()
    assert made.touched == ("/home/user/out.txt",)


@pytest.mark.parametrize(
    ("path", "mount", "is_file"),
    [
        ("/data/in.txt", "/data", False),
        ("/in.txt", "/in.txt", True),
        ("/etc/app.conf", "/etc/app.conf", True),
        ("/opt/tool/ref.fa", "/opt/tool/ref.fa", True),
        ("/home/user/x", "/home/user/x", True),
        ("/var/lib/x", "/var/lib/x", True),
        ("/var/tmp/x", "/var/tmp", False),
        ("/tmp/x", "/tmp", False),
        ("/mnt/data/x", "/mnt/data", False),
        ("/mnt/x", "/mnt/x", True),
        ("/data/a/b/c", "/data/a/b", False),
    ],
)
def test_a_file_shows_by_its_directory_or_where_images_have_files_by_itself(path, mount, is_file):
    assert mounts(spec(inputs=(input_file(path),))) == {mount: is_file}
    assert plan(spec(inputs=(input_file(path),)), POLICY).touched == ()
    assert mounts(spec(executors=(executor(stdout=path),))) == {mount: is_file}


@pytest.mark.parametrize(
    ("item", "mount"),
    [
        (input_file("/data/dir", type=DIRECTORY), "/data"),
        (input_file("/data", type=DIRECTORY), "/data"),
        (input_file("/data/dir/", "s3://b/dir/"), "/data"),
        (input_file("/opt/ref", type=DIRECTORY), "/opt/ref"),
        (input_file("/data/x", "s3://b/dir/"), "/data"),
    ],
)
def test_a_directory_is_mounted_where_it_hides_nothing(item, mount):
    assert mounts(spec(inputs=(item,))) == {mount: False}


def test_an_http_url_that_ends_in_a_slash_is_that_of_a_file():
    assert mounts(spec(inputs=(input_file("/opt/x", "HTTPS://h/files/7/content/"),))) == {"/opt/x": True}
    assert mounts(spec(inputs=(input_file("/opt/x", "https://h/d/", type=DIRECTORY),))) == {"/opt/x": False}


def test_mounts_below_others_collapse_and_all_directories_are_made():
    task_spec = spec(
        executors=(executor(stdout="/work/logs/out.txt", stderr="/work/err.txt"),),
        inputs=(input_file("/work/in/a/b.txt"),),
        volumes=("/work/scratch/", "/workspace"),
    )
    made = plan(task_spec, POLICY)
    assert made.mounts == (Mount("/work", "root/work"), Mount("/workspace", "root/workspace"))
    assert made.directories == ("/work", "/work/in/a", "/work/logs", "/work/scratch", "/workspace")


def test_declared_directories_and_those_above_patterns_exist_before_the_first_command():
    made = plan(
        spec(
            outputs=(
                output_file("/out/d", type=DIRECTORY),
                output_file("/out/e/", "s3://b/e/"),
                output_file("/out/result", "s3://b/f/"),  # most likely a file: only its URL ends in a slash
                output_file("/opt/g", type=DIRECTORY),
                output_file("/logs/x/*.txt", path_prefix="/logs"),
                output_file("/runs/{a,b}/x.txt", type=DIRECTORY),
                output_file("/s\\[1\\]/a\\*b", type=DIRECTORY),
            )
        ),
        POLICY,
    )
    assert made.directories == ("/logs/x", "/opt/g", "/out", "/out/d", "/out/e", "/runs", "/s[1]", "/s[1]/a*b")
    assert [m.path for m in made.mounts] == ["/logs/x", "/opt/g", "/out", "/runs", "/s[1]"]


def test_of_many_directories_the_top_level_ones_are_mounted():
    inputs = tuple(input_file(f"/data/{i}/x") for i in range(200))
    made = plan(
        spec(inputs=(*inputs, input_file("/opt/x"), input_file("/srv/d", type=DIRECTORY)), volumes=("/v/a",)), POLICY
    )
    assert {m.path: m.is_file for m in made.mounts} == {"/data": False, "/srv/d": False, "/v": False, "/opt/x": True}
    assert set(made.directories) >= {"/data/0", "/data/199", "/srv/d", "/v/a"}


def test_more_directories_than_fit_into_a_command_line_are_made_by_tif():
    outputs = tuple(output_file(f"/out/{i}/x", f"s3://b/{i}") for i in range(1000))
    assert [pod.names for pod in plan(spec(outputs=outputs[:100]), POLICY).pods] == [("executor-0", "tof")]
    assert [pod.names for pod in plan(spec(outputs=outputs), POLICY).pods] == [("tif", "executor-0", "tof")]


def test_a_file_mount_below_a_mounted_directory_is_not_mounted_separately():
    made = plan(spec(volumes=("/opt/tool",), outputs=(output_file("/opt/tool/out.txt"),)), POLICY)
    assert (made.mounts, made.touched) == ((Mount("/opt/tool", "root/opt/tool"),), ())


def test_a_file_that_is_input_and_output_is_not_touched():
    made = plan(spec(inputs=(input_file("/etc/x"),), outputs=(output_file("/etc/x"),)), POLICY)
    assert (made.touched, [m.path for m in made.mounts]) == ((), ["/etc/x"])


@pytest.mark.parametrize("workdir", ["/work", "/work/", "/tmp", "/var/tmp/run", "/scratch/a/b"])
def test_a_working_directory_outside_all_paths_belongs_to_the_task(workdir):
    """On the volume if there is one; an unprivileged user can write there."""
    alone = plan(spec(executors=(executor(workdir=workdir),)), POLICY)
    path = workdir.rstrip("/")
    assert (alone.scratch, alone.mounts, alone.volume_bytes, alone.has_filers) == ((path,), (), None, False)
    beside = plan(spec(executors=(executor(workdir=workdir),), inputs=(input_file("/data/in"),)), POLICY)
    assert (beside.scratch, [m.path for m in beside.mounts]) == ((), sorted(["/data", path]))
    assert path in beside.directories
    with_disk = plan(spec(executors=(executor(workdir=workdir),), resources=Resources(disk_gb=1)), POLICY)
    assert (with_disk.scratch, [m.path for m in with_disk.mounts]) == ((), [path])


@pytest.mark.parametrize("workdir", ["/app", "/opt/tool", "/usr/src/app", "/home/user", "/worker", "/var/lib/x", "/"])
def test_a_working_directory_that_may_belong_to_the_image_is_not_mounted(workdir):
    assert plan(spec(executors=(executor(workdir=workdir),)), POLICY).scratch == ()
    made = plan(spec(executors=(executor(workdir=workdir),), inputs=(input_file("/data/in"),)), POLICY)
    assert [m.path for m in made.mounts] == ["/data"]


def test_a_working_directory_below_a_path_needs_no_separate_mount():
    made = plan(spec(executors=(executor(workdir="/work/a"),), inputs=(input_file("/work/in"),)), POLICY)
    assert (made.scratch, [m.path for m in made.mounts], made.directories) == ((), ["/work"], ("/work",))
    assert plan(spec(executors=(executor(workdir="/work"),), volumes=("/work/v",)), POLICY).mounts == (
        Mount("/work", "root/work"),
    )


def test_nested_working_directories_of_several_executors_are_one():
    several = tuple(executor(workdir=w) for w in ("/work/a", "/work", "/tmp/x"))
    assert plan(spec(executors=several), POLICY).scratch == ("/tmp/x", "/work")


NEXTFLOW = spec(
    executors=(executor(workdir="/work", command=("/bin/bash", "/work/.command.run")),),
    inputs=(Input("/work/.command.sh", "s3://b/w/.command.sh", type=FILE),
            Input("/work/ref", "s3://b/ref", type=DIRECTORY)),
    outputs=(Output("/work/.exitcode", "s3://b/w/.exitcode"), Output("/work/.command.out", "s3://b/w/.command.out"),
             Output("/work/*.bam", "s3://b/w/", path_prefix="/work"), Output("/work/{a,b}.txt", "s3://b/w/{a,b}.txt"),
             Output("/work/out?/x[12]", "s3://b/w/", path_prefix="/work")),
)  # fmt: skip
SNAKEMAKE = spec(
    executors=(executor(workdir="/tmp", command=("/bin/sh", "/tmp/run.sh")),),
    inputs=(Input("/tmp/run.sh", content="true"), Input("/tmp/data/a.txt", "file:///srv/share/a.txt")),
    outputs=(Output("/tmp/data/b.txt", "file:///srv/share/b.txt"),),
)
CWL = spec(
    executors=(executor(workdir="/var/spool/cwl", stdin="/var/lib/cwl/in.txt", stdout="/var/spool/cwl/out.txt"),),
    inputs=(Input("/var/lib/cwl/in.txt", "s3://b/in.txt", type=FILE),),
    outputs=(Output("/var/spool/cwl", "s3://b/out", type=DIRECTORY),),
)
PULSAR = spec(3, volumes=("/pulsar/staging",), resources=Resources(disk_gb=1.5))


def test_nextflow_works_in_its_own_directory():
    assert mounts(NEXTFLOW) == {"/work": False}
    assert parts(NEXTFLOW) == [("task", ("tif", "executor-0", "tof"))]


def test_snakemake_works_in_tmp():
    made = plan(SNAKEMAKE, POLICY)
    assert [m.path for m in made.mounts] == ["/tmp"]
    assert made.directories == ("/tmp", "/tmp/data")


def test_cwl_tes_gets_its_workdir_back_as_a_directory():
    found = mounts(CWL)
    assert found == {"/var/lib/cwl/in.txt": True, "/var/spool/cwl": False}
    assert plan(CWL, POLICY).touched == ()


def test_pulsar_shares_a_volume_between_three_executors():
    made = plan(PULSAR, POLICY)
    assert mounts(PULSAR) == {"/pulsar/staging": False}
    assert made.volume_bytes == 1_500_000_000
    assert made.pods[0].names == ("executor-0", "executor-1", "executor-2")


@pytest.mark.parametrize(
    ("resources", "volume_bytes"),
    [(None, None), (Resources(disk_gb=2.0000000001), 2 * GIGABYTE + 1), (Resources(cpu_cores=1), None)],
)
def test_a_task_without_files_has_a_volume_only_on_request(resources, volume_bytes):
    assert plan(spec(resources=resources), POLICY).volume_bytes == volume_bytes
    assert plan(FILES, POLICY).volume_bytes == POLICY.default_disk_bytes


def test_what_belongs_to_the_image():
    assert all(belongs_to_image(d) for d in ("/", "/etc", "/usr/local/bin", "/opt", "/home/user", "/var/lib"))
    assert not any(belongs_to_image(d) for d in ("/data", "/tmp", "/var/tmp", "/var/tmp/x", "/etcetera", "/mnt/data"))


def test_a_forced_layout_is_kept():
    assert plan(GPUS, replace(POLICY, layout="single")).layout is Layout.SINGLE
    assert plan(SMALL, replace(POLICY, layout="staged")).layout is Layout.STAGED


def test_the_filers_documents_have_only_their_part_of_the_task():
    task = stored(
        spec(
            inputs=(input_file(type=FILE), Input("/data/c", content="text")),
            outputs=(output_file("/etc/out", path_prefix="/etc"),),
            resources=with_parameters(optional_outputs="true"),
        ),
        owner="ada",
    )
    made = plan(task.spec, POLICY)
    assert tif_document(task, made) == {
        "v": 1, "task_id": ID, "directories": ["/data"], "touched": ["/etc/out"],
        "inputs": [{"path": "/data/in.txt", "url": "s3://bucket/in.txt", "content": None, "type": "FILE"},
                   {"path": "/data/c", "url": None, "content": "text", "type": None}],
    }  # fmt: skip
    assert tof_document(task, made) == {
        "v": 1, "task_id": ID, "optional": True, "touched": ["/etc/out"],
        "outputs": [{"path": "/etc/out", "url": "s3://bucket/out.txt", "path_prefix": "/etc", "type": None}],
    }  # fmt: skip


def test_equal_inputs_and_outputs_are_staged_once():
    item, other = input_file("/data/a"), input_file("/data/b")
    task = stored(spec(inputs=(item, other, replace(item, path="/data/a/")), outputs=(output_file(), output_file())))
    made = plan(task.spec, POLICY)
    assert [i["path"] for i in tif_document(task, made)["inputs"]] == ["/data/a", "/data/b"]
    assert len(tof_document(task, made)["outputs"]) == 1


@pytest.mark.parametrize("streamable", [True, False])
def test_a_streamable_input_is_staged_as_any_other(streamable):  # I8
    task, other = (stored(spec(inputs=(input_file(streamable=said),))) for said in (streamable, None))
    made = plan(task.spec, POLICY)
    assert made == plan(other.spec, POLICY)
    assert tif_document(task, made) == tif_document(other, made)


def test_an_upload_that_sends_credentials_unencrypted_gets_its_own_pod():
    policy = Policy(exposes_credentials=lambda urls: any(url.startswith("ftp://") for url in urls))
    by_ftp = replace(output_file(), url="ftp://user:password@host/out")
    assert plan(spec(inputs=(input_file(),), outputs=(output_file(),)), policy).layout is Layout.SINGLE
    assert plan(spec(inputs=(input_file(),), outputs=(output_file(), by_ftp)), policy).layout is Layout.STAGED
    assert plan(spec(outputs=(by_ftp,)), replace(policy, layout="single")).layout is Layout.SINGLE, "the filer refuses"
    first = replace(input_file(), url="ftp://user:password@host/in")
    assert plan(spec(inputs=(first,)), policy).layout is Layout.SINGLE, "inputs are staged before any command runs"
