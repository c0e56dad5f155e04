"""A session as the stores keep it: fields that queries use, and the whole as JSON."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from poiesis.domain.sessions import Session
from poiesis.repository.documents import Document, format_time


def encode_session(session: Session, *, version: int) -> Document:
    """Times have a fixed width, so that their texts compare as they do."""
    return {
        "digest": session.digest,
        "user": session.user,
        "created_at": format_time(session.created_at),
        "expires_at": format_time(session.expires_at),
        "version": version,
        "core": msgspec.json.encode(replace(session, version=version)).decode(),
    }


def decode_session(core: str) -> Session:
    return msgspec.json.decode(core, type=Session)
