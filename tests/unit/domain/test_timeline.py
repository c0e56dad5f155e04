"""The phases of tasks that were taken through real histories: attempts, cancellation, quotas, spot nodes, images, both layouts."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from poiesis.domain.decide.admission import admit
from poiesis.domain.history import MAX_PHASES, Phase, with_phases
from poiesis.domain.states import Role, Stage, State
from poiesis.domain.task import Resources, Task
from poiesis.domain.timeline import timeline
from tests.unit.domain.samples import FAULT, FILES, ID, SMALL, STAGED, THREE, World, spec, stored

S = timedelta(seconds=1)


def shown(task: Task) -> list[str]:
    """`name attempt: seconds since the creation, outcome`."""
    return [_line(task, phase) for phase in timeline(task)]


def _line(task: Task, phase: Phase) -> str:
    def seconds(at: datetime | None) -> str:
        return "" if at is None else f"{(at - task.created_at).total_seconds():g}"

    ends = f"{seconds(phase.start)}-{seconds(phase.end)}"
    return " ".join(filter(None, [f"{phase.name}/{phase.attempt}", ends, phase.outcome, phase.reason]))


def step(world: World, seconds: float = 10) -> None:
    world.clock.advance(seconds * S)


def to_running(world: World, part: str = "task") -> None:
    """Scheduled 10 s after the launch, running 10 s later."""
    world.launch()
    step(world)
    world.cluster.schedule(ID, part)
    world.settle()
    step(world)
    world.cluster.start(ID, part)
    world.settle()


def end(world: World, *containers: str, part: str = "task", code: int = 0, seconds: float = 10) -> None:
    """Each container runs for `seconds`, one after the other."""
    for name in containers:
        began = world.now
        step(world, seconds)
        world.cluster.end(ID, part, name, world.cluster.record(name, code, started_at=began))
        world.settle()


def ended(spec, *containers):
    """A world whose task has run, with the ends of these containers, and is cleaned up."""
    world = World(spec)
    to_running(world)
    end(world, *containers)
    world.to_the_end()
    return world


def test_a_task_with_files_has_every_phase():
    world = ended(THREE, "tif", "executor-0", "executor-1", "executor-2", "tof")
    assert shown(world.task) == [
        "queued/1 0-10 ok", "scheduled/1 10-20 ok", "inputs/1 20-30 ok", "executor 0/1 30-40 ok", "executor 1/1 40-50 ok",
        "executor 2/1 50-60 ok", "outputs/1 60-70 ok", "cleanup/1 70-70 ok",
    ]  # fmt: skip


def test_times_of_different_clocks_are_put_in_the_order_of_the_phases():
    world = ended(THREE, "tif", "executor-0", "executor-1", "executor-2", "tof")
    task = world.task
    late = {"scheduled": 21 * S, "inputs": -2 * S}
    phases = (replace(phase, start=phase.start + late.get(phase.name, 0 * S)) for phase in task.phases)
    early = (replace(entry, start_time=entry.start_time and entry.start_time - 1 * S) for entry in task.log.logs)
    task = replace(task, phases=tuple(phases), log=replace(task.log, logs=tuple(early)))
    assert shown(task) == [
        "queued/1 0-18 ok", "scheduled/1 18-18 ok", "inputs/1 18-30 ok", "executor 0/1 30-40 ok", "executor 1/1 40-50 ok",
        "executor 2/1 50-60 ok", "outputs/1 60-70 ok", "cleanup/1 70-70 ok",
    ]  # fmt: skip


def test_a_command_that_begins_before_its_pod_was_seen_follows_the_schedule():
    world = ended(SMALL, "executor-0")
    entry = replace(world.task.log.logs[0], start_time=world.task.created_at + 9.99 * S)
    task = replace(world.task, log=replace(world.task.log, logs=(entry,)))
    assert shown(task) == [
        "queued/1 0-9.99 ok",
        "scheduled/1 9.99-9.99 ok",
        "executor 0/1 9.99-30 ok",
        "cleanup/1 30-30 ok",
    ]


def test_the_staged_layout_has_the_same_phases():
    world = World(FILES, STAGED)
    to_running(world, "tif")
    end(world, "tif", part="tif")
    step(world)
    world.cluster.start(ID, "executors")
    world.settle()
    end(world, "executor-0", part="executors")
    step(world)
    world.cluster.start(ID, "tof")
    world.settle()
    end(world, "tof", part="tof")
    world.to_the_end()
    assert shown(world.task) == [
        "queued/1 0-10 ok", "scheduled/1 10-20 ok", "inputs/1 20-30 ok", "executor 0/1 40-50 ok", "outputs/1 60-70 ok",
        "cleanup/1 70-70 ok",
    ]  # fmt: skip


def test_what_goes_on_now_has_no_end():
    world = World(THREE)
    assert shown(world.task) == ["queued/1 0-"]
    world.launch()
    step(world)
    world.cluster.schedule(ID, "task")
    world.settle()
    assert shown(world.task) == ["queued/1 0-10 ok", "scheduled/1 10-"]
    world.cluster.start(ID, "task")
    world.settle()
    end(world, "tif", "executor-0")
    world.cluster.tail(ID, "executor-1", "working")
    world.monitor(tails=True)
    assert shown(world.task)[-2:] == ["executor 0/1 20-30 ok", "executor 1/1 30-"]
    end(world, "executor-1", "executor-2")
    world.monitor(tails=True)
    assert shown(world.task)[-2:] == ["executor 2/1 40-50 ok", "outputs/1 50-"]


def test_a_failed_command_fails_its_phase_only():
    world = World(THREE)
    to_running(world)
    end(world, "tif")
    end(world, "executor-0", code=3)
    for name in ("executor-1", "executor-2"):
        world.cluster.end(ID, "task", name, world.cluster.record(name, None, reason="Skipped"))
    end(world, "tof")
    world.to_the_end()
    assert shown(world.task)[2:] == [
        "inputs/1 20-30 ok",
        "executor 0/1 30-40 failed",
        "outputs/1 40-50 ok",
        "cleanup/1 50-50 ok",
    ]


def test_a_failed_download_fails_the_inputs():
    world = World(FILES)
    to_running(world)
    end(world, "tif", code=1)
    for name in ("executor-0", "tof"):
        world.cluster.end(ID, "task", name, world.cluster.record(name, None, reason="Skipped"))
    world.settle()
    assert world.task.outcome is not None or world.task.attempt == 2
    assert "inputs/1 20-30 failed" in shown(world.task)


def test_attempts_follow_each_other_and_keep_the_times_of_their_commands():
    world = World(spec(2))
    to_running(world)
    end(world, "executor-0")
    step(world)
    world.cluster.lose(ID, "task", "NodeLost", "node-1 is gone")
    world.cluster.slow = True
    world.monitor()
    world.link(Role.TORC)
    assert shown(world.task)[-1] == "cleanup/1 40- NodeLost"
    step(world, 5)
    world.cluster.remove(ID)
    world.cluster.slow = False
    world.settle()
    world.wait(FAULT)
    assert world.task.attempt == 2
    step(world)
    world.cluster.start(ID, "task")
    world.settle()
    end(world, "executor-0", "executor-1")
    world.to_the_end()
    found = shown(world.task)
    assert found[:5] == [
        "queued/1 0-10 ok", "scheduled/1 10-20 ok", "executor 0/1 20-30 ok", "executor 1/1 30-40 failed",
        "cleanup/1 40-45 ok NodeLost",
    ]  # fmt: skip
    assert [line.rpartition("/2 ")[0] for line in found[5:]] == [
        "queued", "scheduled", "executor 0", "executor 1", "cleanup",
    ]  # fmt: skip
    assert found[5].startswith("queued/2 45-")


def test_a_preempted_spot_task_shows_why_each_attempt_ended():
    world = World(spec(resources=Resources(preemptible=True)))
    to_running(world)
    world.cluster.lose(ID, "task", "Preempted", "spot node was reclaimed")
    world.settle()
    world.wait(FAULT)
    assert [phase.reason for phase in timeline(world.task) if phase.name == "cleanup"] == ["Preempted"]
    assert timeline(world.task)[-1].name == "queued"
    assert timeline(world.task)[-1].attempt == 2


def test_a_canceled_task_ends_the_phase_it_was_in():
    world = World(SMALL)
    to_running(world)
    step(world)
    world.cancel()
    world.to_the_end()
    assert shown(world.task)[-3:] == ["scheduled/1 10-20 ok", "executor 0/1 20-30 canceled", "cleanup/1 30-30 ok"]
    queued = World(SMALL)
    queued.launch()
    step(queued)
    queued.cancel()
    queued.to_the_end()
    assert shown(queued.task)[0].startswith("queued/1 0-10")
    assert shown(queued.task)[0].endswith("canceled")


def test_a_failing_pull_of_an_image_is_a_phase_beside_the_start():
    world = World(SMALL)
    world.launch()
    step(world)
    world.cluster.schedule(ID, "task")
    world.cluster.stick(ID, "task", "executor-0", "ErrImagePull", "timeout")
    world.settle()
    step(world)
    world.cluster.start(ID, "task")
    world.settle()
    end(world, "executor-0")
    world.to_the_end()
    assert shown(world.task)[1:4] == ["scheduled/1 10-20 ok", "images/1 10-20 ok", "executor 0/1 20-30 ok"]
    refused = World(SMALL)
    refused.launch()
    step(refused)
    refused.cluster.schedule(ID, "task")
    refused.cluster.stick(ID, "task", "executor-0", "ImagePullBackOff", "timeout")
    refused.settle()
    refused.wait(10 * S)
    refused.wait(100 * S)
    refused.to_the_end()
    assert refused.task.state is State.SYSTEM_ERROR
    assert any(line.startswith("images/1 10-") and line.endswith("failed") for line in shown(refused.task))


def test_with_quotas_the_wait_for_admission_is_apart_from_the_wait_for_a_node():
    queued = stored(SMALL, stage=Stage.ADMIT, wake_at=None)
    task = admit(queued, queued.created_at + 30 * S)
    assert shown(queued) == ["queued/1 0-"]
    assert shown(task) == ["queued/1 0-30 ok", "admitted/1 30-"]


def test_a_task_of_an_older_release_has_the_phases_that_its_log_knows():
    world = ended(THREE, "tif", "executor-0", "executor-1", "executor-2", "tof")
    old = replace(world.task, phases=(), history=())
    assert shown(old) == [
        "queued/1 0-10 ok", "scheduled/1 10-30 ok", "executor 0/1 30-40 ok", "executor 1/1 40-50 ok", "executor 2/1 50-60 ok",
        "cleanup/1 70-70 ok",
    ]  # fmt: skip
    assert shown(replace(old, attempt=3)) == []


def test_no_phase_ends_before_it_starts_however_wrong_the_clock_of_a_node_is():
    for hours in (-30, 30):
        world = World(FILES)
        to_running(world)
        for name in ("tif", "executor-0", "tof"):
            at = world.now + timedelta(hours=hours)
            world.cluster.end(ID, "task", name, world.cluster.record(name, started_at=at, ended_at=at - 5 * S))
        world.to_the_end()
        found = timeline(world.task)
        assert len(found) == 6
        ended = world.task.log.end_time
        assert ended is not None
        for phase in found:
            assert world.task.created_at <= phase.start <= (phase.end or phase.start)
            assert phase.name == "cleanup" or (phase.end is not None and phase.end <= ended)


def test_recording_needs_no_additional_save():
    world = World(THREE)
    saves: list[object] = []
    world.repository.save = _counting(world.repository.save, saves)  # type: ignore[method-assign]
    world.launch()
    world.cluster.run(ID, "task")
    world.to_the_end()
    assert len(world.task.phases) == 3
    without = World(THREE)
    counted: list[int] = []
    without.repository.save = _counting(without.repository.save, counted)  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poiesis.domain.timeline.with_phases", lambda phases, *new: phases)
        without.launch()
        without.cluster.run(ID, "task")
        without.to_the_end()
    assert without.task.phases == ()
    assert len(saves) == len(counted)


def _counting(save, saves):
    def counted(task, *, seen):
        saves.append(1)
        return save(task, seen=seen)

    return counted


def test_recorded_phases_are_bounded():
    one = Phase("inputs", 1, stored().created_at)
    many = with_phases((), *[one] * 1000)
    assert len(many) == MAX_PHASES
    assert with_phases(many, one) == many
