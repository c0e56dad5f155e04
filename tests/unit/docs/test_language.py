"""Code, comments, messages, docs and the chart are free of the phrases that docs/contributing.md excludes (plain technical English)."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SUFFIXES = {
    ".py",
    ".c",
    ".h",
    ".md",
    ".yaml",
    ".yml",
    ".tpl",
    ".txt",
    ".cfg",
    ".ini",
    ".html",
    ".json",
    ".css",
    ".js",
    "",
}
PLACES = ("poiesis", "launcher", "helm", "docs", "tests", "specs", "docker", "bench", "examples", ".ci", "changelog.d")
SINGLE = ("README.md", "CHANGELOG.md", "Makefile", "setup.cfg", "tox.ini")
GENERATED = ("poiesis/bin/", "docs/configuration.md")
# Whole words, and narrow enough that ordinary English passes: "says which" is fine, "told" never is. Python's `is None` is not "is none".
PHRASES = (
    r"(?<![`\"'])[Nn]obody(?![`\"'])",  # the Unix user is quoted
    r"(?i:anew|somebody|whoever|told|heard?|hears|mends?|mended|mending|borne)",
    r"(?i:in earnest|for ever|of one's own|what came of|what it came from|comes? to the same|(?:as|what) (?:it comes|they come))",
    r"(?<!there )(?:is|are|was|be) none",
    r"(?<![Tt]here )(?:is|are) no (?!longer|more|less|fewer|such|other|need|way|reason|different|use|space|room|time|problem)\w+",
    r"names? no",
    r"(?:for|by|in|of|from|to|with) (?:it|this|that|them|those|these|itself) alone",
    r"(?<!static )(?<!list )[Ff]olders?",  # a directory
    r"(?i:in (?:a )?circles?|lead(?:s|ing)? nowhere|goes and comes|come and go)",
    r"(?i:half of a surrogate|mistakes? of the)",
    r"(?i:of (?:my|our|your|his|her|their) own)",
)
EVERY = re.compile(r"\b(?:" + "|".join(PHRASES) + r")\b")


def files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *PLACES, *SINGLE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in listed.stdout.split("\0") if name and not name.startswith(GENERATED)]
    return [
        ROOT / name
        for name in names
        if Path(name).suffix in SUFFIXES and (ROOT / name).is_file() and not (ROOT / name).is_symlink()
    ]


def found(path: Path) -> list[str]:
    lines = path.read_text(errors="replace").splitlines()
    return [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r}"
        for number, line in enumerate(lines, 1)
        for match in EVERY.finditer(line.replace("_", " "))
    ]


def test_no_phrase_of_the_dialect_is_left() -> None:
    left = [hit for path in files() if path != Path(__file__) for hit in found(path)]
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    "text",
    [
        "port 70000 is none",
        "links in a circle",
        "a folder",
        "a name of one's own",
        "nobody listens",
        "reads it anew",
        "as told below",
        "mend it",
    ],
)
def test_the_dialect_is_recognised(text: str) -> None:
    assert EVERY.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "there is no such task",
        "is no longer there",
        "the standard port",
        "on its own",
        "says which",
        "if limit is None",
    ],
)
def test_ordinary_english_is_not(text: str) -> None:
    assert not EVERY.search(text)
