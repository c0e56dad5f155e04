"""From bytes to a `TaskSpec`: JSON errors, normalizing, and strict decoding."""

from __future__ import annotations

from typing import Any

import pytest

from poiesis.api.normalize import as_specified, load_task, normalize, parse
from poiesis.domain.errors import InvalidTask
from tests.unit.api.service import Site, assert_error
from tests.unit.api.test_create_task import FULL, SHAPE


@pytest.mark.parametrize(("document", "path", "message"), SHAPE)
def test_each_wrong_type_is_refused_at_its_place(document: Any, path: str, message: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        load_task(normalize(document))
    (problem,) = caught.value.problems
    assert path.startswith(problem.path.removesuffix("[...]"))


def test_normalizing_twice_changes_nothing_more() -> None:
    once = normalize(FULL | {"id": "x", "resources": {"cpu_cores": 1.0, "ram_gb": 2.5, "zones": None}})
    assert normalize(once) == once
    assert once["resources"] == {"cpu_cores": 1, "ram_gb": 2.5}


def test_only_what_the_spec_validates_is_rounded() -> None:
    document = normalize(parse(b'{"resources": {"cpu_cores": 0.5, "ram_gb": 0.5}}'))
    assert as_specified(document) == {"resources": {"cpu_cores": 1, "ram_gb": 0.5}}
    assert document == {"resources": {"cpu_cores": 0.5, "ram_gb": 0.5}}


def test_a_long_number_elsewhere_is_a_wrong_type(site: Site) -> None:
    error = assert_error(site.post("/tasks", f'{{"name": {"9" * 5000}, "executors": []}}'), 400, "invalid_task")
    assert error["problems"] == [{"path": "$.name", "message": "invalid type: must be a string, not a number"}]
