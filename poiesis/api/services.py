"""What the application is built from. `bootstrap` fills it; handlers get it whole or in parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from poiesis.config import ApiSettings, ServiceSettings
from poiesis.domain.policy import Policy
from poiesis.services.tasks import TaskService


@dataclass(frozen=True)
class Services:
    """The parts that the API needs. `describe`: one sentence on what tasks run on; `ready` raises Unavailable."""

    tasks: TaskService
    policy: Policy
    api: ApiSettings
    service: ServiceSettings
    describe: str
    ready: Callable[[], None]
