"""Requests of workflow engines, until the end of the task: py-tes itself, the others with the documents that they post, with fewer cores so
that small clusters can run them in parallel."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import requests
import tes

from tests.e2e.conftest import Json
from tests.e2e.site import BUSYBOX, Site, codes, one_log, posted

STRICT = {
    "Task": {
        *("id", "state", "name", "description", "inputs", "outputs", "resources", "executors", "volumes", "tags"),
        *("logs", "creation_time"),
    },
    "TaskLog": {"logs", "metadata", "start_time", "end_time", "outputs", "system_logs"},
    "ExecutorLog": {"start_time", "end_time", "stdout", "stderr", "exit_code"},
    "Output": {"url", "path", "size_bytes"},
}


def assert_strict(task: Json) -> None:
    """Only keys of TES 1.1, with the types that strict readers require."""
    assert set(task) <= STRICT["Task"]
    for log in task["logs"]:
        assert set(log) <= STRICT["TaskLog"]
        assert all(isinstance(v, str) for v in log["metadata"].values())
        for entry in log["logs"]:
            assert set(entry) <= STRICT["ExecutorLog"]
            assert isinstance(entry["exit_code"], int)
        for output in log["outputs"]:
            assert set(output) == STRICT["Output"]
            assert isinstance(output["size_bytes"], str)
    cores = task.get("resources", {}).get("cpu_cores")
    assert cores is None or isinstance(cores, int)


def test_py_tes_creates_waits_reads_lists_and_cancels(site: Site):
    client = tes.HTTPClient(site.service.url)
    assert client.get_service_info().type["artifact"] == "tes"
    task_id = client.create_task(
        tes.Task(
            name="by py-tes",
            inputs=[tes.Input(content="in\n", path="/data/in")],
            outputs=[tes.Output(url=site.url("pytes/out"), path="/data/out", type="FILE")],
            resources=tes.Resources(ram_gb=0.1, disk_gb=0.1),
            executors=[
                tes.Executor(image=BUSYBOX, command=["sh", "-c", "cat /data/in | tee /data/out; echo e >&2"]),
            ],
            tags={"client": site.run},
        )
    )
    assert client.wait(task_id, timeout=timedelta(minutes=4).total_seconds()).state == "COMPLETE"
    task = client.get_task(task_id, "FULL")
    (log,) = task.logs
    assert [(e.exit_code, e.stdout, e.stderr) for e in log.logs] == [(0, "in\n", "e\n")]
    assert [(o.url, o.size_bytes) for o in log.outputs] == [(site.url("pytes/out"), 3)]
    assert log.start_time <= log.logs[0].start_time <= log.logs[0].end_time <= log.end_time
    assert site.got("pytes/out") == b"in\n"
    assert task_id in [t.id for t in client.list_tasks("MINIMAL").tasks]
    client.cancel_task(task_id)
    assert client.get_task(task_id).state == "COMPLETE"
    long = client.create_task(tes.Task(executors=[tes.Executor(image=BUSYBOX, command=["sleep", "600"])]))
    client.cancel_task(long)
    assert client.get_task(long).state in ("CANCELING", "CANCELED")
    site.wait(long, ("CANCELED",), 60)
    with pytest.raises(requests.HTTPError, match="404"):
        client.cancel_task("nothing")


NEXTFLOW_RUN = (
    "set -e; cd /work; cat in.txt > a.bam; cp in.txt b.bam; mkdir results; echo deep > results/x; echo out; echo err >&2; "
    "printf 0 > .exitcode"
)


def nextflow(site: Site, prefix: str, run: str) -> Json:
    """One bash executor in /work; scripts staged, control files and declared outputs stored, directories as FILE."""
    base = site.url(prefix)
    return {
        "name": "nf-task",
        "resources": {"cpu_cores": 0.1, "ram_gb": 0.244140625, "disk_gb": 0.5, "preemptible": False},
        "inputs": [
            {"url": site.put(f"{prefix}/.command.sh", run.encode()), "path": "/work/.command.sh", "type": "FILE"},
            {"url": site.put(f"{prefix}/in.txt", b"reads\n"), "path": "/work/in.txt", "type": "FILE"},
        ],
        "outputs": [
            {"path": "/work/.command.out", "url": f"{base}/.command.out", "type": "FILE"},
            {"path": "/work/.command.err", "url": f"{base}/.command.err", "type": "FILE"},
            {"path": "/work/.exitcode", "url": f"{base}/.exitcode", "type": "FILE"},
            {"path": "/work/*.bam", "path_prefix": "/work", "url": base},
            {"path": "/work/results", "url": f"{base}/results", "type": "FILE"},
        ],
        "executors": [
            {
                "image": BUSYBOX,
                "command": ["sh", "-c", "sh /work/.command.sh > /work/.command.out 2> /work/.command.err"],
                "workdir": "/work",
            }
        ],
    }


@posted(lambda site: nextflow(site, "nf", NEXTFLOW_RUN))
def test_nextflow_gets_its_control_files_globs_and_directories(site: Site, task: str):
    found = site.complete(task)
    assert_strict(found)
    assert codes(found) == [0]
    stored = site.keys("nf/")
    assert {".command.out", ".command.err", ".exitcode", "a.bam", "b.bam", "results/x"} <= set(stored)
    assert site.got("nf/a.bam") == b"reads\n"


@posted(lambda site: nextflow(site, "nf-failed", "echo out; printf 3 > /work/.exitcode; exit 3"))
def test_nextflow_gets_its_control_files_after_an_error_too(site: Site, task: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert codes(found) == [3], "it reads logs[0].logs[0].exit_code"
    assert site.got("nf-failed/.exitcode") == b"3"
    assert site.got("nf-failed/.command.out") == b"out\n"


def snakemake(site: Site) -> Json:
    script = "set -e\ncat /tmp/data/in.txt > /tmp/results.txt\necho did > /tmp/log.txt\n"
    return {
        "name": "snakejob",
        "inputs": [
            {"content": script, "path": "/tmp/run_snakemake.sh", "type": "FILE", "name": "script"},
            {"url": site.put("smk/in.txt", b"sample\n"), "path": "/tmp/data/in.txt", "type": "FILE"},
        ],
        "outputs": [
            {"path": "/tmp/results.txt", "url": site.url("smk/results.txt"), "type": "FILE"},
            {"path": "/tmp/log.txt", "url": site.url("smk/log.txt"), "type": "FILE"},
        ],
        "resources": {"cpu_cores": 0.1, "ram_gb": 0.2, "disk_gb": 0.1},
        "executors": [
            {
                "image": BUSYBOX,
                "command": ["sh", "/tmp/run_snakemake.sh"],
                "workdir": "/tmp",
                "env": {"CONDA_PKGS_DIRS": "/tmp/conda"},
            }
        ],
    }


@posted(snakemake)
def test_snakemake_works_in_tmp(site: Site, task: str):
    assert_strict(site.complete(task))
    assert (site.got("smk/results.txt"), site.got("smk/log.txt")) == (b"sample\n", b"did\n")


def cwl_tes(site: Site) -> Json:
    return {
        "name": "step1",
        "description": "cwl",
        "tags": {"CWLDocumentId": "file:///workflow.cwl"},
        "resources": {"cpu_cores": 0.1, "ram_gb": 0.26843545600000003, "disk_gb": 2.0004882812499997},
        "inputs": [
            {"content": "line b\nline a\n", "path": "/var/lib/cwl/stg1/in.txt", "type": "FILE", "name": "x"},
        ],
        "outputs": [{"path": "/var/spool/cwl", "url": site.url("cwl/out"), "type": "DIRECTORY", "name": "workdir"}],
        "executors": [
            {
                "image": BUSYBOX,
                "command": [
                    "sh",
                    "-c",
                    "sort; echo here > here.txt; mkdir -p sub; echo $HOME $TMPDIR > sub/env; exit 33",
                ],
                "workdir": "/var/spool/cwl",
                "stdin": "/var/lib/cwl/stg1/in.txt",
                "stdout": "/var/spool/cwl/sorted.txt",
                "stderr": "/var/spool/cwl/err.txt",
                "env": {"HOME": "/var/spool/cwl", "TMPDIR": "/tmp"},
            }
        ],
    }


@posted(cwl_tes)
def test_cwl_tes_gets_its_workdir_and_the_exit_code_also_when_it_is_an_error(site: Site, task: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert_strict(found)
    assert found["logs"][-1]["logs"][-1]["exit_code"] == 33
    assert site.got("cwl/out/sorted.txt") == b"line a\nline b\n"
    assert site.got("cwl/out/sub/env") == b"/var/spool/cwl /tmp\n"
    assert site.keys("cwl/out/").keys() >= {"here.txt", "err.txt", "sub/env", "sorted.txt"}


@posted(
    lambda site: {
        "name": "toil",
        "resources": {"cpu_cores": 0.1, "ram_gb": 0.11811160064, "disk_gb": 0.5, "preemptible": True},
        "volumes": ["/var/lib/toil"],
        "executors": [
            {
                "image": BUSYBOX,
                "command": ["sh", "-c", "cd /var/lib/toil && echo $TOIL_WORKDIR > f && cat f; echo log >&2; exit 5"],
                "env": {"TOIL_WORKDIR": "/var/lib/toil"},
            }
        ],
    }
)
def test_toil_reads_the_last_exit_code_and_stderr(site: Site, task: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert_strict(found)
    ended = [entry for log in reversed(found["logs"]) for entry in reversed(log["logs"])]
    assert (ended[0]["exit_code"], ended[0]["stderr"]) == (5, "log\n")
    assert all(t.endswith("+00:00") for t in (found["creation_time"], ended[0]["start_time"], ended[0]["end_time"]))


def pulsar(site: Site) -> Json:
    """Explicit nulls for all that is unset; three executors over one volume; workdir `/`."""
    unset: Json = dict.fromkeys(("stdin", "stdout", "stderr", "ignore_error"))
    scripts = ["echo staged > /pulsar/in", "tr a-z A-Z < /pulsar/in > /pulsar/out", "cat /pulsar/out"]
    return {
        **dict.fromkeys(("id", "state", "description", "logs", "creation_time", "tags", "outputs")),
        "name": "galaxy",
        "inputs": [
            {
                **dict.fromkeys(("name", "description", "url", "streamable")),
                "path": "/pulsar/job.json",
                "type": "FILE",
                "content": "{}",
            }
        ],
        "volumes": ["/pulsar"],
        "resources": {
            "cpu_cores": 1,
            **dict.fromkeys(("ram_gb", "disk_gb", "preemptible", "zones", "backend_parameters")),
        },
        "executors": [
            {"image": BUSYBOX, "command": ["sh", "-c", script], "workdir": "/", "env": {"A": None}, **unset}
            for script in scripts
        ],
    }


@posted(pulsar)
def test_pulsar_sends_nulls_and_shares_a_volume(site: Site, task: str):
    found = site.complete(task)
    assert_strict(found)
    assert (codes(found), one_log(found)["logs"][2]["stdout"]) == ([0, 0, 0], "STAGED\n")
    assert found["outputs"] == []


def cromwell(site: Site) -> Json:
    root = "/cromwell-executions/wf/call-x"
    return {
        "name": "wf.x",
        "description": None,
        "tags": {"workflow": "1", "parent": None},
        "volumes": None,
        "resources": {
            **{"cpu_cores": 0.1, "ram_gb": 0.1, "disk_gb": 10.0, "preemptible": True},
            **{"backend_parameters": {"a": None, "unknown": "x"}, "backend_parameters_strict": False},
        },
        "inputs": [
            {
                "content": "#!/bin/sh\necho ran\nmkdir -p $PWD/glob\necho g > glob/1\n",
                "path": f"{root}/execution/script",
            }
        ],
        "outputs": [
            {"path": f"{root}/execution/stdout", "url": site.url("cromwell/stdout"), "type": "FILE"},
            {"path": f"{root}/execution/stderr", "url": site.url("cromwell/stderr"), "type": "FILE"},
            {"path": f"{root}/execution/glob/", "url": site.url("cromwell/glob/"), "type": "DIRECTORY"},
        ],
        "executors": [
            {
                **{
                    "image": BUSYBOX,
                    "command": ["/bin/sh", f"{root}/execution/script"],
                    "workdir": f"{root}/execution",
                },
                **{
                    "stdout": f"{root}/execution/stdout",
                    "stderr": f"{root}/execution/stderr",
                    "stdin": None,
                    "env": {},
                },
            }
        ],
    }


@posted(cromwell)
def test_cromwell_gets_streams_and_directories(site: Site, task: str):
    found: dict[str, Any] = site.complete(task)
    assert_strict(found)
    assert site.keys("cromwell/") == {"stdout": 4, "stderr": 0, "glob/1": 2}
    assert any("unknown" in line for line in one_log(found)["system_logs"]), "dropped parameters are listed"
