from dataclasses import replace

from poiesis.domain.task import Task, TaskId
from poiesis.services.recent_tasks import MAX_ITEMS, RecentTasks
from tests.unit.domain.samples import FILES, SMALL, executor, input_file, spec, stored


def numbered(number: int, task: Task) -> Task:
    return replace(task, id=TaskId(f"{number:026}"))


def kept(recent: RecentTasks, count: int) -> list[int]:
    return [i for i in range(count) if recent.take(TaskId(f"{i:026}")) is not None]


def test_a_task_is_taken_once_and_as_it_was_last_put():
    recent = RecentTasks()
    for attempt in (1, 2):
        recent.put(stored(FILES, attempt=attempt))
    taken = recent.take(stored().id)
    assert taken is not None and taken.attempt == 2
    assert recent.take(taken.id) is None


def test_the_oldest_are_dropped_beyond_a_bound_in_bytes_and_none_of_it_leaks():
    recent = RecentTasks(max_bytes=1_000_000)
    for texts in (spec((executor(command=("x" * 50_000,)),)), spec(inputs=(input_file(content="x" * 50_000),))):
        for i in range(20):
            recent.put(numbered(i, stored(texts)))
            recent.put(numbered(i, stored(texts)))
        found = kept(recent, 20)
        assert found == list(range(20 - len(found), 20)) and 3 <= len(found) <= 5
    for i in range(100):
        recent.put(numbered(i, stored(SMALL)))
    assert len(kept(recent, 100)) == 100


def test_a_task_of_many_parts_is_not_kept_nor_what_was_kept_of_it_before():
    recent = RecentTasks()
    recent.put(stored())
    recent.put(stored(spec(inputs=(input_file(),) * MAX_ITEMS)))
    assert recent.take(stored().id) is None


def test_the_bounds_of_a_process():
    recent = RecentTasks()
    for i in range(20):  # of 4 MiB each, at worst
        recent.put(numbered(i, stored(spec((executor(command=("x" * 2**20,)),)))))
    assert kept(recent, 20) == list(range(13, 20))
    assert MAX_ITEMS == 200
