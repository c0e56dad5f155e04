"""What is known of each request: its id, in the response, in errors and in log lines; its metrics; and a line of the audit for those that
matter.

`Requests` is the outermost middleware, so that no response is without an id. What it does not see is refused by the HTTP server itself,
as a malformed request or beyond the limits on connections (`connections`).
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poiesis import tracing
from poiesis.api.audit import AuditLog
from poiesis.api.same_origin import SAFE_METHODS
from poiesis.api.users import User
from poiesis.metrics import HTTP_REQUESTS, HTTP_SECONDS
from poiesis.observability import bind_request

HEADER: Final = b"x-request-id"
_WELL_FORMED: Final = re.compile(rb"[A-Za-z0-9._:=+/@-]{1,128}")

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
HEALTH_PATHS: Final = ("/healthz", "/readyz")

REQUEST: Final = "poiesis.request"
"""Key of the ASGI scope: the `RequestRecord`."""


@dataclass(slots=True)
class RequestRecord:
    """Filled by the parts that learn it: the user by `Authentication`, the task by its path or its handler, the error's code by
    `Gateway`."""

    id: str
    user: User | None = None
    operation: str | None = None
    task: str | None = None
    tasks: Sequence[str] = ()
    """Those that one request for many has changed or created: each has a line of the audit."""
    error: str | None = None
    body_bytes: int = 0
    """Bytes of the body that have arrived."""
    only_reads: bool = False
    """Whether it changes nothing, whatever its method: it is audited only if it is refused."""
    is_login: bool = False
    """Whether it logs a user in, although it is a GET: it is audited, whatever comes of it."""


class Requests:
    """`routes`: the paths of the specifications, by operation."""

    def __init__(self, app: ASGIApp, *, audit: AuditLog | None, routes: Mapping[str, str]) -> None:
        self._app = app
        self._routes = routes
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[REQUEST] = RequestRecord(request_id(scope))
        began = time.perf_counter()
        status, seconds = 0, None

        async def marked_send(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                seconds = time.perf_counter() - began
                status = message["status"]
                headers = MutableHeaders(raw=list(message["headers"]))
                headers["x-request-id"] = record.id
                message["headers"] = headers.raw
            await send(message)

        with bind_request(record.id):
            is_traced = tracing.is_on() and scope["method"] == "POST"
            traced = tracing.begin_request(traceparent(scope)) if is_traced else None
            try:
                await self._app(scope, receive, marked_send)
            finally:
                route = self._route(scope, record, status)
                if traced is not None:
                    tracing.end_request(*traced, scope["method"], route, status)
                self._measure(scope, route, status, time.perf_counter() - began if seconds is None else seconds)
                if self._audit is not None and is_audited(scope["method"], status, record):
                    entry = audit_entry(scope, record, status, time.perf_counter() - began)
                    self._audit.write(entry)
                    for task in record.tasks:
                        self._audit.write({**entry, "task": task})

    def _route(self, scope: Scope, record: RequestRecord, status: int) -> str:
        return self._routes.get(record.operation or "") or _page(scope["path"], status)

    def _measure(self, scope: Scope, route: str, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        HTTP_REQUESTS.labels(method, route, str(status)).inc()
        HTTP_SECONDS.labels(method, route).observe(seconds)


def _page(path: str, status: int) -> str:
    """The route of a path that is not an operation."""
    if path in HEALTH_PATHS:
        return path
    if status == 404:
        return "other"
    return "/ui" if path.startswith("/ui") else "page"


def traceparent(scope: Scope) -> str | None:
    found = [value for name, value in scope["headers"] if name == b"traceparent"]
    return found[0].decode("latin-1") if len(found) == 1 else None


def request_id(scope: Scope) -> str:
    """The client's own if it sent one that is well-formed, else a new one."""
    given: list[bytes] = [value for name, value in scope["headers"] if name == HEADER]
    if len(given) == 1 and _WELL_FORMED.fullmatch(given[0]):
        return given[0].decode("ascii")
    return secrets.token_hex(16)


def is_audited(method: str, status: int, record: RequestRecord) -> bool:
    """Writes and logins, whatever comes of them, and refused requests. `status` 0: there was no response."""
    writes = method not in SAFE_METHODS and not record.only_reads
    return writes or record.is_login or 400 <= status < 500


def audit_entry(scope: Scope, record: RequestRecord, status: int, seconds: float) -> dict[str, str | int | None]:
    """Without the query, which may hold an API key."""
    user, client = record.user, scope.get("client")
    return {
        "request_id": record.id,
        "user": user.name if user is not None else None,
        "auth": user.method if user is not None else None,
        "address": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"],
        "operation": record.operation,
        "task": record.task,
        "status": status or None,
        "result": record.error or ("ok" if 0 < status < 400 else "no_response" if status == 0 else "error"),
        "duration_ms": round(seconds * 1000),
    }
