"""What ended containers have said: the launcher's record, and a filer's report in it.

The termination message comes with the pod's status and costs nothing, but holds 4 KiB; where the tails did not fit, and where the status
is not there yet (a poke), the record is the last line of the container's log. Logs are read once: what was found, and that there was
nothing to find, is remembered within a bound of bytes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from poiesis.cluster.kubernetes.cache import ContainerView, PodView
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError, rule_for, translate
from poiesis.cluster.kubernetes.observe import has_ended
from poiesis.cluster.kubernetes.pods import COPY_LAUNCHER, FILER_TAIL_BYTES
from poiesis.domain.observed import TIF, TOF, Record
from poiesis.domain.records import MAX_RECORD_BYTES, RECORD_MARKER, find_record, parse_record, parse_report, parse_time
from poiesis.domain.report import FilerReport

log = logging.getLogger(__name__)

LOG_LINE_BYTES: Final = 16 * 1024  # the runtime cuts longer lines, and the kubelet counts every piece as a line
MORE_LINES: Final = 16  # late lines of the other stream behind the record
MANY_LINES: Final = 30_000  # the same, where a pipe's worth of short lines was still under way
MANY_BYTES: Final = 1024 * 1024
ESCAPED: Final = 6  # bytes that one byte of output takes in JSON at worst
LOG_PATIENCE_S: Final = 120.0  # how long an ended container's log is asked for that cannot be read just now
TAIL_LINES: Final = 400
MAX_HEARD: Final = 500


@dataclass(frozen=True)
class Said:
    """`record` None: the container has ended and left none. `report`: of a filer, taken out of the record's stdout."""

    record: Record | None
    report: FilerReport | None = None
    cost_bytes: int = 512


class Records:
    """Raises nothing but ClusterUnavailable: an ended container's log cannot be read now, and may be later."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        tail_bytes: int,
        cache_bytes: int,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._tail_bytes = tail_bytes
        self._cache_bytes = cache_bytes
        self._now = now
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Said] = OrderedDict()
        self._known_bytes = 0
        self._heard: OrderedDict[tuple[str, str], Said] = OrderedDict()  # by pod's name and container

    def of(self, pod: PodView, *, poked: bool) -> dict[str, Said]:
        """By container, for those that are known to have ended."""
        said: dict[str, Said] = {}
        for view in pod.containers:
            found = self._recall(pod, view.name) or self._from_poke(pod, view) or self._from_message(pod, view)
            if found is not None:
                said[view.name] = found
        missing = [v for v in pod.containers if v.name not in said and v.name != COPY_LAUNCHER]
        if not missing:
            return said
        if has_ended(pod):
            return said | self._from_logs(pod, missing)
        if poked and pod.scheduled:
            return said | self._from_logs_early(pod, missing)
        return said

    def accept_records(self, pod_name: str, records: Iterable[Record]) -> None:
        """Records that came with a poke, before the pod's status or log can be read. They are as trustworthy as the log: user code can
        write both."""
        with self._lock:
            for record in records:
                self._heard[pod_name, record.name] = self._said(record)
            while len(self._heard) > MAX_HEARD:
                self._heard.popitem(last=False)

    def tails(self, pod: PodView, said: Iterable[str]) -> dict[str, tuple[str, str]]:
        """The live end of the executor whose turn it is: the first one that has not ended. Both streams are one in a log."""
        ended = set(said)
        view = next((v for v in pod.containers if v.name not in (*ended, TIF, TOF, COPY_LAUNCHER)), None)
        if view is None or view.state != "running":
            return {}
        try:
            text = self._client.text(
                self._log_path(pod), {"container": view.name, "tailLines": TAIL_LINES}, self._tail_bytes
            )
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
                self._heard.pop((pod.name, view.name), None)

    # ── where records come from ─────────────────────────────────────────────────────────────────────────────────────────

    def _from_poke(self, pod: PodView, view: ContainerView) -> Said | None:
        with self._lock:
            said = self._heard.pop((pod.name, view.name), None)
        return None if said is None else self._remember(pod, view.name, said)

    def _from_message(self, pod: PodView, view: ContainerView) -> Said | None:
        said = self._parsed_message(view)
        if said is None or said.record is None or said.record.truncated:
            return None
        return self._remember(pod, view.name, said)

    def _parsed_message(self, view: ContainerView) -> Said | None:
        if view.state != "terminated" or view.said is None:
            return None
        record = parse_record(view.said, self._limit(view.name))
        return self._said(record) if record is not None and record.name == view.name else None

    def _from_logs(self, pod: PodView, missing: list[ContainerView]) -> dict[str, Said]:
        """The pod has ended: what cannot be found now never will be, unless the log cannot be reached for a moment."""
        said: dict[str, Said] = {}
        for view in reversed(missing):
            if view.name in said:
                continue
            if view.state != "terminated":
                continue  # it never ran
            try:
                text = self._log(pod, view.name)
            except ApiError as error:
                if rule_for(error).again and pod.disruption is None and not self._is_long_ago(view):
                    raise translate(error, f"read log of {pod.name}/{view.name}") from error
                log.info("log_unreadable", extra={"pod": pod.name, "container": view.name, "error": str(error)})
                text = ""
            wanted = [v for v in missing if v.name not in said]
            said |= self._found(pod, text, wanted)
            if view.name not in said and text:
                said |= self._found(pod, self._long_log(pod, view.name), wanted)
            if view.name not in said:
                said[view.name] = self._remember(pod, view.name, self._parsed_message(view) or Said(None))
        return {name: found for name, found in said.items() if found.record is not None}

    def _from_logs_early(self, pod: PodView, missing: list[ContainerView]) -> dict[str, Said]:
        """Somebody said that the end has come. The last container ends last: if it has no record, none is looked for."""
        said: dict[str, Said] = {}
        for view in reversed(missing):
            if view.name in said:
                continue
            try:
                found = self._found(pod, self._log(pod, view.name), missing)
            except ApiError as error:
                log.debug("record_not_there_yet", extra={"pod": pod.name, "error": str(error)})
                break
            said |= found
            if view.name not in found:
                break
        return said

    def _found(self, pod: PodView, text: str, wanted: list[ContainerView]) -> dict[str, Said]:
        """Records in one log: its own container's, and those of others that were handed on."""
        said: dict[str, Said] = {}
        if RECORD_MARKER not in text:
            return said
        for view in wanted:
            record = find_record(text, view.name, self._limit(view.name))
            if record is not None:
                said[view.name] = self._remember(pod, view.name, self._said(record))
        return said

    def _said(self, record: Record) -> Said:
        if record.name not in (TIF, TOF):
            out, err = record.stdout[-self._tail_bytes :], record.stderr[-self._tail_bytes :]
            return Said(replace(record, stdout=out, stderr=err), cost_bytes=512 + len(out) + len(err))
        lines = record.stdout.strip().splitlines() or [""]
        report = parse_report(lines[-1])
        size = 2048 + 4 * len(lines[-1])  # a report's objects take a few times their text
        short = replace(record, stdout="", stderr=record.stderr[-self._tail_bytes :])
        return Said(short, report, cost_bytes=size + len(short.stderr))

    # ── logs ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _log_path(self, pod: PodView) -> str:
        return f"/api/v1/namespaces/{self._namespace}/pods/{pod.name}/log"

    def _log(self, pod: PodView, name: str) -> str:
        worst = min(2 * self._limit(name) * ESCAPED + 4096, MAX_RECORD_BYTES)
        lines = worst // LOG_LINE_BYTES + MORE_LINES
        return self._client.text(
            self._log_path(pod), {"container": name, "tailLines": lines}, worst + MORE_LINES * LOG_LINE_BYTES
        )

    def _long_log(self, pod: PodView, name: str) -> str:
        """A second look, further back. What cannot be read is not there."""
        query: dict[str, object] = {"container": name, "tailLines": MANY_LINES}
        try:
            return self._client.text(
                self._log_path(pod), query, min(2 * self._limit(name) * ESCAPED, MAX_RECORD_BYTES) + MANY_BYTES
            )
        except ApiError as error:
            log.info("log_unreadable", extra={"pod": pod.name, "container": name, "error": str(error)})
            return ""

    def _limit(self, name: str) -> int:
        return FILER_TAIL_BYTES if name in (TIF, TOF) else self._tail_bytes

    def _is_long_ago(self, view: ContainerView) -> bool:
        ended = parse_time(view.ended_at)
        return ended is None or self._now() - ended.timestamp() > LOG_PATIENCE_S

    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _recall(self, pod: PodView, name: str) -> Said | None:
        with self._lock:
            said = self._known.get((pod.uid, name))
            if said is not None:
                self._known.move_to_end((pod.uid, name))
            return said

    def _remember(self, pod: PodView, name: str, said: Said) -> Said:
        with self._lock:
            old = self._known.pop((pod.uid, name), None)
            self._known_bytes += said.cost_bytes - (old.cost_bytes if old else 0)
            self._known[pod.uid, name] = said
            while self._known_bytes > self._cache_bytes and len(self._known) > 1:
                _, dropped = self._known.popitem(last=False)
                self._known_bytes -= dropped.cost_bytes
        return said
