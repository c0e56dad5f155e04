"""The embedded service: one that all tests of a worker share, and separate ones for tests that need them."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from poiesis.cluster.local.runtime_selection import select_runtime
from poiesis.config import ARCHITECTURES, shipped_launchers
from poiesis.domain.errors import ConfigurationError
from tests.integration.embedded.service import Service

GRACE = "1s"  # between SIGTERM and SIGKILL of a command, so that tests of cancelling are short


@pytest.fixture(scope="session")
def can_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where the process sandbox does not work."""
    launcher = shipped_launchers()[ARCHITECTURES.get(platform.machine(), platform.machine())]
    try:
        select_runtime("process", tmp_path_factory.mktemp("trial"), launcher).close()
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def common(can_run: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The shared service; tests use `service`."""
    root = tmp_path_factory.mktemp("embedded")
    files = root / "files"
    files.mkdir()
    with Service(root / "service", allow=[files], POIESIS_POLICY__GRACE=GRACE) as service:
        yield service


@pytest.fixture
def service(common: Service) -> Iterator[Service]:
    """After the test nothing of its tasks may be left, and the service must have logged no errors."""
    seen = len(common.logged_errors())
    yield common
    common.assert_nothing_is_left()
    assert common.logged_errors()[seen:] == []


@pytest.fixture
def files(common: Service, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory for this test, allowed in file:// URLs."""
    directory = common.allow[0] / f"test-{abs(hash(request.node.nodeid)):x}"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def make_service(can_run: None, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """A separate service, not started yet, on `tmp_path/service`, which may use files below `tmp_path/files`."""
    with ExitStack() as stack:

        def make(name: str = "service", **variables: str) -> Service:
            files = tmp_path / "files"
            files.mkdir(exist_ok=True)
            service = Service(tmp_path / name, allow=[files], **{"POIESIS_POLICY__GRACE": GRACE, **variables})
            stack.callback(service.close)
            return service

        yield make
