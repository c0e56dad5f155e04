"""The `Cluster` port on one machine: a pod is a thread that runs its containers in order, and its state is a directory on disk.

What exists is what is on disk (`task_directory.py`). A new instance on the same directory restores everything: it resumes unfinished pods,
adopts running commands and continues deletions. Only one process may use a directory at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Final

from poiesis.cluster.local.pod import LocalPod, Member, make_pod, read_pod
from poiesis.cluster.local.process_runtime import DEFAULT_MAX_PROCESSES
from poiesis.cluster.local.runtime import StartFailed
from poiesis.cluster.local.runtime_selection import select_runtime
from poiesis.cluster.local.supervisor import Filers, LogKeeping, Supervisor, read_record
from poiesis.cluster.local.task_directory import (
    TaskDirectory,
    acquire_lock,
    all_directories,
    directories_of,
    read_bounded,
    read_document,
    remove_broken,
    write_document,
)
from poiesis.domain.errors import ClusterRefused, ClusterUnavailable, ConfigurationError
from poiesis.domain.naming import object_name
from poiesis.domain.observed import TIF, TOF, Container, Observed, Phase, Pod
from poiesis.domain.plan import Plan, PodPlan
from poiesis.domain.policy import Policy
from poiesis.domain.records import parse_report, parse_time
from poiesis.domain.report import MAX_REPORT_BYTES, ROOT, FilerReport
from poiesis.domain.staging import tif_document, tof_document
from poiesis.domain.task import Task, TaskId
from poiesis.ports.clock import Clock

log = logging.getLogger(__name__)

Key = tuple[TaskId, int, str]  # task, attempt, part
REMOVERS: Final = 2  # directories removed at once
REMOVE_TRIES: Final = 20
REMOVE_PAUSE: Final = 0.5  # seconds
CLOSE_SECONDS: Final = 10.0
LOCK_SECONDS: Final = 2.0  # a killed service can leave a child that holds the lock until its exec


class LocalCluster:
    """Implements `Cluster` and `ClusterEvents`.

    `directory`: where tasks' files are kept; not shared with another process. `runtime`: auto, docker, podman or process.
    `filers`: stage files, in this process. `launcher`: the built launcher. `hidden`, `visible`, `max_processes`: see `select_runtime`.
    `logs` None: only tails are kept.

    Raises: ConfigurationError when nothing can run commands here, or when another process uses the directory.
    """

    def __init__(
        self,
        directory: Path,
        runtime: str,
        policy: Policy,
        filers: Filers,
        clock: Clock,
        launcher: Path,
        *,
        hidden: Iterable[Path] = (),
        visible: Iterable[Path] = (),
        max_processes: int = DEFAULT_MAX_PROCESSES,
        logs: LogKeeping | None = None,
    ) -> None:
        directory = directory.resolve()
        self._tasks = directory / "tasks"
        self._policy = policy
        self._filers = filers
        self._clock = clock
        self._logs = logs
        self._node = platform.node() or "localhost"
        self._tasks.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._in_use = acquire_lock(directory / "cluster.lock", LOCK_SECONDS)
        except TimeoutError:
            raise ConfigurationError(
                f"{directory} is in use by another service: stop it or choose another directory"
            ) from None
        self._lock = threading.RLock()
        self._supervisors: dict[Key, Supervisor] = {}
        self._removing: set[str] = set()
        self._removers = ThreadPoolExecutor(REMOVERS, thread_name_prefix="remove")
        self._wakes: list[Callable[[TaskId], None]] = []
        self._closed = False
        try:
            concealed = (*(Path(r) for r in policy.file_roots), *hidden)
            self._runtime = select_runtime(
                runtime, directory, launcher, hidden=concealed, visible=visible, max_processes=max_processes
            )
            self._resume()
        except BaseException:
            os.close(self._in_use)
            self._removers.shutdown(wait=False)
            raise

    def describe(self) -> str:
        """Describe to users what runs the commands and what it does not isolate."""
        return self._runtime.describe()

    # ---- Cluster

    def create_volume(self, task: Task, plan: Plan) -> None:
        if plan.volume_bytes is None:
            return
        with self._writing(task) as task_dir:
            root = task_dir.volume / ROOT
            root.mkdir(mode=0o755, parents=True, exist_ok=True)
            for directory in plan.directories:
                _make_writable(root, directory)

    def create_documents(self, task: Task, plan: Plan) -> None:
        with self._writing(task) as task_dir:
            whose = {"owner": task.owner, "groups": task.groups}  # decides which credentials the filers use
            if TIF in plan.names:
                write_document(task_dir.path / "documents" / f"{TIF}.json", {**tif_document(task, plan), **whose})
            if TOF in plan.names:
                write_document(task_dir.path / "documents" / f"{TOF}.json", {**tof_document(task, plan), **whose})

    def launch(self, task: Task, plan: Plan, pod: PodPlan) -> None:
        local = make_pod(task, plan, pod, self._policy, None if self._logs is None else self._logs.settings)
        with self._writing(task) as task_dir, self._lock:
            if task_dir.pod(pod.part).exists():
                return
            root = task_dir.volume / ROOT
            if plan.scratch:
                root.mkdir(mode=0o755, parents=True, exist_ok=True)
            for directory in plan.scratch:
                _make_writable(root, directory)
            write_document(task_dir.pod(pod.part), {**local.document(), "created_at": self._clock.now().isoformat()})
            self._start(local)

    def observe(self, task: Task, *, plan: Plan | None = None, poked: bool = False, tails: bool = False) -> Observed:
        with self._translated():
            return self._observe(task, tails)

    def _observe(self, task: Task, tails: bool) -> Observed:
        pods: list[Pod] = []
        others: list[str] = []
        reports: dict[str, FilerReport] = {}
        live: dict[str, tuple[str, str]] = {}
        for task_dir in directories_of(self._tasks, task.id, task.attempt):
            pods += [p for p in (self._observe_pod(task_dir, part) for part in task_dir.parts()) if p is not None]
            if task_dir.is_removing or task_dir.volume.exists() or not task_dir.parts():  # until the last file is gone
                others.append(object_name(task.id, task_dir.attempt, "volume"))
            if task_dir.attempt == task.attempt:
                for name in (TIF, TOF):
                    report = _report(task_dir, name)
                    if report is not None:
                        reports[name] = report
                if tails:
                    live |= self._tails(task_dir)
        return Observed(tuple(pods), tuple(others), reports, live)

    def delete_pods(self, task_id: TaskId, attempts: int, plan: Plan | None = None) -> None:
        for task_dir in directories_of(self._tasks, task_id, attempts):
            self._delete_pods(task_dir)

    def delete_all(self, task_id: TaskId, attempts: int | None, plan: Plan | None = None) -> None:
        for task_dir in directories_of(self._tasks, task_id, attempts):
            with self._lock, self._translated():
                if task_dir.name in self._removing or not task_dir.exists:  # a mark written now would outlive the rest
                    continue
                task_dir.mark_removing()
            self._delete_pods(task_dir)
            self._remove_when_free(task_dir)

    def ready(self) -> None:
        if self._closed:
            raise ClusterUnavailable("the cluster adapter is closed")
        if not os.access(self._tasks, os.W_OK | os.X_OK):
            raise ClusterUnavailable(f"the directory {self._tasks} is not writable")

    def close(self) -> None:
        """Running commands continue; the next process that opens the directory adopts them."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            supervisors = list(self._supervisors.values())
        for supervisor in supervisors:
            supervisor.detach()
        for supervisor in supervisors:
            supervisor.join(CLOSE_SECONDS)
        self._removers.shutdown(wait=True, cancel_futures=True)
        self._runtime.close()
        os.close(self._in_use)

    # ---- ClusterEvents

    def follow(self, wake: Callable[[TaskId], None]) -> None:
        """Returns at once; `wake` is called from threads of this adapter until `close`."""
        with self._lock:
            self._wakes.append(wake)

    def task_ids(self) -> Iterable[TaskId]:
        with self._translated():
            return list(dict.fromkeys(task_dir.task_id for task_dir in all_directories(self._tasks)))

    # ---- running

    def _resume(self) -> None:
        """Resume what an earlier process left: running pods first, then waiting ones in the order of their launch, then removals."""
        remove_broken(self._tasks)
        found: list[tuple[str, bool, LocalPod]] = []
        for task_dir in all_directories(self._tasks):
            for part in task_dir.parts():
                document = read_document(task_dir.pod(part))
                try:
                    pod = read_pod(document or {})
                except (KeyError, TypeError):
                    log.exception("pod_unreadable", extra={"task_id": task_dir.task_id, "part": part})
                    task_dir.mark(part, "lost", reason="LocalError", message="the stored pod cannot be read")
                    continue
                started = task_dir.has_mark(part, "started")
                if task_dir.has_mark(part, "deleting") and (task_dir.has_mark(part, "ended") or not started):
                    task_dir.forget_pod(part)
                elif not task_dir.has_mark(part, "ended"):
                    found.append((str((document or {}).get("created_at")), started, pod))
        with self._lock:
            for _, _, pod in sorted(found, key=lambda f: (not f[1], f[0])):
                self._start(pod)
        self._runtime.sweep({task_dir.name for task_dir in all_directories(self._tasks)})
        for task_dir in all_directories(self._tasks):
            if task_dir.is_removing:
                self._delete_pods(task_dir)
                self._remove_when_free(task_dir)

    def _start(self, pod: LocalPod) -> None:
        """Under the lock. The service launches no more pods than this machine has room for (`services.admission`)."""
        if self._closed:
            raise ClusterUnavailable("the cluster adapter is closed")
        if pod.key in self._supervisors:
            return
        task_dir = TaskDirectory(self._tasks, pod.task_id, pod.attempt)
        if not task_dir.has_mark(pod.part, "started"):
            with contextlib.suppress(OSError):  # a full disk: then it is marked after a restart
                task_dir.mark(pod.part, "started", at=self._clock.now().isoformat())
        supervisor = Supervisor(
            task_dir,
            pod,
            runtime=self._runtime,
            filers=self._filers,
            clock=self._clock,
            changed=lambda: self._wake(pod.task_id),
            ended=lambda: self._on_end(task_dir, pod.key),
            logs=self._logs,
        )
        self._supervisors[pod.key] = supervisor
        supervisor.start()
        self._wake(pod.task_id)

    def _on_end(self, task_dir: TaskDirectory, key: Key) -> None:
        with self._lock:
            self._supervisors.pop(key, None)
            if self._closed:
                return
            if task_dir.has_mark(key[2], "deleting"):  # requested when the supervisor was about to end
                task_dir.forget_pod(key[2])
        if task_dir.is_removing:
            self._remove_when_free(task_dir)
        self._wake(key[0])

    def _delete_pods(self, task_dir: TaskDirectory) -> None:
        gone = False
        for part in task_dir.parts():
            key = (task_dir.task_id, task_dir.attempt, part)
            with self._lock, self._translated():
                if not task_dir.has_mark(part, "deleting"):
                    task_dir.mark(part, "deleting")
                supervisor = self._supervisors.get(key)
                if supervisor is not None:
                    supervisor.delete()
                else:  # it has ended
                    task_dir.forget_pod(part)
                    gone = True
        if gone:
            self._wake(task_dir.task_id)

    def _remove_when_free(self, task_dir: TaskDirectory) -> None:
        with self._lock:
            if self._closed or task_dir.name in self._removing or task_dir.parts():
                return
            self._removing.add(task_dir.name)
            self._removers.submit(self._remove, task_dir)

    def _remove(self, task_dir: TaskDirectory) -> None:
        """Try for a while; after that the caller has to retry."""
        try:
            for _ in range(REMOVE_TRIES):
                if self._closed or self._try_to_remove(task_dir):
                    break
                time.sleep(REMOVE_PAUSE)
        finally:
            with self._lock:
                self._removing.discard(task_dir.name)
        self._wake(task_dir.task_id)

    def _try_to_remove(self, task_dir: TaskDirectory) -> bool:
        error_text = "some files could not be removed"
        try:
            self._runtime.release(task_dir)
            self._runtime.take_back(task_dir)
            if task_dir.remove():
                return True
        except (OSError, StartFailed) as error:
            error_text = str(error)
        log.warning(
            "remove_failed", extra={"task_id": task_dir.task_id, "directory": str(task_dir.path), "error": error_text}
        )
        return False

    def _wake(self, task_id: TaskId) -> None:
        for wake in list(self._wakes) if not self._closed else ():
            try:
                wake(task_id)
            except Exception:
                log.exception("wake_failed", extra={"task_id": task_id})

    # ---- observing

    def _observe_pod(self, task_dir: TaskDirectory, part: str) -> Pod | None:
        document = read_document(task_dir.pod(part))
        if document is None:
            return None
        try:
            pod = read_pod(document)
        except (KeyError, TypeError):
            pod = LocalPod(task_dir.task_id, task_dir.attempt, part, ())
        with self._lock:
            supervisor = self._supervisors.get(pod.key)
        started = read_document(task_dir.pod(part, "started"))
        lost = read_document(task_dir.pod(part, "lost"))
        ended = task_dir.has_mark(part, "ended")
        began = parse_time((started or {}).get("at"))
        containers = tuple(
            self._container(task_dir, m, supervisor, began, ended or lost is not None) for m in pod.members
        )
        return Pod(
            name=pod.name,
            attempt=task_dir.attempt,
            part=part,
            created_at=began or parse_time(document.get("created_at")),
            scheduled=started is not None,
            node=self._node if started is not None else None,
            lost=str(lost["reason"]) if lost is not None else None,
            message=str(lost["message"]) if lost is not None else None,
            deleting=task_dir.has_mark(part, "deleting"),
            ended=ended or lost is not None,
            containers=containers,
        )

    def _container(
        self,
        task_dir: TaskDirectory,
        member: Member,
        supervisor: Supervisor | None,
        began: datetime | None,
        ended: bool,
    ) -> Container:
        record = read_record(task_dir, member)
        if record is not None:
            started = record.started_at or began
            return Container(member.name, Phase.ENDED, None, None, record.exit_code, started, record.ended_at, record)
        if ended:
            message = "the container ended without a record"
            return Container(member.name, Phase.ENDED, "Lost", message, started_at=began)
        if began is None:
            return Container(member.name, Phase.WAITING)
        if not member.is_filer and supervisor is not None and not supervisor.images_ready:
            return Container(member.name, Phase.WAITING, *(supervisor.problem or ("ContainerCreating",)))
        return Container(member.name, Phase.RUNNING, started_at=began)

    def _tails(self, task_dir: TaskDirectory) -> dict[str, tuple[str, str]]:
        with self._lock:
            running = [s for k, s in self._supervisors.items() if k[0] == task_dir.task_id and k[1] == task_dir.attempt]
        found: dict[str, tuple[str, str]] = {}
        for supervisor in running:
            found |= supervisor.tails()
        return found

    # ---- the disk

    @contextlib.contextmanager
    def _writing(self, task: Task) -> Iterator[TaskDirectory]:
        """The directory of the current attempt, created if needed. Errors of the disk count as the cluster being unavailable."""
        self.ready()
        task_dir = TaskDirectory(self._tasks, task.id, task.attempt)
        if task_dir.is_removing:
            raise ClusterUnavailable(f"{task_dir.name} is being removed")
        with self._translated():
            task_dir.make()
            yield task_dir

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ClusterUnavailable(
                f"the directory {self._tasks} cannot be used: {error.strerror or error}"
            ) from error


def _make_writable(root: Path, path: str) -> None:
    """Create a directory of the task that the user of any image can write."""
    current = root
    for name in path.strip("/").split("/"):
        if name in ("", ".", ".."):
            raise ClusterRefused(f"{path!r} is not a valid directory of the task")
        current = current / name
        if current.is_symlink():
            raise ClusterRefused(f"{path!r} is outside of the task's volume")
        current.mkdir(mode=0o755, exist_ok=True)
    current.chmod(0o777)


def _report(task_dir: TaskDirectory, name: str) -> FilerReport | None:
    if not task_dir.has_record(name):
        return None
    data = read_bounded(task_dir.state(name, "report.json"), MAX_REPORT_BYTES + 1024)
    return parse_report(data) if data is not None else None
