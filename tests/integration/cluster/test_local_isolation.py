"""Attacks by a task on one machine: what it can read of the service's user, what it can exhaust. As root and as an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poiesis.cluster.local import credential_files

PROGRAM = Path(__file__).with_name("single_run.py")
SECRET = "hunter2"
PYTHON = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if os.access(p, os.X_OK)), None)
KEY = f"poiesis-test-{secrets.token_hex(4)}"
Run = Callable[..., dict[str, Any]]


class Account:
    """A user of this machine with a home directory."""

    def __init__(self, name: str, home: Path, uid: int, gid: int) -> None:
        self.name, self.home, self.uid, self.gid = name, home, uid, gid

    def own(self, path: Path, text: str | None = None) -> Path:
        """A directory, or a file with `text`, which only this user can read."""
        if text is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_text(text)
        path.chmod(0o700 if text is None else 0o600)
        os.chown(path, self.uid, self.gid)
        return path


@pytest.fixture(scope="session")
def ordinary_user() -> Iterator[Account]:
    if os.geteuid() != 0 or shutil.which("useradd") is None:
        pytest.skip("creating an ordinary user needs root and useradd")
    name = f"poiesis{secrets.token_hex(3)}"
    subprocess.run(["useradd", "--create-home", name], check=True, capture_output=True)
    try:
        entry = pwd.getpwnam(name)
        yield Account(name, Path(entry.pw_dir), entry.pw_uid, entry.pw_gid)
    finally:
        subprocess.run(["userdel", "--remove", name], check=False, capture_output=True)


@pytest.fixture(params=["current", "ordinary"])
def account(request: pytest.FixtureRequest) -> Account:
    if request.param == "ordinary":
        found: Account = request.getfixturevalue("ordinary_user")
        return found
    return Account("", Path.home(), os.geteuid(), os.getegid())


@pytest.fixture
def run(account: Account, launcher: Path, why_not: Callable[[str], str | None]) -> Iterator[Run]:
    """Run one task as `account` in a service directory in its home; the answer is what single_run.py prints."""
    if (reason := why_not("process")) is not None:
        pytest.skip(reason)
    place = account.own(account.home / f"poiesis-test-{secrets.token_hex(4)}")
    shutil.copy(launcher, place / "launcher")
    (place / "launcher").chmod(0o755)
    python = sys.executable if account.uid == os.geteuid() else PYTHON
    if python is None or not os.access(PROGRAM, os.R_OK):
        pytest.skip("no interpreter that an ordinary user can run")

    def become() -> None:
        if account.uid != os.geteuid():
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)

    def call(*scripts: str, variables: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
        done = subprocess.run(
            [python, str(PROGRAM), str(place / "service"), str(place / "launcher")],
            input=json.dumps({"scripts": scripts, **options}, default=str),
            env={
                "HOME": str(account.home),
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(PROGRAM.parents[3]),
                "PYTHONDONTWRITEBYTECODE": "1",
                **(variables or {}),
            },
            preexec_fn=become,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if "requires-python" in done.stderr or "SyntaxError" in done.stderr:
            pytest.skip(f"{python} is too old")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    try:
        yield call
    finally:
        shutil.rmtree(place)


def output(found: dict[str, Any], index: int = 0) -> str:
    assert found["lost"] is None, found["lost"]
    return str(found["records"][index]["stdout"])


def test_secrets_of_the_services_user_are_not_visible(run: Run, account: Account, tmp_path: Path) -> None:
    mark = secrets.token_hex(4)
    with contextlib.ExitStack() as stack:
        places = [
            account.own(Path(parent) / mark)
            for parent in (account.home, "/tmp", "/var/tmp", "/srv", "/opt", "/var/lib")
        ]
        for place in places:
            stack.callback(shutil.rmtree, place)
        files = [account.own(place / name, SECRET) for place in places for name in (".netrc", "credentials.json")]
        if not (netrc := account.home / ".netrc").exists():
            files.append(account.own(netrc, SECRET))
            stack.callback(netrc.unlink)
        service_file = next(f for f in files if f.parent == Path("/opt") / mark and f.name == "credentials.json")
        other_file = service_file.with_name(".netrc")
        variables = {"POIESIS_API__CREDENTIALS_FILE": str(service_file), "AWS_SHARED_CREDENTIALS_FILE": str(other_file)}
        hidden = credential_files(variables)
        assert set(hidden) == {service_file, other_file}
        script = f"""
        cat {" ".join(map(str, files))} 2>/dev/null; cat /proc/*/environ; env
        for d in /home /root /tmp /srv /mnt /media /run /run/user /var/run /var/lib/docker {account.home}; do ls -A $d 2>/dev/null; done
        ls -d /proc/[0-9]* | wc -l; cat /etc/shadow /etc/ssh/* /etc/sudoers 2>/dev/null
        """
        text = output(run(script, variables={**variables, "POIESIS_TOKEN": SECRET}, hidden=hidden))
    assert SECRET not in text and mark not in text
    lines = text.split()
    assert not set(lines) & set(os.listdir("/tmp")), "files of the host are visible"
    assert int(lines[-1]) < 10, "processes of the host are visible"


def test_listed_directories_are_visible_and_cannot_be_written(run: Run, account: Account) -> None:
    tools = account.own(account.home / f"tools-{secrets.token_hex(4)}")
    try:
        tools.chmod(0o755)
        account.own(tools / "tool", "#!/bin/sh\necho tool\n").chmod(0o755)
        if account.uid == 0:
            account.home.chmod(
                account.home.stat().st_mode
            )  # /root may be inaccessible to others: only the mount has to work
        text = output(
            run(f"{tools}/tool; touch {tools}/new 2>/dev/null && echo written; ls -A {account.home}", visible=[tools])
        )
        assert text.split() == ["tool", tools.name]
    finally:
        shutil.rmtree(tools)


def test_a_thousand_processes_are_stopped(run: Run) -> None:
    found = run("i=0; while [ $i -lt 1000 ]; do sleep 60 & i=$((i+1)); done; echo all of them")
    assert "all of them" not in output(found) and found["records"][0]["exit_code"] != 0
    assert "fork" in found["records"][0]["stderr"].lower()


def test_control_files_are_out_of_reach(run: Run) -> None:
    """Neither the directory itself nor a descriptor of the launcher leads there."""
    script = """
    for d in /poiesis/control /proc/1/cwd /proc/1/root/poiesis/control /proc/1/fd/* /proc/self/fd/*; do
        [ -d "$d/." ] && (cd "$d" 2>/dev/null && seq 20000 | xargs touch 2>/dev/null && echo "filled $d"); done
    ls /proc/1/fd 2>/dev/null; echo done
    """
    found = run(script)
    assert output(found) == "done\n"
    assert found["control_files"] == 0
    assert found["records"][0]["ok"]


@pytest.mark.parametrize("directory", ["/x", "/dev/x"])
def test_files_beside_the_task_are_bounded(run: Run, directory: str) -> None:
    text = output(
        run(f"mkdir {directory} && cd {directory} && seq 100000 | xargs touch 2>/dev/null || echo refused; ls | wc -l")
    )
    assert text.split()[0] == "refused" and int(text.split()[1]) < 20_000


@pytest.mark.parametrize("directory", ["/work", "/tmp"])
def test_a_task_above_its_disk_space_is_ended(run: Run, directory: str) -> None:
    script = f"echo begun; head -c 200000000 /dev/zero > {directory}/big; sleep 60; echo survived"
    found = run(script, volumes=["/work"], resources={"disk_gb": 0.01})
    assert output(found) == "begun\n"
    record = found["records"][0]
    assert record["reason"] == "DiskLimit" and not record["ok"]
    assert "disk_gb" in record["message"] and "0.01" in record["message"]


def test_many_empty_files_count_as_disk_space(run: Run) -> None:
    found = run(
        "cd /work; seq 100000 | xargs touch; sleep 60; echo survived", volumes=["/work"], resources={"disk_gb": 0.05}
    )
    assert found["records"][0]["reason"] == "DiskLimit" and output(found) == ""


KEYS = """
import ctypes, sys
call = ctypes.CDLL(None, use_errno=True).syscall
add_key, request_key, keyctl = {"x86_64": (248, 249, 250)}.get(__import__("os").uname().machine, (217, 218, 219))
name = b"%s"
for ring in (-3, -4):  # of the session, of the user
    if sys.argv[1] == "add":
        print("added" if call(add_key, b"user", name + str(ring).encode(), b"value", 5, ring) > 0 else "not added")
    else:
        keyctl_search = 10
        print("found" if call(keyctl, keyctl_search, ring, b"user", name + str(ring).encode(), 0) > 0 else "not found")
"""


def test_kernel_keys_are_not_shared(run: Run) -> None:
    if PYTHON is None:
        pytest.skip("no python3 below /usr")
    program = KEYS % KEY
    found = run(*(f"{PYTHON} -c '{program}' {what}" for what in ("add", "find")))
    assert "found" not in output(found, 1).replace("not found", ""), output(found, 1)
    assert output(found, 1).count("not found") == 2, found["records"][1]


def test_no_further_user_namespace_can_be_created(run: Run) -> None:
    assert output(run("unshare -Ur echo created; echo end")) == "end\n"


def test_abstract_sockets_of_the_host_cannot_be_reached(run: Run) -> None:
    name = f"poiesis-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        if PYTHON is None:
            pytest.skip("no python3 below /usr")
        program = f'import socket; socket.socket(socket.AF_UNIX).connect("\\0{name}"); print("connected")'
        found = run(f"{PYTHON} -c '{program}'")
    if "abstract" in found["description"]:
        pytest.skip("this kernel has no Landlock with scopes (Linux 6.12)")
    assert output(found) == "" and "Operation not permitted" in found["records"][0]["stderr"]


def test_the_description_at_start_lists_what_is_shared(run: Run) -> None:
    assert "network" in run("true")["description"]


def test_directories_above_mounts_belong_to_the_commands_user(run: Run) -> None:
    script = (
        "cd /proj && mkdir tmp && touch /proj/in/new && cd /opt/mine && mkdir tmp && echo ok > /proj/out/y && echo made"
    )
    found = run(script, inputs=["/proj/in/x", "/opt/mine/deep/x"], outputs=["/proj/out/y"])
    assert output(found) == "made\n", found["records"][0]["stderr"]
