"""The parser: cheap to import, and every command helps with examples."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poiesis import cli
from poiesis.cli.columns import COLUMNS
from poiesis.cli.parser import ROLES, make_parser, parse

HEAVY = ("urllib3", "rich", "yaml", "argcomplete", "prometheus_client", "flask", "celery", "kubernetes", "msgspec")

SERVERS = ("connexion", "starlette", "uvicorn", "jsonschema", "celery", "kubernetes", "pymongo", "prometheus_client")


def commands(parser: argparse.ArgumentParser, path: str = "poiesis") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from commands(child, f"{path} {name}")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from poiesis.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}print('MODULES', *sys.modules)"], capture_output=True, text=True, check=True
    ).stdout
    loaded = {name.partition(".")[0] for name in shown.rpartition("MODULES")[2].split()}
    assert "usage: poiesis" in shown and not loaded & set(HEAVY)


def test_no_command_but_those_that_serve_imports_a_server() -> None:
    """connexion takes seconds on a slow machine."""
    names = sorted(path.stem for path in Path(cli.__file__ or "").parent.glob("*.py"))
    modules = [f"poiesis.cli.{name}" for name in names if name not in ("up", "demo")]
    run = "".join(
        f"main({words!r})\n" for words in (["hash-secret", "basic"], ["completion", "bash"], ["profile", "list"])
    )
    code = f"import sys, {', '.join(modules)}; from poiesis.cli.main import main\n{run}print('MODULES', *sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], input="secret", capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in shown.stdout.rpartition("MODULES")[2].split()}
    assert "scrypt$" in shown.stdout and "urllib3" in loaded and not loaded & {*SERVERS}


@pytest.mark.parametrize(("path", "parser"), list(commands(make_parser())), ids=lambda value: str(value)[:40])
def test_every_command_has_examples_which_are_valid(path: str, parser: argparse.ArgumentParser) -> None:
    if path.split()[-1] in ROLES:
        return
    examples = parser.format_help().split("Examples:\n")[1].split("\n\n")[0].splitlines()
    assert examples
    for example in examples:
        for part in [] if example.lstrip().startswith("eval") else re.sub(r" (>|#) .*", "", example).split(" | "):
            words = shlex.split(part)
            if words[0] == "poiesis" and words[1] != "COMMAND":
                parse(words[1:])


def test_ids_that_would_change_the_path_of_a_url_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with_id = [path for path, parser in commands(make_parser()) if any(a.dest == "id" for a in parser._actions)]
    assert {"poiesis task get", "poiesis webhook delete", "poiesis webhook replay", "poiesis key revoke"} <= {*with_id}
    for path in with_id:
        for wrong in ("", " ", ".", ".."):
            with pytest.raises(SystemExit) as ended:
                parse([*path.split()[1:], wrong])
            assert ended.value.code == 2 and f"invalid id {wrong!r}" in capsys.readouterr().err


def test_the_help_names_every_column() -> None:
    text = next(
        " ".join(parser.format_help().split())
        for path, parser in commands(make_parser())
        if path == "poiesis task list"
    )
    assert f"of {', '.join(COLUMNS)}" in text
