"""The room on nodes as a note in the store."""

from __future__ import annotations

from datetime import timedelta

import pytest

from poiesis.domain.capacity import Capacity, read_capacity
from poiesis.domain.errors import ClusterUnavailable
from poiesis.domain.quotas import Amount
from poiesis.services.capacity import VALID, CapacityReport, reported_capacity
from poiesis.testing.admission import MemoryAdmissionStore
from poiesis.testing.clock import START, ManualClock
from poiesis.testing.repository import MemoryTaskRepository

FOUND = Capacity(START, 3, 2, 1, Amount(110, 8000, 10**10, 1), Amount(2, 500), Amount(110, 8000, 10**10, 1), 5, 4)


def test_what_the_monitor_reports_is_read_as_it_was_until_it_is_too_old() -> None:
    clock, store = ManualClock(), MemoryAdmissionStore(MemoryTaskRepository())
    assert reported_capacity(store, clock.now()) is None
    seen = [FOUND, Capacity(START, 4, 4, 4, Amount(), Amount(), Amount())]
    report = CapacityReport(lambda at: seen.pop(0), store, clock)
    assert report.report_capacity() == 3
    assert reported_capacity(store, clock.now()) == FOUND
    assert report.report_capacity() == 4
    clock.advance(VALID)
    found = reported_capacity(store, clock.now())
    assert found is not None and found.nodes == 4
    assert reported_capacity(store, clock.advance(timedelta(seconds=1))) is None


def test_a_refused_look_leaves_the_last_note() -> None:
    clock, store = ManualClock(), MemoryAdmissionStore(MemoryTaskRepository())
    CapacityReport(lambda at: FOUND, store, clock).report_capacity()

    def look(at: object) -> Capacity:
        raise ClusterUnavailable("list nodes: 403")

    with pytest.raises(ClusterUnavailable):
        CapacityReport(look, store, clock).report_capacity()
    assert reported_capacity(store, clock.now()) == FOUND


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"at": "2026-01-01T00:00:00+00:00"}', FOUND.to_text()[:-1] + ', "more": 1}']
)
def test_notes_of_other_releases_are_not_known(text: str) -> None:
    assert read_capacity(text) is None
