"""Our document promises what the published TES 1.1.0 document promises.

Nothing less, nothing else, and more only as listed here.
"""

from __future__ import annotations

from typing import Final

from tests.unit.specs.interface import Document, Place, differences, written

ERROR_ANSWERS: Final = {
    ("/service-info", "get"): ("401", "403", "500", "503"),
    ("/tasks", "get"): ("400", "401", "403", "500", "503"),
    ("/tasks", "post"): ("400", "401", "403", "413", "415", "429", "500", "503"),
    ("/tasks/{id}", "get"): ("400", "401", "403", "404", "500", "503"),
    ("/tasks/{id}:cancel", "post"): ("401", "403", "404", "500", "503"),
}

ADDITIONS: Final[tuple[Place, ...]] = (
    ("security",),
    ("components", "securitySchemes"),
    ("components", "responses"),
    ("components", "schemas", "Error"),
    ("components", "schemas", "Problem"),
    # The published document fetches these two from GA4GH service-info 1.0.0; test_document.py has what they must hold.
    ("components", "schemas", "Service"),
    ("components", "schemas", "ServiceType"),
    *(("paths", *operation, "responses", code) for operation, codes in ERROR_ANSWERS.items() for code in codes),
)


def _allowed(place: Place) -> bool:
    return any(place[: len(addition)] == addition for addition in ADDITIONS)


def test_nothing_published_is_missing(published: Document, ours: Document) -> None:
    assert differences(published, ours).missing == {}


def test_nothing_published_is_changed(published: Document, ours: Document) -> None:
    assert differences(published, ours).changed == {}


def test_only_listed_additions_are_made(published: Document, ours: Document) -> None:
    added = differences(published, ours).added
    assert {written(place): value for place, value in added.items() if not _allowed(place)} == {}


def test_every_listed_addition_is_made(published: Document, ours: Document) -> None:
    added = differences(published, ours).added
    unused = [written(addition) for addition in ADDITIONS if not any(p[: len(addition)] == addition for p in added)]
    assert unused == []
