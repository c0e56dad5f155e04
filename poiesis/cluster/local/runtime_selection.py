"""Which runtime is used, and why not another one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from poiesis.cluster.local.container_runtime import ContainerRuntime
from poiesis.cluster.local.process_runtime import ProcessRuntime
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
    shown: Iterable[Path] = (),
    network: str | None = None,
) -> Runtime:
    """`name`: one of RUNTIMES. `hidden`, `shown`: directories that plain processes may not, or may after all, see.
    `network`: of containers; None: the engine's default.

    Raises: ConfigurationError which says what to do.
    """
    if name not in RUNTIMES:
        raise ConfigurationError(f"{name!r} is no runtime; name one of {', '.join(RUNTIMES)}")
    tried: list[str] = []
    for candidate in RUNTIMES[1:] if name == "auto" else (name,):
        if candidate in ENGINES and shutil.which(candidate) is None:
            tried.append(f"{candidate}: not installed")
            continue
        runtime = _make(candidate, directory, launcher, tuple(hidden), tuple(shown), network)
        try:
            runtime.probe()
        except StartFailed as error:
            tried.append(f"{candidate}: {error}")
            runtime.close()
            continue
        return runtime
    raise ConfigurationError(
        "nothing can run commands here ("
        + "; ".join(tried)
        + "). Start docker or podman, or let processes make user namespaces "
        "(as root: sysctl -w user.max_user_namespaces=15000, and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)"
    )


def _make(
    name: str, directory: Path, launcher: Path, hidden: tuple[Path, ...], shown: tuple[Path, ...], network: str | None
) -> Runtime:
    if name in ENGINES:
        return ContainerRuntime(name, directory, launcher, network=network)
    return ProcessRuntime(directory, launcher, hidden=hidden, shown=shown)
