"""Helpers of the filers' tests: documents, and staging with settings that do not wait."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from poiesis.domain.report import FilerReport
from poiesis.filer.settings import FilerSettings
from poiesis.filer.staging import stage

FLAGS = ("optional", "allow_unencrypted_credentials")


def quick(**changes: Any) -> FilerSettings:
    """Settings for tests: no waiting between attempts, loopback allowed."""
    values: dict[str, Any] = {
        "retry_delay": timedelta(milliseconds=1),
        "max_retry_delay": timedelta(milliseconds=5),
        "stall_timeout": timedelta(seconds=2),
        "connect_timeout": timedelta(seconds=5),
        "allow_addresses": ("127.0.0.0/8",),
        "parallel": 4,
        "attempts": 3,
    }
    return FilerSettings(**{**values, **changes})


def given(path: str, url: str | None = None, content: str | None = None, type: str | None = None) -> dict[str, Any]:
    return {"path": path, "url": url, "content": content, "type": type}


def wanted(path: str, url: str, type: str | None = None, prefix: str | None = None) -> dict[str, Any]:
    return {"path": path, "url": url, "path_prefix": prefix, "type": type}


def bring(
    volume: Path, *inputs: Mapping[str, Any], settings: FilerSettings, directories: tuple[str, ...] = (), **more: Any
) -> FilerReport:
    document: dict[str, Any] = {
        "v": 1,
        "task_id": "t",
        "inputs": list(inputs),
        "directories": list(directories),
        "touched": [],
    }
    document["touched"] = list(more.pop("touched", ()))
    document |= {name: more.pop(name) for name in FLAGS if name in more}
    return stage("in", document, volume, settings, **more)


def send(volume: Path, *outputs: Mapping[str, Any], settings: FilerSettings, **more: Any) -> FilerReport:
    document: dict[str, Any] = {
        "v": 1,
        "task_id": "t",
        "outputs": list(outputs),
        "touched": list(more.pop("touched", ())),
        **{name: more.pop(name) for name in FLAGS if name in more},
    }
    return stage("out", document, volume, settings, **more)


def tree(root: Path) -> dict[str, bytes | None]:
    """Every file with its content, every empty directory with None."""
    found: dict[str, bytes | None] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(root))] = path.read_bytes()
        elif path.is_dir() and not any(path.iterdir()):
            found[str(path.relative_to(root))] = None
    return found


def leftovers(root: Path) -> list[Path]:
    """Temporary files that were left behind."""
    return [p for p in root.rglob("*") if p.name.startswith(".poiesis-")]
