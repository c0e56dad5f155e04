"""Selection of the runtime that runs commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from poiesis.cluster.local.container_runtime import ContainerRuntime
from poiesis.cluster.local.process_runtime import DEFAULT_MAX_PROCESSES, ProcessRuntime
from poiesis.cluster.local.runtime import Runtime, StartFailed
from poiesis.domain.errors import ConfigurationError

RUNTIMES: Final = ("auto", "docker", "podman", "process")


def select_runtime(
    name: str,
    directory: Path,
    launcher: Path,
    *,
    hidden: Iterable[Path] = (),
    visible: Iterable[Path] = (),
    max_processes: int = DEFAULT_MAX_PROCESSES,
) -> Runtime:
    """`name`: one of RUNTIMES. `hidden`, `visible`: see ProcessRuntime. `max_processes`: of one command, threads included.

    Raises: ConfigurationError with a message that says what to do.
    """
    if name not in RUNTIMES:
        raise ConfigurationError(f"unknown runtime {name!r}: must be one of {', '.join(RUNTIMES)}")
    if not os.access(launcher, os.X_OK):
        raise ConfigurationError(f"missing launcher {launcher}; build it with `make launcher`")
    tried: list[str] = []
    for candidate in RUNTIMES[1:] if name == "auto" else (name,):
        runtime: Runtime
        if candidate == "process":
            runtime = ProcessRuntime(directory, launcher, hidden=hidden, visible=visible, max_processes=max_processes)
        elif shutil.which(candidate) is not None:
            runtime = ContainerRuntime(candidate, directory, launcher, max_processes=max_processes)
        else:
            tried.append(f"{candidate}: not installed")
            continue
        try:
            runtime.probe()
            return runtime
        except (StartFailed, OSError) as error:
            tried.append(f"{candidate}: {error}")
            runtime.close()
    raise ConfigurationError(
        f"no runtime can run commands on this machine ({'; '.join(tried)}). Start docker or podman, or allow user namespaces "
        "(as root: sysctl -w user.max_user_namespaces=15000, and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)"
    )
