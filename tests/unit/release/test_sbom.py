"""Bills of materials and what else a release adds to its files."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from release import commands, parts, sbom
from release.parts import Part
from release.versions import ReleaseError

ROOT = Path(__file__).parents[3]
AT = datetime(2026, 1, 2, tzinfo=UTC)
PARTS = [
    Part("pypi", "poiesis", "1.0.0", "Apache-2.0"),
    Part("pypi", "flask", "3.1.0", "BSD-3-Clause", ("1" * 64, "2" * 64)),
    Part("deb", "bash", "5.2.15-2+b13", "GPL-3+ and see its file"),
    Part("npm", "htmx.org", "2.0", "0BSD", ("3" * 64,)),
    Part("generic", "launcher", "1.0.0", "Apache-2.0 AND MIT"),
    Part("deb", "odd", "1:2", None),
]


def test_a_bill_of_materials_lists_every_part_by_its_package_url():
    found = json.loads(sbom.document("image", "1.0.0", PARTS, AT))
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["component"]["type"] == "container"
    assert found["metadata"]["timestamp"] == "2026-01-02T00:00:00+00:00"
    by_name = {item["name"]: item for item in found["components"]}
    assert by_name.keys() == {"flask", "bash", "htmx.org", "launcher", "odd"}
    assert by_name["flask"]["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
    assert "hashes" not in by_name["flask"], "one of two files was installed, and it is not known which one"
    assert by_name["htmx.org"]["hashes"] == [{"alg": "SHA-256", "content": "3" * 64}]
    assert by_name["launcher"]["licenses"] == [{"expression": "Apache-2.0 AND MIT"}]
    assert by_name["bash"]["purl"].startswith("pkg:deb/debian/bash@")
    assert "licenses" not in by_name["odd"]


def test_the_same_parts_give_the_same_bytes():
    assert sbom.document("wheel", "1.0.0", PARTS, AT) == sbom.document("wheel", "1.0.0", reversed(PARTS), AT)
    assert sbom.document("wheel", "1.0.0", PARTS, AT) != sbom.document("wheel", "1.0.0", PARTS[:-1], AT)


def test_the_bill_of_the_wheel_has_the_locked_packages_and_the_files_for_the_browser():
    lock = (ROOT / "requirements/lock.txt").read_text()
    found = parts.of_wheel("1.0.0", lock, (ROOT / parts.VENDOR).read_text())
    names = {(part.kind, part.name) for part in found}
    assert {("pypi", "flask"), ("pypi", "pymongo"), ("npm", "htmx.org"), ("generic", "launcher")} <= names
    assert len(names) > 80
    document = json.loads(sbom.document("wheel", "1.0.0", found, AT))
    assert len(document["components"]) == len(found)


def test_the_licence_report_names_every_part():
    text = commands.licence_report(PARTS)
    assert "| pypi | flask | 3.1.0 | BSD-3-Clause |" in text
    assert "| deb | odd | 1:2 | see /usr/share/doc/odd/copyright |" in text


def test_the_packaged_chart_has_the_changes_of_its_version():
    chart = (ROOT / "helm/poiesis/Chart.yaml").read_text()
    notes = "### Added\n\n- `a: b`: new.\n\n### Security\n\n- Closed.\n"
    found = yaml.safe_load(commands.with_changes(chart, notes))
    assert yaml.safe_load(found["annotations"]["artifacthub.io/changes"]) == [
        {"kind": "added", "description": "`a: b`: new."},
        {"kind": "security", "description": "Closed."},
    ]
    del found["annotations"]["artifacthub.io/changes"]
    assert found == yaml.safe_load(chart)
    assert yaml.safe_load(commands.with_changes(chart, "")) == yaml.safe_load(chart)


def test_changed_missing_and_additional_files_are_found(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "SHA256SUMS").write_text(f"{commands._sha256(tmp_path / 'a')}  a\n")
    commands.verify(tmp_path)
    (tmp_path / "b").write_text("2")
    with pytest.raises(ReleaseError, match="b: not in"):
        commands.verify(tmp_path)
    (tmp_path / "b").unlink()
    (tmp_path / "a").write_text("other")
    with pytest.raises(ReleaseError, match="a: another content"):
        commands.verify(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(ReleaseError, match="a: another content"):
        commands.verify(tmp_path)


def test_the_repository_can_be_released():
    commands.check(ROOT)
