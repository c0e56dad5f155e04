"""The launchers in `poiesis/bin` are those of `launcher/`, and both run (docs/adr/0010-launcher-build.md)."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from poiesis.config import shipped_launchers

ROOT = Path(__file__).resolve().parents[2]
MACHINES = {"amd64": 62, "arm64": 183}  # e_machine of the ELF header
QEMU = {"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"}


def test_they_were_built_from_these_sources() -> None:
    """Otherwise run `make launcher` and commit the result."""
    recorded = {line.split("  ")[1] for line in (ROOT / "launcher/shipped.sha256").read_text().splitlines()}
    sources = {f"launcher/{path.name}" for path in (ROOT / "launcher").glob("*.[ch]")}
    assert (
        sources
        | {"launcher/Makefile", "requirements/launcher.txt"}
        | {f"poiesis/bin/launcher-{name}" for name in MACHINES}
        == recorded
    )
    check = subprocess.run(
        ["sha256sum", "--check", "--quiet", "launcher/shipped.sha256"], cwd=ROOT, capture_output=True, check=False
    )
    assert check.returncode == 0, check.stdout.decode()


@pytest.mark.parametrize("name", MACHINES)
def test_each_is_a_small_static_program_for_its_architecture(name: str) -> None:
    content = shipped_launchers()[name].read_bytes()
    assert content[:4] == b"\x7fELF" and struct.unpack_from("<H", content, 18) == (MACHINES[name],)
    start, size, count = struct.unpack_from("<Q", content, 32)[0], *struct.unpack_from("<HH", content, 54)
    kinds = {struct.unpack_from("<I", content, start + number * size)[0] for number in range(count)}
    assert not kinds & {2, 3}, "PT_DYNAMIC or PT_INTERP: not static"
    assert len(content) < 128 * 1024, "two of them must fit into a ConfigMap of 1 MiB, as base64"
    assert os.access(shipped_launchers()[name], os.X_OK)


@pytest.mark.parametrize("name", MACHINES)
def test_each_runs_a_command(name: str) -> None:
    argv: list[str] = [
        str(shipped_launchers()[name]),
        "--record-line",
        "@@",
        "--",
        sys.executable,
        "-c",
        "print('hello')",
    ]
    if os.uname().machine != {"amd64": "x86_64", "arm64": "aarch64"}[name]:
        emulator = shutil.which(QEMU[name])
        if emulator is None:
            pytest.skip(f"no {QEMU[name]} (Debian: qemu-user-static)")
        argv.insert(0, emulator)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("hello\n@@ {") and '"exit_code":0' in done.stdout
