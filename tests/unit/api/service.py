"""The whole API over fakes, for all tests of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, cast

from connexion import AsyncApp
from httpx import Response

from poiesis.api import Services, create_app
from poiesis.api.audit import AuditLog
from poiesis.api.limits import RateLimiter
from poiesis.config import ApiSettings, ServiceSettings
from poiesis.domain.capacity import Capacity
from poiesis.domain.policy import Policy
from poiesis.domain.task import Task, TaskId
from poiesis.ports.logs import LogStore
from poiesis.ports.repository import TaskFilter
from poiesis.ports.webhooks import WebhookStore
from poiesis.services.keys import KeyService
from poiesis.services.logs import LogService
from poiesis.services.tasks import TaskService
from poiesis.services.usage import UsageService
from poiesis.services.webhooks import WebhookService
from poiesis.testing.clock import ManualClock
from poiesis.testing.idempotency import MemoryIdempotencyStore
from poiesis.testing.keys import MemoryKeyRepository
from poiesis.testing.queue import RecordingQueue
from poiesis.testing.repository import MemoryTaskRepository
from poiesis.testing.sessions import MemorySessionRepository
from poiesis.testing.usage import MemoryUsageStore
from tests.unit.api.event_log import ListEventLog

BASE = "/ga4gh/tes/v1"
HELLO: dict[str, Any] = {"name": "hello", "executors": [{"image": "alpine:3.20", "command": ["echo", "hello"]}]}
POLICY = Policy(file_roots=("/srv/data",), backend_parameters=frozenset({"time_limit", "gpu"}))


@dataclass
class Site:
    """An installation: settings, fakes, the application, and a client of it."""

    api: ApiSettings = field(default_factory=ApiSettings)
    service: ServiceSettings = field(default_factory=ServiceSettings)
    policy: Policy = POLICY
    validate_responses: bool = True
    repository: MemoryTaskRepository = field(default_factory=MemoryTaskRepository)
    queue: RecordingQueue = field(default_factory=RecordingQueue)
    clock: ManualClock = field(default_factory=ManualClock)
    logs: LogStore | None = None
    events: ListEventLog = field(default_factory=ListEventLog)
    audit: AuditLog | None = None
    limiter: RateLimiter | None = None
    webhook_store: WebhookStore | None = None
    keys: KeyService | None = None
    sessions: MemorySessionRepository = field(default_factory=MemorySessionRepository)
    capacity: Callable[[], Capacity | None] = lambda: None

    def __post_init__(self) -> None:
        self.keys = self.keys or KeyService(MemoryKeyRepository(), self.clock, self.api.key_lifetime)
        self.tasks = TaskService(self.repository, self.queue, self.clock, self.policy, MemoryIdempotencyStore())
        self.webhooks = WebhookService(cast(WebhookStore, self.webhook_store), self.clock)
        self.app: AsyncApp = create_app(
            self.services(),
            validate_responses=self.validate_responses,
        )
        self.client = self.app.test_client(base_url="http://127.0.0.1:8000")

    def services(self) -> Services:
        return Services(
            self.tasks,
            self.policy,
            self.api,
            self.service,
            "Tasks run nowhere.",
            self.ready,
            self.events,
            logs=LogService(self.repository, self.clock, self.logs),
            audit=self.audit,
            limiter=self.limiter,
            usage=UsageService(self.events, MemoryUsageStore(), self.clock, ("project",)),
            webhooks=self.webhooks,
            keys=self.keys,
            sessions=self.sessions,
            capacity=self.capacity,
        )

    def ready(self) -> None:
        self.repository.ready()
        self.queue.ready()

    def get(self, path: str, **kwargs: Any) -> Response:
        response: Response = self.client.get(BASE + path, **kwargs)
        return response

    def post(self, path: str, document: Any = None, **kwargs: Any) -> Response:
        if document is not None:
            kwargs["content"] = document if isinstance(document, bytes | str) else json.dumps(document)
            kwargs["headers"] = {"Content-Type": "application/json"} | kwargs.get("headers", {})
        response: Response = self.client.post(BASE + path, **kwargs)
        return response

    def create(self, document: Any = None, **kwargs: Any) -> str:
        response = self.post("/tasks", HELLO if document is None else document, **kwargs)
        assert response.status_code == 200, response.text
        self.clock.advance(timedelta(seconds=1))
        return str(response.json()["id"])

    def change(self, task_id: str, **changes: Any) -> Task:
        """Save the task with changes, as a role would."""
        task = self.repository.get(TaskId(task_id))
        assert self.repository.save(replace(task, **changes), seen=task.version)
        return self.repository.get(TaskId(task_id))

    def stored(self) -> int:
        return self.repository.count(TaskFilter())


def assert_error(response: Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Check that an answer has the `Error` body, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert set(body) <= {"status", "error", "message", "problems", "request_id"}
    assert body["status"] == status
    assert isinstance(body["error"], str)
    assert isinstance(body["message"], str) and body["message"]
    assert all(set(p) == {"path", "message"} for p in body.get("problems", []))
    assert "Traceback" not in response.text
    if code is not None:
        assert body["error"] == code
    return body


def paths(response: Response) -> list[str]:
    return [problem["path"] for problem in response.json()["problems"]]
