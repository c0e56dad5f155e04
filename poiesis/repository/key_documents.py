"""A key as the stores keep it: fields that queries use or change, and the rest as JSON."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from poiesis.domain.keys import ApiKey
from poiesis.repository.documents import Document, format_time

HEAD: Final = ("id", "digest", "user", "created_at", "groups", "admin", "last_used_at")


def encode_key(key: ApiKey) -> tuple[Document, str]:
    """The fields of HEAD, and the others as JSON. Times have a fixed width, so that their texts compare as they do."""
    document: Document = msgspec.to_builtins(key)
    document["created_at"] = format_time(key.created_at)
    document["last_used_at"] = format_time(key.last_used_at) if key.last_used_at else None
    head = {name: document.pop(name) for name in HEAD}
    return head, msgspec.json.encode(document).decode()


def decode_key(head: Document, core: str) -> ApiKey:
    rest: dict[str, Any] = msgspec.json.decode(core)
    return msgspec.convert({**rest, **{name: head[name] for name in HEAD}}, ApiKey)
