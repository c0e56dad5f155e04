"""Two users of one service and one S3 server: each one's tasks use the user's own keys, and never the service's."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poiesis.api.credentials import hash_secret
from tests.integration.embedded.service import IMAGE, TERMINAL, Service, eventually, request
from tests.servers.s3 import S3Server

Users = dict[str, S3Server]


@pytest.fixture
def service(make_service: Callable[..., Service], tmp_path: Path, s3_of_users: Users, s3_server: S3Server) -> Service:
    """The service's own keys may do everything. `guest` is bound to no credentials, `lab-member` by group to those of ada."""
    tokens = [("ada", ()), ("eve", ()), ("guest", ()), ("member", ("lab",)), ("lost", ())]
    users = [{"name": name, "token_hash": hash_secret(name, "bearer"), "groups": groups} for name, groups in tokens]
    (tmp_path / "users.json").write_text(json.dumps(users))
    bindings = {"guest": "", "lost": str(tmp_path / "nothing")}
    for user, key in (("ada", "ada"), ("eve", "eve"), ("group:lab", "ada")):
        directory = tmp_path / "files" / f"keys of {user.replace(':', '-')}"  # inside what file:// URLs may name
        directory.mkdir(parents=True)
        (directory / "AWS_ACCESS_KEY_ID").write_text(key)
        (directory / "AWS_SECRET_ACCESS_KEY").write_text(f"{key}-secret")
        bindings[user] = str(directory)
    for user, server in s3_of_users.items():
        server.client().put_object(
            server.bucket, "secret.txt", io.BytesIO(f"of {user}\n".encode()), len(f"of {user}\n")
        )
    endpoint = {
        "url": s3_server.endpoint,
        "region": s3_server.region,
        "access_key": s3_server.access_key,
        "secret_key": s3_server.secret_key,
    }
    return make_service(
        POIESIS_API__AUTH="bearer",
        POIESIS_API__CREDENTIALS_FILE=str(tmp_path / "users.json"),
        POIESIS_FILER__S3=json.dumps({"lab": endpoint}),
        POIESIS_FILER__ATTEMPTS="1",
        POIESIS_CREDENTIALS=json.dumps(bindings),
        AWS_ACCESS_KEY_ID=s3_server.access_key,
        AWS_SECRET_ACCESS_KEY=s3_server.secret_key,
    ).start()


def run(service: Service, user: str, **task: Any) -> dict[str, Any]:
    """The task of a user at its end, in FULL view."""
    headers = {"Authorization": f"Bearer {user}"}
    document = {"executors": [{"image": IMAGE, "command": ["sh", "-c", "cat /in; echo new > /out"]}], **task}
    created = request("POST", f"{service.api}/tasks", document, **headers)
    assert created.status == 200, created.text
    url = f"{service.api}/tasks/{created.document['id']}?view=FULL"

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = request("GET", url, **headers).document
        return found if found["state"] in TERMINAL else None

    return eventually(ended, f"end of the task of {user}")


def test_each_user_reaches_the_users_own_bucket_only(service: Service, s3_of_users: Users, tmp_path: Path) -> None:
    buckets = {user: server.bucket for user, server in s3_of_users.items()}

    def reads(user: str, owner: str) -> dict[str, Any]:
        return run(service, user, inputs=[{"path": "/in", "url": f"s3://{buckets[owner]}/secret.txt"}])

    def writes(user: str, owner: str) -> dict[str, Any]:
        return run(
            service, user, outputs=[{"path": "/out", "url": f"s3://lab/{buckets[owner]}/new.txt", "type": "FILE"}]
        )

    for user, owner in (("ada", "ada"), ("eve", "eve"), ("member", "ada")):
        task = reads(user, owner)
        assert task["state"] == "COMPLETE", task["logs"]
        assert task["logs"][0]["logs"][0]["stdout"] == f"of {owner}\n"
    for user, owner in (("ada", "eve"), ("eve", "ada"), ("member", "eve"), ("guest", "ada")):
        task = reads(user, owner)
        assert task["state"] == "SYSTEM_ERROR" and "denied" in str(task["logs"]).lower(), task["logs"]
        assert not task["logs"][0]["logs"]
        assert writes(user, owner)["state"] == "SYSTEM_ERROR"
    for server in s3_of_users.values():
        assert [o.object_name for o in server.client().list_objects(server.bucket)] == ["secret.txt"]
    assert writes("eve", "eve")["state"] == "COMPLETE"


def test_missing_credentials_are_reported_in_words(service: Service) -> None:
    task = run(service, "lost", inputs=[{"path": "/in", "url": "s3://bucket/key"}])
    assert task["state"] == "SYSTEM_ERROR"
    assert "the credentials directory of lost is missing or empty" in str(task["logs"])


def test_no_task_reads_the_files_of_credentials(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "files" / "keys of ada" / "AWS_SECRET_ACCESS_KEY"
    created = request(
        "POST",
        f"{service.api}/tasks",
        {
            "executors": [{"image": IMAGE, "command": ["cat", str(path), "/in"]}],
            "inputs": [{"path": "/in", "url": f"file://{str(path).replace(' ', '%20')}"}],
        },
        Authorization="Bearer eve",
    )
    assert created.status in (200, 400)
    task = run(service, "ada", executors=[{"image": IMAGE, "command": ["cat", str(path)]}])
    assert task["state"] == "EXECUTOR_ERROR" and "ada-secret" not in json.dumps(task)
    if created.status == 200:
        url = f"{service.api}/tasks/{created.document['id']}?view=FULL"
        headers = {"Authorization": "Bearer eve"}
        ended = eventually(
            lambda: (d := request("GET", url, **headers).document) and (d if d["state"] in TERMINAL else None), "end"
        )
        assert ended["state"] == "SYSTEM_ERROR" and "ada-secret" not in json.dumps(ended)
