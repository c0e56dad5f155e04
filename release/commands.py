"""The commands of `.ci/release`: everything that a release needs and that works without a network. docs/releasing.md has the steps."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import yaml

from release import licences, parts, sbom, versions
from release.archives import Image, differences
from release.versions import ReleaseError

ROOT: Final = Path(__file__).resolve().parents[1]
SUMS: Final = "SHA256SUMS"
PLACEHOLDER: Final = "https://example.org/"


def main(argv: Sequence[str] | None = None) -> int:
    try:
        arguments = make_parser().parse_args(argv)
        arguments.run(arguments)
    except (ReleaseError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"release: {error}\n")
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=".ci/release", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(run=run)
        return found

    add("check", lambda _: check(ROOT), "the same version everywhere, fragments with a kind, free licences only")
    command = add(
        "version", lambda a: versions.set_version(ROOT, a.new), "write a new version into package, chart and pages"
    )
    command.add_argument("new", metavar="X.Y.Z")
    command = add("changelog", lambda a: versions.move_fragments(ROOT, a.date), "move changelog.d into CHANGELOG.md")
    command.add_argument(
        "--date", default=datetime.now(UTC).date().isoformat(), help="of the release; default: today, in UTC"
    )
    command = add("build", lambda a: build(ROOT, a.out, a.image), "wheel, sdist, chart, SBOMs, licences, checksums")
    command.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="directory, which must be empty or missing; default: dist"
    )
    command.add_argument(
        "--image", type=Path, metavar="TAR", help="archive of the image (make image-archive), to be part of the release"
    )
    command = add("verify", lambda a: verify(a.out), "compare the files of a release with their checksums")
    command.add_argument("--out", type=Path, default=ROOT / "dist", help="directory; default: dist")
    command = add("compare", lambda a: compare(a.first, a.second), "compare the layers of two archives of the image")
    command.add_argument("first", type=Path, metavar="TAR")
    command.add_argument("second", type=Path, metavar="TAR")
    return parser


def check(root: Path) -> None:
    found = [f"another version than {versions.version(root)}: {place}" for place in versions.other_versions(root)]
    versions.fragments(root)
    known = parts.licences_of((root / "requirements/lock.txt").read_text())
    known |= {part.name: part.licence for part in parts.vendored(root)}
    found += licences.problems(known)
    if found:
        raise ReleaseError("\n".join(found))


def build(root: Path, out: Path, image: Path | None) -> None:
    """Everything from the last commit, so that nothing else slips in. The commit's time is that of all files."""
    check(root)
    if out.exists() and any(out.iterdir()):
        raise ReleaseError(f"{out} is not empty: remove its files, or use --out")
    out.mkdir(parents=True, exist_ok=True)
    epoch = int(_output(root, "git", "log", "-1", "--format=%ct"))
    number = versions.version(root)
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / f"poiesis-{number}"
        source.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
        _packages(source, out, epoch)
        _chart(source, out, number)
        for path in out.glob("*gz"):
            _normalize(path, epoch)
        lock, created = (source / "requirements/lock.txt").read_text(), datetime.fromtimestamp(epoch, UTC)
        of_wheel = parts.of_wheel(number, lock, (source / parts.VENDOR).read_text())
        (out / f"poiesis-{number}-wheel.cdx.json").write_text(sbom.document("wheel", number, of_wheel, created))
        of_image = None
        if image is not None:
            of_image = _image(image, out, number, lock, created)
        (out / f"poiesis-{number}-licences.md").write_text(licence_report(of_image or of_wheel))
    lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(out.iterdir())]
    (out / SUMS).write_text("".join(lines))
    sys.stdout.writelines(lines)


def _packages(source: Path, out: Path, epoch: int) -> None:
    command = [
        "-m",
        "uv",
        "build",
        "--quiet",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        str(out),
        str(source),
    ]
    subprocess.run([sys.executable, *command], env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}, check=True)
    (out / ".gitignore").unlink(missing_ok=True)


def _normalize(path: Path, epoch: int) -> None:
    """Sort the entries of a .tar.gz, and give them, and its header, one time and no owner."""
    content = io.BytesIO()
    with (
        tarfile.open(path) as archive,
        tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as sorted_archive,
    ):
        for member in sorted(archive.getmembers(), key=lambda found: found.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.pax_headers = {}
            sorted_archive.addfile(member, archive.extractfile(member) if member.isfile() else None)
    path.write_bytes(gzip.compress(content.getvalue(), mtime=epoch))


def _chart(source: Path, out: Path, number: str) -> None:
    program = os.environ.get("HELM") or shutil.which("helm")
    if program is None:
        raise ReleaseError("helm is not in PATH: install it, or set HELM to its path")
    path = source / "helm/poiesis/Chart.yaml"
    path.write_text(with_changes(path.read_text(), versions.section(source, number)))
    subprocess.run(
        [program, "package", str(path.parent), "--destination", str(out)], stdout=subprocess.DEVNULL, check=True
    )


def with_changes(chart: str, notes: str) -> str:
    """Chart.yaml with the section of the changelog as Artifact Hub's annotation."""
    found, changes, kind = yaml.safe_load(chart), [], ""
    for line in notes.splitlines():
        if line.startswith("### "):
            kind = line.removeprefix("### ").lower()
        elif line.startswith("- "):
            changes.append({"kind": kind, "description": line.removeprefix("- ")})
    if changes:
        found["annotations"]["artifacthub.io/changes"] = yaml.safe_dump(
            changes, allow_unicode=True, sort_keys=False, width=1000
        )
    return yaml.safe_dump(found, allow_unicode=True, sort_keys=False, width=1000)


def _image(archive: Path, out: Path, number: str, lock: str, created: datetime) -> list[parts.Part]:
    image = Image(archive)
    if (label := image.labels().get("org.opencontainers.image.version")) != number:
        raise ReleaseError(
            f"{archive}: the image has the version {label!r} instead of {number}: build it again with make image-archive"
        )
    found = parts.of_image(image, lock)
    python = {part.name: part.licence for part in found if part.kind in ("pypi", "npm")}
    if wrong := list(licences.problems(python)):
        raise ReleaseError("\n".join(wrong))
    shutil.copy2(archive, out / f"poiesis-{number}-image.tar")
    (out / f"poiesis-{number}-image.cdx.json").write_text(sbom.document("image", number, found, created))
    return found


def licence_report(found: Sequence[parts.Part]) -> str:
    rows = [
        f"| {p.kind} | {p.name} | {p.version} | {p.licence or 'see /usr/share/doc/' + p.name + '/copyright'} |\n"
        for p in found
    ]
    return (
        "# Licences\n\nOf what is shipped with Poiesis (Apache-2.0).\n\n| Kind | Name | Version | Licence |\n|---|---|---|---|\n"
        + "".join(rows)
    )


def verify(out: Path) -> None:
    lines = [line.split() for line in (out / SUMS).read_text().splitlines()]
    found = [
        f"{name}: another content"
        for digest, name in lines
        if not (out / name).is_file() or _sha256(out / name) != digest
    ]
    found += [
        f"{p.name}: not in {SUMS}" for p in sorted(out.iterdir()) if p.name not in {SUMS, *(name for _, name in lines)}
    ]
    if found:
        raise ReleaseError("\n".join(found))
    chart = yaml.safe_load((ROOT / "helm/poiesis/Chart.yaml").read_text())
    if chart["home"].startswith(PLACEHOLDER):
        sys.stderr.write("release: home and sources in Chart.yaml are placeholders: set them before you publish\n")


def compare(first: Path, second: Path) -> None:
    one, other = Image(first), Image(second)
    if found := list(differences(one, other)):
        raise ReleaseError("\n".join(["the layers differ:", *found[:100], f"{len(found)} differences"]))
    sys.stdout.write("".join(f"{digest}\n" for digest in one.layers()))


def _output(root: Path, *argv: str) -> str:
    return subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
