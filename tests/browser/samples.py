"""Tasks as they are after hours of work, for pages of one task."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from poiesis.domain.history import Change, Phase
from poiesis.domain.states import Stage, State
from poiesis.domain.task import (
    Executor,
    ExecutorLog,
    Input,
    Outcome,
    Output,
    OutputFileLog,
    Resources,
    TaskId,
    TaskLog,
)
from tests.browser.site import Site

ALIGN: dict[str, Any] = {
    "description": "Aligns the reads of a sample to the reference and indexes the result.",
    "executors": (
        Executor(
            "quay.io/biocontainers/bwa-mem2:2.2.1",
            (
                "bwa-mem2",
                "mem",
                "-t",
                "8",
                "-R",
                "@RG\tID:NA12878\tSM:NA12878",
                "/ref/GRCh38.fa",
                "/in/reads_1.fq.gz",
                "/in/reads_2.fq.gz",
            ),
            stdout="/work/aligned.sam",
            env={"OMP_NUM_THREADS": "8"},
        ),
        Executor(
            "quay.io/biocontainers/samtools:1.21",
            ("samtools", "sort", "-@", "4", "-o", "/out/NA12878.bam", "/work/aligned.sam"),
        ),
        Executor("quay.io/biocontainers/samtools:1.21", ("samtools", "index", "/out/NA12878.bam"), workdir="/out"),
    ),
    "inputs": (
        Input("/ref/GRCh38.fa", "s3://references/grch38/GRCh38.fa"),
        Input("/in/reads_1.fq.gz", "https://data.example.org/NA12878/reads_1.fq.gz"),
        Input("/in/reads_2.fq.gz", "https://data.example.org/NA12878/reads_2.fq.gz"),
        Input("/in/regions.bed", content="chr1\t10000\t20000\nchr2\t5000\t9000\n"),
    ),
    "outputs": (
        Output("/out/NA12878.bam", "s3://results/run-7/NA12878.bam"),
        Output("/out/NA12878.bam.bai", "s3://results/run-7/NA12878.bam.bai"),
    ),
    "resources": Resources(cpu_cores=8, ram_gb=32, disk_gb=200, preemptible=True),
    "tags": {"project": "genomes", "run": "7", "sample": "NA12878"},
}
EARLIER = timedelta(hours=2)
STDERR = (
    "\x1b[32m[M::mem]\x1b[0m read 112,344 sequences (10000068 bp)\n"
    "\x1b[31mERROR\x1b[0m: cannot open /ref/GRCh38.fa.0123: No such file or directory\n"
)


def completed(site: Site) -> TaskId:
    """Complete after an attempt that was preempted."""
    task_id = site.create("align NA12878", **ALIGN)
    task = site.parts.repository.get(task_id)
    at = _after(task.created_at)
    outputs = (
        OutputFileLog("s3://results/run-7/NA12878.bam", "/out/NA12878.bam", 61_203_448_112),
        OutputFileLog("s3://results/run-7/NA12878.bam.bai", "/out/NA12878.bam.bai", 8_934_112),
    )
    metadata = {
        "node": "worker-17", "attempts": "2", "inputs_files": "3", "inputs_bytes": "71303168000", "inputs_seconds": "412.5",
        "outputs_files": "2", "outputs_bytes": "61212382224", "outputs_seconds": "301.2",
        "checksum:/out/NA12878.bam": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "executor_0_peak_memory_bytes": "30112345678", "executor_0_cpu_seconds": "9900", "executor_1_peak_memory_bytes": "6000000000",
        "executor_1_cpu_seconds": "2100", "executor_2_peak_memory_bytes": "90000000", "executor_2_cpu_seconds": "31",
    }  # fmt: skip
    logs = (
        ExecutorLog(0, at(3450), at(5400), "", "[M::mem] done\n"),
        ExecutorLog(0, at(5400), at(6150), "", ""),
        ExecutorLog(0, at(6150), at(6190), "", ""),
    )
    phases = (
        Phase("admitted", 1, at(240)), Phase("scheduled", 1, at(300)), Phase("inputs", 1, at(380), at(800), "ok"),
        Phase("executor 0", 1, at(800), at(2100), "failed"), Phase("cleanup", 1, at(2100), at(2140), "ok", "Preempted"),
        Phase("scheduled", 2, at(2900)), Phase("inputs", 2, at(3030), at(3445), "ok"), Phase("outputs", 2, at(6190), at(6491), "ok"),
    )  # fmt: skip
    system = (
        f"{at(2100).isoformat()} Attempt 1 failed. Preempted: the node was reclaimed",
        f"{at(2140).isoformat()} Attempt 2 starts in 2 s.",
    )
    site.change(
        task_id, state=State.COMPLETE, stage=Stage.DONE, stage_since=at(6510), wake_at=None, attempt=2, phases=phases,
        log=TaskLog(logs, outputs, metadata, at(300), at(6492), system), created_at=at(0),
        changes=4,
        history=(
            Change(1, at(0), State.QUEUED), Change(3, at(300), State.INITIALIZING), Change(5, at(800), State.RUNNING),
            Change(9, at(6492), State.COMPLETE),
        ),
    )  # fmt: skip
    return task_id


def failed(site: Site) -> TaskId:
    """Its first command failed."""
    task_id = site.create("align NA12891", **ALIGN)
    at = _after(site.parts.repository.get(task_id).created_at)
    message = "executor 0 failed with exit code 1"
    metadata = {
        "node": "worker-3", "inputs_files": "3", "inputs_bytes": "71303168000", "inputs_seconds": "412.5",
        "failure_reason": "ExecutorFailed", "failure_message": message,
        "executor_0_peak_memory_bytes": "412345678", "executor_0_cpu_seconds": "1.9",
    }  # fmt: skip
    phases = (Phase("scheduled", 1, at(31)), Phase("inputs", 1, at(44), at(457), "ok"))
    log = TaskLog(
        (ExecutorLog(1, at(457), at(461), "", STDERR),),
        (),
        metadata,
        at(31),
        at(463),
        (f"{at(463).isoformat()} ExecutorFailed: {message}",),
    )
    site.change(
        task_id, state=State.EXECUTOR_ERROR, stage=Stage.DONE, stage_since=at(470), wake_at=None, phases=phases, log=log,
        outcome=Outcome(State.EXECUTOR_ERROR, "ExecutorFailed", message), created_at=at(0),
    )  # fmt: skip
    return task_id


def waiting(site: Site) -> TaskId:
    """For room on a node."""
    task_id = site.create("align NA12892", **ALIGN)
    task = site.parts.repository.get(task_id)
    why = "NodesBusy: waiting for room on a node: 0/12 nodes are available: 9 Insufficient memory, 3 node(s) had an untolerated taint"
    site.change(task_id, stage=Stage.RUN, part="task", waiting=why, waiting_since=task.created_at)
    return task_id


def _after(begin: datetime) -> Any:
    return lambda seconds: begin - EARLIER + timedelta(seconds=seconds)
