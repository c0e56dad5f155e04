"""What the role does to its own process, so in another one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

START = """
import asyncio, gc, sys
from poiesis.bootstrap import Bootstrap
from poiesis.config import ApiSettings, Settings
from poiesis.filer.settings import FilerSettings
from poiesis.roles.api import _create

async def start(app):
    events, sent = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}], []
    async def receive():
        if len(events) == 1:
            print(gc.get_freeze_count(), len(gc.get_objects()))
        return events.pop(0)
    async def send(message):
        sent.append(message["type"])
    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"], sent

with Bootstrap(Settings(directory=sys.argv[1], runtime="process", api=ApiSettings()), FilerSettings()) as parts:
    asyncio.run(start(_create(parts)))
"""


def test_collections_leave_out_what_the_start_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    frozen, collected = map(int, done.stdout.split())
    assert frozen > 10 * collected
