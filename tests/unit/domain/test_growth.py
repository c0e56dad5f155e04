"""The cost of checking and planning a task grows like its size, for every shape of `python -m bench documents`."""

import gc
import json
import time

import pytest

from bench.documents import POLICY, SHAPES
from poiesis.api.normalize import load_task, normalize, parse
from poiesis.domain.errors import InvalidTask
from poiesis.domain.plan import plan
from poiesis.domain.staging import tif_document, tof_document
from poiesis.domain.validate import check
from tests.unit.domain.samples import stored

SIZE = 300
MAX_GROWTH = 22  # for ten times the size: twice what is linear; quadratic would be 100
NEGLIGIBLE_S = 0.02


def work(document: dict[str, object]) -> float:
    """Seconds of CPU time from the body of a request to the filers' documents; best of two."""
    best = float("inf")
    for _ in range(2):
        body = json.dumps(document).encode()
        gc.disable()  # a full collection costs more than the work
        started = time.process_time()
        try:
            kept, _ = check(load_task(normalize(parse(body))), POLICY)
            made = plan(kept, POLICY)
            tif_document(stored(kept), made)
            tof_document(stored(kept), made)
        except InvalidTask as error:
            str(error)
        finally:
            best = min(best, time.process_time() - started)
            gc.enable()
    return best


@pytest.mark.parametrize("shape", SHAPES)
def test_ten_times_the_document_costs_about_ten_times_as_much(shape):
    smaller, larger = work(SHAPES[shape](SIZE)), work(SHAPES[shape](SIZE * 10))
    assert larger < max(MAX_GROWTH * smaller, NEGLIGIBLE_S)
