"""Webhooks over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poiesis.domain.webhooks import Delivery
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.webhooks import SqliteWebhookStore
from tests.unit.api.service import Site

WEBHOOKS = "/poiesis/v1/webhooks"
URL = {"url": "https://portal.example.org/events"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    database = SqliteDatabase(tmp_path / "tasks.sqlite")
    yield Site(webhook_store=SqliteWebhookStore(database))
    database.close()


def created(site: Site, **fields: Any) -> dict[str, Any]:
    response = site.client.post(WEBHOOKS, json={**URL, **fields})
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def test_a_secret_is_shown_once(site: Site) -> None:
    webhook = created(site, states=["COMPLETE"], description="portal")
    assert webhook["secret"].startswith("whsec_")
    shown = site.client.get(f"{WEBHOOKS}/{webhook['id']}").json()
    listed = site.client.get(WEBHOOKS).json()["webhooks"]

    assert shown == {**{k: v for k, v in webhook.items() if k != "secret"}, "pending": 0}
    assert [w["id"] for w in listed] == [webhook["id"]]
    assert all("secret" not in w for w in listed)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "$.url"),
        ({"url": 1}, "$.url"),
        ({"url": "http://portal.example.org"}, "url"),
        ({**URL, "states": ["DONE"]}, "$.states[0]"),
        ({**URL, "secret": "x"}, "$"),
        ({**URL, "description": "x" * 201}, "$.description"),
    ],
)
def test_an_invalid_webhook_is_refused_with_the_place(site: Site, body: dict[str, Any], path: str) -> None:
    response = site.client.post(WEBHOOKS, json=body)

    assert response.status_code == 400
    assert path in [problem["path"] for problem in response.json()["problems"]]
    assert site.client.get(WEBHOOKS).json() == {"webhooks": []}


def test_too_many_webhooks_are_a_conflict(site: Site) -> None:
    site.webhooks.max_per_user = 1
    created(site)
    response = site.client.post(WEBHOOKS, json=URL)

    assert (response.status_code, response.json()["error"]) == (409, "too_many_webhooks")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", ":enable"), ("GET", "/dead-letters"), ("POST", "/dead-letters:replay")],
)
def test_an_unknown_webhook_is_not_found(site: Site, method: str, path: str) -> None:
    response = site.client.request(method, f"{WEBHOOKS}/wh_0{path}")

    assert (response.status_code, response.json()["error"]) == (404, "unknown_webhook")


def test_a_deleted_webhook_is_unknown(site: Site) -> None:
    webhook = created(site)
    assert site.client.delete(f"{WEBHOOKS}/{webhook['id']}").json() == {}
    assert site.client.get(f"{WEBHOOKS}/{webhook['id']}").status_code == 404


def test_dead_letters_are_listed_in_pages_and_replayed(site: Site) -> None:
    webhook = created(site)
    now = site.clock.now()
    letter = Delivery(webhook["id"], 1, '{"type":"task.complete"}', now, None, 10, "refused")
    assert site.webhook_store is not None
    site.webhook_store.enqueue([replace(letter, seq=seq) for seq in (1, 2, 3)], now)
    path = f"{WEBHOOKS}/{webhook['id']}/dead-letters"

    page = site.client.get(path, params={"page_size": 2}).json()
    rest = site.client.get(path, params={"page_size": 2, "after": page["next_after"]}).json()
    assert [m["sequence"] for m in (*page["messages"], *rest["messages"])] == [1, 2, 3]
    assert "next_after" not in rest
    assert page["messages"][0] == {
        "id": f"msg_{webhook['id']}_1",
        "sequence": 1,
        "attempts": 10,
        "error": "refused",
        "body": {"type": "task.complete"},
    }

    assert site.client.post(f"{path}:replay", json={"sequences": [2]}).json() == {"replayed": 1}
    assert site.client.post(f"{path}:replay").json() == {"replayed": 2}
    assert site.client.get(f"{WEBHOOKS}/{webhook['id']}").json()["pending"] == 3
