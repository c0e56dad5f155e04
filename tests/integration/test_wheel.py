"""The sdist and the wheel: installed by itself into an empty environment, `poiesis up` runs a task, for an ordinary user too."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = {"poiesis/bin/launcher-amd64", "poiesis/bin/launcher-arm64"}
UV = Path(sys.executable).with_name("uv")
OTHER_UID = 65534
OTHER_USER = {"user": OTHER_UID, "group": OTHER_UID, "extra_groups": ()}
TASK = {
    "name": "hello",
    "inputs": [{"path": "/data/name.txt", "content": "world"}],
    "executors": [{"image": "alpine", "command": ["sh", "-c", "echo hello $(cat /data/name.txt)"]}],
}
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("wheel")]


def until(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def run(*argv: object, **options: Any) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def public() -> Iterator[Path]:
    """A directory that every user can enter, which pytest's are not."""
    directory = Path(tempfile.mkdtemp(prefix="poiesis-wheel-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def dist(public: Path) -> Path:
    """An sdist of the files in git, and the wheel that is built from it."""
    source = public / "source"
    source.mkdir()
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0"):
        if name and os.path.lexists(ROOT / name):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    run(UV, "build", "--python", sys.executable, "--no-build-isolation", "--out-dir", public / "dist", source)
    return public / "dist"


def usable(python: str) -> bool:
    """Every user can run this interpreter, and it is new enough (one below /root cannot be run by others)."""
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-c", code], cwd="/", **OTHER_USER, check=False).returncode == 0  # type: ignore[call-overload]
    except OSError:
        return False


@pytest.fixture(scope="module")
def interpreter() -> str:
    """One that every user can run, where there is one."""
    found = (python for python in (sys.executable, "/usr/bin/python3") if os.geteuid() == 0 and usable(python))
    return next(found, sys.executable)


@pytest.fixture(scope="module")
def installed(public: Path, dist: Path, interpreter: str) -> Path:
    """The `poiesis` of an environment with the wheel and its dependencies, in the versions of the lock file."""
    [wheel] = dist.glob("*.whl")
    python = public / "venv/bin/python"
    run(UV, "venv", "--python", interpreter, public / "venv")
    run(UV, "pip", "install", "--python", python, "--link-mode", "copy", "-c", ROOT / "requirements/lock.txt", wheel)
    return python.with_name("poiesis")


@contextmanager
def service(poiesis: Path, directory: Path, user: int | None) -> Iterator[str]:
    """`poiesis up` in `directory`, which is empty; yields the service's address."""
    owner = {} if user is None else OTHER_USER
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "PYTHONUNBUFFERED": "1"}
    log = directory.parent / f"{directory.name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [poiesis, "up", "--port", "0", "--runtime", "process"],
            cwd=directory, env=environment, stdout=out, stderr=subprocess.STDOUT, **owner,  # type: ignore[call-overload]
        )  # fmt: skip
    try:
        until(lambda: "up at http" in log.read_text() or process.poll() is not None, "the service is up")
        if process.poll() is not None and user is not None and "namespace" in log.read_text():
            pytest.skip(f"ordinary users cannot create namespaces here: {log.read_text()}")
        assert process.poll() is None, log.read_text()
        yield next(word for word in log.read_text().split() if word.startswith("http")).rstrip(".")
    finally:
        process.terminate()
        process.wait(60)


def call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_sdist_and_wheel_have_both_launchers_and_the_specification(dist: Path) -> None:
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = {item.filename: item.external_attr >> 16 for item in zipfile.ZipFile(wheel).infolist()}
    assert set(names) >= LAUNCHERS | {"poiesis/specs/tes.openapi.yaml"}
    assert all(names[name] & 0o111 for name in LAUNCHERS)
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert inside >= LAUNCHERS


@pytest.mark.parametrize("user", [None, OTHER_UID], ids=["this user", "an ordinary user"])
def test_the_installed_wheel_runs_a_task_from_an_empty_directory(
    installed: Path, interpreter: str, public: Path, user: int | None
) -> None:
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can become another user; the other case is an ordinary user already")
    if user is not None and not usable(interpreter):
        pytest.skip("other users cannot run this Python, nor /usr/bin/python3")
    directory = public / f"empty-{user}"
    directory.mkdir()
    if user is not None:
        os.chown(directory, user, user)
    with service(installed, directory, user) as url:
        api = f"{url}/ga4gh/tes/v1"
        task = call(f"{api}/tasks", TASK)["id"]
        until(
            lambda: call(f"{api}/tasks/{task}")["state"] in ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR"),
            "the task ends",
        )
        seen = call(f"{api}/tasks/{task}?view=FULL")
        assert seen["state"] == "COMPLETE", seen
        assert seen["logs"][0]["logs"][0]["stdout"] == "hello world\n"
