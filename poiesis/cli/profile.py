"""`poiesis profile …`: servers by name. Credentials are not shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from poiesis.cli.client import TesClient
from poiesis.cli.output import show_list
from poiesis.cli.profiles import Profile, Profiles
from poiesis.domain.errors import ConfigurationError

COLUMNS: Final[Mapping[str, Callable[[Any], str]]] = {
    " ": lambda profile: "*" if profile["in_use"] else "",
    "name": lambda profile: str(profile["name"]),
    "credentials": lambda profile: profile["credentials"] or "",
    "url": lambda profile: str(profile["url"]),
}


def run(arguments: argparse.Namespace) -> int:
    profiles = Profiles()
    if arguments.action == "list":
        show_list("profiles", _shown(profiles), COLUMNS, arguments.format)
    elif arguments.action == "add":
        token = sys.stdin.read().strip() if arguments.token_stdin else None
        if arguments.token_stdin and not token:
            raise ConfigurationError("empty token: pass it on standard input")
        if "://" not in arguments.server:
            server = arguments.server.rpartition("@")[2]
            raise ConfigurationError(f"missing scheme in the URL {server!r} of the server: use https://{server}")
        TesClient(arguments.server, {})  # checks the URL
        profiles.add(arguments.name, Profile(arguments.server, token))
    elif arguments.action == "use":
        profiles.use(arguments.name)
    else:
        for name in arguments.name:
            profiles.remove(name)
    return 0


def _shown(profiles: Profiles) -> list[dict[str, Any]]:
    return [
        {"name": name, "url": each.shown_url, "in_use": name == profiles.current, "credentials": _kind(each)}
        for name, each in sorted(profiles.all.items())
    ]


def _kind(profile: Profile) -> str | None:
    if profile.shown_url != profile.url:
        return "user and password"
    return "token" if profile.token else None
