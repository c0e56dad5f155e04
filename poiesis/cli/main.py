"""Entry point: parses the command line, imports the requested command, turns known errors into a message and an exit code.

`EXIT_CODES` lists the exit codes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from poiesis import __version__
from poiesis.cli.client import printable
from poiesis.domain.errors import ConfigurationError, PoiesisError
from poiesis.observability import without_credentials

ROLES: Final = {
    "api": "answer TES requests over HTTP",
    "torc": "task orchestrator: volumes, settlement, clean-up",
    "tif": "task input filer: stages inputs",
    "texam": "task execution: launches the executors",
    "tof": "task output filer: uploads outputs",
    "monitor": "TExAM's monitor: watches the cluster and wakes tasks (one replica leads, the others stand by)",
    "notifier": "append changes of tasks to the log of events, send webhooks",
    "flower": "Celery Flower, for operators",
}

EXIT_CODES: Final = (
    "Exit codes: 0 success; 1 a task, a request or the service failed, or --timeout passed; "
    "2 invalid command line or setting; 130 interrupted."
)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poiesis",
        description="GA4GH Task Execution Service (TES 1.1).",
        epilog=f"Settings come from POIESIS_... variables: see docs/configuration.md or `poiesis info`. {EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"poiesis {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="run the whole service on this machine, in one process tree")
    _add_embedded_options(up)
    port = "port to listen on; 0: any free port (default: POIESIS_API__PORT, else 8000)"
    up.add_argument("--port", type=_port, help=port)
    demo = commands.add_parser("demo", help="start the service, run a task, show its result, stop")
    _add_embedded_options(demo)
    for role, text in ROLES.items():
        commands.add_parser(role, help=text)
    info = commands.add_parser("info", help="show a server's service-info and the settings of this shell")
    _add_client_options(info)
    _add_login_commands(commands)
    hash_ = commands.add_parser("hash-secret", help="hash a secret from standard input for the credentials file")
    hash_.add_argument("kind", choices=["basic", "bearer", "api_key"])
    key_help = "create, list and revoke API keys"
    _add_key_actions(commands.add_parser("key", help=key_help, epilog=EXIT_CODES))
    task_help = "create, list, follow and cancel tasks on any TES server"
    _add_task_actions(commands.add_parser("task", help=task_help, epilog=EXIT_CODES))
    webhook_help = "have changes of your tasks sent to a URL (Poiesis only)"
    _add_webhook_actions(commands.add_parser("webhook", help=webhook_help, epilog=EXIT_CODES))
    return parser


def _add_webhook_actions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="register a URL, and show the secret for checking signatures, once")
    create.add_argument("address", metavar="WEBHOOK_URL")
    create.add_argument("--state", action="append", default=[], help="only changes to this state (repeatable)")
    create.add_argument("--tagged-only", action="store_true", help="only tasks whose tag poiesis/webhook has its id")
    create.add_argument("--all-users", action="store_true", help="tasks of all users (admins only)")
    create.add_argument("--description", default="")
    list_ = actions.add_parser("list", help="list your webhooks")
    delete = actions.add_parser("delete", help="delete webhooks and their messages")
    enable = actions.add_parser("enable", help="send again to a webhook that was disabled")
    dead = actions.add_parser("dead-letters", help="list messages that could not be delivered")
    replay = actions.add_parser("replay", help="send dead letters again, with the same ids")
    for action in (delete, enable):
        action.add_argument("id", nargs="+")
    for action in (dead, replay):
        action.add_argument("id")
    replay.add_argument("sequence", nargs="*", type=int, help="only the messages with these numbers")
    for action in (create, list_, delete, enable, dead, replay):
        _add_client_options(action)


def _add_login_commands(commands: Any) -> None:
    login = commands.add_parser(
        "login", help="log in to a TES server by its OpenID provider; the login is kept and renewed"
    )
    login.add_argument("--issuer", help="the OpenID provider (default: what the server advertises)")
    login.add_argument("--client-id", help="public client for the device flow (default: the same)")
    login.add_argument("--scope", help="scopes to ask for, separated by blanks (default: the same)")
    login.add_argument("--insecure", action="store_true", help="allow a server that is reached without https")
    logout = commands.add_parser("logout", help="forget the login to a server, and revoke it where the provider can")
    whoami = commands.add_parser("whoami", help="show who you are to a server: name, groups, rights")
    for parser in (login, logout, whoami):
        _add_client_options(parser)


def _add_key_actions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create a key and print its secret, once")
    create.add_argument("name", help="what it is for")
    scope = "what it may be used for (repeatable; default: read and write)"
    create.add_argument("--scope", action="append", choices=["read", "write", "admin"], help=scope)
    create.add_argument("--days", type=int, help="days after which it expires (default: the site's limit)")
    create.add_argument("--user", help="the user of the key, for administrators (default: the caller)")
    create.add_argument("--group", action="append", help="a group of that user (repeatable)")
    list_ = actions.add_parser("list", help="list your keys, or all for administrators")
    list_.add_argument("--user", help="only those of this user")
    revoke = actions.add_parser("revoke", help="revoke keys")
    revoke.add_argument("id", nargs="+")
    local = "on the server: use its store instead of its API, for the first key of an administrator (needs --user)"
    for action in (create, list_, revoke):
        action.add_argument("--local", action="store_true", help=local)
        action.add_argument("--dir", help="with --local: directory of `poiesis up` (default: POIESIS_DIRECTORY)")
        _add_client_options(action)


def _add_task_actions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create a task")
    create.add_argument("file", help="JSON file of the task; - for standard input")
    create.add_argument("--wait", action="store_true", help="follow it until it ends; exit 1 unless COMPLETE")
    create.add_argument("--timeout", type=float, help="stop waiting after this many seconds and exit 1")
    get = actions.add_parser("get", help="show a task")
    get.add_argument("id")
    get.add_argument("--view", default="FULL", choices=["MINIMAL", "BASIC", "FULL"])
    list_ = actions.add_parser("list", help="list tasks, newest first")
    list_.add_argument("--state")
    list_.add_argument("--name-prefix")
    list_.add_argument("--tag", action="append", default=[], metavar="KEY[=VALUE]")
    list_.add_argument("--limit", type=int, default=50, help="maximum number of tasks (default: %(default)s)")
    wait = actions.add_parser("wait", help="follow tasks until they end; exit 1 unless all are COMPLETE")
    wait.add_argument("id", nargs="+")
    wait.add_argument("--timeout", type=float, help="stop waiting after this many seconds and exit 1")
    logs = actions.add_parser("logs", help="show the output of a task's executors and its system logs")
    logs.add_argument("id")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="print one log until its executor ends (Poiesis only)"
    )
    logs.add_argument("--executor", type=int, default=0, help="which executor to follow, from 0 (default: %(default)s)")
    logs.add_argument("--stderr", action="store_true", help="follow stderr instead of stdout")
    why = actions.add_parser("why", help="show why tasks wait, what they do, or why they failed (Poiesis only)")
    why.add_argument("id", nargs="+")
    rerun = actions.add_parser("rerun", help="create a copy of a task, with changes (Poiesis only)")
    rerun.add_argument("id")
    changes = "JSON file with changes of the request (JSON merge patch); - for standard input"
    rerun.add_argument("--changes", metavar="FILE", help=changes)
    rerun.add_argument("--wait", action="store_true", help="follow it until it ends; exit 1 unless COMPLETE")
    rerun.add_argument("--timeout", type=float, help="stop waiting after this many seconds and exit 1")
    cancel = actions.add_parser("cancel", help="cancel tasks")
    cancel.add_argument("id", nargs="+")
    for action in (create, get, list_, wait, logs, cancel, why, rerun):
        _add_client_options(action)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"invalid port {text}: must be between 0 and 65535")
    return int(text)


def _add_embedded_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (default: POIESIS_API__HOST, else 127.0.0.1)")
    directory = "directory for the database and the tasks' files (default: POIESIS_DIRECTORY, else .poiesis)"
    parser.add_argument("--dir", help=directory)
    allowed = "directory that file:// URLs of tasks may read and write (repeatable; default: none)"
    parser.add_argument("--allow-dir", action="append", default=[], metavar="DIR", help=allowed)
    parser.add_argument("--runtime", choices=["auto", "docker", "podman", "process"])
    parser.add_argument("--verbose", action="store_true", help="show the service's log")


def _add_client_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default=os.environ.get("POIESIS_URL") or os.environ.get("TES_URL") or "http://127.0.0.1:8000",
        help="the server, with or without /ga4gh/tes/v1 (POIESIS_URL or TES_URL; default: http://127.0.0.1:8000)",
    )
    parser.add_argument("--json", action="store_true", help="print only JSON")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    try:
        return _run(arguments)
    except ConfigurationError as error:
        print(f"poiesis: {error}", file=sys.stderr)
        return 2
    except PoiesisError as error:
        print(f"poiesis: {printable(without_credentials(str(error)))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _run(arguments: argparse.Namespace) -> int:
    """A command imports only what it needs."""
    if arguments.command in ROLES:
        from poiesis.roles import run_role

        return run_role(arguments.command, os.environ)
    if arguments.command == "hash-secret":
        from poiesis.api.credentials import hash_secret

        secret = sys.stdin.read().rstrip("\n")
        if not secret:
            raise ConfigurationError("empty secret: pass it on standard input")
        print(hash_secret(secret, arguments.kind))
        return 0
    module = "login" if arguments.command in ("logout", "whoami") else arguments.command
    code: int = import_module(f"poiesis.cli.{module}").run(arguments)
    return code
