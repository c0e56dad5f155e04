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
        name = " ".join(_texts(service, "name", "version")) or "a TES server"
        kind = ":".join(_texts(service.get("type"), "group", "artifact", "version"))
        lines = [f"{name} at {url_without_user(arguments.url)}", *(f"  {text}" for text in (kind,) if text)]
        lines += [f"  {text}" for text in _texts(service, "description")]
        for title, key in (("storage", "storage"), ("backend parameters", "tesResources_backend_parameters")):
            found = service.get(key)
            lines += [f"  {title}: {', '.join(map(str, found))}"] if isinstance(found, list) and found else []
        print("\n".join(printable(line.replace("\n", " ")) for line in lines))
    default = dict(_flat(Settings()))
    changed = [f"  {name}={value}" for name, value in shown.items() if value != default[name]]
    head = "settings of this shell that differ from the defaults:"
    print("\n".join([head, *changed]) if changed else "settings of this shell: none differs from its default")
    return 0 if service is not None else 1


def _texts(document: Any, *keys: str) -> list[str]:
    """Those of the fields that the document has; servers leave out what the standard requires."""
    found = [document.get(key) for key in keys] if isinstance(document, dict) else []
    return [str(value) for value in found if value not in (None, "")]


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
