"""Executors and what is reported about them, as a client sees it over HTTP."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.integration.embedded.service import (
    IMAGE,
    Service,
    eventually,
    exit_codes,
    logs_of,
    processes_of,
    request,
    sh,
    system_log,
)


def test_executors_share_a_volume_and_run_in_order(service: Service, files: Path) -> None:
    task = service.run(
        sh("cat /data/in.txt > /shared/one; echo words"),
        sh("cat; cat /shared/one", stdin="/data/in.txt", stdout="/shared/two", stderr="/shared/err"),
        sh("tr a-z A-Z < /shared/two > /results/out; echo complaint >&2", stderr="/results/err.txt"),
        inputs=[{"path": "/data/in.txt", "content": "words\n"}],
        volumes=["/shared"],
        outputs=[
            {"path": "/results/out", "url": f"file://{files}/out"},
            {"path": "/results/err.txt", "url": f"file://{files}/err"},
        ],
    )
    assert task["state"] == "COMPLETE" and exit_codes(task) == [0, 0, 0]
    assert (files / "out").read_text() == "WORDS\nWORDS\n"
    assert (files / "err").read_text() == "complaint\n"
    assert [entry["stdout"] for entry in logs_of(task)] == ["words\n", "words\nwords\n", ""]
    assert logs_of(task)[2]["stderr"] == "complaint\n"
    times = [datetime.fromisoformat(entry[key]) for entry in logs_of(task) for key in ("start_time", "end_time")]
    assert times == sorted(times) and all(t.utcoffset() is not None for t in times)
    uploaded = {o["path"]: o["size_bytes"] for o in task["logs"][0]["outputs"]}
    assert uploaded == {"/results/out": "12", "/results/err.txt": "10"}


def test_an_error_ends_the_task_unless_it_is_ignored(service: Service, files: Path) -> None:
    task = service.run(
        sh("exit 3", ignore_error=True),
        sh("exit 4"),
        sh("echo ran > /data/never"),
        outputs=[{"path": "/data/never", "url": f"file://{files}/never"}],
    )
    assert (task["state"], exit_codes(task)) == ("EXECUTOR_ERROR", [3, 4])
    assert not (files / "never").exists()
    assert "exit code 4" in system_log(task)
    assert service.run(sh("exit 5", ignore_error=True), sh("true"))["state"] == "COMPLETE"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["no-such-program", "x"], 127, "no-such-program"),
        (["/etc/passwd"], 126, "Permission denied"),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["sh", "-c", "kill -SEGV $$"], 139, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
    ],
    ids=["not found", "not executable", "killed", "crashed", "terminated"],
)
def test_exit_codes_are_the_shells(service: Service, argv: list[str], code: int, message: str) -> None:
    task = service.run({"image": IMAGE, "command": argv})
    assert (task["state"], exit_codes(task)) == ("EXECUTOR_ERROR", [code])
    assert message in logs_of(task)[0]["stderr"]


def test_arguments_and_variables_arrive_as_they_were_sent(service: Service) -> None:
    odd = "a  b\t'c' \"d\" $HOME `id` \\ é 💥 \n$(X) $$(X)\n"
    task = service.run(
        {"image": IMAGE, "command": ["printf", "%s|", odd, "", "$(ODD)", "-n", "*"], "env": {"ODD": "1"}},
        sh('printf "%s|" "$ODD" "$EMPTY" "$(pwd)"', env={"ODD": odd, "EMPTY": ""}, workdir="/made/for it"),
    )
    assert [entry["stdout"] for entry in logs_of(task)] == [f"{odd}||$(ODD)|-n|*|", f"{odd}||/made/for it|"]


def test_a_working_directory_with_inputs_can_be_written(service: Service, files: Path) -> None:
    task = service.run(
        sh("bash .command.run > made; echo $? > .exitcode", workdir="/work"),
        inputs=[{"path": "/work/.command.run", "content": "pwd; touch /work/x; exit 9"}],
        outputs=[{"path": f"/work/{n}", "url": f"file://{files}/{n}"} for n in ("made", ".exitcode", "x")],
    )
    assert task["state"] == "COMPLETE", task["logs"]
    assert (files / "made").read_text() == "/work\n" and (files / ".exitcode").read_text() == "9\n"


def test_a_time_limit_ends_the_command_and_is_reported(service: Service) -> None:
    limit = {"backend_parameters": {"time_limit": "1s"}, "backend_parameters_strict": True}
    task = service.run(sh("echo begun; sleep 600"), sh("echo never"), resources=limit)
    assert (task["state"], len(logs_of(task))) == ("EXECUTOR_ERROR", 1)
    assert "time limit" in system_log(task) and logs_of(task)[0]["stdout"] == "begun\n"


def test_large_output_is_kept_as_a_bounded_tail(service: Service, files: Path) -> None:
    script = "yes 'é line of output' | head -n 270000; printf 'end é'"  # 5 MB
    task = service.run(
        sh(script),
        sh(f"({script}) >&2", stderr="/data/err"),
        outputs=[{"path": "/data/err", "url": f"file://{files}/err"}],
    )
    assert task["state"] == "COMPLETE"
    for entry, stream in zip(logs_of(task), ("stdout", "stderr"), strict=True):
        assert entry[stream].endswith("é line of output\nend é") and "\ufffd" not in entry[stream]
        assert 8 * 1024 < len(entry[stream].encode()) <= 16 * 1024
    assert (files / "err").stat().st_size == 270000 * 18 + len("end é".encode())  # a declared file has all of it


def test_a_running_task_shows_its_output(service: Service) -> None:
    task_id = service.post(
        {
            "executors": [
                sh("echo first; exit 0"),
                sh("echo begun; echo words >&2; while [ ! -e /tmp/x ]; do sleep 0.1; done"),
            ]
        }
    )

    def live() -> dict[str, Any] | None:
        metadata: dict[str, Any] = service.get(task_id)["logs"][0]["metadata"]
        return metadata if "begun" in metadata.get("live_stdout", "") else None

    metadata = eventually(live, "the live tail")
    assert (metadata["live_executor"], metadata["live_stdout"], metadata["live_stderr"]) == ("1", "begun\n", "words\n")
    running = service.get(task_id)
    assert running["state"] == "RUNNING" and exit_codes(running) == [0]
    assert "live_stdout" not in service.get(task_id, "BASIC")["logs"][0]["metadata"]
    assert service.cancel(task_id).status == 200
    assert service.wait(task_id)["state"] == "CANCELED"


def test_views_show_what_the_specification_requires(service: Service) -> None:
    task_id = service.post(
        {
            "name": "seen",
            "tags": {"k": "v"},
            "inputs": [{"path": "/data/in", "content": "secret"}],
            "executors": [sh("echo out; echo err >&2")],
        }
    )
    full = service.wait(task_id)
    assert service.get(task_id, "MINIMAL") == {"id": task_id, "state": "COMPLETE"}
    basic = service.get(task_id, "BASIC")
    assert request("GET", f"{service.api}/tasks/{task_id}?view=").document == {"id": task_id, "state": "COMPLETE"}
    assert basic["name"] == "seen" and basic["tags"] == {"k": "v"}
    assert full["inputs"][0]["content"] == "secret" and "content" not in basic["inputs"][0]
    assert set(full["logs"][0]["logs"][0]) - set(basic["logs"][0]["logs"][0]) == {"stdout", "stderr"}
    assert set(full["logs"][0]) - set(basic["logs"][0]) == {"system_logs"}
    listed = request("GET", f"{service.api}/tasks?view=FULL&name_prefix=seen").document["tasks"]
    assert listed[0] == full


def test_a_running_task_is_canceled_though_it_ignores_sigterm(service: Service) -> None:
    task_id = service.post({"executors": [sh("trap '' TERM; sleep 600 & sleep 600 & while :; do sleep 0.1; done")]})
    service.wait(task_id, "RUNNING")
    assert service.cancel(task_id).status == 200
    assert service.cancel(task_id).status == 200
    eventually(lambda: service.state(task_id) == "CANCELED", "CANCELED")
    assert processes_of(service.directory) == []  # reported only once it is true
    assert "anceled" in system_log(service.get(task_id))
    service.assert_nothing_is_left()


def test_a_queued_task_is_canceled_before_it_runs(service: Service, files: Path) -> None:
    """More tasks than run concurrently: the last of them wait, and never start."""
    blocker = sh("while :; do sleep 0.1; done")
    first = [service.post({"executors": [blocker]}) for _ in range(12)]
    last = service.post(
        {
            "executors": [sh("echo ran > /data/out")],
            "outputs": [{"path": "/data/out", "url": f"file://{files}/out"}],
        }
    )
    assert service.state(last) in ("QUEUED", "INITIALIZING")
    assert service.cancel(last).status == 200
    assert service.wait(last)["state"] == "CANCELED"
    assert logs_of(service.get(last)) == []
    for task_id in first:
        service.cancel(task_id)
    assert set(service.wait_all(first).values()) == {"CANCELED"}
    assert not (files / "out").exists()


def test_cancel_of_a_finished_task_changes_nothing(service: Service) -> None:
    task = service.run(sh("exit 2"))
    assert service.cancel(task["id"]).status == 200
    assert service.get(task["id"]) == task


def test_resources_may_have_decimals(service: Service) -> None:
    task = service.run(sh("true"), resources={"cpu_cores": 0.5, "ram_gb": 0.244140625, "disk_gb": 0.5})
    assert task["state"] == "COMPLETE"
    assert (task["resources"]["cpu_cores"], task["resources"]["ram_gb"]) == (1, 0.244140625)


def test_directories_above_mounts_and_declared_outputs_can_be_written(service: Service, files: Path) -> None:
    task = service.run(
        sh("cd /proj && mkdir tmp && cp in/x out/y && echo d > /result/d/file"),
        inputs=[{"path": "/proj/in/x", "content": "x"}],
        outputs=[
            {"path": "/proj/out/y", "url": f"file://{files}/y"},
            {"path": "/result/d", "url": f"file://{files}/d", "type": "DIRECTORY"},
        ],
    )
    assert task["state"] == "COMPLETE", task["logs"]
    assert (files / "y").read_text() == "x" and (files / "d/file").read_text() == "d\n"


def test_a_task_above_its_disk_space_ends_with_a_reason(service: Service) -> None:
    task = service.run(
        sh("head -c 50000000 /dev/zero > /work/big; sleep 60"), volumes=["/work"], resources={"disk_gb": 0.01}
    )
    assert task["state"] == "EXECUTOR_ERROR"
    metadata = task["logs"][0]["metadata"]
    assert metadata["failure_reason"] == "DiskLimit" and "disk_gb" in metadata["failure_message"]


def test_a_credentials_file_of_the_service_is_not_visible(make_service: Callable[..., Service]) -> None:
    place = Path("/opt")
    if not os.access(place, os.W_OK):
        pytest.skip("a file in a visible directory needs write access to /opt")
    with tempfile.NamedTemporaryFile("w", dir=place, suffix=".ini") as file:
        file.write("[default]\naws_access_key_id = hunter2\naws_secret_access_key = hunter2\n")
        file.flush()
        os.chmod(file.name, 0o644)
        service = make_service(AWS_SHARED_CREDENTIALS_FILE=file.name).start()
        task = service.run(sh(f"ls {file.name}; cat {file.name}; env"))
    assert file.name in logs_of(task)[0]["stdout"] and "hunter2" not in str(task)
    assert "not visible" in service.log.read_text() and "network" in service.log.read_text()
