"""The header Idempotency-Key of requests that create tasks (draft-ietf-httpapi-idempotency-key-header).

The draft has a structured string (RFC 9651), with quotation marks; most clients leave them out, which is accepted too. Another body with
the same key gets 409.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

from starlette.types import Scope

from poiesis.domain.errors import InvalidRequest
from poiesis.ports.idempotency import IdempotencyKey

MAX_KEY: Final = 255
_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"')
_BARE: Final = re.compile(r"[!#-+\--~]+")  # without comma and quotation mark


def idempotency_key(scope: Scope, *parts: Any) -> IdempotencyKey | None:
    """The key of a request with the digest of `parts`, which are what the request asks for, as JSON. Raises: InvalidRequest."""
    values = [v for n, v in scope["headers"] if n == b"idempotency-key"]
    if not values:
        return None
    text = values[0].decode("latin-1").strip()
    quoted = _QUOTED.fullmatch(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
    if len(values) > 1 or len(key) > MAX_KEY or not (quoted or _BARE.fullmatch(text)):
        raise InvalidRequest(
            "Idempotency-Key",
            f'must be one string of 1 to {MAX_KEY} printable ASCII characters, such as "8e03978e-40d5-43e8-bc93-6894a57f9324"',
        )
    return IdempotencyKey(key, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest())
