"""Streams of events from a real process that is killed, over both stores: `bench/events.py` with few tasks."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import pytest

from bench.events import measure


@pytest.mark.timeout(300)
@pytest.mark.parametrize("store", ["sqlite", "mongo"])
def test_every_event_comes_once_and_in_order_after_kill_and_resume(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    mongo = request.getfixturevalue("mongo_url") if store == "mongo" else None
    arguments = argparse.Namespace(
        streams=20, tasks=20, seconds=8.0, settle=0.5, mongo=mongo, everything=False, no_kill=False
    )
    figures = asyncio.run(measure(arguments, str(tmp_path)))
    assert figures["events"] == 60
    assert figures["once_and_in_order"], figures
