"""What the application is built from. `bootstrap` fills it; handlers get it whole or in parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from poiesis.api.audit import AuditLog
from poiesis.api.limits import RateLimiter
from poiesis.config import ApiSettings, ServiceSettings
from poiesis.domain.capacity import Capacity
from poiesis.domain.policy import Policy
from poiesis.ports.events import EventLog
from poiesis.ports.sessions import SessionRepository
from poiesis.services.keys import KeyService
from poiesis.services.logs import LogService
from poiesis.services.tasks import TaskService
from poiesis.services.usage import UsageService
from poiesis.services.webhooks import WebhookService


@dataclass(frozen=True)
class SiteDefaults:
    """What a task gets that does not request it; None: nothing."""

    cpu_cores: float | None = None
    ram_gb: float | None = None
    queue: str | None = None


@dataclass(frozen=True)
class Services:
    """The parts that the API needs. `describe`: one sentence on what tasks run on; `ready` raises Unavailable."""

    tasks: TaskService
    policy: Policy
    api: ApiSettings
    service: ServiceSettings
    describe: str
    ready: Callable[[], None]
    events: EventLog
    audit: AuditLog | None = None
    """Where writes and refused requests are recorded; closed with the application."""
    limiter: RateLimiter | None = None
    """None: there are no limits on rates. Closed with the application."""
    defaults: SiteDefaults = SiteDefaults()
    usage: UsageService = field(kw_only=True)
    logs: LogService = field(kw_only=True)
    webhooks: WebhookService = field(kw_only=True)
    capacity: Callable[[], Capacity | None] = lambda: None
    """The room for tasks, for administrators; None: not known. Raises RepositoryUnavailable."""
    keys: KeyService | None = None
    """None: there is no store for API keys."""
    sessions: SessionRepository = field(kw_only=True)

    async def close(self) -> None:
        """Close what belongs to the application."""
        await asyncio.get_running_loop().run_in_executor(None, self.tasks.on_close)
        if self.audit is not None:
            self.audit.close()
        if self.limiter is not None:
            await self.limiter.close()
