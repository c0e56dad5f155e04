"""The closing records of ended containers, and the filers' reports in them.

The termination message comes with the pod's status and costs nothing, but is limited to 4 KiB. If the tails did not fit, or the status is
not available yet (a poke), the record is read from the last line of the container's log, in other threads: no task waits for a node that
does not answer. Logs are read once: results, also negative ones, are cached within a bound of bytes.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from poiesis.cluster.kubernetes.cache import ContainerView, PodView
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError, is_transient
from poiesis.cluster.kubernetes.log_reader import LEAST_PATIENCE_S, LogRead, LogReader
from poiesis.cluster.kubernetes.observe import has_ended
from poiesis.cluster.kubernetes.pods import FILER_TAIL_BYTES
from poiesis.domain.observed import TIF, TOF, Record
from poiesis.domain.records import MAX_RECORD_BYTES, RECORD_MARKER, find_records, parse_record, parse_report
from poiesis.domain.report import FilerReport
from poiesis.domain.task import TaskId

log = logging.getLogger(__name__)

LOG_LINE_BYTES: Final = 16 * 1024  # the runtime splits longer lines, and the kubelet counts each piece as a line
MORE_LINES: Final = 16  # lines of the other stream that may follow the record
MANY_LINES: Final = 30_000  # the same, for a full pipe of short lines
MANY_BYTES: Final = 1024 * 1024
ESCAPED: Final = 6  # bytes of JSON for one byte of output, at worst
PATIENCE_S: Final = 20.0  # how long reading the logs of an ended pod is retried, if a container left no record at all
REPORT_PATIENCE_S: Final = 120.0  # the same if only output is missing, such as a filer's long report
READ_TIMEOUT_S: Final = 5.0
TAILS_TIMEOUT_S: Final = 2.0
TAIL_LINES: Final = 400
MAX_POKED: Final = 500


@dataclass(frozen=True)
class ContainerReport:
    """`record` None: the container ended without one. `report`: a filer's, taken from the record's stdout."""

    record: Record | None
    report: FilerReport | None = None
    cost_bytes: int = 512


@dataclass(frozen=True)
class Found:
    """What is known of a pod's ended containers, by name. `reading`: the log of one of them is still being read."""

    reports: dict[str, ContainerReport]
    reading: bool = False


class Records:
    """`finished` is called with the id of a task whose logs have been read."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        tail_bytes: int,
        cache_bytes: int,
        *,
        finished: Callable[[TaskId], None] = lambda _: None,
        reader: LogReader | None = None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._tail_bytes = tail_bytes
        self._cache_bytes = cache_bytes
        self._finished = finished
        self._reader = reader or LogReader()
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], ContainerReport] = OrderedDict()
        self._known_bytes = 0
        self._poked: OrderedDict[tuple[str, str], ContainerReport] = OrderedDict()  # by pod name and container

    def of(self, pod: PodView, *, poked: bool, may_read: bool = True, wait_s: float = 0.0) -> Found:
        """`poked`: look into logs before the pod is shown as ended. `may_read`: whether to look into logs at all. `wait_s`: how long to
        wait for logs that have to be read first."""
        reports, missing = self._at_hand(pod)
        if not may_read:
            missing = []
        elif has_ended(pod):
            missing = [v for v in missing if v.state == "terminated"]  # others never ran
        elif not (poked and pod.scheduled):
            missing = []
        if missing:
            read = self._submit(pod, missing)
            if read is not None and read.done.wait(wait_s):
                reports, missing = self._at_hand(pod)[0], []
        found = {name: report for name, report in reports.items() if report.record is not None}
        return Found(found, reading=bool(missing) and has_ended(pod))

    def close(self) -> None:
        self._reader.close()

    def _at_hand(self, pod: PodView) -> tuple[dict[str, ContainerReport], list[ContainerView]]:
        """Reports that need no log, also negative ones, and the containers without."""
        reports: dict[str, ContainerReport] = {}
        for view in pod.containers:
            found = self._recall(pod, view.name) or self._from_poke(pod, view) or self._from_message(pod, view)
            if found is not None:
                reports[view.name] = found
        return reports, [v for v in pod.containers if v.name not in reports]

    def _submit(self, pod: PodView, missing: list[ContainerView]) -> LogRead | None:
        ended = has_ended(pod)
        if not ended or pod.disruption is not None:
            patience_s = LEAST_PATIENCE_S
        else:
            patience_s = REPORT_PATIENCE_S if all(map(self._message_report, missing)) else PATIENCE_S
        return self._reader.submit(
            LogRead(
                key=(pod.uid, not ended),
                node=pod.node or "",
                read=lambda: self._read_ended(pod, missing) if ended else self._read_early(pod, missing),
                give_up=lambda: self._give_up(pod, missing) if ended else None,
                finished=lambda: self._finished(pod.task_id),
                patience_s=patience_s,
            )
        )

    def accept_records(self, pod_name: str, records: Iterable[Record]) -> None:
        """Keep records that came with a poke, before the pod's status or log can be read. They are as trustworthy as the log: user code
        can write both."""
        with self._lock:
            for record in records:
                self._poked.setdefault((pod_name, record.name), self._report_of(record))
            while len(self._poked) > MAX_POKED:
                self._poked.popitem(last=False)

    def tails(self, pod: PodView, reports: Iterable[str]) -> dict[str, tuple[str, str]]:
        """The live tail of the running executor, the first one that has not ended. A log merges both streams."""
        ended = set(reports)
        view = next((v for v in pod.containers if v.name not in (*ended, TIF, TOF)), None)
        if view is None or view.state != "running" or self._reader.is_failing(pod.node or ""):
            return {}
        try:
            query = {"container": view.name, "tailLines": TAIL_LINES}
            text = self._client.text(self._log_path(pod), query, self._tail_bytes, TAILS_TIMEOUT_S)
        except ApiError as error:
            log.debug("tail_failed", extra={"pod": pod.name, "error": str(error)})
            return {}
        kept = "".join(line for line in text.splitlines(keepends=True) if RECORD_MARKER not in line)
        return {view.name: (kept[-self._tail_bytes :], "")}

    def forget(self, pod: PodView) -> None:
        with self._lock:
            for view in pod.containers:
                known = self._known.pop((pod.uid, view.name), None)
                self._known_bytes -= known.cost_bytes if known is not None else 0
                self._poked.pop((pod.name, view.name), None)

    # ── sources of records ─────────────────────────────────────────────────────────────────────────────────────────

    def _from_poke(self, pod: PodView, view: ContainerView) -> ContainerReport | None:
        with self._lock:
            report = self._poked.pop((pod.name, view.name), None)
        return None if report is None else self._remember(pod, view.name, report)

    def _from_message(self, pod: PodView, view: ContainerView) -> ContainerReport | None:
        report = self._message_report(view)
        if report is None or report.record is None or report.record.truncated:
            return None
        return self._remember(pod, view.name, report)

    def _message_report(self, view: ContainerView) -> ContainerReport | None:
        if view.state != "terminated" or view.termination_message is None:
            return None
        record = parse_record(view.termination_message, self._limit(view.name))
        return self._report_of(record) if record is not None and record.name == view.name else None

    def _read_ended(self, pod: PodView, missing: list[ContainerView]) -> None:
        """The pod has ended: a record that is missing now will stay missing. Raises: ApiError, if a log may be readable later."""
        names = {view.name for view in missing}
        for view in reversed(missing):
            if view.name not in names:
                continue
            try:
                text = self._log(pod, view.name)
                names -= self._found(pod, text, names)
                if view.name in names and text:
                    names -= self._found(pod, self._log(pod, view.name, further_back=True), names)
            except ApiError as error:
                if is_transient(error):
                    raise
                log.info("log_unreadable", extra={"pod": pod.name, "container": view.name, "error": str(error)})
            if view.name in names:
                names.remove(view.name)
                self._give_up(pod, [view])

    def _read_early(self, pod: PodView, missing: list[ContainerView]) -> None:
        """A poke reported an end. Containers end in order, so the search stops at the first one without a record."""
        names = {view.name for view in missing}
        for view in reversed(missing):
            if view.name not in names:
                continue
            try:
                found = self._found(pod, self._log(pod, view.name), names)
            except ApiError as error:
                if is_transient(error):
                    raise
                log.debug("record_not_there_yet", extra={"pod": pod.name, "error": str(error)})
                return
            if view.name not in found:
                return
            names -= found

    def _give_up(self, pod: PodView, missing: list[ContainerView]) -> None:
        """What the termination messages have, or nothing, counts from now on."""
        for view in missing:
            if self._recall(pod, view.name) is None:
                self._remember(pod, view.name, self._message_report(view) or ContainerReport(None))

    def _found(self, pod: PodView, text: str, names: set[str]) -> set[str]:
        """The names whose records are in one log: of its own container, and of others whose records it contains."""
        records = find_records(text, names, max(map(self._limit, names)))
        for name, record in records.items():
            self._remember(pod, name, self._report_of(record))
        return set(records)

    def _report_of(self, record: Record) -> ContainerReport:
        if record.name not in (TIF, TOF):
            out, err = record.stdout[-self._tail_bytes :], record.stderr[-self._tail_bytes :]
            return ContainerReport(replace(record, stdout=out, stderr=err), cost_bytes=512 + len(out) + len(err))
        lines = record.stdout.strip().splitlines() or [""]
        report = parse_report(lines[-1])
        size = 2048 + 4 * len(lines[-1])  # objects take several times the size of their text
        short = replace(record, stdout="", stderr=record.stderr[-self._tail_bytes :])
        return ContainerReport(short, report, cost_bytes=size + len(short.stderr))

    # ── logs ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _log_path(self, pod: PodView) -> str:
        return f"/api/v1/namespaces/{self._namespace}/pods/{pod.name}/log"

    def _log(self, pod: PodView, name: str, *, further_back: bool = False) -> str:
        worst = min(2 * self._limit(name) * ESCAPED + 4096, MAX_RECORD_BYTES)
        lines, more_bytes = worst // LOG_LINE_BYTES + MORE_LINES, MORE_LINES * LOG_LINE_BYTES
        if further_back:
            lines, more_bytes = MANY_LINES, MANY_BYTES
        return self._client.text(
            self._log_path(pod), {"container": name, "tailLines": lines}, worst + more_bytes, READ_TIMEOUT_S
        )

    def _limit(self, name: str) -> int:
        return FILER_TAIL_BYTES if name in (TIF, TOF) else self._tail_bytes

    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _recall(self, pod: PodView, name: str) -> ContainerReport | None:
        with self._lock:
            report = self._known.get((pod.uid, name))
            if report is not None:
                self._known.move_to_end((pod.uid, name))
            return report

    def _remember(self, pod: PodView, name: str, report: ContainerReport) -> ContainerReport:
        with self._lock:
            old = self._known.pop((pod.uid, name), None)
            self._known_bytes += report.cost_bytes - (old.cost_bytes if old else 0)
            self._known[pod.uid, name] = report
            # a pod is reported as a whole
            while self._known_bytes > self._cache_bytes and next(iter(self._known))[0] != pod.uid:
                _, dropped = self._known.popitem(last=False)
                self._known_bytes -= dropped.cost_bytes
        return report
