"""Runs the commands of a page of the documentation as printed: its ```bash blocks, in order, in one shell and one empty directory.

A comment on the line before a block says what is special about it; readers of the page do not see it:

| Comment | Meaning |
|---|---|
| `<!-- file: NAME -->` | the text says that the reader saves the block under this name |
| `<!-- run: in the background -->` | as in a second terminal; the run continues once its output matches |
| `<!-- run: stop the background -->` | what runs in the background is stopped first, as by Ctrl-C |
| `<!-- run: logged in as USER -->` | meanwhile the user opens the address that `poiesis login` shows, and confirms |
| `<!-- run: fails -->` | it ends with an exit code other than 0 |
| `<!-- not run: REASON -->` | it cannot be run in tests; they are counted |
| `<!-- page: cluster -->` | at the top: the commands need a Kubernetes cluster |
| `<!-- page: needs NAME -->` | at the top: a client of `make clients`, or keycloak |

A ```text block directly after a ```bash block is its output, where … stands for anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from poiesis.domain.task import View
from poiesis.ports.repository import TaskFilter
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from tests.clients.conftest import programs_of
from tests.integration.embedded.service import descendants, environment, is_zombie, of_session, processes_of
from tests.servers.keycloak import keycloak_programs

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGES: Final = [*sorted(DOCS.glob("tutorials/*.md")), *sorted(DOCS.glob("howto/*.md"))]
BLOCK_S: Final = 300.0
STOP_S: Final = 20.0
POLL_S: Final = 0.05
AS_USER: Final = "logged in as "
_FENCE: Final = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_COMMENT: Final = re.compile(r"<!-- (file|run|not run): ([^\n]*) -->\n\Z")
_PAGE: Final = re.compile(r"^<!-- page: (.*?) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """`kind`: file, run or "not run", with the `detail` of the comment. `line`: of the fence. `output`: None if the page has none."""

    kind: str
    detail: str
    text: str
    line: int
    output: str | None = None


@dataclass(frozen=True)
class Page:
    path: Path
    marks: tuple[str, ...]
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        return os.path.relpath(self.path, DOCS.parent)

    @property
    def is_for_a_cluster(self) -> bool:
        return "cluster" in self.marks


def parse(path: Path) -> Page:
    text = path.read_text()
    blocks: list[Block] = []
    end = 0
    for fence in _FENCE.finditer(text):
        language, content = fence[2], textwrap.dedent(fence[3])
        line = text.count("\n", 0, fence.start()) + 1
        comment = _COMMENT.search(text[: fence.start()])
        follows = blocks and blocks[-1].kind != "file" and not text[end : fence.start()].strip()
        if comment and comment[1] == "file":
            blocks.append(Block("file", comment[2], content, line))
        elif language == "bash":
            kind, detail = comment.groups() if comment else ("run", "")
            blocks.append(Block(kind, detail, content, line))
        elif language in ("console", "sh", "shell"):
            raise ValueError(f"{path.name}:{line}: use ```bash for commands that readers run")
        elif language == "text" and follows:
            blocks[-1] = Block(blocks[-1].kind, blocks[-1].detail, blocks[-1].text, blocks[-1].line, content)
        end = fence.end()
    return Page(path, tuple(_PAGE.findall(text)), tuple(blocks))


def matches(pattern: str, output: str) -> bool:
    """Whether `output` is what a page shows; … stands for anything, also for several lines."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r\n", "\n")
    regex = ".*?".join(re.escape(part.strip(" ")) for part in re.split(r"\n?…\n?", pattern.strip()))
    return re.fullmatch(rf"\s*{regex}\s*", plain, re.DOTALL) is not None


@cache
def isolation() -> tuple[str, ...] | None:
    """A command that gives what follows a network of its own, so that every page has its port 8000; None: not permitted here."""
    for options in (["--net"], ["--map-root-user", "--net"]):
        argv = ["unshare", *options, "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        with contextlib.suppress(OSError):
            if subprocess.run([*argv, "true"], capture_output=True, check=False).returncode == 0:
                return tuple(argv)
    return None


def _programs(name: str) -> Path:
    """Skips the test where it is not installed."""
    return keycloak_programs() if name == "keycloak" else programs_of(name)


class Run:
    """One shell for a page, in `directory`, which is empty."""

    def __init__(
        self,
        page: Page,
        directory: Path,
        prefix: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
        programs: Sequence[str] = (),
        change_file: Callable[[str, str], str] = lambda name, text: text,
    ) -> None:
        """`change_file(name, text)`: what a file has in the test instead of the page's text, such as images of a test cluster."""
        self.page = page
        self.directory = directory
        self._change_file = change_file
        self._outputs = directory.parent / f"{directory.name}-outputs"
        self._outputs.mkdir()
        needed = [str(_programs(mark.removeprefix("needs "))) for mark in page.marks if mark.startswith("needs ")]
        path = ":".join([str(Path(sys.executable).parent), *needed, *programs, os.environ["PATH"]])
        self._shell = subprocess.Popen(
            [*prefix, "bash", "--noprofile", "--norc", "-eo", "pipefail"],
            cwd=directory,
            env=environment(
                **{"PATH": path, "HOME": str(directory), "NO_COLOR": "1", "COLUMNS": "160", **(variables or {})}
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._shell.kill()
        self._shell.wait()
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.close()
        shutil.rmtree(self._outputs, ignore_errors=True)

    def _stop(self) -> None:
        """End what runs in the background, also what has lost its parent meanwhile."""
        left = self._others()
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + STOP_S
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            while (left := [pid for pid in left if not is_zombie(pid)]) and time.monotonic() < end:
                time.sleep(POLL_S)

    def _others(self) -> list[int]:
        shell = self._shell.pid
        found = {*descendants(shell), *of_session(shell), *processes_of(self.directory / ".poiesis")}
        return [pid for pid in found if not is_zombie(pid)]

    def all(self) -> None:
        for index, block in enumerate(self.page.blocks):
            if block.kind == "file":
                path = self.directory / block.detail
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._change_file(block.detail, block.text))
            elif block.kind == "run":
                try:
                    self._block(index, block)
                except AssertionError:
                    self._print_what_helps()
                    raise

    def _print_what_helps(self) -> None:
        """For the report of a failure: what services of the page have printed last, and the logs of their newest tasks."""
        for index, block in enumerate(self.page.blocks):
            path = self._outputs / f"{index}.out"
            if block.detail == "in the background" and path.exists():
                print(f"{self.page.name}:{block.line} has printed:\n{path.read_text(errors='replace')[-3000:]}")
        for path in self.directory.rglob("tasks.sqlite"):
            with contextlib.closing(SqliteDatabase(path)) as database:
                page = SqliteTaskRepository(database).list(TaskFilter(), limit=5, after=None, view=View.FULL)
                print(*page.tasks, sep="\n\n")

    def _block(self, index: int, block: Block) -> None:
        script, out, done = (self._outputs / f"{index}.{suffix}" for suffix in ("sh", "out", "done"))
        script.write_text(block.text)
        source = f"source {script} </dev/null >{out} 2>&1"
        finish = f"touch {done}\n"
        commands = {
            "": f"{source}\n{finish}",
            "fails": f"set +e\n{source}\n[ $? != 0 ] || exit 99\nset -e\n{finish}",
            "in the background": f"( set +e; ( set -e; {source} ); touch {done} ) &\n",
            "stop the background": f"{source}\n{finish}",
        }
        if block.detail.startswith(AS_USER):
            user = f"PYTHONPATH={DOCS.parent} {sys.executable} -m tests.servers.keycloak {out} {block.detail.removeprefix(AS_USER)}"
            commands[block.detail] = f"{user} >&2 &\n{source}\nwait $!\n{finish}"
        if block.detail == "stop the background":
            self._stop()
        assert self._shell.stdin is not None
        self._shell.stdin.write(commands[block.detail].encode())
        self._shell.stdin.flush()
        is_background = block.detail == "in the background"
        end = time.monotonic() + BLOCK_S

        def text() -> str:
            return out.read_text(errors="replace") if out.exists() else ""

        where = f"{self.page.name}:{block.line}"
        while not (matches(block.output or "…", text()) and text() if is_background else done.exists()):
            assert self._shell.poll() is None, f"{where}: exit code {self._shell.returncode}\n{text()}"
            assert not is_background or not done.exists(), f"{where}: ended\n{text()}"
            assert time.monotonic() < end, f"{where}: not done after {BLOCK_S:.0f} s\n{text()}"
            time.sleep(POLL_S)
        if block.output is not None:
            assert matches(block.output, text()), (
                f"{where}: the page shows\n{block.output}\nand the output was\n{text()}"
            )
