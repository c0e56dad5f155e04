"""Each server of `tests.servers` works, isolates the tests from each other, and is gone when it is stopped."""

import ftplib
import io
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from pymongo import MongoClient

from tests.servers import FtpServer, Keycloak, OidcServer, S3Server, Zitadel
from tests.servers.process import HOST, ServerFailed, running


def test_redis_keeps_a_value(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.set("key", "value")
        assert client.get("key") == "value"


def test_redis_is_empty_for_the_next_test(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


def test_mongo_lets_one_of_two_conditional_updates_win(mongo_url: str) -> None:
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_url)
    with client:
        tasks = client.get_default_database()["tasks"]
        tasks.insert_one({"_id": "a", "version": 1})
        changed = [
            tasks.update_one({"_id": "a", "version": 1}, {"$set": {"version": 2}}).modified_count for _ in range(2)
        ]
        assert changed == [1, 0]


def test_mongo_database_is_empty_for_the_next_test(mongo_url: str) -> None:
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_url)
    with client:
        assert client.get_default_database().list_collection_names() == []


def test_s3_returns_an_object(s3: S3Server) -> None:
    client = s3.client()
    client.put_object(s3.bucket, "directory/name", io.BytesIO(b"content"), 7)
    with client.get_object(s3.bucket, "directory/name") as answer:
        assert answer.read() == b"content"


def test_s3_returns_a_multipart_object(s3: S3Server) -> None:
    client, size = s3.client(), 11 << 20
    client.put_object(s3.bucket, "large", io.BytesIO(bytes(size)), -1, part_size=5 << 20)
    assert client.stat_object(s3.bucket, "large").size == size


def test_s3_can_hold_many_buckets(s3: S3Server) -> None:
    client = s3.client()
    names = [f"{s3.bucket}-{number}" for number in range(12)]
    for name in names:
        client.make_bucket(name)
        client.put_object(name, "object", io.BytesIO(b"1"), 1)
    for name in names:
        client.remove_object(name, "object")
        client.remove_bucket(name)


def test_s3_bucket_is_empty_for_the_next_test(s3: S3Server) -> None:
    assert list(s3.client().list_objects(s3.bucket, recursive=True)) == []


def test_anonymous_ftp_users_can_read_the_root(ftp: FtpServer) -> None:
    (ftp.root / "name").write_bytes(b"content")
    received = io.BytesIO()
    with ftplib.FTP() as client:
        client.connect(ftp.host, ftp.port, timeout=5)
        client.login()
        client.retrbinary("RETR name", received.write)
    assert received.getvalue() == b"content"


def test_the_ftp_user_can_write(ftp: FtpServer) -> None:
    with ftplib.FTP() as client:
        client.connect(ftp.host, ftp.port, timeout=5)
        client.login(ftp.user, ftp.password)
        client.storbinary("STOR name", io.BytesIO(b"content"))
    assert (ftp.root / "name").read_bytes() == b"content"


def test_a_free_port_can_be_bound(free_port: int) -> None:
    with socket.create_server((HOST, free_port)) as server:
        assert server.getsockname() == (HOST, free_port)


def _connect(ports: list[int]) -> int:
    socket.create_connection((HOST, ports[0]), timeout=1).close()
    return ports[0]


def test_a_server_and_its_directory_are_removed_when_the_block_ends() -> None:
    directories: list[Path] = []

    def command(directory: Path, ports: list[int]) -> list[str]:
        directories.append(directory)
        return [sys.executable, "-m", "http.server", "--bind", HOST, str(ports[0])]

    with running("http", 1, command, _connect) as port:
        assert directories[-1].is_dir()
    assert not directories[-1].exists()
    with pytest.raises(ConnectionRefusedError):
        _connect([port])


def test_a_server_behind_a_script_ends_with_it() -> None:
    def command(_: Path, ports: list[int]) -> list[str]:
        return ["sh", "-c", f"{sys.executable} -m http.server --bind {HOST} {ports[0]}; true"]

    with running("script", 1, command, _connect) as port:
        pass
    end = time.monotonic() + 10
    with pytest.raises(ConnectionRefusedError):  # the kernel ends what was killed a moment later
        while time.monotonic() < end:
            with suppress(ConnectionResetError, TimeoutError):
                _connect([port])


def test_the_error_of_a_server_that_ends_at_once_has_its_output() -> None:
    with (
        pytest.raises(ServerFailed, match="no such thing"),
        running(
            "broken",
            1,
            lambda _directory, _ports: [sys.executable, "-c", "raise SystemExit('no such thing')"],
            _connect,
        ),
    ):
        pass


def test_a_device_gets_a_token_that_the_user_approves_at_the_provider(oidc: OidcServer) -> None:
    asked = httpx.post(f"{oidc.issuer}/device/auth", data={"client_id": "cli-opaque", "scope": "openid groups"}).json()
    oidc.approve(asked["verification_uri_complete"], "ada")
    form = {"client_id": "cli-opaque", "device_code": asked["device_code"]}
    form["grant_type"] = "urn:ietf:params:oauth:grant-type:device_code"
    token = httpx.post(f"{oidc.issuer}/token", data=form).json()["access_token"]
    user = httpx.get(f"{oidc.issuer}/me", headers={"Authorization": f"Bearer {token}"}).json()
    assert user == {"sub": "ada", "groups": ["imaging"]}


def test_the_second_provider_issues_opaque_tokens(zitadel: Zitadel) -> None:
    token = zitadel.token("test-user2")
    answer = httpx.post(f"{zitadel.issuer}oauth/introspect", data={"token": token}, auth=zitadel.client).json()
    assert (answer["active"], answer["sub"]) == (True, "id2")


@pytest.mark.timeout(900)
def test_keycloak_has_the_clients_of_its_page(keycloak: Keycloak) -> None:
    assert {client["clientId"] for client in keycloak.admin("GET", "/clients").json()} >= {"tes-cli", "tes-dashboard"}
    tokens = keycloak.tokens("ada")
    assert tokens["expires_in"] == 300 and "offline_access" in tokens["scope"]
