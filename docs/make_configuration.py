"""Writes docs/configuration.md from the settings' own docstrings: `python docs/make_configuration.py`. A test sees that it was done."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from poiesis.bootstrap import FILER_PREFIX, KUBERNETES_PREFIX
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.config import PREFIX, Settings, is_setting
from poiesis.filer.settings import FilerSettings

TARGET = Path(__file__).with_name("configuration.md")
HEAD = """\
# Configuration

<!-- Made by docs/make_configuration.py from the docstrings of the settings; change them there. -->

Every setting is an environment variable, read once at start. Levels are separated by `__`. Text is taken as it is; switches are `true` or
`false`; times are `90s`, `15m`, `2h`, `1d` or seconds; lists are comma-separated or JSON; objects are JSON. `NAME_FILE` names a file to
read the value from (for secrets). A variable that begins with `POIESIS_` and is no setting stops the start with the nearest name.
"""


def document() -> str:
    parts = [HEAD]
    for title, cls, prefix in (
        ("The service", Settings, PREFIX),
        ("Filers", FilerSettings, FILER_PREFIX),
        ("Kubernetes", KubernetesSettings, KUBERNETES_PREFIX),
    ):
        parts += [f"\n## {title}\n", "| Variable | Default | Meaning |", "|---|---|---|", *_rows(cls, cls(), prefix)]
    return "\n".join(parts) + "\n"


def _rows(cls: type[Any], default: Any, prefix: str) -> Iterator[str]:
    told = _docstrings(cls)
    for item in filter(is_setting, dataclasses.fields(cls)):
        value, name = getattr(default, item.name), prefix + item.name.upper()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _rows(type(value), value, name + "__")
        else:
            meaning = told.get(item.name, "").replace("|", "\\|")
            yield f"| `{name}` | {_shown(value)} | {meaning} |"


def _shown(value: Any) -> str:
    if value is None or value in ((), {}, frozenset()):
        return "-"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, timedelta):
        return f"`{value.total_seconds():g}s`"
    if isinstance(value, tuple | frozenset):
        return "`" + ",".join(sorted(map(str, value))) + "`"
    return f"`{value}`"


def _docstrings(cls: type[Any]) -> dict[str, str]:
    """The docstring below each field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    found: dict[str, str] = {}
    assert isinstance(body, ast.ClassDef)
    for before, after in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and is_text:
            found[before.target.id] = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]
    return found


if __name__ == "__main__":
    TARGET.write_text(document())
    sys.stdout.write(f"{TARGET} written\n")
