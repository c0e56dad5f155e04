"""What `.ci/release build` produces from the last commit."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import poiesis
from release import commands
from tests.e2e.programs import find

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("wheel")]


@pytest.fixture
def helm(monkeypatch: pytest.MonkeyPatch) -> None:
    program = find("helm")
    if program is None:
        pytest.skip("no helm in PATH, below CLUSTER_DIR or beside KUBECONFIG; set HELM to another")
    monkeypatch.setenv("HELM", program)


def test_a_release_has_every_file_and_the_same_bytes_twice(helm: None, tmp_path: Path):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone: a release is built from a commit")
    number = poiesis.__version__
    for name in ("first", "second"):
        commands.build(ROOT, tmp_path / name, None)
    commands.verify(tmp_path / "first")
    names = {path.name for path in (tmp_path / "first").iterdir()}
    wheel, sdist = f"poiesis-{number}-py3-none-any.whl", f"poiesis-{number}.tar.gz"
    assert names == {
        *(wheel, sdist, f"poiesis-{number}.tgz", "SHA256SUMS"),
        *(f"poiesis-{number}-wheel.cdx.json", f"poiesis-{number}-licences.md"),
    }
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    with zipfile.ZipFile(tmp_path / "first" / wheel) as archive:
        metadata = archive.read(f"poiesis-{number}.dist-info/METADATA").decode()
        assert f"\nVersion: {number}\n" in metadata
        assert f"poiesis-{number}.dist-info/licenses/LICENSE" in archive.namelist()
    with tarfile.open(tmp_path / "first" / f"poiesis-{number}.tgz") as archive:
        content = archive.extractfile("poiesis/Chart.yaml")
        assert content is not None
        chart = yaml.safe_load(content)
    assert chart["version"] == chart["appVersion"] == number
    bill = json.loads((tmp_path / "first" / f"poiesis-{number}-wheel.cdx.json").read_text())
    assert bill["metadata"]["component"]["version"] == number


def test_a_release_is_not_built_over_another_one(tmp_path: Path):
    (tmp_path / "old").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "release", "build", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is not empty" in done.stderr
