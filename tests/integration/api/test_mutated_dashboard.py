"""Mutated requests to every page and form of the dashboard, as `test_mutations` does for TES."""

from __future__ import annotations

import random
import re
from types import SimpleNamespace
from typing import Final, cast

import flask
import pytest

from poiesis.api.auth import Authenticator
from poiesis.api.extensions.context import Context
from poiesis.api.ui import Dashboard
from poiesis.api.ui.cookies import FORM
from poiesis.api.ui.visit import csrf_token
from tests.integration.api.test_mutated_extensions import server, session, usable_ids
from tests.integration.api.test_mutations import COUNT, HEADERS, Session, chances
from tests.mutation.targets import mutated_id, mutated_query
from tests.unit.api.service import Site

__all__ = ["server", "session"]  # fixtures

pytestmark = pytest.mark.timeout(3600 if COUNT > 1000 else 300)

NAMES: Final = (
    "state", "name", "tag", "owner", "group", "page", "order", "from", "to", "do", "id", "all", "until", "nonce", "after", "changed",
    "unchanged", "failed", "attempt", "executor", "stream", "next", "error", "example", "action", "document", "mode", "key",
)  # fmt: skip
IN_FRONT: Final = (
    ("GET", "/ui/static/<name>"), ("GET", "/ui/login/<name>"), ("GET", "/ui/login/<name>/callback"), ("POST", "/ui/login"),
    ("POST", "/ui/logout"),
)  # fmt: skip
"""What is answered before Flask."""
VALID: Final = (
    b"do=cancel&all=1", b"do=rerun&all=1&state=COMPLETE", b"state=QUEUED&order=longest", b"group=k", b"tag=k%3Dv", b"example=hello",
    b"executor=0&attempt=1&stream=stdout", b"from=2026-01-31&to=2026-01-31T12:00",
)  # fmt: skip
SECRET: Final = "s" * 43


def rules() -> list[tuple[str, str]]:
    """Methods and paths of all pages."""
    services = Site().services()
    dashboard = Dashboard(cast(Context, SimpleNamespace(services=services)), Authenticator(services.api))
    pages = flask.Flask(__name__, static_folder=None)
    pages.register_blueprint(dashboard.blueprint)
    dashboard.close()
    found = [(method, rule.rule) for rule in pages.url_map.iter_rules() for method in rule.methods or ()]
    return sorted({*found, *IN_FRONT} - {each for each in found if each[0] == "OPTIONS"})


RULES: Final = rules()


def test_no_request_makes_a_page_fail(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert ("GET", "/ui/tasks/<task_id>/logs") in RULES
    ids, tokens = usable_ids(session)
    session.own += ((b"Cookie", f"{FORM}={SECRET}".encode()), (b"X-CSRF-Token", csrf_token(SECRET).encode()))
    for what, chance in chances("page"):
        method, rule = chance.choice(RULES)
        headers = [pair for pair in HEADERS if chance.random() < 0.02]
        fields, body = _fields(chance, ids, tokens), None
        if method == "POST":
            headers.append((b"Content-Type", b"application/x-www-form-urlencoded"))
            fields, body = b"", fields
        session.ask(what, method.encode(), _target(chance, rule, ids) + b"?" + fields, headers, body)
    session.finish("pages", capsys)


def _fields(chance: random.Random, ids: list[str], tokens: list[str]) -> bytes:
    """Changed ones, often beside valid ones."""
    fields = mutated_query(chance, NAMES, tokens)
    if chance.random() < 0.5:
        more = chance.choice((*VALID, b"do=cancel&id=" + ids[0].encode(), b"from=" + ids[-3].encode()))
        fields = chance.choice((fields + b"&" + more, more + b"&" + fields))
    return fields


def _target(chance: random.Random, rule: str, ids: list[str]) -> bytes:
    path = re.sub(r"<(?:\w+:)?\w+>", lambda _: mutated_id(chance, ids).decode("latin-1"), rule)
    return path.encode("latin-1")
