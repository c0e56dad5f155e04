"""Checks of one machine: each broken set-up is named, and the repair works."""

from __future__ import annotations

import os
import resource
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from poiesis.cluster.local import cgroups
from poiesis.doctor import machine, store
from poiesis.doctor.result import Finding, Findings, Status
from poiesis.doctor.site import Site, read_site
from poiesis.domain.errors import ConfigurationError
from tests.unit.cluster.kubernetes.conftest import Answer, ApiServer

SERVICE = {"name": "Lab", "version": "1.0", "type": {"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"}}


def only(found: Findings) -> Finding:
    [finding] = found
    if finding.status in (Status.ERROR, Status.WARNING):
        assert finding.what and finding.follows and finding.repair
    return finding


def site(**environ: str) -> Site:
    return read_site({f"POIESIS_{name}": value for name, value in environ.items()}, mode="machine")


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = only(machine.check_directory(site(DIRECTORY=str(tmp_path / "file" / "data"))))
    assert found.status is Status.ERROR and "is not a directory" in found.what and "--dir" in found.repair
    found = only(machine.check_directory(site(DIRECTORY=str(tmp_path / "data"), POLICY__DEFAULT_DISK_BYTES="1")))
    assert found.status is Status.OK
    assert not (tmp_path / "data").exists()


def test_a_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "not writable for this user" in only(machine.check_directory(site(DIRECTORY=str(tmp_path)))).what


@pytest.mark.parametrize(("free", "status"), [(10**8, Status.ERROR), (5 * 10**9, Status.WARNING), (10**12, Status.OK)])
def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, status: Status) -> None:
    space = list(os.statvfs(tmp_path))
    blocks = os.statvfs_result((1, 1, free * 2, free, free, 10**7, 10**7, 10**7, *space[8:]))
    monkeypatch.setattr(os, "statvfs", lambda path: blocks)
    assert only(machine.check_directory(site(DIRECTORY=str(tmp_path)))).status is status


def test_a_port_in_use_by_another_program_and_by_the_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.settimeout(0.01)
        found = only(machine.check_port(site(API__PORT=str(port))))
    assert found.status is Status.ERROR and f"port {port}" in found.what and "--port" in found.repair
    assert only(machine.check_port(site(API__PORT=str(port)))).status is Status.OK
    server = ApiServer()
    try:
        server.answer = lambda request: Answer(SERVICE)
        found = only(machine.check_port(site(API__PORT=server.url.rpartition(":")[2])))
        assert found.status is Status.OK and found.what.startswith("Lab 1.0 is running")
    finally:
        server.close()


def test_no_runtime_can_run_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise ConfigurationError("no runtime can run commands on this machine (docker: not installed)")

    monkeypatch.setattr(machine, "select_runtime", none)
    found = only(machine.check_runtime(site(DIRECTORY=str(tmp_path / "new"))))
    assert found.status is Status.ERROR and "docker: not installed" in found.what
    assert not (tmp_path / "new").exists()


def test_user_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, apparmor = tmp_path / "max", tmp_path / "apparmor"
    monkeypatch.setattr(machine, "USER_NAMESPACES", number)
    monkeypatch.setattr(machine, "APPARMOR", apparmor)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    number.write_text("0\n")
    assert "sysctl -w user.max_user_namespaces" in only(machine.check_user_namespaces(site())).repair
    number.write_text("15000\n")
    apparmor.write_text("1\n")
    assert "apparmor_restrict" in only(machine.check_user_namespaces(site())).repair
    apparmor.write_text("0\n")
    assert only(machine.check_user_namespaces(site())).status is Status.OK


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (None, "memory and the number of processes"),
        (cgroups.Groups(2, {"pids": Path("/x")}), "limit memory"),
        (cgroups.Groups(2, {"pids": Path("/x"), "memory": Path("/x")}), None),
    ],
)
def test_control_groups(monkeypatch: pytest.MonkeyPatch, groups: cgroups.Groups | None, words: str | None) -> None:
    monkeypatch.setattr(cgroups, "find", lambda: groups)
    found = only(machine.check_cgroups(site()))
    if words is None:
        assert found.status is Status.OK
    else:
        assert words in found.what and "Delegate=yes" in found.repair


def test_too_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    found = only(machine.check_limits(site()))
    assert "512 open files" in found.what and "ulimit -Hn 1024" in found.repair
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))  # the service raises the soft one
    assert only(machine.check_limits(site())).status is Status.OK


def test_a_database_that_is_not_one(tmp_path: Path) -> None:
    settings = site(DIRECTORY=str(tmp_path))
    assert only(store.check_database_file(settings)).status is Status.OK
    path = tmp_path / "tasks.sqlite"
    path.write_bytes(b"x" * 4096)
    found = only(store.check_database_file(settings))
    assert found.status is Status.ERROR and "not a database" in found.what
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE tasks (id TEXT)")
    assert only(store.check_database_file(settings)).what == f"{path}: 0 tasks"


def test_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    from poiesis.doctor.service import check_api

    server = ApiServer()
    url: Callable[[], str] = lambda: server.url.replace("//", "//ada:s3cret@")  # noqa: E731
    try:
        server.answer = lambda request: Answer(SERVICE)
        assert "Lab 1.0 at http://127.0.0.1" in only(check_api(server.url + "/ga4gh/tes/v1")).what
        server.answer = lambda request: Answer({"hello": 1})
        found = only(check_api(server.url))
        assert found.status is Status.WARNING and "not a TES service" in found.what
    finally:
        server.close()
    found = only(check_api(url()))
    assert found.status is Status.ERROR and "s3cret" not in found.what
