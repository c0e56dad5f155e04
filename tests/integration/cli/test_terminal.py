"""In a pseudo-terminal: completion by real shells, live tables, colours, and Ctrl-C."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.terminal import Terminal
from tests.servers.plain_tes import PlainTesServer

BIN = Path(sys.executable).parent
SET_UP = {
    "bash": (["--norc", "-i"], 'eval "$(poiesis completion bash)"; echo re""ady\n'),
    "zsh": (["-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(poiesis completion zsh)"; echo re""ady\n'),
    "fish": (["--private", "-i"], "poiesis completion fish | source; echo re''ady\n"),
}


@pytest.fixture
def server() -> Iterator[PlainTesServer]:
    with PlainTesServer(reads_until_end=1_000_000) as server:
        yield server


@pytest.fixture
def env(server: PlainTesServer, tmp_path: Path) -> dict[str, str]:
    if not (BIN / "poiesis").exists():
        pytest.skip("the command poiesis is not installed beside Python")
    return {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "TES_URL": server.url,
        "PS1": "$ ",
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_profiles_and_ids(shell: str, server: PlainTesServer, env: dict[str, str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    over = server.add({"executors": [{"command": ["x"]}], "name": "\x1b[2J"})
    server.end(over)
    waiting = server.add({"executors": [{"command": ["x"]}]})
    options, set_up = SET_UP[shell]
    with Terminal([shell, *options], env, columns=200) as terminal:
        terminal.type(set_up)
        terminal.expect("ready")
        terminal.type("poiesis profile add laboratory http://127.0.0.1:9 && echo ad''ded\n")
        terminal.expect("added")
        terminal.type("poiesis whoa\t")
        terminal.expect("mi ")
        terminal.type("\x15poiesis task can\t")
        terminal.expect("cel ")
        terminal.type("\x15poiesis task cancel \t")
        terminal.expect(waiting)  # the only one that has not ended
        terminal.type("\x15poiesis task list --profile lab\t")
        terminal.expect("oratory")
        terminal.type("\x15exit\n")
        terminal.exit_code()
    assert b"\x1b[2J\x1b" not in terminal.raw


def test_waiting_shows_a_live_table_and_ctrl_c_leaves_it(server: PlainTesServer, env: dict[str, str]) -> None:
    ids = [server.add({"executors": [{"command": ["x"]}]}) for _ in range(3)]
    with Terminal(["poiesis", "task", "wait", *ids], env) as terminal:
        terminal.expect("3 QUEUED")
        server.end(ids[0])
        terminal.expect("1 COMPLETE, 2 QUEUED")
        terminal.type("\x03")
        terminal.expect("2 tasks continue")
        terminal.expect(f"poiesis task wait {ids[1]} {ids[2]}")
        assert terminal.exit_code() == 130
    assert terminal.raw.rstrip().endswith(b"\x1b[?25h") or terminal.raw.rfind(b"\x1b[?25h") > terminal.raw.rfind(
        b"\x1b[?25l"
    )


@pytest.mark.parametrize(
    ("variables", "has_colours"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_are_for_terminals_that_want_them(
    server: PlainTesServer, env: dict[str, str], variables: dict[str, str], has_colours: bool
) -> None:
    server.end(server.add({"name": "long " * 30 + "\x1b[31m", "executors": [{"command": ["x"]}]}))
    with Terminal(["poiesis", "task", "list"], env | variables, columns=60) as terminal:
        terminal.expect("plain-1")
        assert terminal.exit_code() == 0
    assert (b"\x1b[32m" in terminal.raw) is has_colours and b"\x1b[31m" not in terminal.raw
    width = 80 if variables.get("TERM") == "dumb" else 60  # whose size is not known
    assert all(len(line) <= width for line in terminal.text.splitlines())


def test_a_watched_list_is_drawn_in_place(server: PlainTesServer, env: dict[str, str]) -> None:
    task_id = server.add({"executors": [{"command": ["x"]}]})
    with Terminal(["poiesis", "task", "list", "--watch", "0.2"], env) as terminal:
        terminal.expect("QUEUED")
        server.end(task_id)
        terminal.expect("COMPLETE")
        terminal.type("\x03")
        assert terminal.exit_code() == 130
