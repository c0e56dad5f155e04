"""Links inside the repository of Markdown, between files and to headings.

Sphinx reports broken links of pages in docs (test_pages); it does not see README and the others.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def tracked(*patterns: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\n") if name and (ROOT / name).is_file()]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path) -> list[str]:
    found = []
    for target in LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        base = ROOT if page.parent.name == "changelog.d" else page.parent  # fragments are moved into CHANGELOG.md
        file = (base / name).resolve() if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            found.append(f"{page.relative_to(ROOT) if page.is_relative_to(ROOT) else page}: {target}")
    return found


def test_links_of_all_pages() -> None:
    pages = tracked("*.md")
    assert len(pages) > 40
    assert [link for page in pages for link in broken(page)] == []


@pytest.mark.parametrize("text", ["[a](missing.md)", "[a](other.md#nothing)", "[a](#nothing)", "![a](b.svg)"])
def test_a_broken_link_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Other\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text} [b](other.md#other) [c](#page) [d](https://example.org/x#y)\n")
    assert [link.rpartition(": ")[2] for link in broken(page)] == [LINK.findall(text)[0]]


def test_pages_that_code_names_exist() -> None:
    named = {
        (path, name)
        for path in tracked(
            "poiesis/*.py", "helm/*", "launcher/*", "docker/*", "bench/*.py", "specs/*", "Makefile", "setup.cfg"
        )
        if path.suffix not in {".png", ".woff2"} and b"\0" not in path.read_bytes()
        for name in re.findall(r"\bdocs/[\w./-]+\.(?:md|svg)\b", path.read_text(errors="replace"))
    }
    assert len(named) > 20
    assert sorted(f"{path.relative_to(ROOT)}: {name}" for path, name in named if not (ROOT / name).is_file()) == []
