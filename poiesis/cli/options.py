"""What commands of the command line share: help with examples, and the options of a client."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from poiesis.cli import exits

Add = Callable[..., argparse.ArgumentParser]


class CommandHelp(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def adder(actions: Any) -> Add:
    """A function that adds a command with its help and examples. `text` is one sentence, also listed by the parent."""

    def add(name: str, text: str, *examples: str, more: str = "", codes: bool = True) -> argparse.ArgumentParser:
        blocks = ["Examples:\n" + "\n".join(f"  {example}" for example in examples)] if examples else []
        blocks += [exits.TEXT] if codes else []
        description = f"{text[0].upper()}{text[1:]}." + (f"\n\n{more}" if more else "")
        parser: argparse.ArgumentParser = actions.add_parser(
            name, help=text, description=description, epilog="\n\n".join(blocks), formatter_class=CommandHelp
        )
        return parser

    return add


def sub_commands(parser: argparse.ArgumentParser) -> Add:
    return adder(parser.add_subparsers(dest="action", required=True, metavar="ACTION"))


def add_client_options(parser: argparse.ArgumentParser, *, json: bool = True) -> None:
    url = "the server, with or without /ga4gh/tes/v1 (POIESIS_URL or TES_URL; default: the profile in use, else port 8000 of this machine)"
    parser.add_argument("--url", help=url)
    parser.add_argument("--profile", help="a server by its name (POIESIS_PROFILE; see `poiesis profile --help`)")
    if json:
        parser.add_argument("--json", action="store_true", help="print only JSON")
