"""What commands of the command line share: help with examples, and the options of a client."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn

from poiesis.cli import exits

MAX_USAGE_LINES: Final = 2


class CommandHelp(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


class CommandParser(argparse.ArgumentParser):
    """A parser whose commands report unknown arguments themselves: argparse leaves that to the main parser, which shows its own usage.

    A message about a wrong command line comes with the whole usage only if that is short.
    """

    hint = ""
    """Added to the message about unknown arguments."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self.hint}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        usage = self.format_usage()
        lines = usage.splitlines()
        # argparse has the arguments that are not options in separate lines, at the end
        if len(lines) > MAX_USAGE_LINES:
            arguments = "" if lines[-1].strip().startswith("[-") else f" {lines[-1].strip()}"
            usage = f"usage: {self.prog} [OPTION ...]{arguments}\n"
        self.exit(2, f"{usage}{self.prog}: error: {message}\nTry `{self.prog} --help`.\n")


Add = Callable[..., CommandParser]
FORMATS: Final = ("table", "json", "yaml", "name")
"""Of commands that list objects with ids."""


def adder(actions: Any) -> Add:
    """A function that adds a command with its help and examples. `text` is one sentence, also listed by the parent."""

    def add(name: str, text: str, *examples: str, more: str = "", codes: bool = True) -> CommandParser:
        blocks = ["Examples:\n" + "\n".join(f"  {example}" for example in examples)] if examples else []
        blocks += [exits.TEXT] if codes else []
        description = f"{text[0].upper()}{text[1:]}." + (f"\n\n{more}" if more else "")
        parser: CommandParser = actions.add_parser(
            name, help=text, description=description, epilog="\n\n".join(blocks), formatter_class=CommandHelp
        )
        return parser

    return add


def sub_commands(parser: argparse.ArgumentParser) -> Add:
    return adder(parser.add_subparsers(dest="action", required=True, metavar="ACTION"))


def add_client_options(
    parser: argparse.ArgumentParser, *, formats: Sequence[str] = (), option: str = "--output"
) -> None:
    """`formats`: those of `arguments.format`, for commands about tasks; the others have `arguments.json`."""
    url = "the server, with or without /ga4gh/tes/v1 (POIESIS_URL or TES_URL; default: the profile in use, else port 8000 of this machine)"
    parser.add_argument("--url", help=url)
    parser.add_argument("--profile", help="a server by its name (POIESIS_PROFILE; see `poiesis profile --help`)")
    if formats:
        add_formats(parser, formats, option)
    else:
        parser.add_argument("--json", action="store_true", help="print only JSON")


def add_repeatable(parser: argparse.ArgumentParser, option: str, metavar: str, text: str) -> None:
    """An option whose values are a list; empty without it."""
    parser.add_argument(option, action="append", default=[], metavar=metavar, help=f"{text} (repeatable)")


def add_formats(parser: argparse.ArgumentParser, formats: Sequence[str] = FORMATS, option: str = "--output") -> None:
    parser.add_argument("-o", option, dest="format", choices=formats, help="how to print the result")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help=f"the same as {option} json")


def object_id(text: str) -> str:
    """Return an id for the path of a URL. Raises: argparse.ArgumentTypeError for what would name another resource there."""
    if text.strip() in ("", ".", ".."):
        raise argparse.ArgumentTypeError(f"invalid id {text!r}: it must not be empty, '.' or '..'")
    return text


_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """`90`, `1.5`, `10m`, `2h`, `3d`. Raises: argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd]?)", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"invalid time {text!r}: a number of seconds, or one with a unit: 30s, 10m, 2h, 3d"
        )
    return float(match[1]) * _UNITS[match[2] or "s"]


def since(text: str) -> datetime:
    """A time (RFC 3339, or a date; without a zone it is UTC), or how long ago: `2h`. Raises: argparse.ArgumentTypeError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            return datetime.now(UTC) - timedelta(seconds=seconds(text))
        except (argparse.ArgumentTypeError, OverflowError):
            raise argparse.ArgumentTypeError(
                f"invalid time {text!r}: 2026-03-01, 2026-03-01T12:00:00Z, or how long ago: 10m, 2h, 3d"
            ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def positive(text: str) -> float:
    """Raises: argparse.ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"invalid number {text!r}: it must be greater than 0")
    return number


_SIZE: Final = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)


def gigabytes(text: str) -> float:
    """`4`, `0.5`, `4G`, `512M`, `2GiB`, in gigabytes of 10^9 bytes as TES has them. Raises: argparse.ArgumentTypeError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match["number"]) == 0:
        raise argparse.ArgumentTypeError(
            f"invalid size {text!r}: a number of gigabytes, or with a unit as in 512M or 4G"
        )
    base = 1024.0 if match["binary"] else 1000.0
    return float(f"{float(match['number']) * base ** (' KMGT'.index(match['unit'].upper() or 'G')) / 1e9:.6g}")
