"""Checks of one machine, for `poiesis up`."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
from pathlib import Path
from typing import Final

import urllib3

from poiesis.cluster.local import cgroups
from poiesis.cluster.local.runtime_selection import select_runtime
from poiesis.config import ARCHITECTURES, shipped_launchers
from poiesis.doctor.result import NOT_TRIED, Findings, error, ok, skipped, warning
from poiesis.doctor.service import service_at
from poiesis.doctor.site import Site
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.policy import GIGABYTE

LEAST_FREE_BYTES: Final = GIGABYTE // 2
LEAST_FREE_INODES: Final = 10_000
LEAST_FILES: Final = 1024
USER_NAMESPACES: Final = Path("/proc/sys/user/max_user_namespaces")
APPARMOR: Final = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")


def check_directory(site: Site) -> Findings:
    """The directory of the database and the tasks' files: usable, and with room."""
    path = Path(site.settings.directory).absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    choose = "Choose another one with --dir (POIESIS_DIRECTORY)"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        kind = "is not a directory" if not there.is_dir() else "is not writable for this user"
        yield error(f"{there} {kind}", "`poiesis up` does not start.", f"{choose}, or repair its owner and mode.")
        return
    space = os.statvfs(there)
    free = space.f_bavail * space.f_frsize
    needed = site.settings.policy.default_disk_bytes
    if free < LEAST_FREE_BYTES:
        yield error(
            f"only {_gigabytes(free)} are free for {path}",
            "Tasks fail while they write their inputs and outputs, and the database may become full.",
            f"Free space there. {choose}.",
        )
    elif free < needed:
        yield warning(
            f"{_gigabytes(free)} are free for {path}, and one task may use {_gigabytes(needed)}",
            "Tasks with large files may fail.",
            f"Free space there. {choose}.",
        )
    elif space.f_files and space.f_favail < LEAST_FREE_INODES:
        yield error(f"only {space.f_favail} more files fit into the file system of {path}", "Tasks fail.", f"{choose}.")
    else:
        yield ok(f"{path}: {_gigabytes(free)} free")


def _gigabytes(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB"


def check_runtime(site: Site) -> Findings:
    """What runs the commands: the first of docker, podman and the sandbox that can run a trial."""
    launcher = shipped_launchers().get(ARCHITECTURES.get(platform.machine(), platform.machine()))
    settings = site.settings
    if launcher is None:
        supported = ", ".join(sorted(shipped_launchers()))
        what = f"no launcher for {platform.machine()}: supported are {supported}"
        yield error(what, "`poiesis up` does not start.", "Use another machine.")
        return
    if not site.trial:
        found = [name for name in ("docker", "podman") if shutil.which(name)]
        yield skipped(
            f"not tried out; installed: {', '.join(found) or 'neither docker nor podman'}", "Run without --no-trial."
        )
        return
    directory = Path(settings.directory).absolute()
    there = directory.exists()
    try:
        runtime = select_runtime(settings.runtime, directory, launcher, max_processes=settings.max_processes)
    except (ConfigurationError, OSError) as failure:
        repair = "Start docker or podman, or allow user namespaces (see the check user-namespaces)."
        yield error(str(failure), "`poiesis up` does not start.", repair)
        return
    finally:
        if not there and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
    description = runtime.describe()
    runtime.close()
    yield ok(description)


def check_user_namespaces(site: Site) -> Findings:
    """Check user namespaces, which the sandbox needs to run commands without a container engine."""
    if os.geteuid() == 0:
        yield ok("this user is root, which needs none")
        return
    follows = "Commands cannot run as sandboxed processes; only docker or podman remain."
    if _number(USER_NAMESPACES) == 0:
        repair = "As root: sysctl -w user.max_user_namespaces=15000, and the same line in /etc/sysctl.d/."
        yield warning(f"{USER_NAMESPACES} is 0: no user namespaces", follows, repair)
    elif _number(APPARMOR) == 1:
        repair = (
            "As root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, and the same line in /etc/sysctl.d/."
        )
        yield warning("AppArmor does not allow user namespaces to ordinary users", follows, repair)
    else:
        yield ok("allowed")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def check_cgroups(site: Site) -> Findings:
    """Check control groups, which limit memory and processes in the sandbox; a container engine makes its own."""
    if not site.trial:
        yield NOT_TRIED
        return
    groups = cgroups.find()
    missing = {"memory", "pids"} - (groups.parents.keys() if groups else set())
    if missing:
        kinds = " and ".join({"memory": "memory", "pids": "the number of processes"}[m] for m in sorted(missing))
        yield warning(
            f"this process may not create control groups that limit {kinds}",
            "In the sandbox a command may use up this machine; with docker or podman it may not.",
            "Start the service in a delegated group: systemd-run --user --scope -p Delegate=yes poiesis up.",
        )
    else:
        yield ok(f"version {groups.version if groups else ''}, with limits of memory and processes")


def check_port(site: Site) -> Findings:
    """The address is free, or the service itself is there."""
    host, port = site.settings.api.host, site.settings.api.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as failure:
            what = failure.strerror or str(failure)
        else:
            yield ok(f"{host} port {port} is free")
            return
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        found = service_at(f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}")
    except (OSError, ValueError, urllib3.exceptions.HTTPError):
        found = None
    if found is not None:
        yield ok(f"{found[0]} {found[1]} is running on {host} port {port}")
        return
    yield error(
        f"cannot listen on {host} port {port}: {what}",
        "`poiesis up` does not start.",
        f"Choose another port with --port (POIESIS_API__PORT), or end what uses it: ss -ltnp 'sport = :{port}'.",
    )


def check_limits(site: Site) -> Findings:
    """Open files: connections, streams and files of transfers together."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # `poiesis up` raises the soft limit by itself
    needed = max(LEAST_FILES, site.settings.api.max_connections * 2)
    if 0 <= hard < needed:
        yield warning(
            f"this machine allows {hard} open files, and the service may need {needed}",
            "With many connections or transfers, requests and tasks fail with 'too many open files'.",
            f"Raise the hard limit (`nofile` in limits.conf, LimitNOFILE of systemd, or `ulimit -Hn {needed}` as root).",
        )
    else:
        yield ok(f"open files: {hard if hard >= 0 else 'unlimited'}")
