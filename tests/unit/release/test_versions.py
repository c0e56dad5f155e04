"""One version for package, chart and image, and the changelog from its fragments."""

from pathlib import Path

import pytest

import poiesis
from release import versions
from release.versions import ReleaseError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that a release changes."""
    for name in [*versions.PLACES, "CHANGELOG.md"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "changelog.d").mkdir()
    (tmp_path / "changelog.d" / "README.md").write_text("not a fragment\n")
    (tmp_path / "changelog.d" / "cancel.fixed.md").write_text("Cancelling twice\nresponds with 200.\n")
    (tmp_path / "changelog.d" / "usage.added.md").write_text("`GET /usage`.\n")
    return tmp_path


def test_all_places_have_the_version_of_the_package():
    assert versions.version(ROOT) == poiesis.__version__
    assert list(versions.other_versions(ROOT)) == [], "run: .ci/release version NEW"


def test_the_version_is_newer_than_the_newest_release_if_there_are_changes():
    latest, is_changed = versions.released(ROOT), any(versions.fragments(ROOT).values())
    assert latest is None or not is_changed or versions._key(poiesis.__version__) > versions._key(latest)


def test_a_new_version_is_written_everywhere(copy: Path):
    versions.set_version(copy, "12.3.4")
    assert list(versions.other_versions(copy)) == []
    assert versions.version(copy) == "12.3.4"
    assert "poiesis:12.3.4" in (copy / "README.md").read_text()


def test_a_place_with_another_version_is_found(copy: Path):
    chart = copy / "helm/poiesis/Chart.yaml"
    chart.write_text(chart.read_text().replace(f'appVersion: "{poiesis.__version__}"', 'appVersion: "9.9.9"'))
    (found,) = versions.other_versions(copy)
    assert "Chart.yaml" in found
    assert "9.9.9" in found


@pytest.mark.parametrize("wrong", ["1.2", "1.2.3rc1", "v1.2.3", ""])
def test_other_forms_of_versions_are_refused(copy: Path, wrong: str):
    with pytest.raises(ReleaseError, match="three numbers"):
        versions.set_version(copy, wrong)


def test_fragments_are_moved_into_the_changelog_by_kind(copy: Path):
    versions.move_fragments(copy, "2026-12-01")
    text = (copy / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    assert (
        f"## {poiesis.__version__} (2026-12-01)\n\n### Added\n\n- `GET /usage`.\n\n### Fixed\n\n- Cancelling twice responds with 200.\n"
        in text
    )
    assert [p.name for p in (copy / "changelog.d").iterdir()] == ["README.md"]
    with pytest.raises(ReleaseError, match="nothing to release"):
        versions.move_fragments(copy, "2026-12-01")


def test_releases_stand_newest_first_and_a_version_is_released_once(copy: Path):
    versions.move_fragments(copy, "2026-12-01")
    (copy / "changelog.d" / "b.changed.md").write_text("Later.\n")
    with pytest.raises(ReleaseError, match="already"):
        versions.move_fragments(copy, "2026-12-02")
    with pytest.raises(ReleaseError, match="greater"):
        versions.set_version(copy, poiesis.__version__)
    versions.set_version(copy, "10.0.0")
    versions.move_fragments(copy, "2027-01-01")
    assert versions.section(copy, "10.0.0") == "### Changed\n\n- Later."
    assert versions.section(copy, poiesis.__version__).startswith("### Added")
    assert (copy / "CHANGELOG.md").read_text().index("## 10.0.0") < (copy / "CHANGELOG.md").read_text().index(
        f"## {poiesis.__version__}"
    )


def test_every_fragment_has_a_kind(copy: Path):
    assert any(versions.fragments(ROOT).values()) or versions.released(ROOT)
    (copy / "changelog.d" / "wrong.improved.md").write_text("x\n")
    with pytest.raises(ReleaseError, match=r"must be SUBJECT\.KIND\.md"):
        versions.fragments(copy)
