"""Page tokens: opaque to clients, and valid only for the listing that they continue.

A token is base64url of a version byte, the last id of the previous page, and a digest of the listing's filters. It is a position, not a
page: tasks that arrive later are newer and come before it, so nothing is lost or repeated.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

from poiesis.domain.errors import InvalidRequest
from poiesis.domain.naming import is_task_id
from poiesis.domain.task import TaskId
from poiesis.ports.repository import TaskFilter

_VERSION: Final = b"1"
_DIGEST_BYTES: Final = 9


def page_token(where: TaskFilter, after: TaskId) -> str:
    raw = _VERSION + _digest(where) + after.encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read_token(token: str | None, where: TaskFilter) -> TaskId | None:
    """The id to continue after; None at the start. Raises: InvalidRequest for a token of another listing."""
    if token is None:
        return None
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        version, digest, after = raw[:1], raw[1 : 1 + _DIGEST_BYTES], raw[1 + _DIGEST_BYTES :].decode()
    except (binascii.Error, ValueError):
        raise InvalidRequest("page_token", "invalid page token: use next_page_token of the previous page") from None
    if version != _VERSION or not is_task_id(after):
        raise InvalidRequest("page_token", "invalid page token: use next_page_token of the previous page")
    if not hmac.compare_digest(digest, _digest(where)):
        raise InvalidRequest(
            "page_token", "invalid page token: issued for other filters; keep the filters, or start without a token"
        )
    return TaskId(after)


def _digest(where: TaskFilter) -> bytes:
    reader = where.access and where.access.owner  # not the groups: a listing goes on when they change
    text = repr((where.name_prefix, sorted(where.states), sorted(where.tags), where.owner, reader))
    if where.created_from or where.created_to or where.oldest_first:
        text += repr((where.created_from, where.created_to, where.oldest_first))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_DIGEST_BYTES]
