"""Entry point: parses the command line, imports the requested command, turns known errors into a message and an exit code.

`poiesis.cli.exits` lists the exit codes.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from poiesis.cli import exits
from poiesis.cli.exits import Exit
from poiesis.cli.parser import ROLES, parse
from poiesis.cli.text import printable
from poiesis.domain.errors import ConfigurationError, PoiesisError

MODULES: Final = {"logout": "login", "whoami": "login"}
"""Commands that are not carried out by the module of their name."""

WRITE_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    if "_ARGCOMPLETE" in os.environ:
        from poiesis.cli.completion import complete

        complete()
    _prepare_streams()
    try:
        try:
            return _run(parse(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # its errors belong to the command; at the end of Python they would be shown with a traceback
    except PoiesisError as error:
        from poiesis.observability import without_credentials

        print(f"poiesis: {printable(without_credentials(str(error)))}", file=sys.stderr)
        return exits.of_error(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return Exit.CLOSED_PIPE
    except OSError as error:
        if error.errno not in WRITE_ERRORS or error.filename is not None:
            raise
        print(f"poiesis: cannot write the output: {error.strerror}", file=sys.stderr)
        return Exit.FAILED


def _prepare_streams() -> None:
    """A closed stream discards; one whose encoding lacks a character shows its escape."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: argparse.Namespace) -> int:
    """A command imports only what it needs."""
    if arguments.command in ROLES:
        from poiesis.roles import run_role

        return run_role(arguments.command, os.environ)
    if arguments.command == "hash-secret":
        from poiesis.domain.secret_hashes import hash_secret

        secret = sys.stdin.read().rstrip("\n")
        if not secret:
            raise ConfigurationError("empty secret: pass it on standard input")
        print(hash_secret(secret, arguments.kind))
        return 0
    if hasattr(arguments, "url"):
        from poiesis.cli.profiles import find_server

        arguments.server = find_server(arguments.url, arguments.profile)
        arguments.url = arguments.server.url
    code: int = import_module(f"poiesis.cli.{MODULES.get(arguments.command, arguments.command)}").run(arguments)
    return code
