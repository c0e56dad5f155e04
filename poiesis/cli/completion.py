"""Completion in shells, by argcomplete: the shell runs `poiesis` with what was typed, and ids of tasks come from the server."""

from __future__ import annotations

import argparse
import os
import re
import threading
from contextlib import suppress
from typing import Any, Final

import argcomplete
from argcomplete.shell_integration import shellcode

from poiesis.cli.parser import make_parser

DEADLINE_S: Final = 1.5
"""How long the answer to a key press takes at most, whatever the server does."""
MAX_IDS: Final = 100
_SAFE_ID: Final = re.compile(r"[\w.:@+-]{1,200}", re.ASCII)
NOT_ENDED: Final = ("wait", "cancel")
"""Actions that only concern tasks that have not ended."""


def run(arguments: argparse.Namespace) -> int:
    print(shellcode(["poiesis"], shell=arguments.shell, use_defaults=True))
    return 0


def complete() -> None:
    """Answer the shell and exit, where it asks (`_ARGCOMPLETE`)."""
    parser = make_parser()
    _set_completers(parser)
    argcomplete.autocomplete(parser, always_complete_options=False)


def _set_completers(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> None:
    for action in parser._actions:  # argparse has no other way; argcomplete uses it, too
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                _set_completers(child, (*path, name))
        elif action.dest == "id" and path[:1] == ("task",):
            action.completer = _task_ids  # type: ignore[attr-defined]
        elif action.dest == "profile" or (action.dest == "name" and path[:1] == ("profile",)):
            action.completer = _profiles  # type: ignore[attr-defined]


def _profiles(**_: Any) -> list[str]:
    from poiesis.cli.profiles import Profiles

    return sorted(Profiles().all)


def _task_ids(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> dict[str, str]:
    """Ids with state and name, newest first; none if the server does not answer in time."""
    found: dict[str, str] = {}

    def ask() -> None:
        with suppress(Exception):  # nothing may be written over what the user types
            found.update(_ask_for_ids(prefix, parsed_args))

    thread = threading.Thread(target=ask, daemon=True)  # argcomplete ends the process without waiting for it
    thread.start()
    thread.join(DEADLINE_S)
    return dict(found)


def _ask_for_ids(prefix: str, parsed_args: argparse.Namespace) -> dict[str, str]:
    from poiesis.cli.client import TesClient
    from poiesis.cli.columns import state_of
    from poiesis.cli.profiles import find_server
    from poiesis.domain.states import TERMINAL

    found: dict[str, str] = {}
    server = find_server(getattr(parsed_args, "url", None), getattr(parsed_args, "profile", None))
    client = TesClient.of(server, os.environ, quick=True)
    for task in client.list([("view", "BASIC"), ("page_size", str(MAX_IDS))]).get("tasks") or []:
        task_id, state = str(task.get("id") or ""), state_of(task)
        hidden = parsed_args.action in NOT_ENDED and state in TERMINAL
        if not hidden and task_id.startswith(prefix) and _SAFE_ID.fullmatch(task_id):
            words = re.sub(r"[^\w .-]+", " ", f"{state} {task.get('name') or ''}")
            found[task_id] = words.strip()[:60]
    return found
