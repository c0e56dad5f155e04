"""A server that speaks MongoDB's wire protocol: the single-file one (FerretDB over SQLite) or a real mongod.

Looked for in this order: the program that MONGO_SERVER names; `bin/mongo` below CLUSTER_DIR, the test cluster's
directory; the packed one beside the cluster's scripts, unpacked once into `.cache/`; `mongod` from PATH. A program named
`mongod*` gets mongod's arguments.
"""

import lzma
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.servers.process import HOST, missing, running

ROOT = Path(__file__).resolve().parents[2]
PACKED = ROOT.parent / "shared" / "cluster" / "mongo.xz"


def _program() -> Path | None:
    if named := os.environ.get("MONGO_SERVER"):
        return Path(named)  # a wrong name is an error when the server starts
    if cluster := os.environ.get("CLUSTER_DIR"):
        found = Path(cluster, "bin", "mongo")
        if os.access(found, os.X_OK):
            return found
    if PACKED.is_file():
        return _unpacked(PACKED)
    installed = shutil.which("mongod")
    return Path(installed) if installed else None


def _unpacked(packed: Path) -> Path:
    """The program in `packed`, in `.cache/` under a name that changes with it; safe for many workers at once."""
    status = packed.stat()
    target = ROOT / ".cache" / f"mongo-{status.st_size}-{status.st_mtime_ns}"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file, lzma.open(packed) as content:
            shutil.copyfileobj(content, file)
        os.chmod(file.name, 0o755)
        os.replace(file.name, target)
    return target


def _client(url: str) -> MongoClient[dict[str, Any]]:
    return MongoClient(url, serverSelectionTimeoutMS=2000)


def _ping(ports: list[int]) -> str:
    url = f"mongodb://{HOST}:{ports[0]}"
    with _client(url) as client:
        client.admin.command("ping")
    return url


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[str]:
    """URL, without a database, of a server that all tests of this worker share."""
    program = _program()
    if program is None:
        missing("no Mongo-compatible server: set MONGO_SERVER to one, or add mongod to PATH")

    def command(directory: Path, ports: list[int]) -> list[str]:
        data = directory / "data"
        data.mkdir()
        if program.name.startswith("mongod"):
            return [str(program), "--bind_ip", HOST, "--port", str(ports[0]), "--dbpath", str(data)]
        return [str(program), "-listen", f"{HOST}:{ports[0]}", "-dir", str(data)]

    with running("mongo", 1, command, _ping) as url:
        yield url


@pytest.fixture
def mongo_url(mongo_server: str) -> Iterator[str]:
    """URL of an empty database of this test only (`client.get_default_database()`), dropped after it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield f"{mongo_server}/{name}"
    with _client(mongo_server) as client:
        client.drop_database(name)
