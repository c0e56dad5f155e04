"""`poiesis profile …`: servers by name. Credentials are not shown."""

from __future__ import annotations

import argparse
import json
import sys

from poiesis.cli.client import TesClient
from poiesis.cli.profiles import Profile, Profiles
from poiesis.cli.text import printable
from poiesis.domain.errors import ConfigurationError


def run(arguments: argparse.Namespace) -> int:
    profiles = Profiles()
    if arguments.action == "list":
        _list(profiles, as_json=arguments.json)
    elif arguments.action == "add":
        token = sys.stdin.read().strip() if arguments.token_stdin else None
        if arguments.token_stdin and not token:
            raise ConfigurationError("empty token: pass it on standard input")
        TesClient(arguments.server, {})  # checks the URL
        profiles.add(arguments.name, Profile(arguments.server, token))
    elif arguments.action == "use":
        profiles.use(arguments.name)
    else:
        for name in arguments.name:
            profiles.remove(name)
    return 0


def _list(profiles: Profiles, *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"name": name, "url": each.shown_url, "in_use": name == profiles.current, "credentials": _kind(each)}
            for name, each in sorted(profiles.all.items())
        ]
        print(json.dumps({"profiles": rows}, indent=2))
        return
    width = max(map(len, profiles.all), default=0)
    for name, each in sorted(profiles.all.items()):
        kind = _kind(each)
        mark = "*" if name == profiles.current else " "
        print(printable(f"{mark} {name:{width}}  {each.shown_url}{f'  ({kind})' if kind else ''}"))


def _kind(profile: Profile) -> str | None:
    if profile.shown_url != profile.url:
        return "user and password"
    return "token" if profile.token else None
