"""All pages build as HTML, are in the index and have no broken links."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*argv, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in DOCS.rglob("*.md"):
        assert (tmp_path / "html" / page.relative_to(DOCS)).with_suffix(".html").is_file()


def test_the_modules_that_the_readme_names_exist() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    named = set(re.findall(r"`([a-z_/]+\.py)`", readme))
    found = {str(path.relative_to(DOCS.parent)) for path in (DOCS.parent / "poiesis").rglob("*.py")}
    assert len(named) > 15
    assert not {name for name in named if not any(path == name or path.endswith(f"/{name}") for path in found)}
