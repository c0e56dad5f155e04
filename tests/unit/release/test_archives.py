"""Archives of images: what is in them, and how two of them differ."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from release import commands, parts
from release.archives import Image, differences
from release.versions import ReleaseError

METADATA = "opt/poiesis/lib/python3.11/site-packages/{}.dist-info/METADATA"
STATUS = """\
Package: bash
Status: install ok installed
Version: 5.2.15-2

Package: gone
Status: deinstall ok config-files
Version: 1
"""


def layer(files: Mapping[str, str], mtime: int = 0) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(text), mtime
            archive.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def image(path: Path, layers: Sequence[bytes], version: str = "1.0.0") -> Image:
    digests = [hashlib.sha256(content).hexdigest() for content in layers]
    config = {
        "rootfs": {"diff_ids": [f"sha256:{digest}" for digest in digests]},
        "config": {"Labels": {"org.opencontainers.image.version": version}},
    }
    manifest = [{"Config": "config.json", "Layers": [f"{digest}.tar" for digest in digests]}]
    files = {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    files |= {f"{digest}.tar": content for digest, content in zip(digests, layers, strict=True)}
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return Image(path)


def test_files_are_those_that_a_container_sees(tmp_path: Path):
    found = image(
        tmp_path / "a.tar",
        [
            layer({"a": "1", "b": "1", "d/x": "1", "e/y": "1"}),
            layer({"./a": "2", ".wh.b": "", "d/.wh..wh..opq": "", "d/z": "2"}),
        ],
    )
    assert found.files(lambda _: True) == {"a": b"2", "d/z": b"2", "e/y": b"1"}


def test_the_parts_of_an_image_are_found(tmp_path: Path):
    found = parts.of_image(
        image(
            tmp_path / "a.tar",
            [
                layer(
                    {
                        "var/lib/dpkg/status": STATUS,
                        "usr/share/doc/bash/copyright": "Files: *\nLicense: GPL-3+\n",
                        "usr/local/include/python3.11/patchlevel.h": '#define PY_VERSION "3.11.9"\n',
                        METADATA.format(
                            "Some_Package-1.2"
                        ): "Name: Some_Package\nVersion: 1.2\nLicense-Expression: MIT\n\n",
                        METADATA.format("poiesis-1.0.0"): "Name: poiesis\nVersion: 1.0.0\nLicense: Apache-2.0\n\n",
                        f"opt/poiesis/lib/python3.11/site-packages/{parts.VENDOR}": json.dumps(
                            {"htmx.org": {"version": "2.0", "files": {"htmx/htmx.min.js": "0" * 64}}}
                        ),
                    }
                )
            ],
        ),
        f"some-package==1.2 \\\n    --hash=sha256:{'1' * 64}\n    # via flask\n",
    )
    assert [(p.kind, p.name, p.version, p.licence) for p in found] == [
        ("deb", "bash", "5.2.15-2", "GPL-3+"),
        ("generic", "cpython", "3.11.9", "PSF-2.0"),
        ("generic", "launcher", "1.0.0", "Apache-2.0 AND MIT"),
        ("npm", "htmx.org", "2.0", "0BSD"),
        ("pypi", "poiesis", "1.0.0", "Apache-2.0"),
        ("pypi", "some-package", "1.2", "MIT"),
    ]
    assert found[-1].sha256 == ("1" * 64,)


def test_equal_layers_do_not_differ(tmp_path: Path):
    first, second = (image(tmp_path / f"{n}.tar", [layer({"a": "1"})]) for n in "ab")
    assert list(differences(first, second)) == []
    commands.compare(first.path, second.path)


def test_differences_are_named_by_path_and_property(tmp_path: Path):
    base = layer({"base": ""})
    first = image(tmp_path / "a.tar", [base, layer({"a": "1", "b": "1", "c": ""}, mtime=1)])
    second = image(tmp_path / "b.tar", [base, layer({"a": "2", "b": "1", "d": ""}, mtime=2)])
    assert list(differences(first, second)) == [
        "layer 1: /a: mtime, content",
        "layer 1: /b: mtime",
        "layer 1: /c: only in the first",
        "layer 1: /d: only in the second",
    ]
    with pytest.raises(ReleaseError, match="4 differences"):
        commands.compare(first.path, second.path)


def test_another_order_of_entries_is_a_difference(tmp_path: Path):
    first = image(tmp_path / "a.tar", [layer({"a": "", "b": ""})])
    second = image(tmp_path / "b.tar", [layer({"b": "", "a": ""})])
    assert list(differences(first, second)) == ["layer 0: the order of the entries"]


def test_an_image_of_another_version_is_not_released(tmp_path: Path):
    image(tmp_path / "a.tar", [layer({"a": ""})], version="0.9.0")
    with pytest.raises(ReleaseError, match=r"'0\.9\.0' instead of 1\.0\.0"):
        commands._image(tmp_path / "a.tar", tmp_path, "1.0.0", "", datetime(2026, 1, 1, tzinfo=UTC))
