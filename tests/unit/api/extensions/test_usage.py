"""GET /usage; the sums are tested in tests/unit/services/test_usage.py."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from poiesis.api import credentials
from poiesis.config import ApiSettings
from poiesis.domain.states import State
from tests.unit.api.service import Site, assert_error

PATH = "/poiesis/v1/usage"
PERIOD = {"from": "2025-12-31T23:00:00Z", "to": "2026-01-01T02:00:00Z"}


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    file = tmp_path_factory.mktemp("auth") / "users.json"
    users: dict[str, dict[str, Any]] = {"ada": {"groups": ["lab"]}, "eve": {}, "root": {"admin": True}}
    entries = [{"name": n, "token_hash": credentials.hash_secret(n, "bearer"), **more} for n, more in users.items()]
    file.write_text(json.dumps(entries))
    site = Site(api=ApiSettings(auth=("bearer",), credentials_file=str(file)))
    for owner, groups, cpu in (("ada", ("lab",), 5.0), ("bob", ("lab",), 7.0), ("eve", (), 1.0)):
        usage = {"cpu_seconds": cpu}
        site.events.append("t", State.COMPLETE, owner=owner, groups=groups, tags={"project": "p"}, usage=usage)
    site.clock.advance(site.events.events[0].at - site.clock.now())
    return site


def _rows(site: Site, user: str, by: str = "USER", **more: str) -> dict[str, float]:
    response = site.client.get(PATH, params={**PERIOD, "by": by, **more}, headers={"Authorization": f"Bearer {user}"})
    assert response.status_code == 200, response.text
    return {row["name"]: row["figures"]["cpu_seconds"] for row in response.json()["rows"]}


def test_users_see_their_own(site: Site) -> None:
    site.clock.advance(_hour())
    assert _rows(site, "ada") == {"ada": 5.0}
    assert _rows(site, "eve") == {"eve": 1.0}
    assert _rows(site, "ada", "TAG") == {"project=p": 5.0}


def test_bytes_and_numbers_of_tasks_are_integers(site: Site) -> None:
    usage = {"cpu_seconds": 2.0, "output_bytes": 1048576.0, "peak_memory_bytes": 5e6}
    site.events.append("t", State.COMPLETE, owner="tim", usage=usage)
    site.clock.advance(_hour())
    text = site.client.get(PATH, params={**PERIOD, "by": "USER"}, headers={"Authorization": "Bearer root"}).text
    row = text.partition('"name":"tim"')[2].partition("}")[0]
    for figure in ('"tasks":1', '"output_bytes":1048576', '"peak_memory_bytes":5000000'):
        assert re.search(rf"{figure}(,|$)", row), row
    assert '"cpu_seconds":2.0' in row


def test_members_see_their_groups(site: Site) -> None:
    site.clock.advance(_hour())
    assert _rows(site, "ada", "GROUP") == {"lab": 12.0}
    assert _rows(site, "eve", "GROUP") == {}


def test_admins_see_all_the_largest_first(site: Site) -> None:
    site.clock.advance(_hour())
    assert list(_rows(site, "root").items()) == [("bob", 7.0), ("ada", 5.0), ("eve", 1.0)]
    assert _rows(site, "root", "TAG") == {"project=p": 13.0}
    assert _rows(site, "root", "group") == {"lab": 12.0}


def test_the_period_of_the_response_is_what_was_summed(site: Site) -> None:
    asked = {"from": "2025-12-31T23:59:59Z", "to": "2026-01-01T01:00:01Z"}
    found = site.client.get(PATH, params=asked, headers={"Authorization": "Bearer ada"}).json()
    begin, end = (datetime.fromisoformat(found[name]) for name in ("from", "to"))
    assert (begin, end) == (datetime(2025, 12, 31, 23, tzinfo=UTC), datetime(2026, 1, 1, 2, tzinfo=UTC))
    again = {"from": found["from"], "to": found["to"]}
    assert site.client.get(PATH, params=again, headers={"Authorization": "Bearer ada"}).json() == found


@pytest.mark.parametrize(
    "query",
    [{"from": "x"}, {"to": "2026-13-01"}, {"from": "2026-01-02", "to": "2026-01-01"}, {"from": "2020-01-01", "to": "2026-01-01"},
     {"by": "x"}, {"from": "0001-01-01T00:00:00+14:00"}, {"to": "9999-12-31T23:59:59-14:00"}, {"to": "0001-01-01"}],
)  # fmt: skip
def test_other_periods_are_refused(site: Site, query: dict[str, str]) -> None:
    response = site.client.get(PATH, params=query, headers={"Authorization": "Bearer ada"})
    assert_error(response, 400, "invalid_request")


def _hour() -> Any:
    from datetime import timedelta

    return timedelta(minutes=30)
