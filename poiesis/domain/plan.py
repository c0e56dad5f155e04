"""The plan of a task: which pods with which containers in which order, over which volume. Pure, from the task and the policy alone.

    layout   pods                                        when
    single   task: [tif] executor-0 … executor-n [tof]   most tasks: all containers side by side, each waiting for its turn
    staged   tif | executors | tof                       GPUs with staging: devices are held only while executors run
    staged   tif | executor-0 | executor-1 | … | tof     several executors that ask for GPUs, which containers cannot share

The task's volume mirrors its paths: what an executor sees at `/data/in.txt` is `root/data/in.txt` on the volume. Executors mount the
directories of the task's own by subPath; a file in a directory which images fill is mounted as a file, which has to exist first,
so TIF is then an init container.

A working directory that none of the paths covers is the task's own too where images keep nothing (`SCRATCH_DIRECTORIES`), so that a user
without rights can write there. Elsewhere (`/app`, `/opt/tool`) it may be what the image was made for, and is left as it is.
"""

from __future__ import annotations

import math
import posixpath
import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from poiesis.domain.observed import TIF, TOF, executor_name
from poiesis.domain.parameters import gpu_count, time_limit
from poiesis.domain.policy import GIGABYTE, Policy
from poiesis.domain.report import ROOT
from poiesis.domain.task import FileType, Input, Output, Resources, TaskSpec

IMAGE_DIRECTORIES: Final = frozenset(
    f"/{name}"
    for name in (
        *("bin", "boot", "etc", "home", "lib", "lib32", "lib64", "libx32", "media"),
        *("mnt", "opt", "root", "run", "sbin", "srv", "usr", "var"),
    )
)
OWN_DIRECTORIES: Final = frozenset({"/var/tmp", "/mnt/data"})  # below one of the former, yet safe to cover
SCRATCH_DIRECTORIES: Final = ("/tmp", "/var/tmp", "/work", "/workdir", "/scratch")
FORBIDDEN_DIRECTORIES: Final = frozenset({"/dev", "/proc", "/sys", "/poiesis"})

_WILDCARD: Final = re.compile(r"[*?\[]")


class Layout(StrEnum):
    SINGLE = "single"
    STAGED = "staged"


@dataclass(frozen=True)
class Mount:
    """`path` in the executors' containers shows `sub_path` of the volume (relative, such as `root/data`)."""

    path: str
    sub_path: str
    is_file: bool = False


@dataclass(frozen=True)
class ContainerPlan:
    """`executor`: index into the task's executors, None for tif and tof. `waits_for`: containers whose record has to be there first,
    `waits_up`: that only have to have started. `always`: run even if one waited for has failed."""

    name: str
    executor: int | None = None
    waits_up: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    always: bool = False


@dataclass(frozen=True)
class PodPlan:
    """`init`: tif, when files have to exist before the executors' containers do. `part` names the pod: task, tif, executors,
    executor-0, …, tof; and tof-2, … for one that does what a lost one was to do."""

    part: str
    containers: tuple[ContainerPlan, ...]
    init: tuple[ContainerPlan, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in (*self.init, *self.containers))


@dataclass(frozen=True)
class Plan:
    """`volume_bytes` None: the task needs no volume. `directories`: to exist, writable, before the first command starts.
    `touched`: files to exist (empty) for the file mounts of outputs. `scratch`: directories of executors' own that need no volume, empty
    and writable when a pod begins; none where there is a volume."""

    layout: Layout
    pods: tuple[PodPlan, ...]
    volume_bytes: int | None
    mounts: tuple[Mount, ...]
    directories: tuple[str, ...]
    touched: tuple[str, ...]
    time_limit: timedelta | None
    scratch: tuple[str, ...] = ()

    @property
    def has_filers(self) -> bool:
        return any(name in (TIF, TOF) for pod in self.pods for name in pod.names)

    @property
    def executor_pods(self) -> tuple[PodPlan, ...]:
        return tuple(p for p in self.pods if any(c.executor is not None for c in p.containers))

    def pod(self, part: str) -> PodPlan | None:
        return next((p for p in self.pods if p.part == part), None)


def has_wildcard(path: str) -> bool:
    """Whether an output path is a pattern (POSIX 2.13: `*`, `?`, `[...]`)."""
    return _WILDCARD.search(path) is not None


def fixed_directory(path: str) -> str:
    """The directory of a pattern or path that holds no wildcard: `/work/*/a.txt` → `/work`, `/data/out.txt` → `/data`."""
    match = _WILDCARD.search(path)
    return posixpath.dirname(path[: match.start()] if match else path.rstrip("/")) or "/"


def is_directory(item: Input | Output) -> bool:
    """Whether it is certainly a directory: said so, or a trailing slash of the path or of the URL where nothing is said."""
    if item.type is not None:
        return item.type is FileType.DIRECTORY
    return item.path.endswith("/") or (item.url or "").endswith("/")


def belongs_to_image(directory: str) -> bool:
    """Whether mounting over `directory` would hide what images have there."""
    if directory == "/":
        return True
    if any(_is_within(directory, own) for own in OWN_DIRECTORIES):
        return False
    return any(_is_within(directory, filled) for filled in IMAGE_DIRECTORIES)


def plan(spec: TaskSpec, policy: Policy, *, uploads: int = 1) -> Plan:
    """The plan of a task. The same arguments give the same plan. `uploads`: how often the upload has been begun by now."""
    directories: set[str] = set()  # mounted, or below a mount
    files: dict[str, bool] = {}  # mounted as a file: path → has to be made (it is no input)
    items: tuple[Input | Output, ...] = (*spec.inputs, *spec.outputs)
    for item in items:
        target = item.path.rstrip("/") or "/"
        if isinstance(item, Output) and has_wildcard(item.path):
            directories.add(fixed_directory(item.path))
        elif is_directory(item):
            parent = posixpath.dirname(target)
            directories.add(target if belongs_to_image(parent) else parent)
        else:
            _add_file(target, isinstance(item, Output), directories, files)
    for executor in spec.executors:
        for stream in (executor.stdout, executor.stderr):
            if stream is not None:
                _add_file(stream, True, directories, files)
    volumes = {v.rstrip("/") for v in spec.volumes}
    directories |= volumes
    resources = spec.resources or Resources()
    scratch = {w for w in _workdirs(spec) if not any(_is_within(w, d) for d in directories)}
    if directories or files or resources.disk_gb is not None:
        directories, scratch = directories | scratch, set()
    mounted = _outermost(directories)
    files = {f: made for f, made in files.items() if not any(_is_within(f, d) for d in mounted)}
    mounts = tuple(
        [Mount(d, f"{ROOT}{d}") for d in mounted] + [Mount(f, f"{ROOT}{f}", is_file=True) for f in sorted(files)]
    )
    needs_volume = bool(mounts) or resources.disk_gb is not None
    size = policy.default_disk_bytes if resources.disk_gb is None else math.ceil(resources.disk_gb * GIGABYTE)
    layout = _layout(spec, resources, policy)
    touched = tuple(sorted(f for f, made in files.items() if made))
    return Plan(
        layout=layout,
        pods=_pods(
            spec,
            layout,
            file_mounts=bool(files),
            one_by_one=gpu_count(resources.backend_parameters) > 0,
            uploads=uploads,
        ),
        volume_bytes=max(size, 1) if needs_volume else None,
        mounts=mounts,
        directories=tuple(sorted(directories)),
        touched=touched,
        time_limit=time_limit(resources.backend_parameters, policy),
        scratch=tuple(_outermost(scratch)),
    )


def _workdirs(spec: TaskSpec) -> set[str]:
    """Working directories where a mount hides nothing."""
    found = {executor.workdir.rstrip("/") for executor in spec.executors if executor.workdir is not None}
    return {w for w in found if any(_is_within(w, own) for own in SCRATCH_DIRECTORIES)}


def _outermost(directories: set[str]) -> list[str]:
    return sorted(d for d in directories if not any(d != o and _is_within(d, o) for o in directories))


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _add_file(target: str, made: bool, directories: set[str], files: dict[str, bool]) -> None:
    parent = posixpath.dirname(target)
    if belongs_to_image(parent):
        files[target] = files.get(target, True) and made
    else:
        directories.add(parent)


def _layout(spec: TaskSpec, resources: Resources, policy: Policy) -> Layout:
    if policy.layout != "auto":
        return Layout(policy.layout)
    holds_devices = gpu_count(resources.backend_parameters) > 0
    moves_files = bool(spec.outputs) or any(i.content is None for i in spec.inputs)
    return Layout.STAGED if holds_devices and (moves_files or len(spec.executors) > 1) else Layout.SINGLE


def _pods(spec: TaskSpec, layout: Layout, *, file_mounts: bool, one_by_one: bool, uploads: int) -> tuple[PodPlan, ...]:
    count = len(spec.executors)
    names = [executor_name(i) for i in range(count)]
    stages_in = bool(spec.inputs) or file_mounts
    stages_out = bool(spec.outputs)
    again = [PodPlan(f"{TOF}-{n}", (ContainerPlan(TOF),)) for n in range(2, uploads + 1) if stages_out]
    if layout is Layout.STAGED:
        pods = [PodPlan(TIF, (ContainerPlan(TIF),))] if stages_in else []
        if one_by_one:
            pods += [PodPlan(name, (ContainerPlan(name, i),)) for i, name in enumerate(names)]
        else:
            pods.append(PodPlan("executors", _in_turn(names)))
        pods += [PodPlan(TOF, (ContainerPlan(TOF),))] if stages_out else []
        return (*pods, *again)
    tif_first = stages_in and file_mounts  # as an init container: it has ended before the others start
    tif_beside = stages_in and not file_mounts
    executors = _in_turn(
        names, before=(TIF,) if tif_beside else (), also_up=(TOF,) if stages_out and not stages_in else ()
    )
    beside = [ContainerPlan(TIF)] if tif_beside else []
    after = [ContainerPlan(TOF, waits_for=(names[-1],), always=True)] if stages_out else []
    return (PodPlan("task", (*beside, *executors, *after), init=(ContainerPlan(TIF),) if tif_first else ()), *again)


def _in_turn(
    names: list[str], before: tuple[str, ...] = (), also_up: tuple[str, ...] = ()
) -> tuple[ContainerPlan, ...]:
    """Executors one after the other. The first one waits until every container has started, so that a bad image wastes no compute; not for
    TOF where TIF runs, which has the same image: starting another container takes the kubelet a fifth of a second."""
    first = ContainerPlan(names[0], 0, waits_up=(*names[1:], *also_up), waits_for=before)
    return (first, *(ContainerPlan(n, i, waits_for=(names[i - 1],)) for i, n in enumerate(names) if i > 0))
