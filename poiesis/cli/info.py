"""`poiesis info`: the server's service-info, and the settings that a role started from this shell would have."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import Any

from poiesis.cli.client import TesClient
from poiesis.config import PREFIX, Settings, is_setting, read
from poiesis.domain.errors import PoiesisError


def run(arguments: argparse.Namespace) -> int:
    try:
        service: Any = TesClient.of(arguments.server).service_info()
    except PoiesisError as error:
        service = None
        print(f"poiesis: {error}", file=sys.stderr)
    from poiesis.bootstrap import ADAPTER_PREFIXES

    settings = read(Settings, os.environ, others=ADAPTER_PREFIXES)
    shown = dict(_flat(settings))
    if arguments.json:
        print(json.dumps({"service": service, "settings": shown}, indent=2, default=str))
        return 0 if service is not None else 1
    if service is not None:
        print(f"{service.get('name')} {service.get('version')} at {arguments.url}")
        kind = service.get("type") or {}
        print(f"  {kind.get('group')}:{kind.get('artifact')}:{kind.get('version')}")
        print(f"  {service.get('description', '')}")
        print(f"  storage: {', '.join(service.get('storage') or [])}")
        print(f"  backend parameters: {', '.join(service.get('tesResources_backend_parameters') or [])}")
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
