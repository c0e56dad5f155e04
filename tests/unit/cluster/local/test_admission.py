from __future__ import annotations

from poiesis.cluster.local.admission import Admission, Capacity, machine_capacity


def admission(pods: int = 10, cpu_cores: float = 4.0, memory_bytes: int = 100) -> tuple[Admission[str], list[str]]:
    started: list[str] = []
    return Admission(Capacity(pods, cpu_cores, memory_bytes), started.append), started


def test_as_many_run_as_are_allowed_and_the_rest_follow_in_order() -> None:
    found, started = admission(pods=2)
    for key in "abcd":
        found.add(key, 0, 0)
    assert started == ["a", "b"] and found.is_waiting("c") and not found.is_waiting("a")
    found.remove("b")
    assert started == ["a", "b", "c"]
    found.remove("a")
    found.remove("c")
    found.remove("d")
    assert started == ["a", "b", "c", "d"] and not any(key in found for key in started)


def test_requests_are_summed() -> None:
    found, started = admission()
    found.add("a", 2.5, 10)
    found.add("b", 1.5, 80)
    found.add("c", 0, 11)
    assert started == ["a", "b"]
    found.remove("a")
    assert started == ["a", "b", "c"]


def test_a_large_one_is_not_starved_by_small_ones() -> None:
    found, started = admission()
    found.add("a", 3, 0)
    found.add("large", 4, 0)
    found.add("small", 1, 0)
    assert started == ["a"]
    found.remove("a")
    assert started == ["a", "large"]


def test_a_removed_waiting_pod_lets_others_start() -> None:
    found, started = admission()
    found.add("a", 3, 0)
    found.add("large", 4, 0)
    found.add("small", 1, 0)
    found.remove("large")
    assert started == ["a", "small"]


def test_a_request_above_the_capacity_runs_by_itself() -> None:
    found, started = admission()
    found.add("huge", 1000, 10**15)
    found.add("next", 1, 1)
    assert started == ["huge"]
    found.remove("huge")
    assert started == ["huge", "next"]


def test_running_pods_count_even_above_the_limit() -> None:
    found, started = admission(pods=1)
    found.adopt("a", 1, 1)
    found.adopt("b", 1, 1)
    found.add("c", 0, 0)
    assert started == ["a", "b"]
    found.remove("a")
    assert not found.is_waiting("a") and found.is_waiting("c")
    found.remove("b")
    assert started == ["a", "b", "c"]


def test_the_reason_for_waiting_has_the_request_and_does_not_change() -> None:
    found, _ = admission(pods=1)
    found.add("a", 0, 0)
    found.add("b", 2, 50_000_000_000)
    first = found.why_waiting("b")
    assert "2 CPUs" in first and "GB" in first
    found.add("c", 0, 0)
    assert found.why_waiting("b") == first


def test_the_machine_has_capacity() -> None:
    capacity = machine_capacity(None)
    assert capacity.pods == 2 * capacity.cpu_cores and capacity.memory_bytes > 10**8
    assert machine_capacity(7).pods == 7
