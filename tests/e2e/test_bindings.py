"""Two users of one S3 server, each with a separate Secret: neither reads or writes the other's bucket, in both layouts.

The shared keys of the installation may do everything; the S3 server is restarted with two further identities.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import pytest
from minio.error import S3Error

from poiesis.api.credentials import hash_secret
from tests.e2e.conftest import BASE_PATH, ENDS, PART, Cluster, Installation, Json, installation, until
from tests.e2e.site import shell

USERS: Final = ("ada", "eve")
SECRETS: Final = {"users": "tes-users", "ada": "s3-ada", "eve": "s3-eve"}


def identities(made: Installation) -> Json:
    """Of the S3 server: the installation's own, and one for each user with rights in the bucket of that name."""
    admin = {
        "name": "all",
        "credentials": [{"accessKey": made.s3.access_key, "secretKey": made.s3.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    own = [
        {
            "name": user,
            "credentials": [{"accessKey": user, "secretKey": f"{user}-secret"}],
            "actions": [f"{action}:bucket-{user}" for action in ("Read", "Write", "List", "Tagging")],
        }
        for user in USERS
    ]
    return {"identities": [admin, *own]}


def objects(made: Installation) -> Json:
    def secret(name: str, values: dict[str, str]) -> Json:
        metadata = {"name": name, "labels": {PART: "bindings"}}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}

    users = [{"name": name, "token_hash": hash_secret(name, "bearer")} for name in (*USERS, "lost", "guest")]
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            secret("s3-identities", {"s3.json": json.dumps(identities(made))}),
            secret(SECRETS["users"], {"credentials.json": json.dumps(users)}),
            *(
                secret(SECRETS[user], {"AWS_ACCESS_KEY_ID": user, "AWS_SECRET_ACCESS_KEY": f"{user}-secret"})
                for user in USERS
            ),
        ],
    }


@pytest.fixture(scope="module")
def made(cluster: Cluster, image: str) -> Iterator[Installation]:
    with installation(cluster, image) as made:
        made.kubectl("apply", "-f", "-", stdin=json.dumps(objects(made)))
        container = {
            "name": "s3",
            "volumeMounts": [{"name": "identities", "mountPath": "/etc/s3.json", "subPath": "s3.json"}],
        }
        volume = {"name": "identities", "secret": {"secretName": "s3-identities"}}
        patch = {"spec": {"template": {"spec": {"containers": [container], "volumes": [volume]}}}}
        made.kubectl("patch", "deployment", "s3", "--patch", json.dumps(patch))
        made.kubectl("rollout", "status", "deployment/s3", "--timeout=180s", timeout_s=200)
        bindings: list[Json] = [{"for": user, "secret": SECRETS[user]} for user in USERS]
        bindings += [{"for": "lost", "secret": "s3-lost"}, {"for": "guest", "secret": "", "pullSecrets": []}]
        made.upgrade(
            api={"auth": {"methods": ["bearer"], "existingSecret": SECRETS["users"]}},
            tasks={"bindings": bindings},
        )
        fill(made)
        yield made


def fill(made: Installation) -> None:
    client = made.s3.client()

    def look() -> bool:
        try:
            for user in USERS:
                if not client.bucket_exists(f"bucket-{user}"):
                    client.make_bucket(f"bucket-{user}")
                text = f"of {user}\n".encode()
                client.put_object(f"bucket-{user}", "secret.txt", io.BytesIO(text), len(text))
        except Exception:  # any error while the server is not ready yet
            return False
        return True

    until(look, 120, made.story)


def call(made: Installation, user: str, method: str, path: str, body: Json | None = None) -> Any:
    answer = made._http.request(
        method,
        f"{made.url}{BASE_PATH}{path}",
        body=None if body is None else json.dumps(body),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {user}"},
        timeout=30,
    )
    assert answer.status == 200, answer.data
    return json.loads(answer.data)


def ended(made: Installation, user: str, task_id: str) -> Json:
    def look() -> Json | None:
        found: Json = call(made, user, "GET", f"/tasks/{task_id}?view=FULL")
        return found if found["state"] in ENDS else None

    return until(look, 180, made.story)


READ: Final = "cat /data/in; env; ls -a /poiesis; ls /poiesis/credentials /poiesis/task; echo new > /data/out"


def post(made: Installation, user: str, owner: str | None, *, reads: bool) -> str:
    """A task of a user with a file of `owner`'s bucket as input or output."""
    task: Json = {"executors": [{**shell(READ), "ignore_error": True}]}
    if reads:
        task["inputs"] = [{"url": f"s3://bucket-{owner}/secret.txt", "path": "/data/in"}]
    else:
        task["outputs"] = [{"url": f"s3://main/bucket-{owner}/by-{user}", "path": "/data/out", "type": "FILE"}]
    return str(call(made, user, "POST", "/tasks", task)["id"])


@pytest.mark.parametrize("layout", ["single", "staged"])
def test_each_user_reaches_the_users_own_bucket_only(made: Installation, layout: str) -> None:
    made.upgrade(settings={**made.values["settings"], "POIESIS_POLICY__LAYOUT": layout})
    cases = [(user, owner, reads) for user in USERS for owner in USERS for reads in (True, False)]
    cases += [("guest", "ada", True), ("guest", "ada", False)]
    posted = {case: post(made, case[0], case[1], reads=case[2]) for case in cases}
    for (user, owner, reads), task_id in posted.items():
        task = ended(made, user, task_id)
        log = task["logs"][0]
        if user == owner:
            assert task["state"] == "COMPLETE", task
        else:
            assert task["state"] == "SYSTEM_ERROR" and "denied" in str(log["system_logs"]).lower(), task
        output = "".join(executor["stdout"] for executor in log["logs"])
        assert (f"of {owner}" in output) == (user == owner and reads)
        assert "secret\n" not in output and "AWS_" not in output and "credentials" not in output
    client = made.s3.client()
    for user in USERS:
        names = sorted(str(o.object_name) for o in client.list_objects(f"bucket-{user}"))
        assert names == [f"by-{user}", "secret.txt"]
        client.remove_object(f"bucket-{user}", f"by-{user}")


def test_a_missing_secret_ends_the_task_with_the_reason(made: Installation) -> None:
    task = ended(made, "lost", post(made, "lost", "ada", reads=True))
    assert task["state"] == "SYSTEM_ERROR"
    assert "the Secret 's3-lost' in the namespace of tasks is missing or empty" in str(task["logs"][0]["system_logs"])


def test_no_role_may_read_the_secrets(made: Installation) -> None:
    accounts = [a["metadata"]["name"] for a in made.get("serviceaccounts")]
    assert len(accounts) > 4
    for account in accounts:
        who = f"system:serviceaccount:{made.namespace}:{account}"
        for verb in ("get", "list", "watch"):
            answer = made.kubectl("auth", "can-i", verb, "secrets", f"--as={who}", check=False)
            assert answer.strip() == "no", (account, verb)


@pytest.mark.parametrize(("user", "other"), [("ada", "eve"), ("eve", "ada")])
def test_the_s3_server_tells_the_users_apart(made: Installation, user: str, other: str) -> None:
    """Otherwise the tests above would show nothing."""
    client = replace(made.s3, access_key=user, secret_key=f"{user}-secret").client()
    assert client.stat_object(f"bucket-{user}", "secret.txt").size
    with pytest.raises(S3Error):
        client.stat_object(f"bucket-{other}", "secret.txt")
