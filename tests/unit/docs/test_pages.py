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


def test_the_code_that_the_readme_names_exists() -> None:
    root = DOCS.parent
    named = re.findall(r"`([a-z_/0-9]+/[a-z_0-9]+\.(?:py|c))(?::([\w.]+))?`", (root / "README.md").read_text())
    assert len(named) > 25
    for path, name in named:
        text = (root / path).read_text()
        above, _, last = name.rpartition(".")
        assert not above or re.search(rf"^class {above}\b", text, re.MULTILINE), f"{path}:{name}"
        defined = rf"(^ *(class|def) {last}\b|^{last}\b.*=|^static .*\b{last}\()"
        assert not last or re.search(defined, text, re.MULTILINE), f"{path}:{name}"
