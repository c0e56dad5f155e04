"""`poiesis key`: create, list and revoke API keys, over the API or, on the server, directly in its store."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

from poiesis.cli.client import TesClient
from poiesis.cli.columns import time_text
from poiesis.cli.output import show_document, show_list
from poiesis.cli.text import printable
from poiesis.domain.errors import ConfigurationError

COLUMNS: Final[Mapping[str, Callable[[Any], str]]] = {
    "id": lambda key: str(key["id"]),
    "user": lambda key: str(key["user"]),
    "name": lambda key: str(key["name"]),
    "scopes": lambda key: ",".join(key["scopes"]),
    "expires": lambda key: time_text(key.get("expires")) or "never",
    "last used": lambda key: time_text(key.get("last_used")) or "never",
}


def run(arguments: argparse.Namespace) -> int:
    document = _local(arguments) if arguments.local else _remote(arguments)
    if arguments.action == "list":
        show_list("keys", document["keys"], COLUMNS, arguments.format)
    elif arguments.json:
        show_document(document)
    elif arguments.action == "create":
        print(document["key"])
        expires = document.get("expires", "never")
        print(f"id {document['id']}, expires: {expires}. The key is not shown again.", file=sys.stderr)
    else:
        for key_id in arguments.id:
            print(f"{printable(key_id)} is revoked")
    return 0


def _remote(arguments: argparse.Namespace) -> dict[str, Any]:
    client = TesClient.of(arguments.server)
    if arguments.action == "list":
        return client.extension("GET", "/keys", query={"user": arguments.user} if arguments.user else None)
    if arguments.action == "revoke":
        for key_id in arguments.id:
            client.extension("DELETE", f"/keys/{quote(key_id, safe='')}")
        return {}
    body = {"name": arguments.name, "scopes": arguments.scope, "lifetime_days": arguments.days}
    body |= {"user": arguments.user, "groups": arguments.group}
    return client.extension("POST", "/keys", body={name: value for name, value in body.items() if value is not None})


def _local(arguments: argparse.Namespace) -> dict[str, Any]:
    """In the store that the settings of this environment name: for the first key of a site, and when no method works any more."""
    from poiesis.api.extensions.keys import key_document
    from poiesis.bootstrap import Bootstrap

    with Bootstrap.of_store(os.environ, arguments.dir) as parts:
        if arguments.action == "list":
            return {"keys": [key_document(key) for key in parts.keys.list(arguments.user)]}
        if arguments.action == "revoke":
            for key_id in arguments.id:
                parts.keys.revoke(key_id, user=None)
            return {}
        if not arguments.user:
            raise ConfigurationError("missing --user: a key of the store belongs to a user")
        key, secret = parts.keys.create(
            arguments.user,
            arguments.name,
            arguments.scope or ["read", "write"],
            groups=arguments.group or (),
            admin="admin" in (arguments.scope or ()),
            lifetime=None if arguments.days is None else timedelta(days=arguments.days),
        )
        return {**key_document(key), "key": secret}
