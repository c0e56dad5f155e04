"""`poiesis doctor` against real servers: each broken set-up is named, and the named repair makes the check pass."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

import pytest
from pymongo import MongoClient
from redis import Redis

from poiesis.doctor.plan import checks_for
from poiesis.doctor.report import as_json
from poiesis.doctor.run import run_checks
from poiesis.doctor.site import read_site
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.tasks import MongoTaskRepository
from tests.servers import redis as redis_program
from tests.servers.oidc import OidcServer
from tests.servers.process import HOST, free_ports, running
from tests.servers.s3 import S3Server

Results = dict[str, list[dict[str, str]]]
PASSWORD = "corr3ct-horse"


def doctor(environ: Mapping[str, str], *names: str, mode: str = "auto", role: str | None = None) -> Results:
    """Findings of these checks, and of those that they depend on, by name. No text has a secret of `environ`."""
    others = {k: v for k, v in os.environ.items() if not k.startswith(("POIESIS_", "AWS_"))}
    with patch.dict(os.environ, others | dict(environ), clear=True):
        checks = {c.name: c for c in checks_for(read_site(os.environ, mode=mode, role=role))}
        wanted = {c.name: c for name in names for c in (checks.get(checks[name].after or ""), checks[name]) if c}
        results = run_checks(list(wanted.values()), read_site(os.environ).clean)
    found: Results = {}
    for result in as_json(results, "", None)["results"]:
        assert PASSWORD not in str(result)
        found.setdefault(result["name"], []).append(result)
    return found


def problem(found: Results, name: str) -> dict[str, str]:
    """The only finding of a check that is not ok, with all of its texts."""
    [result] = [r for r in found[name] if r["status"] in ("error", "warning")]
    assert result["what"] and result["follows"] and result["repair"], result
    return result


def assert_fine(found: Results, *names: str) -> None:
    for name in names:
        assert {r["status"] for r in found[name]} == {"ok"}, found[name]


@contextmanager
def redis_with(*options: str) -> Iterator[int]:
    """Its port."""

    def command(directory: Path, ports: list[int]) -> list[str]:
        return [*redis_program.command(directory, ports), *options]

    def connect(ports: list[int]) -> int:
        with Redis(HOST, ports[0], password=PASSWORD if PASSWORD in options else None, socket_timeout=2) as client:
            client.ping()
        return ports[0]

    with running("redis", 1, command, connect) as port:
        yield port


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_and_a_missing_redis_password() -> None:
    with redis_with("--requirepass", PASSWORD) as port:
        wrong = doctor({"POIESIS_REDIS_URI": f"redis://:wrong@{HOST}:{port}/0"}, "workers")
        assert f"Redis at {HOST}:{port} refuses the user name or password" == problem(wrong, "redis")["what"]
        assert wrong["workers"][0]["what"] == "not checked: depends on redis"
        missing = doctor({"POIESIS_REDIS_URI": f"redis://{HOST}:{port}/0"}, "redis")
        assert problem(missing, "redis")["what"] == f"Redis at {HOST}:{port} requires a password"
        assert "redis://USER:PASSWORD@HOST:PORT/0" in problem(missing, "redis")["repair"]
        assert_fine(doctor({"POIESIS_REDIS_URI": f"redis://:{PASSWORD}@{HOST}:{port}/0"}, "redis"), "redis")


def test_a_redis_that_does_not_run() -> None:
    [port] = free_ports(1)
    found = doctor({"POIESIS_REDIS_URI": f"redis://:{PASSWORD}@{HOST}:{port}/0"}, "redis")
    assert f"Redis at {HOST}:{port} does not respond" in problem(found, "redis")["what"]


def test_a_redis_that_deletes_messages_when_it_is_full() -> None:
    with redis_with("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru") as port:
        environ = {"POIESIS_REDIS_URI": f"redis://{HOST}:{port}/0"}
        found = problem(doctor(environ, "redis", role="torc"), "redis")
        assert found["status"] == "warning" and "maxmemory-policy noeviction" in found["repair"]
        with Redis(HOST, port) as client:
            client.config_set("maxmemory-policy", "noeviction")
        assert_fine(doctor(environ, "redis"), "redis")


def test_a_redis_user_without_rights(redis_url: str) -> None:
    with redis_with() as port, Redis(HOST, port) as client:
        client.acl_setuser(
            "tes", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], commands=["+@read", "+info", "+time"]
        )
        environ = {"POIESIS_REDIS_URI": f"redis://tes:{PASSWORD}@{HOST}:{port}/0"}
        found = problem(doctor(environ, "redis"), "redis")
        assert "too few rights" in found["what"] and "ACL SETUSER" in found["repair"]
        client.execute_command("ACL", "SETUSER", "tes", "~*", "&*", "+@all", "-@dangerous", "+info")
        assert_fine(doctor(environ, "redis"), "redis")


def test_nothing_is_left_in_redis(redis_url: str) -> None:
    doctor({"POIESIS_REDIS_URI": redis_url}, "redis")
    with Redis.from_url(redis_url) as client:
        assert list(client.scan_iter("*doctor*")) == []


# ── MongoDB ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def store(mongo_url: str) -> dict[str, str]:
    server, _, database = mongo_url.rpartition("/")
    return {"POIESIS_MONGO_URI": server, "POIESIS_MONGO_DATABASE": database}


def test_a_store_that_is_fine_and_nothing_is_left_in_it(mongo_url: str) -> None:
    environ = store(mongo_url)
    with MongoClient[dict[str, Any]](mongo_url) as client:
        database = client[environ["POIESIS_MONGO_DATABASE"]]
        abandoned, current = f"doctor_{int(time.time()) - 9999}_0a", f"doctor_{int(time.time())}_0b"
        for name in (abandoned, current):
            database[name].insert_one({"_id": "trial"})
        found = doctor(environ, "store-rights", "indexes", "notifier")
        assert_fine(found, "store", "store-rights", "indexes", "notifier")
        assert "MongoDB" in found["store"][0]["what"]
        assert database.list_collection_names() == [current], "those of killed runs are removed, not those of others"


def test_a_store_that_does_not_run() -> None:
    [port] = free_ports(1)
    found = doctor({"POIESIS_MONGO_URI": f"mongodb://ada:{PASSWORD}@{HOST}:{port}"}, "store", role="notifier")
    assert f"MongoDB at {HOST}:{port} does not respond" in problem(found, "store")["what"]


def test_missing_indexes_are_named_and_come_back(mongo_url: str) -> None:
    environ = store(mongo_url)
    made = MongoDatabase(mongo_url, environ["POIESIS_MONGO_DATABASE"])
    MongoTaskRepository(made).ready()
    assert made.wait_for_indexes(timedelta(seconds=30))
    made.close()
    with MongoClient[dict[str, Any]](mongo_url) as client:
        tasks = client[environ["POIESIS_MONGO_DATABASE"]]["tasks"]
        if not tasks.index_information().get("due"):
            tasks.insert_one({"_id": "x"})
        assert_fine(doctor(environ, "indexes"), "indexes")
        tasks.drop_index("due")
        tasks.drop_index("name")
        found = problem(doctor(environ, "indexes"), "indexes")
        assert found["what"] == "missing indexes of the collection tasks: name, due"


def test_a_notifier_that_does_not_run(mongo_url: str) -> None:
    environ = store(mongo_url)
    since = (datetime.now(UTC) - timedelta(minutes=5)).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    with MongoClient[dict[str, Any]](mongo_url) as client:
        tasks = client[environ["POIESIS_MONGO_DATABASE"]]["tasks"]
        tasks.insert_one({"_id": "x", "outbox": f"{since} 000000000001"})
        found = problem(doctor(environ, "notifier", role="notifier"), "notifier")
        assert "have waited for the notifier for 30" in found["what"]
        tasks.update_one({"_id": "x"}, {"$unset": {"outbox": ""}})
        assert_fine(doctor(environ, "notifier", role="notifier"), "notifier")


# ── S3 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def s3_settings(server: S3Server, **changes: object) -> dict[str, str]:
    endpoint = {"url": server.endpoint, "region": server.region, "buckets": [server.bucket]} | changes
    return {
        "POIESIS_FILER__S3": json.dumps({"main": endpoint}),
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }


def test_s3_with_wrong_keys_a_missing_bucket_and_the_wrong_style(s3: S3Server, tmp_path: Path) -> None:
    fine = s3_settings(s3)
    assert_fine(doctor(fine, "s3-main", mode="machine"), "s3-main")
    assert_fine(doctor(s3_settings(s3, buckets=["genomes-*"]), "s3-main", mode="machine"), "s3-main")
    for change, words in (
        ({"AWS_SECRET_ACCESS_KEY": PASSWORD}, "wrong secret key"),
        ({"AWS_ACCESS_KEY_ID": "unknown"}, "unknown access key"),
    ):
        found = problem(doctor(fine | change, "s3-main", mode="machine"), "s3-main")
        assert words in found["what"] and "AWS_SECRET_ACCESS_KEY" in found["repair"]
    found = problem(doctor(s3_settings(s3, buckets=["no-such-bucket"]), "s3-main", mode="machine"), "s3-main")
    assert found["what"] == "main: there is no bucket no-such-bucket"
    named = s3_settings(s3, virtual_style=True, url=s3.endpoint.replace(HOST, "s3.invalid"))
    found = problem(doctor(named, "s3-main", mode="machine"), "s3-main")
    assert "wildcard DNS record" in found["repair"]
    [port] = free_ports(1)
    found = problem(doctor(s3_settings(s3, url=f"http://{HOST}:{port}"), "s3-main", mode="machine"), "s3-main")
    assert "extraEgress" in found["repair"]


def test_the_log_store_is_tried_out_and_left_clean(s3: S3Server) -> None:
    environ = {
        "POIESIS_LOGS__URL": f"s3://{s3.bucket}/logs",
        "POIESIS_LOGS__ENDPOINT": s3.endpoint,
        "POIESIS_LOGS__ACCESS_KEY": s3.access_key,
        "POIESIS_LOGS__SECRET_KEY": s3.secret_key,
    }
    assert_fine(doctor(environ, "log-store", mode="machine"), "log-store")
    assert list(s3.client().list_objects(s3.bucket, recursive=True)) == []
    found = problem(doctor(environ | {"POIESIS_LOGS__SECRET_KEY": PASSWORD}, "log-store", mode="machine"), "log-store")
    assert "wrong secret key" in found["what"]


# ── OpenID Connect ────────────────────────────────────────────────────────────────────────────────────────────────────


def oidc_settings(**issuer: object) -> dict[str, str]:
    issuers = [{"name": "lab", "audiences": ["tes"], **issuer}]
    return {"POIESIS_API__AUTH": "oidc", "POIESIS_API__OIDC_ISSUERS": json.dumps(issuers)}


def test_providers(oidc: OidcServer) -> None:
    assert_fine(doctor(oidc_settings(url=oidc.issuer), "oidc-lab", role="api"), "oidc", "oidc-lab")
    found = problem(doctor(oidc_settings(url=oidc.issuer + "/"), "oidc-lab", role="api"), "oidc-lab")
    assert repr(oidc.issuer) in found["what"] and "slash" in found["repair"]
    found = problem(doctor(oidc_settings(url=oidc.issuer, algorithms=["ES256"]), "oidc-lab", role="api"), "oidc-lab")
    assert "RS256" in found["what"] and "algorithms" in found["repair"]
    [port] = free_ports(1)
    found = problem(doctor(oidc_settings(url=f"http://{HOST}:{port}"), "oidc-lab", role="api"), "oidc-lab")
    assert "Connection refused" in found["what"]
    found = problem(doctor(oidc_settings(url="http://login.example.org"), "oidc", role="api"), "oidc")
    assert "POIESIS_API__OIDC_ISSUERS[0]" in found["what"]


@pytest.mark.parametrize("methods", ["", "api_key"])
@pytest.mark.parametrize(
    ("setting", "needs"),
    [("POIESIS_API__OIDC_ISSUERS", "oidc"), ("POIESIS_API__CREDENTIALS_FILE", "basic or bearer")],
)
def test_settings_of_methods_that_are_not_in_use(methods: str, setting: str, needs: str) -> None:
    found = problem(
        doctor({"POIESIS_API__AUTH": methods, setting: "x"}, "authentication", role="api"), "authentication"
    )
    assert setting in found["what"] and needs in found["repair"]
    assert_fine(doctor({"POIESIS_API__AUTH": methods}, "authentication", role="api"), "authentication")
    in_use = {"POIESIS_API__AUTH": needs.split()[0], setting: "x"}
    assert_fine(doctor(in_use, "authentication", role="api"), "authentication")


# ── clocks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def server_with_clock(ahead_s: float, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string((timestamp or time.time()) + ahead_s)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((HOST, 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("ahead_s", "is_wrong"), [(300, True), (-300, True), (0, False)])
def test_the_clock_of_an_s3_server(ahead_s: float, is_wrong: bool) -> None:
    with server_with_clock(ahead_s, b"<ListBucketResult/>") as url:
        environ = {"POIESIS_FILER__S3": json.dumps({"main": {"url": url, "buckets": ["data"], "anonymous": True}})}
        found = doctor(environ, "s3-main", mode="machine")
        if is_wrong:
            result = problem(found, "s3-main")
            assert "ahead" in result["what"] if ahead_s > 0 else "behind" in result["what"]
            assert "Synchronize" in result["repair"]
        else:
            assert_fine(found, "s3-main")
