"""The packages that an image or a wheel consists of: Python's, Debian's, and files for the browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from release.archives import Image
from release.licences import NPM, OTHER_PLATFORMS, licence_of

METADATA: Final = re.compile(r".*/(site|dist)-packages/[^/]+\.dist-info/METADATA")
DPKG: Final = "var/lib/dpkg/status"
COPYRIGHT: Final = re.compile(r"usr/share/doc/([^/]+)/copyright")
CPYTHON: Final = re.compile(
    r"usr/local/include/python3\.\d+/patchlevel\.h"
)  # of the official image; Debian's is a package
VENDOR: Final = "poiesis/api/ui/static/vendor/versions.json"
LAUNCHER: Final = ("launcher", "Apache-2.0 AND MIT")  # ours, with musl linked in
OURS: Final = "poiesis"


@dataclass(frozen=True, order=True)
class Part:
    kind: str
    """As in a package URL: pypi, deb, npm or generic."""
    name: str
    version: str
    licence: str | None
    """An SPDX expression, or for Debian's packages their short names of licences; None: not known."""
    sha256: tuple[str, ...] = ()
    """Of the files that it may have been installed from, or of the file itself."""


def of_image(image: Image, lock: str) -> list[Part]:
    files = image.files(
        lambda p: p == DPKG or p.endswith(VENDOR) or any(e.fullmatch(p) for e in (METADATA, COPYRIGHT, CPYTHON))
    )
    hashes = {name: sums for name, _, sums in locked(lock)}
    found = []
    for path, content in files.items():
        if METADATA.fullmatch(path):
            found.append(_python(message_from_bytes(content), hashes if "/site-packages/" in path else {}))
        elif path.endswith(VENDOR):
            found += _vendored(content.decode())
        elif CPYTHON.fullmatch(path) and (number := re.search(rb'PY_VERSION\s+"([^"]+)"', content)):
            found.append(Part("generic", "cpython", number[1].decode(), "PSF-2.0"))
    licences = {m[1]: text.decode(errors="replace") for p, text in files.items() if (m := COPYRIGHT.fullmatch(p))}
    found += _debian(files.get(DPKG, b"").decode(), licences)
    found += [Part("generic", LAUNCHER[0], p.version, LAUNCHER[1]) for p in found if (p.kind, p.name) == ("pypi", OURS)]
    return sorted(set(found), key=lambda part: (part.kind, part.name, part.version))


def of_wheel(version: str, lock: str, vendor: str) -> list[Part]:
    """A wheel contains its own files and those for the browser; the packages that it needs are those of the lock file."""
    found = [Part("pypi", name, number, _licence(name), sums) for name, number, sums in locked(lock)]
    return sorted([*found, *_vendored(vendor), Part("generic", LAUNCHER[0], version, LAUNCHER[1])])


def locked(lock: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, version and SHA-256 of each package of a lock file."""
    for entry in re.split(r"\n(?=[A-Za-z0-9])", lock):
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\\n]+)", entry):
            yield normalized(match[1]), match[2], tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)))


def licences_of(lock: str) -> dict[str, str | None]:
    """The licence of each package of a lock file, from the environment that this runs in."""
    return {name: _licence(name) for name, _, _ in locked(lock)}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def vendored(root: Path) -> list[Part]:
    return _vendored((root / VENDOR).read_text())


def _licence(name: str) -> str | None:
    try:
        return licence_of(distribution(name).metadata)  # type: ignore[arg-type]
    except PackageNotFoundError:
        return OTHER_PLATFORMS.get(name)


def _python(metadata: Message, hashes: Mapping[str, tuple[str, ...]]) -> Part:
    name = normalized(str(metadata["Name"]))
    return Part("pypi", name, str(metadata["Version"]), licence_of(metadata), hashes.get(name, ()))


def _debian(status: str, copyrights: Mapping[str, str]) -> Iterator[Part]:
    for paragraph in status.strip().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.+)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            words = re.findall(r"^License: *(\S.*)$", copyrights.get(fields["Package"], ""), re.MULTILINE)
            yield Part("deb", fields["Package"], fields["Version"], " and ".join(sorted(set(words))) or None)


def _vendored(text: str) -> list[Part]:
    return [
        Part("npm", name, entry["version"], NPM.get(name), tuple(sorted(entry["files"].values())))
        for name, entry in json.loads(text).items()
    ]
