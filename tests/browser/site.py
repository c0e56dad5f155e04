"""The API and its dashboard over a prepared SQLite store, without workers: tests change tasks as roles would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self

from poiesis.api.app import create_app
from poiesis.api.server import BackgroundServer
from poiesis.bootstrap import Bootstrap
from poiesis.config import ApiSettings, Settings
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec
from poiesis.filer.settings import FilerSettings

STAGES: Final = {State.INITIALIZING: Stage.LAUNCH, State.RUNNING: Stage.RUN}
HELLO: Final = TaskSpec((Executor("docker.io/library/alpine:3.20", ("echo", "hello")),), name="hello")


class Site:
    """A context manager. `parts` has the services and stores; `url` is known in the block."""

    def __init__(self, directory: Path, api: ApiSettings | None = None, **settings: Any) -> None:
        self._running = ExitStack()
        api = replace(api or ApiSettings(), port=0, audit="off")
        self.settings = Settings(directory=str(directory), api=api, **settings)

    def __enter__(self) -> Self:
        self.parts = self._running.enter_context(Bootstrap(self.settings, FilerSettings()))
        self._serve(0)
        return self

    def _serve(self, port: int) -> None:
        app = create_app(self.parts.api_services())
        server = BackgroundServer(app, replace(self.settings.api, port=port), timedelta(seconds=6))
        self._server = self._running.enter_context(server)
        self.url = server.url

    @contextmanager
    def away(self) -> Iterator[None]:
        """Without its server, which listens at the same address afterwards."""
        self._server.stop()
        yield
        self._serve(self._server.port)

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def create(
        self,
        name: str = "hello",
        *,
        owner: str | None = None,
        groups: tuple[str, ...] = (),
        tags: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> TaskId:
        made = replace(HELLO, name=name, tags=tags or {}, **spec)
        return self.parts.tasks.create(made, owner=owner, groups=groups)

    def change(self, task_id: TaskId, **changes: Any) -> Task:
        """Save the task with changes, as a role would, with its history."""
        task = self.parts.repository.get(task_id)
        changed = replace(task, **changes).recorded(self.parts.clock.now())
        assert self.parts.repository.save(changed, seen=task.version)
        return self.parts.repository.get(task_id)

    def move(self, task_id: TaskId, *states: State) -> None:
        """Through these states; a final one ends the task."""
        for state in states:
            changes: dict[str, Any] = {"state": state, "waiting": None}
            if state.is_terminal:
                changes |= {"stage": Stage.DONE, "wake_at": None, "claim": None}
            elif state in STAGES:
                changes["stage"] = STAGES[state]
            self.change(task_id, **changes)

    def age(self, task_id: TaskId, by: timedelta) -> None:
        """Let the task have been created, and have changed, so much earlier, for a picture."""
        task = self.parts.repository.get(task_id)
        history = tuple(replace(change, at=change.at - by) for change in task.history)
        aged = replace(task, created_at=task.created_at - by, history=history)
        assert self.parts.repository.save(aged, seen=task.version)
