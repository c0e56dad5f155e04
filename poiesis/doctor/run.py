"""Run checks side by side, each with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from poiesis.doctor.result import Check, Finding, Result, Status, error, skipped
from poiesis.domain.errors import PoiesisError

MAX_FINDINGS: Final = 200  # of one check
MAX_WHAT: Final = 600  # characters of what is wrong, which may quote a server
SLACK_S: Final = 0.5  # for a check whose own time-outs are as long as its deadline


class _Run(threading.Thread):
    """A check that hangs must not keep the process alive: hence daemon threads, and no pool."""

    def __init__(self, check: Check, others: dict[str, _Run]) -> None:
        super().__init__(name=f"check-{check.name}", daemon=True)
        self.check = check
        self._others = others
        self._findings: list[Finding] = []
        self._lock = threading.Lock()
        self._began = threading.Event()
        self.over = threading.Event()

    def run(self) -> None:
        first = self._others.get(self.check.after or "")
        if first is not None:
            first.wait()
            if any(f.status is Status.ERROR for f in first.findings()):
                self._add(skipped(f"not checked: depends on {first.check.name}"))
                self._began.set()
                self.over.set()
                return
        self._began.set()
        try:
            for finding in self.check.run():
                self._add(finding)
        except PoiesisError as failure:
            self._add(error(str(failure), "The rest of this check was not done.", "Repair this and check again."))
        except Exception as bug:
            what = f"the check failed: {type(bug).__name__}: {bug}"
            self._add(error(what, "What it checks is not known.", "Please report this as a bug of `poiesis doctor`."))
        self.over.set()

    def _add(self, finding: Finding) -> None:
        with self._lock:
            if len(self._findings) < MAX_FINDINGS and not self.over.is_set():
                self._findings.append(finding)

    def findings(self) -> list[Finding]:
        with self._lock:
            return list(self._findings)

    def wait(self) -> None:
        """Until the check is over, or its deadline has passed."""
        self._began.wait()
        if not self.over.wait(self.check.deadline_s + SLACK_S):
            late = f"no answer within {self.check.deadline_s:g} s"
            self._add(error(late, "What it checks is too slow or does not respond.", "Check the network to it."))
            self.over.set()


def run_checks(checks: Sequence[Check], clean: Callable[[str], str] = str) -> list[Result]:
    """Results in the order of the checks. `clean` removes secrets from what is wrong, which may quote a library; the rest is ours."""
    runs: dict[str, _Run] = {}
    for check in checks:
        runs[check.name] = _Run(check, runs)
    for run in runs.values():
        run.start()
    results = []
    for run in runs.values():
        run.wait()
        for found in run.findings() or [skipped("nothing to check")]:
            shown = replace(found, what=clean(found.what)[:MAX_WHAT])
            results.append(Result(run.check.name, run.check.group, shown))
    return results
