"""`poiesis info`: the server's service-info, and the settings that a role started from this shell would have."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import Any

from poiesis.cli.client import TesClient
from poiesis.cli.output import report
from poiesis.cli.profiles import url_without_user
from poiesis.cli.text import printable
from poiesis.config import PREFIX, Settings, is_setting, read
from poiesis.domain.errors import PoiesisError


def run(arguments: argparse.Namespace) -> int:
    try:
        service: Any = TesClient.of(arguments.server).service_info()
    except PoiesisError as error:
        service = None
        report(error)
    from poiesis.bootstrap import ADAPTER_PREFIXES

    settings = read(Settings, os.environ, others=ADAPTER_PREFIXES)
    shown = dict(_flat(settings))
    if arguments.json:
        print(json.dumps({"service": service, "settings": shown}, indent=2, default=str))
        return 0 if service is not None else 1
    if service is not None:
        kind = service.get("type") or {}
        lines = [
            f"{service.get('name')} {service.get('version')} at {url_without_user(arguments.url)}",
            f"  {kind.get('group')}:{kind.get('artifact')}:{kind.get('version')}",
            f"  {service.get('description', '')}",
            f"  storage: {', '.join(map(str, service.get('storage') or []))}",
            f"  backend parameters: {', '.join(map(str, service.get('tesResources_backend_parameters') or []))}",
        ]
        print("\n".join(printable(line.replace("\n", " ")) for line in lines))
    print("settings of this shell that differ from the defaults:")
    default = dict(_flat(Settings()))
    for name, value in shown.items():
        if value != default[name]:
            print(f"  {name}={value}")
    return 0 if service is not None else 1


def _flat(value: Any, prefix: str = PREFIX) -> list[tuple[str, Any]]:
    """Return every setting with the name of its variable; secrets are hidden as in `repr`."""
    found: list[tuple[str, Any]] = []
    for item in filter(is_setting, dataclasses.fields(value)):
        inner = getattr(value, item.name)
        name = prefix + item.name.upper()
        if dataclasses.is_dataclass(inner):
            found += _flat(inner, name + "__")
        else:
            found.append((name, inner if item.repr else "(hidden)"))
    return found
