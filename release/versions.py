"""The version of the package, the chart and the image, which is one, and the changelog.

The source is `__version__` in poiesis/__init__.py. Every other place that contains it is listed in PLACES; `set_version` changes all.
`main` always has the version of the next release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

KINDS: Final = ("added", "changed", "deprecated", "removed", "fixed", "security")
NUMBER: Final = r"\d+\.\d+\.\d+"
# file: expressions whose only group is the version
PLACES: Final = {
    "poiesis/__init__.py": (rf'^__version__ = "({NUMBER})"$',),
    "helm/poiesis/Chart.yaml": (
        rf"^version: ({NUMBER})$",
        rf'^appVersion: "({NUMBER})"$',
        rf"^      image: poiesis:({NUMBER})$",
    ),
    "README.md": (rf"/poiesis:({NUMBER})\b",),
    "docs/tutorials/kubernetes.md": (rf"/poiesis:({NUMBER})\b", rf"tag: ({NUMBER})\b"),
    "docs/operators.md": (rf"/poiesis:({NUMBER})\b", rf"tag: ({NUMBER})\b"),
}


class ReleaseError(Exception):
    """A release cannot continue; the message says what to do."""


def version(root: Path) -> str:
    found = re.search(PLACES["poiesis/__init__.py"][0], (root / "poiesis/__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise ReleaseError("poiesis/__init__.py: missing __version__ with three numbers")
    return found[1]


def other_versions(root: Path) -> Iterator[str]:
    """The places that do not have the version of the package, as FILE:LINE: TEXT."""
    expected = version(root)
    for name, patterns in PLACES.items():
        text = (root / name).read_text()
        for pattern in patterns:
            found = list(re.finditer(pattern, text, re.MULTILINE))
            if not found:
                yield f"{name}: nothing matches {pattern}"
            for match in found:
                if match[1] != expected:
                    yield f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0].strip()}"


def set_version(root: Path, new: str) -> None:
    """Raises: ReleaseError if `new` is not the next version, or was released."""
    if not re.fullmatch(NUMBER, new):
        raise ReleaseError(f"invalid version {new!r}: use three numbers, such as 1.2.0")
    if (latest := released(root)) is not None and _key(new) <= _key(latest):
        raise ReleaseError(f"invalid version {new}: must be greater than {latest}, which CHANGELOG.md has")
    for name, patterns in PLACES.items():
        text = (root / name).read_text()
        for pattern in patterns:
            text = re.sub(pattern, lambda m: m[0].replace(m[1], new), text, flags=re.MULTILINE)
        (root / name).write_text(text)


def released(root: Path) -> str | None:
    """The newest version in CHANGELOG.md."""
    found = re.findall(rf"^## ({NUMBER})\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    return max(found, key=_key, default=None)


def fragments(root: Path) -> dict[str, list[Path]]:
    """The files of changelog.d by kind. Raises: ReleaseError for a name that README.md there does not allow."""
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for path in sorted((root / "changelog.d").glob("*.md")):
        if path.name == "README.md":
            continue
        kind = path.name.split(".")[-2]
        if kind not in KINDS or path.name.count(".") != 2:
            raise ReleaseError(f"changelog.d/{path.name}: must be SUBJECT.KIND.md, and KIND one of {', '.join(KINDS)}")
        found[kind].append(path)
    return found


def release_notes(root: Path) -> str:
    """The fragments as sections of a changelog, in the order of KINDS."""
    parts = []
    for kind, paths in fragments(root).items():
        if paths:
            entries = ["- " + " ".join(path.read_text().split()) for path in paths]
            parts.append(f"### {kind.capitalize()}\n\n" + "\n".join(entries) + "\n")
    return "\n".join(parts)


def move_fragments(root: Path, date: str) -> None:
    """Move the fragments into CHANGELOG.md, under the version and its date. Raises: ReleaseError if there are none."""
    new, notes = version(root), release_notes(root)
    if not notes:
        raise ReleaseError("changelog.d has no fragments: there is nothing to release")
    if (latest := released(root)) is not None and _key(new) <= _key(latest):
        raise ReleaseError(f"{new} is in CHANGELOG.md already: run .ci/release version NEW first")
    path = root / "CHANGELOG.md"
    head, separator, earlier = path.read_text().partition("\n## ")
    path.write_text(
        f"{head.rstrip()}\n\n## {new} ({date})\n\n{notes.rstrip()}\n" + (f"\n## {earlier}" if separator else "")
    )
    for paths in fragments(root).values():
        for fragment in paths:
            fragment.unlink()


def section(root: Path, number: str) -> str:
    """The text of one version in CHANGELOG.md; empty if it has none."""
    found = re.search(
        rf"^## {re.escape(number)}\b.*\n((?:(?!## ).*\n?)*)", (root / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    return found[1].strip() if found else ""


def _key(number: str) -> tuple[int, ...]:
    return tuple(map(int, number.split(".")))
