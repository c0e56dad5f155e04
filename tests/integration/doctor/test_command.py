"""The command as a user runs it: output, exit codes, and nothing left on the machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

PASSWORD = "corr3ct-horse"


def doctor(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("POIESIS_", "AWS_"))}
    given = {f"POIESIS_{name}": value for name, value in {"DIRECTORY": str(directory), **environ}.items()}
    argv = [sys.executable, "-m", "poiesis", "doctor", *arguments]
    done = subprocess.run(argv, env=clean | given, capture_output=True, text=True, timeout=150, check=False)
    assert PASSWORD not in done.stdout + done.stderr
    return done


def test_one_machine_with_faults_and_without(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = doctor(directory, API__PORT=port, POLICY__GRACE="soon", FILER__FILE_ROOTS="/no/such/directory")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == "" and "\x1b" not in " ".join(done.stdout.split())
    for words in (f"cannot listen on 127.0.0.1 port {port}", "POIESIS_POLICY__GRACE", "no such directory", "repair: "):
        assert words in done.stdout, done.stdout
    assert not directory.exists()
    done = doctor(directory, "--json", API__PORT="0", POLICY__DEFAULT_DISK_BYTES="1")
    found = json.loads(done.stdout)
    assert (done.returncode, found["mode"]) == (0, "machine"), found
    assert not directory.exists()


def test_strict_makes_warnings_count(tmp_path: Path) -> None:
    huge = str(10**18)  # more than any disk has
    for arguments, code in (((), 0), (("--strict",), 3)):
        done = doctor(tmp_path, "--no-trial", *arguments, API__PORT="0", POLICY__DEFAULT_DISK_BYTES=huge)
        assert done.returncode == code, done.stdout
        assert "one task may use 1000000000.0 GB" in " ".join(done.stdout.split())


def test_a_cluster_without_servers(tmp_path: Path) -> None:
    """Everything that does not respond is named, and the connection strings are not shown."""
    nowhere = {"MONGO_URI": f"mongodb://ada:{PASSWORD}@127.0.0.1:1", "REDIS_URI": f"redis://:{PASSWORD}@127.0.0.1:1/0"}
    done = doctor(tmp_path, "--role", "torc", KUBERNETES__KUBECONFIG="/no/such/file", **nowhere)
    assert done.returncode == 1
    text = " ".join(done.stdout.split())
    for words in (
        "MongoDB at 127.0.0.1:1 does not respond",
        "Redis at 127.0.0.1:1 does not respond",
        "cannot configure access to Kubernetes",
    ):
        assert words in text, text
