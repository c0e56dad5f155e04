"""Selection of the runtime that runs commands."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from poiesis.cluster.local.container_runtime import ContainerRuntime
from poiesis.cluster.local.process_runtime import DEFAULT_MAX_PROCESSES, ProcessRuntime
from poiesis.cluster.local.runtime import Runtime, StartFailed
from poiesis.domain.errors import ConfigurationError

ENGINES: Final = ("docker", "podman")
RUNTIMES: Final = ("auto", *ENGINES, "process")


def select_runtime(
    name: str,
    directory: Path,
    launcher: Path,
    *,
    hidden: Iterable[Path] = (),
    visible: Iterable[Path] = (),
    max_processes: int = DEFAULT_MAX_PROCESSES,
    network: str | None = None,
) -> Runtime:
    """`name`: one of RUNTIMES. `hidden`, `visible`: see ProcessRuntime. `max_processes`: of one command, threads included.
    `network`: of containers; None: the engine's default.

    Raises: ConfigurationError with a message that says what to do.
    """
    if name not in RUNTIMES:
        raise ConfigurationError(f"unknown runtime {name!r}: must be one of {', '.join(RUNTIMES)}")

    def make(candidate: str) -> Runtime:
        if candidate in ENGINES:
            return ContainerRuntime(candidate, directory, launcher, network=network, max_processes=max_processes)
        return ProcessRuntime(directory, launcher, hidden=hidden, visible=visible, max_processes=max_processes)

    tried: list[str] = []
    for candidate in RUNTIMES[1:] if name == "auto" else (name,):
        if candidate in ENGINES and shutil.which(candidate) is None:
            tried.append(f"{candidate}: not installed")
            continue
        runtime = make(candidate)
        try:
            runtime.probe()
        except StartFailed as error:
            tried.append(f"{candidate}: {error}")
            runtime.close()
            continue
        return runtime
    raise ConfigurationError(
        "no runtime can run commands on this machine ("
        + "; ".join(tried)
        + "). Start docker or podman, or allow user namespaces "
        "(as root: sysctl -w user.max_user_namespaces=15000, and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)"
    )
