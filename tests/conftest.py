"""Fixtures and settings of every test: marks by directory, Hypothesis' profile, a free port; real servers come from `tests.servers`.

Warnings are errors (`tox.ini`). A test that expects one uses `pytest.warns`; a third-party warning gets a line in `tox.ini` with its
message, never a blanket ignore here.
"""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["tests.servers"]

TESTS = Path(__file__).parent
LEVELS = ("integration", "e2e", "clients", "browser")

# A property must not fail because the machine is busy, so there is no deadline; `timeout` in tox.ini ends a test that hangs.
settings.register_profile("poiesis", deadline=None, print_blob=True)
settings.load_profile("poiesis")

# A shell without job control starts background jobs with SIGINT ignored, and programs that tests start would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests send what must not be logged by httpx, which at INFO logs the URL of each request.
logging.getLogger("httpx").setLevel(logging.WARNING)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its level: the directory's name for those of LEVELS, `unit` for everything else."""
    for item in items:
        directory = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        item.add_marker(directory if directory in LEVELS else "unit")


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Undo what `poiesis up` sets: errors only, to the stderr of this test."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    root.handlers[:] = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    from tests.servers.process import (
        free_ports,  # imported late: pytest rewrites the asserts of a plugin that it imports first
    )

    return free_ports(1)[0]
