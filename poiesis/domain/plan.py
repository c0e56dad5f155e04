"""The plan of a task: which pods with which containers in which order, over which volume. A pure function of task and policy.

    layout   pods                                        when
    single   task: [tif] executor-0 … executor-n [tof]   most tasks: all containers side by side, each waiting for its turn
    staged   tif | executors | tof                       GPUs with staging: devices are held only while executors run;
                                                         uploads that send credentials unencrypted
    staged   tif | executor-0 | executor-1 | … | tof     several executors that request GPUs, which containers cannot share

The task's volume mirrors its paths: what an executor sees at `/data/in.txt` is `root/data/in.txt` on the volume. Executors mount the
task's directories by subPath. A file in a directory that belongs to the image is mounted as a file, which must exist first, so TIF is
then an init container.

A working directory outside all of the task's paths is one of the task's directories too if images keep nothing there
(`SCRATCH_DIRECTORIES`), so that an unprivileged user can write to it. Elsewhere (`/app`, `/opt/tool`) it is left as in the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

from poiesis.domain.observed import TIF, TOF, executor_name
from poiesis.domain.parameters import gpu_count, time_limit
from poiesis.domain.paths import PathSet, is_within, parent, without_slash
from poiesis.domain.policy import GIGABYTE, Policy
from poiesis.domain.quotas import whole_units
from poiesis.domain.report import ROOT
from poiesis.domain.states import Stage
from poiesis.domain.task import FileType, Input, Output, Resources, TaskSpec

_OF_IMAGES: Final = "bin boot etc home lib lib32 lib64 libx32 media mnt opt root run sbin srv usr var"
IMAGE_DIRECTORIES: Final = frozenset(f"/{name}" for name in _OF_IMAGES.split())
OWN_DIRECTORIES: Final = frozenset({"/var/tmp", "/mnt/data"})  # in one of the former, but safe to mount over
SCRATCH_DIRECTORIES: Final = ("/tmp", "/var/tmp", "/work", "/workdir", "/scratch")
FORBIDDEN_DIRECTORIES: Final = frozenset({"/dev", "/proc", "/sys", "/poiesis"})

MAX_LAUNCHER_DIRECTORIES: Final = 200
"""If there are more, TIF makes them: the launcher gets directories as arguments, which must fit into the pod's description."""
MAX_DIRECTORY_MOUNTS: Final = 50
"""Where a task has more directories, their top-level directories are mounted instead, although that may hide what the image has there:
each mount costs the kubelet time, and each is repeated in every executor's container."""
MAX_MOUNTS: Final = 5_000
"""Of all executors' containers together; more do not fit into a pod's description (Kubernetes: 1.5 MB)."""


class Layout(StrEnum):
    SINGLE = "single"
    STAGED = "staged"


@dataclass(frozen=True)
class Mount:
    """Mounts `sub_path` of the volume (relative, such as `root/data`) at `path` in the executors' containers."""

    path: str
    sub_path: str
    is_file: bool = False


@dataclass(frozen=True)
class ContainerPlan:
    """`executor`: index into the task's executors, None for tif and tof. `waits_for`: containers that must have ended,
    `waits_up`: that must have started. `always`: run even if one of them has failed."""

    name: str
    executor: int | None = None
    waits_up: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    always: bool = False


@dataclass(frozen=True)
class PodPlan:
    """`init`: tif, if files must exist before the executors' containers start. `part` names the pod: task, tif, executors,
    executor-0, …, tof; tof-2, … replace a lost one."""

    part: str
    containers: tuple[ContainerPlan, ...]
    init: tuple[ContainerPlan, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in (*self.init, *self.containers))

    @property
    def executors(self) -> tuple[int, ...]:
        """Indices of the task's executors that this pod runs."""
        return tuple(c.executor for c in self.containers if c.executor is not None)

    @property
    def has_filers(self) -> bool:
        return TIF in self.names or TOF in self.names


@dataclass(frozen=True)
class Plan:
    """`volume_bytes` None: the task needs no volume. `directories`: must exist and be writable before the first command starts.
    `touched`: files that must exist, empty, as mount points of outputs. `scratch`: directories that need no volume, empty and writable
    when a pod starts; empty if there is a volume."""

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
        return any(pod.has_filers for pod in self.pods)

    @property
    def names(self) -> frozenset[str]:
        """Of the containers of all pods."""
        return frozenset(name for pod in self.pods for name in pod.names)

    @property
    def executor_pods(self) -> tuple[PodPlan, ...]:
        return tuple(p for p in self.pods if p.executors)

    def pod(self, part: str | None) -> PodPlan | None:
        return next((p for p in self.pods if p.part == part), None)


def first_stages(plan: Plan) -> tuple[Stage, ...]:
    """The stages of a new task that have effects, up to the first pod: what runs without waiting for anything."""
    waits_for_tif = plan.layout is Layout.STAGED and plan.pod(TIF) is not None
    has_effects = {
        Stage.PREPARE: plan.volume_bytes is not None,
        Stage.STAGE_IN: plan.has_filers,
        Stage.LAUNCH: not waits_for_tif,
    }
    return tuple(stage for stage, has in has_effects.items() if has)


def declares_directory(item: Input | Output) -> bool:
    """Whether its type, or without a type the trailing slash of its path, says that it is a directory."""
    return item.path.endswith("/") if item.type is None else item.type is FileType.DIRECTORY


def is_directory(item: Input | Output) -> bool:
    """Whether it is most likely a directory: declared as one, or with a URL that ends in a slash and no type, unless that is the URL of
    an http input: such a server has no directories."""
    if declares_directory(item):
        return True
    url = (item.url or "").lower()
    return (
        item.type is None
        and url.endswith("/")
        and not (isinstance(item, Input) and url.startswith(("http:", "https:")))
    )


def belongs_to_image(directory: str) -> bool:
    """Whether mounting over `directory` would hide what images have there."""
    if directory == "/":
        return True
    top = "/" + directory.split("/", 2)[1]
    return top in IMAGE_DIRECTORIES and not any(is_within(directory, own) for own in OWN_DIRECTORIES)


def _widest_mount(directory: str) -> str:
    top = "/" + directory.split("/", 2)[1]
    return directory if belongs_to_image(top) else top


def plan(spec: TaskSpec, policy: Policy, *, uploads: int = 1) -> Plan:
    """The plan of a task. The same arguments give the same plan. `uploads`: how often the upload has been started."""
    places = _places(spec)
    resources = spec.requested
    mounted = PathSet(places.mounted)
    workdirs = {w for w in _scratch_workdirs(spec) if w not in mounted}
    has_volume = bool(places.mounted or places.files or resources.disk_gb is not None)
    if has_volume:
        mounted = PathSet([*mounted, *workdirs])
    if len(mounted) > MAX_DIRECTORY_MOUNTS:
        mounted = PathSet(map(_widest_mount, mounted))
    files = {path: is_new for path, is_new in places.files.items() if path not in mounted}
    directories = places.mounted | places.made | (workdirs if has_volume else set())
    size = policy.default_disk_bytes if resources.disk_gb is None else whole_units(resources.disk_gb, GIGABYTE)
    layout = _layout(spec, resources, policy)
    return Plan(
        layout=layout,
        pods=_pods(
            spec,
            layout,
            file_mounts=bool(files),
            many_directories=len(directories) > MAX_LAUNCHER_DIRECTORIES,
            one_by_one=gpu_count(resources.backend_parameters) > 0,
            uploads=uploads,
        ),
        volume_bytes=max(size, 1) if has_volume else None,
        mounts=(
            *(Mount(path, f"{ROOT}{path}") for path in mounted),
            *(Mount(path, f"{ROOT}{path}", is_file=True) for path in sorted(files)),
        ),
        directories=tuple(sorted(directories)),
        touched=tuple(sorted(path for path, is_new in files.items() if is_new)),
        time_limit=time_limit(resources.backend_parameters, policy),
        scratch=() if has_volume else tuple(PathSet(workdirs)),
    )


@dataclass(frozen=True)
class _Places:
    """Where the task's volume shows in the executors' containers.

    `mounted`: directories to mount, or in one that is mounted. `made`: other directories that exist before the first command.
    `files`: to mount as a file, in directories that belong to the image; True for those that no input makes.
    """

    mounted: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    files: dict[str, bool] = field(default_factory=dict)

    def add_file(self, path: str, *, is_new: bool) -> None:
        directory = parent(path)
        if belongs_to_image(directory):
            self.files[path] = self.files.get(path, True) and is_new
        else:
            self.mounted.add(directory)

    def add_directory(self, path: str) -> None:
        directory = parent(path)
        self.mounted.add(path if belongs_to_image(directory) else directory)


def _places(spec: TaskSpec) -> _Places:
    places = _Places()
    for item in spec.inputs:
        if is_directory(item):
            places.add_directory(without_slash(item.path))
        else:
            places.add_file(without_slash(item.path), is_new=False)
    for output in spec.outputs:
        if output.pattern.has_wildcard:
            places.mounted.add(output.pattern.fixed_directory)
            continue
        path = without_slash(output.pattern.literal)
        if is_directory(output):
            places.add_directory(path)
            if declares_directory(output):
                places.made.add(path)
        else:
            places.add_file(path, is_new=True)
    for executor in spec.executors:
        for stream in (executor.stdout, executor.stderr):
            if stream is not None:
                places.add_file(stream, is_new=True)
    places.mounted.update(map(without_slash, spec.volumes))
    return places


def _scratch_workdirs(spec: TaskSpec) -> set[str]:
    """Working directories where a mount hides nothing."""
    found = {without_slash(executor.workdir) for executor in spec.executors if executor.workdir is not None}
    return {workdir for workdir in found if any(is_within(workdir, scratch) for scratch in SCRATCH_DIRECTORIES)}


def _layout(spec: TaskSpec, resources: Resources, policy: Policy) -> Layout:
    if policy.layout != "auto":
        return Layout(policy.layout)
    holds_devices = gpu_count(resources.backend_parameters) > 0
    moves_files = bool(spec.outputs) or any(i.content is None for i in spec.inputs)
    if policy.exposes_credentials(o.url for o in spec.outputs):  # inputs are staged before any command runs
        return Layout.STAGED
    return Layout.STAGED if holds_devices and (moves_files or len(spec.executors) > 1) else Layout.SINGLE


def _pods(
    spec: TaskSpec, layout: Layout, *, file_mounts: bool, many_directories: bool, one_by_one: bool, uploads: int
) -> tuple[PodPlan, ...]:
    count = len(spec.executors)
    names = [executor_name(i) for i in range(count)]
    stages_in = bool(spec.inputs) or file_mounts or many_directories
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
    """Executors one after the other. The first one waits until every container has started, so that a bad image wastes no
    compute; but not for TOF if TIF runs, which has the same image: starting another container takes the kubelet 0.2 s."""
    first = ContainerPlan(names[0], 0, waits_up=(*names[1:], *also_up), waits_for=before)
    return (first, *(ContainerPlan(n, i, waits_for=(names[i - 1],)) for i, n in enumerate(names) if i > 0))
