"""TIF and TOF: staging a task's inputs and outputs. docs/data-plane.md has the rules by number.

Both functions take a document of `poiesis.domain.staging` and return a report; whatever goes wrong is in the report and never an
exception. They run as a container's program or inside a process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from poiesis.domain.report import FilerReport
from poiesis.filer.registry import Context, Filers, Scheme
from poiesis.filer.settings import FilerSettings
from poiesis.filer.stage import Tools
from poiesis.filer.transfer import Control, Pool
from poiesis.filer.transfer_log import TransferLog
from poiesis.filer.volume import Volume

Progress = Callable[[int, int], None]
"""Called with files and bytes done, at most once a second."""


def stage_in(
    document: Mapping[str, Any],
    volume: Path,
    settings: FilerSettings,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    schemes: Mapping[str, Scheme] | None = None,
) -> FilerReport:
    """Stage the inputs of a `tif_document` onto the volume; stops at the first error. `schemes`: instead of the registered ones."""

    from poiesis.filer.inputs import StageIn  # a filer runs in one direction

    def run(tools: Tools) -> None:
        stage = StageIn(tools)
        for path in document.get("directories", ()):
            stage.make_directory(path)
        for path in document.get("touched", ()):
            tools.volume.make_placeholder(path)
        tools.control.sync = False  # all of them at once, at the end
        stage.run(stage.jobs(document.get("inputs", ())))
        if settings.sync and not tools.log.has_errors:
            tools.volume.sync()

    return _run(run, document, volume, settings, cancelled, progress, schemes)


def stage_out(
    document: Mapping[str, Any],
    volume: Path,
    settings: FilerSettings,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    schemes: Mapping[str, Scheme] | None = None,
) -> FilerReport:
    """Upload the outputs of a `tof_document`; every one is tried, whatever happens to the others."""

    from poiesis.filer.outputs import StageOut

    def run(tools: Tools) -> None:
        stage = StageOut(tools, document)
        stage.run(stage.jobs(document.get("outputs", ())))

    return _run(run, document, volume, settings, cancelled, progress, schemes)


def _run(
    stage: Callable[[Tools], None],
    document: Mapping[str, Any],
    volume: Path,
    settings: FilerSettings,
    cancelled: Callable[[], bool],
    progress: Progress | None,
    schemes: Mapping[str, Scheme] | None,
) -> FilerReport:
    control = Control(settings, cancelled)
    log = TransferLog(control)
    pool = Pool(settings.parallel)
    allow = settings.allow_unencrypted_credentials or document.get("allow_unencrypted_credentials", True)
    filers = Filers(Context(settings, control, pool, allow), schemes)
    reporter = ProgressReporter(control, progress)
    try:
        tree = Volume(volume)
        try:
            stage(Tools(tree, control, pool, filers, log))
        finally:
            tree.close()
            filers.close()
    except Exception as error:
        log.failed(error, "")
    finally:
        reporter.end()
    return log.report()


class ProgressReporter:
    """Calls `progress` from its own thread while there is something new."""

    INTERVAL: Final = 1.0  # seconds

    def __init__(self, control: Control, progress: Progress | None) -> None:
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        if progress is not None:
            arguments = (control, progress)
            self._thread = threading.Thread(target=self._report, args=arguments, name="filer-progress", daemon=True)
            self._thread.start()

    def _report(self, control: Control, progress: Progress) -> None:
        before = (0, 0)
        while not self._end.wait(self.INTERVAL):
            now = (control.files_done, control.bytes_done)
            if now != before:
                progress(*now)
                before = now

    def end(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
