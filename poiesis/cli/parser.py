"""The whole command line as an argparse parser. Importing this module is cheap: the reference in docs and the shells' completion use it.

Every command has examples. Commands are carried out by the module of their name, which `poiesis.cli.main` imports.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from poiesis import __version__
from poiesis.cli import exits
from poiesis.cli.options import (
    FORMATS,
    Add,
    CommandHelp,
    CommandParser,
    add_client_options,
    add_formats,
    adder,
    object_id,
    sub_commands,
)
from poiesis.cli.parser_task import add_run, add_task_actions

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

CODES_OF_DOCTOR: Final = (
    "Exit codes: 0 no errors, with --strict no warnings either; 1 errors; 2 invalid command line; "
    "3 warnings, with --strict only."
)
SHELLS: Final = ("bash", "zsh", "fish")


def make_parser() -> CommandParser:
    parser = CommandParser(
        prog="poiesis",
        formatter_class=CommandHelp,
        description="GA4GH Task Execution Service (TES 1.1): the service, and a client of any TES server.",
        epilog=(
            "Examples:\n  poiesis up                                  # the service on this machine\n"
            "  poiesis run alpine -- echo hello            # in another terminal\n  poiesis task list\n"
            "  poiesis COMMAND --help                      # examples of a command\n\n"
            "Settings of the service are POIESIS_... variables: docs/configuration.md, `poiesis info`. "
            f"Guide: docs/cli.md.\n\n{exits.TEXT}"
        ),
    )
    parser.add_argument("--version", action="version", version=f"poiesis {__version__}")
    add = adder(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    add_run(add)
    add_task_actions(add("task", "create, list, follow and cancel tasks on any TES server", "poiesis task list"))
    _add_service_commands(add)
    info = add("info", "show a server's service-info and the settings of this shell", "poiesis info")
    add_client_options(info)
    _add_login_commands(add)
    _add_profile_actions(add("profile", "name servers, and choose one", "poiesis profile list"))
    _add_key_actions(add("key", "create, list and revoke API keys", "poiesis key list"))
    _add_webhook_actions(
        add("webhook", "have changes of your tasks sent to a URL (Poiesis only)", "poiesis webhook list")
    )
    completion = add(
        "completion",
        "print a script that completes commands, options, profiles and ids of tasks in a shell",
        'eval "$(poiesis completion bash)"               # in ~/.bashrc',
        'eval "$(poiesis completion zsh)"                # in ~/.zshrc, after compinit',
        "poiesis completion fish > ~/.config/fish/completions/poiesis.fish",
        codes=False,
    )
    completion.add_argument("shell", choices=SHELLS)
    return parser


def _add_service_commands(add: Add) -> None:
    up = add(
        "up",
        "run the whole service on this machine, in one process tree",
        "poiesis up",
        "poiesis up --port 0 --dir /tmp/tes --allow-dir ~/data",
        codes=False,
    )
    _add_embedded_options(up)
    port = "port to listen on; 0: any free port (default: POIESIS_API__PORT, else 8000)"
    up.add_argument("--port", type=_port, help=port)
    demo = add("demo", "start the service, run a task, show its result, stop", "poiesis demo", codes=False)
    _add_embedded_options(demo)
    for role, text in ROLES.items():
        add(role, text, codes=False)
    _add_doctor(add)
    hash_ = add(
        "hash-secret",
        "hash a secret from standard input for the credentials file",
        "openssl rand -hex 32 | tee token | poiesis hash-secret bearer",
        codes=False,
    )
    hash_.add_argument("kind", choices=["basic", "bearer", "api_key"])


def _add_doctor(add: Add) -> None:
    doctor = add(
        "doctor",
        "check a site: what does not work, what follows from it, and how to repair it",
        "poiesis doctor                                  # what the settings of this shell configure",
        "poiesis doctor --role torc                      # what one role needs, with the rights of this account",
        "helm test tes --logs                            # everything, in the cluster",
        more=f"Guide: docs/doctor.md.\n\n{CODES_OF_DOCTOR}",
        codes=False,
    )
    mode = "what to check; auto: kubernetes where the settings are those of the server mode, else machine"
    doctor.add_argument("--mode", choices=["auto", "kubernetes", "machine"], default="auto", help=mode)
    roles = [role for role in ROLES if role != "flower"]
    doctor.add_argument("--role", choices=roles, help="check only what this role needs, with its own rights")
    trial = "create what has to be tried out (a volume, a pod, a collection, an object), and remove it (default: unless --role)"
    doctor.add_argument("--trial", action=argparse.BooleanOptionalAction, default=None, help=trial)
    account = "service account of a role, whose rights in the tasks' namespace are checked (repeatable; see the chart)"
    doctor.add_argument(
        "--account", action="append", default=[], type=_account, metavar="ROLE=NAMESPACE:NAME", help=account
    )
    doctor.add_argument("--api", metavar="URL", help="also check that the API answers there")
    doctor.add_argument("--strict", action="store_true", help="exit with 3 if there are warnings")
    doctor.add_argument("--json", action="store_true", help="print only JSON")


def _account(text: str) -> tuple[str, str]:
    role, equals, account = text.partition("=")
    if role not in ROLES or not equals or account.count(":") != 1:
        raise argparse.ArgumentTypeError(
            f"invalid account {text!r}: use ROLE=NAMESPACE:NAME, such as torc=tes:tes-poiesis-torc"
        )
    return role, account


def _add_webhook_actions(parser: argparse.ArgumentParser) -> None:
    add = sub_commands(parser)
    create = add(
        "create",
        "register a URL, and show the secret for checking signatures, once",
        "poiesis webhook create https://portal.example.org/tes-events --state COMPLETE",
    )
    create.add_argument("address", metavar="WEBHOOK_URL")
    create.add_argument(
        "--state", action="append", default=[], type=str.upper, help="only changes to this state (repeatable)"
    )
    create.add_argument("--tagged-only", action="store_true", help="only tasks whose tag poiesis/webhook has its id")
    create.add_argument("--all-users", action="store_true", help="tasks of all users (admins only)")
    create.add_argument("--description", default="")
    list_ = add("list", "list your webhooks", "poiesis webhook list", "poiesis webhook list -o json")
    delete = add("delete", "delete webhooks and their messages", "poiesis webhook delete ID")
    enable = add("enable", "send again to a webhook that was disabled", "poiesis webhook enable ID")
    dead = add("dead-letters", "list messages that could not be delivered", "poiesis webhook dead-letters ID")
    replay = add("replay", "send dead letters again, with the same ids", "poiesis webhook replay ID 4711")
    for action in (delete, enable):
        action.add_argument("id", nargs="+", type=object_id)
    for action in (dead, replay):
        action.add_argument("id", type=object_id)
    replay.add_argument("sequence", nargs="*", type=int, help="only the messages with these numbers")
    for action in (create, delete, enable, replay):
        add_client_options(action)
    add_client_options(list_, formats=FORMATS)
    add_client_options(dead, formats=[form for form in FORMATS if form != "name"])


def _add_login_commands(add: Add) -> None:
    login = add(
        "login",
        "log in to a TES server by its OpenID provider; the login is kept and renewed",
        "poiesis login --url https://tes.example.org",
        "poiesis login --profile lab --issuer https://id.example.org --client-id tes-cli",
    )
    login.add_argument("--issuer", help="the OpenID provider (default: what the server advertises)")
    login.add_argument("--client-id", help="public client for the device flow (default: the same)")
    login.add_argument("--scope", help="scopes to ask for, separated by blanks (default: the same)")
    login.add_argument("--insecure", action="store_true", help="allow a server that is reached without https")
    logout = add("logout", "forget the login to a server, and revoke it where the provider can", "poiesis logout")
    whoami = add("whoami", "show who you are to a server: name, groups, rights", "poiesis whoami --profile lab")
    for parser in (login, logout, whoami):
        add_client_options(parser)


def _add_profile_actions(parser: argparse.ArgumentParser) -> None:
    add = sub_commands(parser)
    new = add(
        "add",
        "add a profile, or replace it; the first one is in use at once",
        "poiesis profile add lab https://tes.example.org",
        "pass show tes-token | poiesis profile add lab https://tes.example.org --token-stdin",
        more="Prefer `poiesis login` to a stored token: it is renewed and can be revoked.",
    )
    new.add_argument("name")
    new.add_argument("server", metavar="URL", help="the server, with or without /ga4gh/tes/v1")
    new.add_argument("--token-stdin", action="store_true", help="read a bearer token from standard input, and store it")
    list_ = add("list", "list the profiles; * marks the one in use", "poiesis profile list")
    add_formats(list_)
    use = add("use", "choose the profile that is used without --profile, --url or variables", "poiesis profile use lab")
    remove = add("remove", "remove a profile; a login to its server remains (`logout`)", "poiesis profile remove lab")
    use.add_argument("name")
    remove.add_argument("name", nargs="+")


def _add_key_actions(parser: argparse.ArgumentParser) -> None:
    add = sub_commands(parser)
    create = add(
        "create", "create a key and print its secret, once", "poiesis key create pipeline --scope read --days 30"
    )
    create.add_argument("name", help="what it is for")
    scope = "what it may be used for (repeatable; default: read and write)"
    create.add_argument("--scope", action="append", choices=["read", "write", "admin"], help=scope)
    create.add_argument("--days", type=int, help="days after which it expires (default: the site's limit)")
    create.add_argument("--user", help="the user of the key, for administrators (default: the caller)")
    create.add_argument("--group", action="append", help="a group of that user (repeatable)")
    list_ = add("list", "list your keys, or all for administrators", "poiesis key list")
    list_.add_argument("--user", help="only those of this user")
    revoke = add("revoke", "revoke keys", "poiesis key revoke ID")
    revoke.add_argument("id", nargs="+", type=object_id)
    local = "on the server: use its store instead of its API, for the first key of an administrator (needs --user)"
    for action in (create, list_, revoke):
        action.add_argument("--local", action="store_true", help=local)
        action.add_argument("--dir", help="with --local: directory of `poiesis up` (default: POIESIS_DIRECTORY)")
        add_client_options(action, formats=FORMATS if action is list_ else ())


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


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. After `run`, everything that follows the first `--` is the command, which argparse must not interpret."""
    parser, argv = make_parser(), list(argv)
    if argv[:1] != ["run"]:
        return parser.parse_args(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    arguments = parser.parse_args(argv[:end])
    arguments.command_line = [*arguments.words, *argv[end + 1 :]]
    return arguments
