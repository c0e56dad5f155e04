"""Tasks as known clients send them, run to their end, and responses read as those clients read them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import tes

from tests.integration.embedded.service import TERMINAL, Document, Service, eventually, request, sh


def post(service: Service, document: Document, prefix: str = "/v1") -> str:
    answer = request("POST", f"{service.url}{prefix}/tasks", document)
    assert answer.status == 200, answer.text
    return str(answer.document["id"])


def get(service: Service, task_id: str, view: str = "FULL") -> Document:
    return dict(request("GET", f"{service.url}/v1/tasks/{task_id}?view={view}").document)


def end_of(service: Service, task_id: str) -> Document:
    eventually(lambda: get(service, task_id, "MINIMAL")["state"] in TERMINAL, "the end")
    return get(service, task_id)


def test_py_tes_runs_a_task_and_reads_everything_of_it(service: Service, files: Path) -> None:
    client = tes.HTTPClient(service.url)
    assert client.get_service_info().type["artifact"] == "tes"
    task_id = client.create_task(
        tes.Task(
            name="py-tes",
            inputs=[tes.Input(content="a\n", path="/data/in")],
            outputs=[tes.Output(url=f"file://{files}/out", path="/data/out")],
            executors=[
                tes.Executor(image="alpine", command=["cat", "/data/in"], stdout="/data/out", env={"A": "b"}),
                tes.Executor(image="alpine", command=["sh", "-c", "echo words >&2; exit 7"]),
            ],
            resources=tes.Resources(cpu_cores=1, ram_gb=0.5),
            tags={"k": "v"},
        )
    )
    assert client.wait(task_id, timeout=60).state == "EXECUTOR_ERROR"
    task = client.get_task(task_id, "FULL")
    log = task.logs[-1]
    assert [entry.exit_code for entry in log.logs] == [0, 7] and log.logs[-1].stderr == "words\n"
    assert log.logs[0].start_time.tzinfo is not None and log.end_time >= log.start_time
    assert [(o.path, o.size_bytes) for o in log.outputs] == [("/data/out", 2)]
    assert (files / "out").read_text() == "a\n"
    assert task.creation_time is not None and task.tags == {"k": "v"}
    assert client.list_tasks(view="MINIMAL", page_size=1).tasks[0].id == task_id
    client.cancel_task(task_id)
    assert client.get_task(task_id).state == "EXECUTOR_ERROR"


def test_nextflow(service: Service, files: Path) -> None:
    """A script in /work with its streams, exit code and globs as outputs; braces and brackets are unescaped, directories are FILE."""
    run = (
        "echo log; echo complaint >&2; mkdir res; echo 1 > res/a; echo b > x.bam; echo '[' > 'y[1].txt'; echo 0 > .exitcode; "
        "cp .command.run .command.log"
    )
    declared = [".command.out", ".command.err", ".command.log", ".exitcode", "res", "y[1].txt"]
    task = end_of(
        service,
        post(
            service,
            {
                "name": "nf-step",
                "resources": {"cpu_cores": 1, "ram_gb": 0.5859375, "disk_gb": 1.25},
                "inputs": [
                    {"path": "/work/.command.run", "content": run, "type": "FILE"},
                    {"path": "/work/.command.sh", "content": "true", "type": "FILE"},
                ],
                "outputs": [
                    *({"path": f"/work/{n}", "url": f"file://{files}/{n}", "type": "FILE"} for n in declared),
                    {"path": "/work/*.bam", "path_prefix": "/work", "url": f"file://{files}"},
                ],
                "executors": [
                    {
                        "image": "alpine",
                        "command": ["/bin/bash", "-c", "bash .command.run"],
                        "workdir": "/work",
                        "stdout": "/work/.command.out",
                        "stderr": "/work/.command.err",
                    }
                ],
            },
        ),
    )
    assert task["state"] == "COMPLETE", task["logs"]
    assert task["logs"][0]["logs"][0]["exit_code"] == 0
    found = {str(p.relative_to(files)): p.read_text() for p in files.rglob("*") if p.is_file()}
    assert found == {
        ".command.out": "log\n",
        ".command.err": "complaint\n",
        ".command.log": run,
        ".exitcode": "0\n",
        "res/a": "1\n",
        "x.bam": "b\n",
        "y[1].txt": "[\n",
    }


def test_snakemake(service: Service, files: Path) -> None:
    """A script as content and file URLs below /tmp, which is the working directory too."""
    (files / "in.txt").write_text("input\n")
    client = tes.HTTPClient(service.url)
    task_id = client.create_task(
        tes.Task(
            name="snakejob",
            inputs=[
                tes.Input(content="mkdir -p results; tr a-z A-Z < data/in.txt > results/out.txt\n", path="/tmp/run.sh"),
                tes.Input(url=f"file://{files}/in.txt", path="/tmp/data/in.txt"),
            ],
            outputs=[tes.Output(url=f"file://{files}/out.txt", path="/tmp/results/out.txt")],
            executors=[tes.Executor(image="alpine", command=["/bin/sh", "/tmp/run.sh"], workdir="/tmp")],
        )
    )
    eventually(lambda: client.get_task(task_id, view="MINIMAL").state == "COMPLETE", "COMPLETE")
    assert (files / "out.txt").read_text() == "INPUT\n"


def test_cwl_tes(service: Service, files: Path) -> None:
    """The whole working directory is uploaded, also after a failure; success codes are derived from the exit code."""
    client = tes.HTTPClient(service.url)
    task_id = client.create_task(
        tes.Task(
            name="cwl",
            inputs=[tes.Input(content="x", path="/var/lib/cwl/stg1/in.txt", type="FILE")],
            outputs=[tes.Output(url=f"file://{files}/work", path="/home/cwl/job", type="DIRECTORY")],
            executors=[
                tes.Executor(
                    image="alpine",
                    command=["sh", "-c", 'cat > copied; echo "$HOME $TMPDIR"; touch "$TMPDIR/t"; exit 3'],
                    workdir="/home/cwl/job",
                    stdin="/var/lib/cwl/stg1/in.txt",
                    stdout="/home/cwl/job/out.txt",
                    stderr="/home/cwl/job/err.txt",
                    env={"HOME": "/home/cwl/job", "TMPDIR": "/tmp"},
                )
            ],
            resources=tes.Resources(cpu_cores=1, ram_gb=0.2685546875, disk_gb=2.00048828125),
        )
    )
    assert client.wait(task_id, timeout=60).state == "EXECUTOR_ERROR"
    assert client.get_task(task_id, "FULL").logs[-1].logs[-1].exit_code == 3
    found = {p.name: p.read_text() for p in (files / "work").iterdir()}
    assert found == {"copied": "x", "out.txt": "/home/cwl/job /tmp\n", "err.txt": ""}


def test_toil(service: Service) -> None:
    """Reads the storage, all states, and the last exit code; cancels ended tasks."""
    client = tes.HTTPClient(service.url)
    assert any(place.startswith("file://") for place in client.get_service_info().storage)
    ids = [
        client.create_task(
            tes.Task(
                name="toil",
                executors=[
                    tes.Executor(image="alpine", command=["sh", "-c", f"echo why >&2; exit {code}"], env={"A": "1"})
                ],
                resources=tes.Resources(cpu_cores=1, ram_gb=0.125, disk_gb=0.5, preemptible=True),
            )
        )
        for code in (0, 5)
    ]
    for task_id in ids:
        client.wait(task_id, timeout=60)
    states = {t.id: t.state for t in client.list_tasks(view="MINIMAL", page_size=10).tasks}
    assert [states[i] for i in ids] == ["COMPLETE", "EXECUTOR_ERROR"]
    log = client.get_task(ids[1], view="FULL").logs[-1]
    assert (log.logs[-1].exit_code, log.logs[-1].stderr) == (5, "why\n")
    for task_id in ids:
        client.cancel_task(task_id)


def test_pulsar(service: Service) -> None:
    """Every field that is not set is null; three executors share a volume, the working directory is the root."""

    def executor(script: str) -> dict[str, Any]:
        unset = dict.fromkeys(("stdin", "stdout", "stderr", "env", "ignore_error"))
        return {"image": "alpine", "command": ["sh", "-c", script], "workdir": "/", **unset}

    unset = dict.fromkeys(("id", "state", "description", "logs", "creation_time", "outputs"))
    task = end_of(
        service,
        post(
            service,
            {
                **unset,
                "name": "pulsar",
                "volumes": ["/pulsar_staging"],
                "tags": {"k": None, "l": "v"},
                "inputs": [
                    {
                        "name": None,
                        "description": None,
                        "url": None,
                        "path": "/pulsar_staging/in/x",
                        "type": "FILE",
                        "content": "x",
                    }
                ],
                "resources": {
                    "cpu_cores": 1,
                    **dict.fromkeys(("ram_gb", "disk_gb", "preemptible", "zones", "backend_parameters")),
                },
                "executors": [
                    executor("cat /pulsar_staging/in/x > /pulsar_staging/one"),
                    executor("pwd; cat /pulsar_staging/one > /pulsar_staging/two"),
                    executor("cat /pulsar_staging/two"),
                ],
            },
        ),
    )
    assert task["state"] == "COMPLETE" and task["executors"] and task["outputs"] == []
    assert [(e["exit_code"], e["stdout"]) for e in task["logs"][0]["logs"]] == [(0, ""), (0, "/\n"), (0, "x")]
    assert all(isinstance(e["exit_code"], int) for e in task["logs"][0]["logs"])


def test_cromwell(service: Service, files: Path) -> None:
    """Outputs are directories with a trailing slash; sizes are text; FULL is polled."""
    task_id = post(
        service,
        {
            "name": "wf.step",
            "description": "uuid: wf.step",
            "tags": {"workflow_id": "1", "parent_workflow_id": None},
            "volumes": None,
            "resources": {
                "cpu_cores": 1,
                "ram_gb": 0.5,
                "disk_gb": 1.0,
                "preemptible": True,
                "backend_parameters": {"internal_path_prefix": None, "x": "y"},
                "backend_parameters_strict": False,
            },
            "inputs": [
                {
                    "name": "script",
                    "path": "/cromwell/script",
                    "content": "echo out; mkdir d; echo 1 > d/f; exit 0",
                    "type": "FILE",
                }
            ],
            "outputs": [
                {"name": "dir", "path": "/cromwell/d/", "url": f"file://{files}/d/", "type": "DIRECTORY"},
                {"name": "rc", "path": "/cromwell/stdout", "url": f"file://{files}/stdout", "type": "FILE"},
            ],
            "executors": [
                {
                    "image": "alpine",
                    "command": ["/bin/bash", "/cromwell/script"],
                    "workdir": "/cromwell",
                    "stdout": "/cromwell/stdout",
                    "stderr": "/cromwell/stderr",
                }
            ],
        },
    )
    eventually(lambda: get(service, task_id)["state"] == "COMPLETE", "COMPLETE")
    task = get(service, task_id)
    assert task["executors"][0]["command"] == ["/bin/bash", "/cromwell/script"]
    assert (files / "d/f").read_text() == "1\n" and (files / "stdout").read_text() == "out\n"
    assert all(isinstance(o["size_bytes"], str) for o in task["logs"][0]["outputs"])
    assert "x" in "".join(task["logs"][0]["system_logs"])  # ignored parameters are reported


@pytest.mark.parametrize("size", [1, 3])
def test_pages_lose_and_repeat_nothing_while_tasks_arrive(service: Service, size: int) -> None:
    prefix = f"paged-{size}-"
    made = [service.post({"name": f"{prefix}{i}", "executors": [sh("true")]}) for i in range(7)]
    later: list[str] = []
    stop = threading.Event()

    def arrive() -> None:
        while not stop.wait(0.02) and len(later) < 20:
            later.append(service.post({"name": f"{prefix}later", "executors": [sh("true")]}))

    thread = threading.Thread(target=arrive)
    thread.start()
    seen: list[str] = []
    more: str | None = ""
    try:
        while more is not None:
            query = f"page_size={size}&name_prefix={prefix}" + (f"&page_token={more}" if more else "")
            page = request("GET", f"{service.api}/tasks?{query}").document
            more = page.get("next_page_token")
            assert len(page["tasks"]) == size or more is None
            seen += [t["id"] for t in page["tasks"]]
    finally:
        stop.set()
        thread.join()
    assert len(seen) == len(set(seen)) and [i for i in seen if i in made] == made[::-1]
    service.wait_all([*made, *later])
