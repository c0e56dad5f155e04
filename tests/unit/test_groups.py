"""That tests which share a server, a port or a build take turns: with pytest 9.2 pytest-xdist 3.8 ignores groups, without a word."""

import subprocess
import sys
from pathlib import Path

GROUPED = """
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("page", ["a/b.md", "c/d.md", "e", "f"])
def test_of_a_group(page, worker_id):
    print(f"worker:{worker_id}")
"""


def test_the_tests_of_a_group_run_in_one_worker(tmp_path: Path) -> None:
    (tmp_path / "test_grouped.py").write_text(GROUPED)
    command = [sys.executable, "-m", "pytest", "-rP", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadgroup"]
    run = subprocess.run(
        [*command, f"--rootdir={tmp_path}", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stdout + run.stderr
    workers = [line for line in run.stdout.splitlines() if line.startswith("worker:")]
    assert len(workers) == 4 and len(set(workers)) == 1


FAILS_ONCE = """
import pytest
from pathlib import Path

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("page", ["a/b.md", "c/d.md"])
def test_that_fails_at_first(page):
    mark = Path(__file__).with_name(page.replace("/", "-"))
    first = not mark.exists()
    mark.touch()
    assert not (first and page == "c/d.md")
"""


def test_what_failed_in_a_group_is_run_once_more_in_ci(tmp_path: Path) -> None:
    """pytest keeps NAME@GROUP as failed and looks for NAME: without the command of `.ci/run` the second run would leave it out."""
    (tmp_path / "test_grouped.py").write_text(FAILS_ONCE)
    (tmp_path / "pytest.ini").touch()

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-q", *arguments, str(tmp_path)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    code, text = run("-n", "2", "--dist", "loadgroup")
    assert code == 1 and "1 failed, 1 passed" in text, text
    script = (Path(__file__).parents[2] / ".ci/run").read_text()
    [command] = [line for line in script.splitlines() if "cache/lastfailed" in line]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=10)
    code, text = run("-n", "0", "--last-failed")
    assert code == 0 and text.startswith(".") and "1 passed" in text, text
