"""The launcher, and a test bench for each runtime that this machine has."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from poiesis.cluster.local.runtime_selection import select_runtime
from poiesis.config import ARCHITECTURES, shipped_launchers
from poiesis.domain.errors import ConfigurationError
from tests.integration.cluster.harness import IMAGE, Lab, bench


@pytest.fixture(scope="session")
def launcher() -> Path:
    given = os.environ.get("POIESIS_LAUNCHER")
    if given:
        return Path(given)
    return shipped_launchers()[ARCHITECTURES.get(platform.machine(), platform.machine())]


@pytest.fixture(scope="session")
def why_not(launcher: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str | None]:
    """Why a runtime cannot be used here; None: it can."""
    known: dict[str, str | None] = {}

    def find(runtime: str) -> str | None:
        if runtime not in known:
            try:
                select_runtime(runtime, tmp_path_factory.mktemp("probe"), launcher).close()
                known[runtime] = None
                if runtime != "process":
                    command = [runtime, "image", "inspect", IMAGE]
                    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
                        known[runtime] = f"{runtime} has no image {IMAGE} (POIESIS_TEST_CONTAINER_IMAGE names another)"
            except ConfigurationError as error:
                known[runtime] = str(error)
        return known[runtime]

    return find


@pytest.fixture
def make_lab(tmp_path: Path, launcher: Path, why_not: Callable[[str], str | None]) -> Iterator[Callable[..., Lab]]:
    """A test bench on `tmp_path/service`, with the options of LocalCluster."""
    with ExitStack() as stack:

        def make(runtime: str = "process", **options: Any) -> Lab:
            reason = why_not(runtime)
            if reason is not None:
                pytest.skip(reason)
            return stack.enter_context(bench(tmp_path / "service", launcher, runtime, **options))

        yield make


@pytest.fixture(params=["process", "docker", "podman"])
def lab(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Lab:
    """Of each runtime that can be used here."""
    return make_lab(request.param)


@pytest.fixture
def process_lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("process")
