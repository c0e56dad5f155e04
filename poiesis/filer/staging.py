"""TIF and TOF: staging a task's inputs and outputs. docs/data-plane.md has the rules by number.

`stage` takes a document of `poiesis.domain.staging` and returns a report; whatever goes wrong is in the report and never an exception.
It runs as a container's program or inside a process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from poiesis.domain.report import FilerReport
from poiesis.filer.registry import Filers, Scheme
from poiesis.filer.settings import FilerSettings
from poiesis.filer.stage import Tools
from poiesis.filer.transfer import Control, Pool
from poiesis.filer.transfer_log import TransferLog
from poiesis.filer.volume import Volume

PROGRESS_INTERVAL_S: Final = 5.0

Progress = Callable[[int, int], None]
"""Called with files and bytes done."""


def stage(
    direction: str,
    document: Mapping[str, Any],
    volume: Path,
    settings: FilerSettings,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    schemes: Mapping[str, Scheme] | None = None,
) -> FilerReport:
    """`in`: stage the inputs of a `tif_document` onto the volume, up to the first error. `out`: upload the outputs of a `tof_document`;
    every one is tried, whatever happens to the others. `schemes`: instead of the registered ones."""
    control = Control(settings, cancelled)
    log = TransferLog(control)
    pool = Pool(settings.parallel)
    allow = settings.allow_unencrypted_credentials or document.get("allow_unencrypted_credentials", True)
    try:
        if settings.credentials_dir is not None:
            from poiesis.filer.bound_credentials import with_bound_credentials

            settings = with_bound_credentials(settings)
        with (
            _reporting(control, progress),
            closing(Volume(volume)) as tree,
            closing(Filers(settings, control, pool, allow, schemes)) as filers,
        ):
            tools = Tools(tree, control, pool, filers, log)
            _stage_in(document, tools) if direction == "in" else _stage_out(document, tools)
    except Exception as error:
        log.failed(error, "")
    return log.report()


def _stage_in(document: Mapping[str, Any], tools: Tools) -> None:
    from poiesis.filer.inputs import StageIn  # a filer runs in one direction

    stage = StageIn(tools)
    for path in document.get("directories", ()):
        stage.make_directory(path)
    for path in document.get("touched", ()):
        tools.volume.make_placeholder(path)
    tools.control.sync = False  # all of them at once, at the end
    stage.run(stage.jobs(document.get("inputs", ())))
    if tools.control.settings.sync and not tools.log.has_errors:
        tools.volume.sync()


def _stage_out(document: Mapping[str, Any], tools: Tools) -> None:
    from poiesis.filer.outputs import StageOut

    stage = StageOut(tools, document)
    stage.run(stage.jobs(document.get("outputs", ())))


@contextmanager
def _reporting(control: Control, progress: Progress | None) -> Iterator[None]:
    """Call `progress` from its own thread while there is something new."""
    if progress is None:
        yield
        return
    end = threading.Event()

    def report() -> None:
        before = (0, 0)
        while not end.wait(PROGRESS_INTERVAL_S):
            now = (control.files_done, control.bytes_done)
            if now != before:
                progress(*now)
                before = now

    thread = threading.Thread(target=report, name="filer-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
