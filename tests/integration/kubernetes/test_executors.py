"""How commands end: every way in which a container can end by itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from poiesis.domain.observed import Phase, Pod, Record
from poiesis.domain.plan import plan
from poiesis.domain.task import Executor, Resources, TaskSpec
from tests.integration.kubernetes.conftest import NOSHELL, Driver, busybox, shell


def record_of(pod: Pod, name: str = "executor-0") -> Record:
    container = pod.container(name)
    assert container is not None and container.phase is Phase.ENDED, pod
    assert container.record is not None, container
    return container.record


def test_an_exit_code_and_both_streams_come_back_apart(driver: Driver) -> None:
    record = record_of(driver.run([shell("echo out; echo err >&2; exit 3")]))
    assert (record.ok, record.exit_code, record.stdout, record.stderr) == (False, 3, "out\n", "err\n")
    assert record.started_at is not None and record.ended_at is not None and record.peak_memory_bytes


def test_a_signal_is_128_and_its_number(driver: Driver) -> None:
    assert record_of(driver.run([shell("kill -9 $$")])).exit_code == 137


@pytest.mark.parametrize(("command", "code", "reason"), [("/nowhere", 127, "NotFound"), ("/etc", 126, "NotExecutable")])
def test_an_invalid_command_has_its_own_exit_code(driver: Driver, command: str, code: int, reason: str) -> None:
    record = record_of(driver.run([busybox(command)]))
    assert (record.exit_code, record.reason) == (code, reason)


def test_out_of_memory_is_reported(driver: Driver) -> None:
    spec = TaskSpec((shell("head -c 300m /dev/zero | tail"),), resources=Resources(ram_gb=0.05))
    pod = driver.run(spec)
    container = pod.container("executor-0")
    assert container is not None
    killed = container.reason == "OOMKilled" or (container.record is not None and container.record.oom_killed)
    assert killed, container


def test_arguments_and_variables_arrive_byte_for_byte(driver: Driver) -> None:
    odd = ["$(HOME)", "$$", "$$(X)", "$é", "a b", "'\"", "日本", "", "$"]
    env = {"HOME_AGAIN": "$(PATH)", "MONEY": "$$5"}
    record = record_of(driver.run([shell('echo "$HOME_AGAIN $MONEY"', env=env)]))
    assert record.stdout == "$(PATH) $$5\n"
    record = record_of(driver.run([Executor(busybox().image, ("printf", "%s|" * len(odd), *odd))]))
    assert record.stdout == "".join(f"{text}|" for text in odd)


def test_an_image_without_a_shell(driver: Driver) -> None:
    assert record_of(driver.run([Executor(NOSHELL, ("echo", "hello"))])).stdout == "hello\n"


def test_executors_take_turns_and_an_ignored_error_does_not_stop_them(driver: Driver) -> None:
    pod = driver.run(
        [shell("echo 1; exit 5", ignore_error=True), shell("echo 2"), shell("echo 3; exit 6"), shell("echo 4")]
    )
    first, second, third, fourth = (record_of(pod, f"executor-{i}") for i in range(4))
    assert (first.ok, first.exit_code, second.stdout, third.exit_code) == (True, 5, "2\n", 6)
    assert first.ended_at is not None and second.started_at is not None and first.ended_at <= second.started_at
    assert (fourth.exit_code, fourth.reason) == (None, "Skipped")


def test_the_whole_tail_of_much_output_is_kept(driver: Driver) -> None:
    script = "seq 1 200000; seq 1 50000 >&2; printf 'no newline'; printf 'at the end' >&2"
    record = record_of(driver.run([shell(script)]))
    assert record.truncated
    assert record.stdout.endswith("199999\n200000\nno newline")
    # containerd may lose the end of a large log on a busy node; the termination message then has a shorter tail
    assert len(record.stdout) == 4096 or len(record.stdout) > 1000
    assert record.stderr.endswith("50000\nat the end")


def test_output_that_is_not_text_is_kept(driver: Driver) -> None:
    record = record_of(driver.run([shell("head -c 100000 /dev/urandom; head -c 5000 /dev/zero >&2")]))
    assert record.ok and 0 < len(record.stdout) <= 4096 and set(record.stderr) == {"\0"}


def test_a_time_limit_ends_the_command(driver: Driver) -> None:
    policy = replace(driver.policy, default_time_limit=timedelta(seconds=1), grace=timedelta(seconds=2))
    task = driver.task([busybox("sleep", "100")])
    the_plan = plan(task.spec, policy)
    driver.cluster.launch(task, the_plan, the_plan.pods[0])
    pod = driver.until(task, lambda pod: pod.ended).pods[0]
    assert record_of(pod).reason == "TimeLimit"


def test_the_live_tail_of_a_running_executor(driver: Driver) -> None:
    task = driver.task([shell("echo begun; sleep 100")])
    driver.begin(task)
    driver.until(task, lambda pod: pod.containers[0].phase is Phase.RUNNING)
    found: dict[str, tuple[str, str]] = {}
    for _ in range(100):
        found = dict(driver.cluster.observe(task, tails=True).tails)
        if found.get("executor-0", ("", ""))[0]:
            break
        driver.changed.wait(0.1)
    assert found == {"executor-0": ("begun\n", "")}
    driver.cluster.delete_pods(task.id, task.attempt)
    pod = driver.until(task, lambda pod: pod.deleting).pods[0]
    assert pod.deleting


def test_no_token_and_no_service_variables_reach_a_command(driver: Driver) -> None:
    record = record_of(driver.run([shell("ls /var/run/secrets; env | grep POIESIS")]))
    assert "No such file" in record.stderr and record.stdout == ""
