"""Every package that is shipped has a known, free licence."""

from email.message import Message
from pathlib import Path

import pytest

from release import licences, parts

ROOT = Path(__file__).parents[3]


def metadata(**fields: str | list[str]) -> Message:
    found = Message()
    for name, value in fields.items():
        for item in [value] if isinstance(value, str) else value:
            found[name.replace("_", "-")] = item
    return found


def test_every_package_of_the_lock_file_has_a_known_free_licence():
    found = parts.licences_of((ROOT / "requirements/lock.txt").read_text())
    assert len(found) > 80
    assert list(licences.problems(found)) == []


def test_every_file_for_the_browser_has_a_known_free_licence_and_its_text():
    found = parts.vendored(ROOT)
    assert found
    assert list(licences.problems({part.name: part.licence for part in found})) == []
    assert list((ROOT / parts.VENDOR).parent.glob("*/LICENSE*"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": "MIT OR Apache-2.0"}, "MIT OR Apache-2.0"),
        ({"License": "MIT License"}, "MIT"),
        (
            {"License": "Copyright …\nPermission is granted", "Classifier": ["License :: OSI Approved :: MIT License"]},
            "MIT",
        ),
        ({"License": "BSD"}, None),
        ({"Classifier": ["License :: Other/Proprietary License"]}, None),
        ({"License_Expression": "LicenseRef-Ours"}, None),
        ({}, None),
    ],
)
def test_a_licence_is_read_or_unknown_but_not_guessed(fields: dict[str, str | list[str]], expected: str | None):
    assert licences.licence_of(metadata(Name="some-package", **fields)) == expected


@pytest.mark.parametrize(
    ("expression", "is_free"),
    [
        ("MIT AND Apache-2.0", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND SSPL-1.0", False),
        ("Elastic-2.0", False),
    ],
)
def test_one_alternative_has_to_be_free(expression: str, is_free: bool):
    assert licences.is_free(expression) is is_free


def test_problems_name_the_package():
    found = list(licences.problems({"a": None, "b": "SSPL-1.0", "c": "MIT"}))
    assert [text.partition(":")[0] for text in found] == ["a", "b"]
