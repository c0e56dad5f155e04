"""Canceling many tasks."""

from datetime import timedelta

from poiesis.domain.states import State
from poiesis.services.bulk import MAX_TIME, cancel_each
from poiesis.services.tasks import TaskService
from poiesis.testing.clock import ManualClock
from poiesis.testing.queue import RecordingQueue
from poiesis.testing.repository import MemoryTaskRepository
from tests.unit.domain.samples import POLICY, SMALL


def test_what_a_slow_store_leaves_no_time_for_is_listed_as_failed(monkeypatch):
    clock, repository = ManualClock(), MemoryTaskRepository()
    tasks = TaskService(repository, RecordingQueue(), clock, POLICY)
    ids = [tasks.create(SMALL) for _ in range(4)]
    save = repository.save

    def slow_save(*args, **kwargs):
        clock.advance(MAX_TIME / 2 + timedelta(seconds=1))
        return save(*args, **kwargs)

    monkeypatch.setattr(repository, "save", slow_save)
    done = cancel_each(tasks, ids, access=None)
    assert (done.canceled, list(done.failed)) == (ids[:2], ids[2:])
    assert [repository.get(i).state for i in ids] == [State.CANCELING] * 2 + [State.QUEUED] * 2
