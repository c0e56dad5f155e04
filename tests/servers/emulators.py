"""Emulators of cloud stores, which `make emulators` installs into `.cache/emulators`: Azurite (npm) and fake-gcs-server (Go)."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.servers.process import missing

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "emulators"


def program(name: str) -> str:
    """The path of an emulator's program; skips the test where it is not installed."""
    for path in (FOLDER / "bin" / name, FOLDER / "node_modules" / ".bin" / name):
        if path.is_file():
            return str(path)
    found = shutil.which(name)
    return found or missing(f"no {name}: run `make emulators`, which needs npm and go")
