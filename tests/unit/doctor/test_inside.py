"""The part of the trial that runs in a task's pod."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from poiesis.doctor import inside
from poiesis.doctor.result import Status
from tests.unit.cluster.kubernetes.conftest import Answer, ApiServer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "SETTLE_S", 0.01)


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def secret(top: Path, name: str, **keys: str) -> None:
    (top / name).mkdir()
    for key, text in keys.items():
        (top / name / key.replace("_", ".")).write_text(text)


def test_secrets_by_their_keys(tmp_path: Path) -> None:
    for name in ("missing", "gone"):
        secret(tmp_path, name)
    secret(tmp_path, "opaque", password="x")
    secret(tmp_path, "broken", _dockerconfigjson="x")
    secret(tmp_path, "registry", _dockerconfigjson='{"auths": {"r": {}}}')
    secret(tmp_path, "s3", AWS="x")
    os.symlink("..2026", tmp_path / "gone" / "..data")
    found = list(inside.check_secrets(tmp_path, ["missing", "opaque", "broken", "registry"]))
    errors = {f.what.split(" Secret ")[1].split()[0].rstrip(","): f for f in found if f.status is Status.ERROR}
    assert set(errors) == {"missing", "gone", "opaque", "broken"}
    assert "create secret docker-registry missing" in errors["missing"].repair
    assert "create secret generic gone" in errors["gone"].repair
    assert "not one of an image registry: it has password" in errors["opaque"].what
    assert found[-1].what == "2 Secrets that the settings name exist"
    assert not list(inside.check_secrets(tmp_path / "none", []))


def test_a_volume_that_cannot_be_written(tmp_path: Path) -> None:
    assert [f.status for f in inside.check_volume(tmp_path)] == [Status.OK]
    assert list(tmp_path.iterdir()) == []
    [found] = inside.check_volume(tmp_path / "none")
    assert found.status is Status.ERROR and "fsGroup" in found.repair


def test_what_can_be_reached_is_named(listener: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        closed = other.getsockname()[1]
    [found] = inside.check_network([("Redis", "127.0.0.1", listener), ("MongoDB", "127.0.0.1", closed)], None)
    assert found.status is Status.WARNING and found.what == "a task's command can connect to: Redis"
    [found] = inside.check_network([("MongoDB", "127.0.0.1", closed)], None)
    assert found.status is Status.OK


def test_pokes() -> None:
    server = ApiServer()
    try:
        place = server.url.removeprefix("http://") + "/poke/x/0"
        server.answer = lambda request: Answer({}, status=202)
        [found] = inside.check_network([], place)
        assert found.status is Status.OK
        assert [(r.method, r.path) for r in server.requests] == [("POST", "/poke/x/0")]
        server.answer = lambda request: Answer({}, status=404)
        [found] = inside.check_network([], place)
        assert "does not know this pod (status 404)" in found.what
    finally:
        server.close()
    [found] = inside.check_network([], place)
    assert found.status is Status.WARNING and "cannot reach the monitor's port" in found.what
    [found] = inside.check_network([], "no-such-host.invalid:80/poke")
    assert found.status is Status.ERROR and "cannot resolve" in found.what


def test_what_it_prints_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "filer.json"
    settings.write_text("{}")
    inside.main(["--pull", "x", "in", "--document", "d", "--volume", str(tmp_path), "--settings", str(settings)])
    inside_filer = inside.findings_of("noise\n" + capsys.readouterr().out + "POIESIS-RECORD {}\n")
    assert [f.what for f in inside_filer] == ["the task's volume can be written and read"]
    inside.main(["network", json.dumps({"closed": [], "poke": None})])
    assert inside.findings_of(capsys.readouterr().out) == []
    for text in ("", "{}", "[1]", '{"findings": [{"status": "odd"}]}', "x"):
        assert inside.findings_of(text) == []
