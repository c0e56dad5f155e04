"""`poiesis webhook …`: webhooks of the caller, on a Poiesis server."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from poiesis.cli.client import TesClient
from poiesis.cli.output import show_document, show_list
from poiesis.cli.text import printable

PAGE: Final = 1000
COLUMNS: Final[Mapping[str, Callable[[Any], str]]] = {
    "id": lambda webhook: str(webhook["id"]),
    "status": lambda webhook: f"disabled: {webhook['disabled']}" if webhook.get("disabled") else "enabled",
    "changes to": lambda webhook: ",".join(webhook.get("states") or ()) or "any",
    "url": lambda webhook: str(webhook["url"]),
}
MESSAGE_COLUMNS: Final[Mapping[str, Callable[[Any], str]]] = {
    name: partial(lambda key, message: str(message.get(key) or ""), name) for name in ("sequence", "attempts", "error")
}


def run(arguments: argparse.Namespace) -> int:
    client = TesClient.of(arguments.server)
    actions = {
        "create": _create,
        "list": _list,
        "delete": _delete,
        "enable": _enable,
        "dead-letters": _dead_letters,
        "replay": _replay,
    }
    document = actions[arguments.action](client, arguments)
    if getattr(arguments, "json", False):
        show_document(document)
    return 0


def _create(client: TesClient, arguments: argparse.Namespace) -> dict[str, Any]:
    body = {
        "url": arguments.address,
        "states": arguments.state,
        "tagged_only": arguments.tagged_only,
        "all_users": arguments.all_users,
        "description": arguments.description,
    }
    webhook = client.extension("POST", "/webhooks", body=body)
    _print(arguments, f"{webhook['id']}\nsecret (not shown again): {webhook.get('secret')}")
    return webhook


def _list(client: TesClient, arguments: argparse.Namespace) -> dict[str, Any]:
    document = client.extension("GET", "/webhooks")
    show_list("webhooks", document.get("webhooks") or [], COLUMNS, arguments.format)
    return document


def _delete(client: TesClient, arguments: argparse.Namespace) -> dict[str, Any]:
    for webhook_id in arguments.id:
        client.extension("DELETE", _path(webhook_id))
        _print(arguments, f"{webhook_id} is deleted")
    return {}


def _enable(client: TesClient, arguments: argparse.Namespace) -> dict[str, Any]:
    for webhook_id in arguments.id:
        client.extension("POST", f"{_path(webhook_id)}:enable")
        _print(arguments, f"{webhook_id} is enabled")
    return {}


def _dead_letters(client: TesClient, arguments: argparse.Namespace) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        query = [("after", str(after)), ("page_size", str(PAGE))]
        page = client.extension("GET", f"{_path(arguments.id)}/dead-letters", query)
        messages += page.get("messages") or []
        after = page.get("next_after")
    show_list("messages", messages, MESSAGE_COLUMNS, arguments.format)
    return {"messages": messages}


def _replay(client: TesClient, arguments: argparse.Namespace) -> dict[str, Any]:
    body = {"sequences": arguments.sequence} if arguments.sequence else {}
    document = client.extension("POST", f"{_path(arguments.id)}/dead-letters:replay", body=body)
    _print(arguments, f"{document.get('replayed')} messages are sent again")
    return document


def _path(webhook_id: str) -> str:
    return f"/webhooks/{quote(webhook_id, safe='')}"


def _print(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.json:
        print("\n".join(printable(line) for line in text.split("\n")))
