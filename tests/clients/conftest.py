"""Workflow engines and libraries as users run them, each in an environment of its own (`make clients`): `poiesis up` with an S3 store.

Tasks run in the process sandbox, so that the tests need no container engine: the "image" of every task is this machine, and the clients
that run themselves inside of their tasks (Snakemake, Toil) find their environment there, because the service makes it visible.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.integration.embedded.conftest import GRACE, can_run  # noqa: F401
from tests.integration.embedded.service import Service, environment
from tests.servers.s3 import S3Server

ROOT: Final = Path(__file__).parents[2]
ENVIRONMENTS: Final = Path(os.environ.get("POIESIS_CLIENTS", ROOT / ".cache" / "clients"))
TIMEOUT_S: Final = 180.0


@dataclass(frozen=True)
class Client:
    """The programs of one client. `directory`: where they run."""

    programs: Path
    directory: Path

    def run(
        self, *command: str, variables: Mapping[str, str] | None = None, expected: Sequence[int] = (0,)
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment to its end, which must have one of the `expected` exit codes."""
        path = f"{self.programs}:{os.environ['PATH']}"
        done = subprocess.run(
            [str(self.programs / command[0]), *command[1:]],
            cwd=self.directory,
            env=environment(PATH=path, HOME=str(self.directory), PYTHONNOUSERSITE="1", **(variables or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode in expected, (
            f"exit code {done.returncode}\n{done.stdout[-5000:]}\n{done.stderr[-10000:]}"
        )
        return done

    def python(self, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("python", "-c", source, *arguments)

    def write(self, name: str, content: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path


def programs_of(name: str) -> Path:
    """Skip the test where the client is not installed, or only a part of it."""
    programs = ENVIRONMENTS / name / "bin"
    if not (ENVIRONMENTS / name / ".installed").is_file():
        pytest.skip(f"{name} is not installed in {ENVIRONMENTS}: make clients CLIENTS={name}")
    return programs


@pytest.fixture(scope="session")
def service(can_run: None, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:  # noqa: F811
    """One service for all clients, which may read and write below its `allow[0]`, and in S3."""
    root = tmp_path_factory.mktemp("clients")
    files = root / "files"
    files.mkdir()
    endpoint = {
        "url": s3_server.endpoint,
        "region": s3_server.region,
        "access_key": s3_server.access_key,
        "secret_key": s3_server.secret_key,
    }
    visible = [ENVIRONMENTS, Path(sys.base_prefix)]
    settings = {
        "POIESIS_POLICY__GRACE": GRACE,
        "POIESIS_FILER__S3": json.dumps({"lab": endpoint}),
        "POIESIS_VISIBLE_DIRECTORIES": ",".join(str(path) for path in visible if path.is_dir()),
    }
    with Service(root / "service", allow=[files], **settings) as service:
        yield service
        service.assert_nothing_is_left()
        assert service.logged_errors() == []


@pytest.fixture
def files(service: Service, request: pytest.FixtureRequest) -> Path:
    """A directory for this test, allowed in file:// URLs."""
    directory = service.allow[0] / request.node.name
    directory.mkdir()
    return directory
