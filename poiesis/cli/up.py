"""`poiesis up`: API, workers and monitor in one process, with a database file; tasks run as containers or processes of this machine."""

from __future__ import annotations

import argparse
import fcntl
import os
import resource
import stat
import sys
import threading
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Final, Self

from poiesis.bootstrap import ADAPTER_PREFIXES, FILER_PREFIX, Bootstrap
from poiesis.config import PREFIX, ApiSettings, LogSettings, Settings, read
from poiesis.domain.errors import ConfigurationError, PoiesisError
from poiesis.domain.states import TERMINAL, State
from poiesis.filer.settings import FilerSettings
from poiesis.observability import configure_logging
from poiesis.ports.repository import COUNT_LIMIT, TaskFilter
from poiesis.roles.shutdown import stop_on_signal, wait_for

LOCAL_LOG_BYTES: Final = 100_000_000  # of each stream of each command, unless POIESIS_LOGS__MAX_BYTES is set
MAX_OPEN_FILES: Final = 65_536  # programs of tasks inherit it, and some look at every possible descriptor


class Embedded:
    """The whole service in this process, from `start` to `close`. `url` is known after construction.

    Raises on construction: ConfigurationError (directory or port in use, no runtime for commands).
    """

    def __init__(self, settings: Settings, filer: FilerSettings) -> None:
        from poiesis.api.app import create_app
        from poiesis.api.server import BackgroundServer
        from poiesis.roles.health import HealthServer

        allow_open_files()
        try:
            with ExitStack() as parts:
                parts.enter_context(_lock(Path(settings.directory)))
                self.parts = parts.enter_context(Bootstrap(settings, filer))
                self.parts.trace("embedded", os.environ)
                self.description = self.parts.describe()
                self._health = None
                if settings.metrics_listen is not None:
                    self._health = HealthServer(settings.metrics_listen, self.parts.ready)
                    parts.callback(self._health.close)
                app = create_app(self.parts.api_services())
                try:
                    self._server = BackgroundServer(app, settings.api, settings.shutdown_grace)
                except OSError as error:
                    address = f"port {settings.api.port} of {settings.api.host}"
                    message = f"cannot listen on {address}: {error.strerror}; choose another with --port"
                    raise ConfigurationError(message) from None
                self._closing = parts.pop_all()
        except OSError as error:
            message = f"cannot use the directory {settings.directory}: {error}; choose another with --dir"
            raise ConfigurationError(message) from None
        self.url = self._server.url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//:::", "//[::1]:")

    def start(self) -> Self:
        from poiesis.queue.links import register
        from poiesis.queue.worker import ThreadWorker

        parts = self.parts
        register(parts.celery, parts.orchestrator, parts.queue)
        worker = ThreadWorker(parts.celery, threads=parts.settings.role_threads)
        worker.start()
        self._closing.callback(worker.close)
        monitor = parts.monitor()
        monitor.listen()
        monitor.start()
        self._closing.callback(monitor.close)
        notifier = parts.notifier()
        notifier.start()
        self._closing.callback(notifier.close)
        if self._health is not None:
            self._health.start()
        monitor.resume()
        self._server.start()
        self._closing.callback(self._server.stop)
        return self

    def unfinished_notice(self) -> str:
        """Return a sentence on tasks that have not ended: stopping the service does not stop their commands."""
        try:
            count = self.parts.repository.count(TaskFilter(states=frozenset(State) - TERMINAL))
        except PoiesisError:
            return ""
        if count == 0:
            return ""
        tasks = "1 task has" if count == 1 else f"{count}{'+' if count == COUNT_LIMIT else ''} tasks have"
        return f" {tasks} not ended: commands keep running, and the next start on {self.parts.settings.directory} takes over."

    def close(self) -> None:
        """Stop serving and let links finish. Commands keep running: the next start on the same directory takes them over."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def allow_open_files() -> None:
    """As many as this process may have: connections, transfers and the database share them, and shells often allow 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def embedded_settings(arguments: argparse.Namespace, *, port: int | None) -> tuple[Settings, FilerSettings]:
    """Return the settings of the environment, overridden by the command line. `port` None: that of the environment.

    Raises: ConfigurationError.
    """
    settings = read(Settings, os.environ, others=ADAPTER_PREFIXES)
    filer = read(FilerSettings, os.environ, FILER_PREFIX)
    directory = Path(arguments.dir or settings.directory).resolve()
    allowed = [str(Path(d).resolve()) for d in arguments.allow_dir]
    roots = [*filer.file_roots, *allowed]
    for root in roots:
        if root in allowed and not Path(root).is_dir():
            raise ConfigurationError(f"invalid --allow-dir {root}: no such directory")
        if Path(root).resolve().is_relative_to(directory):
            message = f"inside the service's directory {directory}; choose another with --dir"
            raise ConfigurationError(f"invalid --allow-dir {root}: {message}")
    for visible in settings.visible_directories:
        if not Path(visible).is_dir():
            raise ConfigurationError(f"invalid {PREFIX}VISIBLE_DIRECTORIES: no such directory: {visible}")
    filer = replace(filer, file_roots=tuple(roots), file_hidden=(*filer.file_hidden, str(directory)))
    settings = replace(
        settings,
        directory=str(directory),
        runtime=arguments.runtime or settings.runtime,
        policy=replace(settings.policy, retry_started=False, layout="single"),
        logs=settings.logs if _is_set("LOGS__URL") else _logs_in(directory, settings.logs),
        api=replace(
            settings.api,
            host=settings.api.host if arguments.host is None else arguments.host,
            port=settings.api.port if port is None else port,
        ),
        log_format="text",
        log_level="INFO" if arguments.verbose else os.environ.get(f"{PREFIX}LOG_LEVEL", "ERROR"),
    )
    return settings, filer


def _is_set(name: str) -> bool:
    return f"{PREFIX}{name}" in os.environ or f"{PREFIX}{name}_FILE" in os.environ


def _logs_in(directory: Path, settings: LogSettings) -> LogSettings:
    """Whole logs beside the database, so that output can be followed; deleted with their tasks."""
    max_bytes = settings.max_bytes if _is_set("LOGS__MAX_BYTES") else LOCAL_LOG_BYTES
    return replace(settings, url=(directory / "logs").as_uri(), max_bytes=max_bytes)


def run(arguments: argparse.Namespace) -> int:
    from poiesis.api.memory import freeze_started_objects

    settings, filer = embedded_settings(arguments, port=arguments.port)
    configure_logging(settings.log_level, settings.log_format)
    stop = threading.Event()
    stop_on_signal(stop, settings.shutdown_grace)
    with Embedded(settings, filer) as service:
        print(f"Poiesis is up at {service.url} (TES 1.1 at {service.url}/ga4gh/tes/v1, stop with Ctrl-C).")
        if settings.api.dashboard.enabled:
            print(f"Dashboard: {service.url}/ui")
        print(service.description)
        print("Try:\n" + example(service.url, settings.api))
        sys.stdout.flush()
        freeze_started_objects()
        wait_for(stop)
        print(f"Stopping.{service.unfinished_notice()}", flush=True)
    return 0


def example(url: str, api: ApiSettings) -> str:
    """Return commands to copy, with credentials by the first authentication method; the user's own go into the line before."""
    scheme, _, address = url.partition("//")
    run = f"poiesis run --url {url} alpine -- echo hello"
    lines = {
        "": [run],
        "basic": [
            "export TES_USER=USER TES_PASSWORD=PASSWORD",
            run.replace(url, f'"{scheme}//$TES_USER:$TES_PASSWORD@{address}"'),
        ],
        "bearer": ["export TES_TOKEN=TOKEN", run],
        "oidc": [f"poiesis login --url {url}", run],
        "api_key": ["export TES_KEY=KEY", f'POIESIS_TOKEN="$TES_KEY" {run}'],
    }[next(iter(api.auth), "")]
    if "oidc" in api.auth[:1]:  # only the command line has the token
        lines.append(f"poiesis task list --url {url}")
    else:
        from poiesis.api.pages import curl_credentials, first_method

        curl = f"curl -s {curl_credentials(first_method(api))}"
        task = '{"name": "hello", "executors": [{"image": "alpine", "command": ["echo", "hello"]}]}'
        lines.append(f"{curl}{url}/ga4gh/tes/v1/tasks -H 'Content-Type: application/json' -d '{task}'")
        lines.append(f"{curl}'{url}/ga4gh/tes/v1/tasks?view=FULL'")
    return "\n".join(f"  {line}" for line in lines)


def _lock(directory: Path) -> IO[str]:
    """Lock the directory until the process ends, however it ends."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = directory.stat()
    if (
        status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH
    ):  # its database could hold tasks of theirs
        raise ConfigurationError(f"another user can write to the directory {directory}; choose another with --dir")
    file = open(directory / "lock", "a")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        message = f"the directory {directory} is in use by another `poiesis up`; choose another with --dir"
        raise ConfigurationError(message) from None
    return file
