"""The launcher's command line for one executor (launcher/README.md)."""

from __future__ import annotations

from poiesis.cluster.local.pod import Command


def arguments(
    launcher: str, control: str, name: str, command: Command, workdir: str | None, *, cgroup_root: str | None = None
) -> list[str]:
    """`launcher`, `control` and `cgroup_root` are paths as the launcher sees them. The command runs as soon as the launcher is started."""
    options = [
        launcher,
        "--name",
        name,
        "--control",
        control,
        "--tail-bytes",
        str(command.tail_bytes),
        "--grace",
        f"{command.grace_s:.3f}",
        "--log-stall",
        "0",
    ]
    for option, path in (("--stdin", command.stdin), ("--stdout", command.stdout), ("--stderr", command.stderr)):
        if path is not None:
            options += [option, path]
    if workdir is not None:
        options += ["--workdir", workdir]
    if command.time_limit_s is not None:
        options += ["--time-limit", f"{command.time_limit_s:.3f}"]
    if command.ignore_error:
        options.append("--ignore-error")
    if cgroup_root is not None:
        options += ["--cgroup", "--cgroup-root", cgroup_root]
    return [*options, "--", *command.argv]
