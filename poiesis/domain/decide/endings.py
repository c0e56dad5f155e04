"""How containers ended: reading records and reports into the task's log, and classifying what they mean for the task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from poiesis.domain.decide.admission import most_ram_gb
from poiesis.domain.decide.journal import MAX_MESSAGE, add_metadata, note, note_progress, with_executor_logs
from poiesis.domain.observed import DISK_LIMIT, TIF, TOF, Container, Observed, Pod, Record, executor_name
from poiesis.domain.parameters import parse_count
from poiesis.domain.plan import PodPlan
from poiesis.domain.policy import GIGABYTE, Policy
from poiesis.domain.report import FilerReport
from poiesis.domain.states import State
from poiesis.domain.task import ExecutorLog, Outcome, OutputFileLog, Task
from poiesis.domain.timeline import staged

MAX_CHECKSUMS: Final = 100
MAX_MEMORY_RETRIES: Final = 10  # a thousand times the memory

HINT_PART: Final = 0.25  # of a request: a task that used less gets a hint
HINT_RAM_GB: Final = 1.0  # smaller requests are not worth one, nor are fewer cores or shorter commands
HINT_CORES: Final = 2.0
HINT_SECONDS: Final = 60.0

START_FAILURES: Final = frozenset({"StartError", "ContainerCannotRun"})  # reasons of a container that never ran
_RECORD_REASONS: Final = {  # of the launcher → failure_reason of the task
    "NotFound": "CommandNotFound",
    "NotExecutable": "CommandNotExecutable",
    "DiskLimit": "DiskLimit",
    "StartFailed": "StartFailed",
    **{reason: reason for reason in (f"{name}Unavailable" for name in ("Stdin", "Stdout", "Stderr", "Workdir"))},
}


@dataclass(frozen=True)
class Fault:
    """A fault of the infrastructure, after which another attempt may succeed. `began`: a command of the container or
    pod at fault may have started; those that have ended before are in the task's log. `of_queue`: a
    queue with a quota took the pod back, so other nodes would not help."""

    reason: str
    message: str
    began: bool
    of_queue: bool = False


Cause = Fault | Outcome
"""Why something ended: a fault that the policy may answer with another attempt, or a final outcome."""


def outcome_of(cause: Cause, task: Task, policy: Policy) -> Outcome:
    """How this attempt ends; a fault is retried where the policy allows. Attempts that ran out of memory do not count as faults."""
    if isinstance(cause, Outcome):
        return cause
    faults = task.attempt - task.memory_retries
    began = cause.began or bool(task.log.logs)
    retry = faults < policy.max_attempts and (policy.retry_started or not began)
    return Outcome(fault_state(cause, policy), cause.reason, cause.message[:MAX_MESSAGE], retry=retry)


def fault_state(fault: Fault, policy: Policy) -> State:
    """The state in which a fault that is not retried ends the task."""
    return State.PREEMPTED if fault.reason == "Preempted" and policy.show_preempted else State.SYSTEM_ERROR


def read_tif(
    task: Task, pod: Pod, report: FilerReport | None, now: datetime, policy: Policy
) -> tuple[Task, Cause | None]:
    record = pod.record(TIF)
    task = staged(_read_report(task, report, "inputs", now), "inputs", record)
    if record is not None and record.ok:
        return task, None
    if record is not None and record.reason == "TimeLimit":
        return task, _staging_timeout("InputTimeout", "inputs were not downloaded", policy.stage_in_deadline, "IN")
    if report is not None and report.error is not None:
        if report.retryable:
            return task, Fault("InputFailed", report.error, began=False)
        return task, Outcome(State.SYSTEM_ERROR, _filer_reason(report, "InputFailed"), report.error)
    return task, Fault("InputFilerFailed", describe_end(pod.container(TIF)), began=False)


def read_tof(
    task: Task, pod: Pod, report: FilerReport | None, outcome: Outcome | None, now: datetime, policy: Policy
) -> tuple[Task, Outcome]:
    """Record the outputs; a failed upload is the outcome only if no executor failed."""
    record = pod.record(TOF)
    task = staged(_read_report(task, report, "outputs", now), "outputs", record)
    if report is not None:
        outputs = tuple(OutputFileLog(f.url, f.path, f.size_bytes) for f in report.files)
        task = replace(task, log=replace(task.log, outputs=outputs))
        checksums = {f"checksum:{f.path}": f.checksum for f in report.files[:MAX_CHECKSUMS] if f.checksum}
        task = add_metadata(task, checksums)
        if report.omitted:
            task = note(task, now, f"{report.omitted} more uploaded files are not listed.")
    if record is not None and record.ok:
        return task, outcome or Outcome(State.COMPLETE)
    error = (report.error if report is not None else None) or describe_end(pod.container(TOF))
    reason = _filer_reason(report, "OutputFailed") if report is not None else "OutputFilerFailed"
    failure = Outcome(State.SYSTEM_ERROR, reason, error)
    if record is not None and record.reason == "TimeLimit":
        failure = _staging_timeout("OutputTimeout", "outputs were not uploaded", policy.stage_out_deadline, "OUT")
    if outcome is not None:
        text = f"Some outputs could not be uploaded after the failure: {failure.message}"
        return note(task, now, text), outcome
    return task, failure


def _staging_timeout(reason: str, what: str, deadline: timedelta, direction: str) -> Outcome:
    """Final: another attempt would probably take as long."""
    setting = f"POIESIS_POLICY__STAGE_{direction}_DEADLINE"
    message = f"the {what} within {deadline}, which is as long as this service waits for them ({setting})"
    return Outcome(State.SYSTEM_ERROR, reason, message)


def interrupted_upload(pod: Pod, report: FilerReport | None) -> Fault | None:
    """The fault if TOF ended without a result of the upload: terminated from outside, without a record, or of another version."""
    record = pod.record(TOF)
    if report is not None and report.error_code == "configuration" and report.retryable:
        return Fault("OutputFilerLost", report.error or "it could not read its settings", began=False)
    if (record is not None and record.reason != "Terminated") or (report is not None and report.error is None):
        return None
    return Fault("OutputFilerLost", describe_end(pod.container(TOF)), began=False)


def read_executors(task: Task, pod: Pod, pod_plan: PodPlan, now: datetime, policy: Policy) -> tuple[Task, Cause | None]:
    """Record a log entry and the usage of each executor that ran, and return why the first failed one failed."""
    indices = pod_plan.executors
    logs = list(task.log.logs[: indices[0]]) if indices else []  # keep those of earlier pods
    usage: dict[str, str] = {}
    cause: Cause | None = None
    for index in indices:
        container = pod.container(executor_name(index))
        record = container.record if container is not None else None
        if record is None:
            entry, cause = _cause_without_record(task, index, container, policy)
            # Launchers of later executors have seen that it ended without a record and do not run their commands.
            if entry is not None and task.spec.executors[index].ignore_error and index == indices[-1]:
                task = note(task, now, f"executor {index} ran out of memory, which its ignore_error allows.")
                cause = None
            logs += [entry] if entry is not None else []
        elif record.exit_code is None:
            # The launcher never started the command. A failed executor before this one has already ended the loop.
            message = f"executor {index} was not started: {record.message or record.reason}"
            cause = Fault(record.reason or "NotStarted", message, began=record.reason == "AlreadyBegun")
        else:
            logs.append(log_entry(record))
            usage |= _usage(index, record)
            if record.ok and record.oom_killed:  # a failed executor with it ends as OutOfMemory
                text = f"executor {index} continued after one of its processes was killed for running out of memory."
                task = note(task, now, text)
            cause = _cause_of_record(task, index, record, policy)
            if record.reason == "Terminated" and pod.lost == DISK_LIMIT:
                cause = over_disk_limit(pod)
            elif record.reason == "Terminated" and pod.lost is not None:  # by whom is known better than by the record
                cause = lost_by_the_cluster(pod, pod.lost, began=True)
        if cause is not None:
            break
    has_all = all(pod.record(executor_name(index)) is not None for index in indices)
    hint = resource_hint(task, pod) if cause is None and has_all else None
    usage |= {"resource_hint": hint} if hint is not None else {}
    return with_executor_logs(add_metadata(task, usage), tuple(logs)), cause


def record_ended(task: Task, observed: Observed) -> Task:
    """Record a log entry and the usage of each executor of this attempt that has ended for any reason; others keep live output."""
    logs, usage = list(task.log.logs), dict[str, str]()
    for index in range(len(task.spec.executors)):
        found = (pod.record(executor_name(index)) for pod in observed.pods if pod.attempt == task.attempt)
        record = next((record for record in found if record is not None), None)
        if record is not None and record.exit_code is not None:
            logs[index : index + 1] = [log_entry(record)]
            usage |= _usage(index, record)
        elif index == len(logs):  # later ones have not begun, or their entries would have the wrong index
            break
    return with_executor_logs(add_metadata(task, usage), tuple(logs))


def lost_by_the_cluster(pod: Pod, reason: str, *, began: bool) -> Fault:
    return Fault(reason, pod.message or "the cluster removed the pod", began, of_queue=pod.lost_to_queue)


def over_disk_limit(pod: Pod) -> Outcome:
    """Another attempt would end in the same way."""
    return Outcome(
        State.EXECUTOR_ERROR, DISK_LIMIT, pod.message or "more was written outside of the task's volume than allowed"
    )


def resource_hint(task: Task, pod: Pod) -> str | None:
    """In words, what of the request was far from being used; None: nothing, or it is not known. Of executors with a record."""
    records = [c.record for c in pod.containers if c.record is not None and c.name not in (TIF, TOF)]
    asked = task.spec.requested
    if not records:
        return None
    hints: list[str] = []
    peaks = [r.peak_memory_bytes for r in records]
    if task.ram_gb is not None and task.ram_gb >= HINT_RAM_GB and None not in peaks:
        peak_gb = max(peak or 0 for peak in peaks) / GIGABYTE
        if peak_gb < task.ram_gb * HINT_PART:
            hints.append(f"used at most {peak_gb:.2g} GB of {task.ram_gb:g} GB of memory")
    seconds = sum((r.ended_at - r.started_at).total_seconds() for r in records if r.ended_at and r.started_at)
    asks_for_cores = asked.cpu_cores is not None and asked.cpu_cores >= HINT_CORES
    if asks_for_cores and seconds >= HINT_SECONDS and all(r.cpu_seconds is not None for r in records):
        cores = sum(r.cpu_seconds or 0.0 for r in records) / seconds
        if cores < (asked.cpu_cores or 0.0) * HINT_PART:
            hints.append(f"used {cores:.2g} of {asked.cpu_cores:g} CPU cores on average")
    return f"{' and '.join(hints)}: request less" if hints else None


def log_entry(record: Record) -> ExecutorLog:
    return ExecutorLog(record.exit_code, record.started_at, record.ended_at, record.stdout, record.stderr)


def describe_end(container: Container | None) -> str:
    if container is None:
        return "its container no longer exists"
    record = container.record
    if record is not None:
        tail = record.stderr.strip()[-500:]
        reason = record.message or record.reason or f"exit code {record.exit_code}"
        return f"{container.name} failed: {reason}" + (f": {tail}" if tail else "")
    details = ", ".join(d for d in (container.reason, container.message) if d)
    code = "" if container.exit_code is None else f" with exit code {container.exit_code}"
    return f"{container.name} ended{code} without a launcher record" + (f" ({details})" if details else "")


def _filer_reason(report: FilerReport, default: str) -> str:
    """`not_found` → `NotFound`: the filer's error code in the form of the other reasons."""
    return "".join(w.capitalize() for w in report.error_code.split("_")) if report.error_code else default


def _read_report(task: Task, report: FilerReport | None, prefix: str, now: datetime) -> Task:
    if report is None:
        return task
    entries = {
        f"{prefix}_files": str(report.total_files),
        f"{prefix}_bytes": str(report.total_bytes),
        f"{prefix}_seconds": f"{report.seconds:.3f}",
    }
    task = add_metadata(task, entries)
    for text in report.notes:
        task = note_progress(task, now, text)
    return task


def _usage(index: int, record: Record) -> dict[str, str]:
    usage = {
        "peak_memory_bytes": record.peak_memory_bytes,
        "cpu_seconds": None if record.cpu_seconds is None else f"{record.cpu_seconds:.3f}",
        "oom_killed": "true" if record.oom_killed else None,
    }
    return {f"executor_{index}_{name}": str(value) for name, value in usage.items() if value is not None}


def _cause_of_record(task: Task, index: int, record: Record, policy: Policy) -> Cause | None:
    if record.ok:
        return None
    who = f"executor {index}"
    if record.reason == "Terminated":
        return Fault("PodTerminated", f"{who} was terminated from outside: {record.message or 'SIGTERM'}", began=True)
    if record.reason == "TimeLimit":
        return Outcome(State.EXECUTOR_ERROR, "TimeLimit", f"{who} exceeded its time limit and was terminated")
    if record.oom_killed:
        peak = f", its peak was {record.peak_memory_bytes} bytes" if record.peak_memory_bytes is not None else ""
        return _out_of_memory(task, who, peak, policy)
    if record.reason == "OutputLost":
        return Outcome(State.SYSTEM_ERROR, "OutputLost", f"{who}: {record.message or 'its output file is incomplete'}")
    if record.reason in _RECORD_REASONS:
        message = f"{who}: {record.message or record.reason}"
        return Outcome(State.EXECUTOR_ERROR, _RECORD_REASONS[record.reason], message)
    return Outcome(State.EXECUTOR_ERROR, "ExecutorFailed", f"{who} failed with exit code {record.exit_code}")


def _cause_without_record(
    task: Task, index: int, container: Container | None, policy: Policy
) -> tuple[ExecutorLog | None, Cause]:
    who = f"executor {index}"
    if container is not None and container.reason == "OOMKilled":
        entry = ExecutorLog(137, container.started_at, container.ended_at, stderr="Killed: out of memory\n")
        return entry, _out_of_memory(task, who, "", policy)
    if container is not None and container.reason in START_FAILURES:
        return None, Fault("ContainerNotStarted", describe_end(container), began=False)
    return None, Fault("ContainerLost", f"{who}: {describe_end(container)}", began=True)


def with_more_memory(task: Task, policy: Policy) -> Task:
    """With twice the request, within what the site allows, and never less than the first one."""
    return replace(task, memory_scale=task.memory_scale * 2, most_ram_gb=most_ram_gb(task, policy))


def _out_of_memory(task: Task, who: str, peak: str, policy: Policy) -> Outcome:
    """The task may request retries with twice the memory each (`memory_retries`)."""
    asked = task.spec.requested.backend_parameters.get("memory_retries", "0")
    retries = min(parse_count(asked), MAX_MEMORY_RETRIES)
    more = with_more_memory(task, policy).ram_gb
    fits = task.ram_gb is not None and more is not None and more > task.ram_gb
    limit = f", its limit was {task.ram_gb:g} GB" if task.ram_gb is not None else ""
    message = f"{who} ran out of memory{limit}{peak}: request more with resources.ram_gb"
    return Outcome(State.EXECUTOR_ERROR, "OutOfMemory", message, retry=fits and task.memory_scale < 2**retries)
