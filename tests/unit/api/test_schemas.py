"""The marshmallow schemas by themselves are as strict as the spec's validation before them."""

from __future__ import annotations

from typing import Any

import pytest

from poiesis.api.schemas import load_task
from poiesis.api.tolerance import as_specified, normalise, parse
from poiesis.domain.errors import InvalidTask
from tests.unit.api.test_create_task import FULL, SHAPE


@pytest.mark.parametrize(("document", "path", "message"), SHAPE)
def test_each_wrong_type_is_found_at_its_place(document: Any, path: str, message: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        load_task(normalise(document))
    assert [p.path for p in caught.value.problems] == [path]


def test_problems_below_tags_named_like_parts_of_the_message_tree_are_placed() -> None:
    document = normalise(FULL | {"tags": {"key": 1, "value": 2, "_x": "ok"}})
    with pytest.raises(InvalidTask) as caught:
        load_task(document)
    assert sorted(p.path for p in caught.value.problems) == ["$.tags.key", "$.tags.value"]


def test_normalising_twice_changes_nothing_more() -> None:
    once = normalise(FULL | {"id": "x", "resources": {"cpu_cores": 1.0, "ram_gb": 2.5, "zones": None}})
    assert normalise(once) == once
    assert once["resources"] == {"cpu_cores": 1, "ram_gb": 2.5}


def test_only_what_is_held_against_the_spec_is_rounded() -> None:
    document = normalise(parse(b'{"resources": {"cpu_cores": 0.5, "ram_gb": 0.5}}'))
    assert as_specified(document) == {"resources": {"cpu_cores": 1, "ram_gb": 0.5}}
    assert document == {"resources": {"cpu_cores": 0.5, "ram_gb": 0.5}}
