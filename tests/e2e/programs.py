"""helm and kubectl for tests: from PATH, beside the test cluster, or packed with its scripts."""

from __future__ import annotations

import lzma
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PACKED: Final = ROOT.parent / "shared" / "cluster"


def find(name: str) -> str | None:
    """Path of the program: from the variable with its name in capitals, PATH, `bin` below CLUSTER_DIR, `bin` beside the kubeconfig, or
    the packed one, which is unpacked once into `.cache/`."""
    if named := os.environ.get(name.upper()):
        return named  # a wrong name fails at the start
    if found := shutil.which(name):
        return found
    directories = [Path(os.environ[v]) for v in ("CLUSTER_DIR", "KUBECONFIG") if os.environ.get(v)]
    for path in directories:
        beside = (path.parent if path.is_file() else path) / "bin" / name
        if os.access(beside, os.X_OK):
            return str(beside)
    packed = PACKED / f"{name}.xz"
    return str(_unpacked(packed)) if packed.is_file() else None


def _unpacked(packed: Path) -> Path:
    """In `.cache/`, under a name that changes with it; safe for many workers at once."""
    status = packed.stat()
    target = ROOT / ".cache" / f"{packed.stem}-{status.st_size}-{status.st_mtime_ns}"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file, lzma.open(packed) as content:
            shutil.copyfileobj(content, file)
        os.chmod(file.name, 0o755)
        os.replace(file.name, target)
    return target
