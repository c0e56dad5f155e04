"""What an image archive contains (`docker save`, `buildah push docker-archive:`), read without an engine."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

WHITEOUT: Final = ".wh."
COMPARED: Final = ("type", "mode", "uid", "gid", "mtime", "size", "linkname")


@dataclass(frozen=True)
class Image:
    """An archive with one image of uncompressed layers."""

    path: Path

    def config(self) -> dict[str, Any]:
        with tarfile.open(self.path) as archive:
            found: dict[str, Any] = json.load(_member(archive, self._manifest(archive)["Config"]))
            return found

    def layers(self) -> list[str]:
        """The digests of the uncompressed layers, the lowest first."""
        found: list[str] = self.config()["rootfs"]["diff_ids"]
        return found

    def labels(self) -> Mapping[str, str]:
        return self.config()["config"].get("Labels") or {}

    def files(self, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """The content of regular files by path, without a leading slash, as a container sees them."""
        found: dict[str, bytes] = {}
        for _, layer in self._open_layers():
            for member in layer:
                path = member.name.removeprefix("./").strip("/")
                name = PurePosixPath(path).name
                if name.startswith(WHITEOUT):
                    removed = str(PurePosixPath(path).with_name(name.removeprefix(WHITEOUT)))
                    if name == ".wh..wh..opq":
                        removed = str(PurePosixPath(path).parent)
                    found = {p: c for p, c in found.items() if p != removed and not p.startswith(f"{removed}/")}
                elif member.isfile() and wanted(path):
                    content = layer.extractfile(member)
                    assert content is not None
                    found[path] = content.read()
        return found

    def entries(self) -> Iterator[dict[str, tuple[object, ...]]]:
        """For each layer its entries in order: what is compared of each of them, by path."""
        for _, layer in self._open_layers():
            found: dict[str, tuple[object, ...]] = {}
            for member in layer:
                content = layer.extractfile(member) if member.isfile() else None
                digest = _sha256(content) if content is not None else ""
                found[member.name] = (*(getattr(member, name) for name in COMPARED), digest)
            yield found

    def _open_layers(self) -> Iterator[tuple[str, tarfile.TarFile]]:
        with tarfile.open(self.path) as archive:
            for name in self._manifest(archive)["Layers"]:
                with tarfile.open(fileobj=_member(archive, name)) as layer:
                    yield name, layer

    @staticmethod
    def _manifest(archive: tarfile.TarFile) -> dict[str, Any]:
        found: dict[str, Any] = json.load(_member(archive, "manifest.json"))[0]
        return found


def _sha256(content: IO[bytes]) -> str:
    found = hashlib.sha256()
    while block := content.read(1024 * 1024):
        found.update(block)
    return found.hexdigest()


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.getmember(name)
    while found.issym():  # buildah stores equal layers once
        found = archive.getmember(str(PurePosixPath(found.name).parent / found.linkname).replace("../", ""))
    content = archive.extractfile(found)
    assert content is not None, name
    return content


def differences(first: Image, second: Image) -> Iterator[str]:
    """How the layers of two images differ, entry by entry: nothing if all their digests are equal."""
    if first.layers() == second.layers():
        return
    if len(first.layers()) != len(second.layers()):
        yield f"{len(first.layers())} and {len(second.layers())} layers"
        return
    pairs = zip(first.layers(), second.layers(), first.entries(), second.entries(), strict=True)
    for number, (one, other, before, after) in enumerate(pairs):
        if one == other:
            continue
        for path in sorted(before.keys() | after.keys()):
            if path not in after or path not in before:
                yield f"layer {number}: /{path}: only in the {'first' if path in before else 'second'}"
            elif before[path] != after[path]:
                names = (*COMPARED, "content")
                changed = [n for n, a, b in zip(names, before[path], after[path], strict=True) if a != b]
                yield f"layer {number}: /{path}: {', '.join(changed)}"
        if before == after:
            yield (
                f"layer {number}: the order of the entries"
                if list(before) != list(after)
                else f"layer {number}: headers only"
            )
