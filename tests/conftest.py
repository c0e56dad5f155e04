"""What every test has: marks by folder, Hypothesis' profile, a free port; the real servers come from `tests.servers`.

Warnings are errors, declared in `tox.ini`; a test that expects one says so with `pytest.warns`, and third-party noise
gets a line there with its message, never a blanket ignore here.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["tests.servers"]

TESTS = Path(__file__).parent
LEVELS = ("integration", "e2e")

# A busy machine is no failed property, so there is no deadline; `timeout` in tox.ini ends what really hangs.
settings.register_profile("poiesis", deadline=None, print_blob=True)
settings.load_profile("poiesis")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its level: the folder's name for `integration` and `e2e`, `unit` for everything else."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        item.add_marker(folder if folder in LEVELS else "unit")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """`poiesis up` logs errors alone, to a stderr that is the test's; the next test inherits neither."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    root.handlers[:] = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    from tests.servers.process import (
        free_ports,  # a plugin has to be imported by pytest first, or its asserts stay bare
    )

    return free_ports(1)[0]
