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
