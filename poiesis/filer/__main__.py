"""`python -m poiesis.filer in|out --document FILE --volume DIR [--settings FILE]`: the program of TIF's and TOF's containers.

The report is the last line on stdout, as JSON (`domain.report.format_report`); progress and logs go to stderr. Exit code 0: no error.
On SIGTERM and SIGINT it removes unfinished files and reports that it was stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Final

from poiesis.domain.errors import PoiesisError
from poiesis.domain.report import FilerReport, format_report
from poiesis.filer.settings import FilerSettings
from poiesis.filer.staging import stage

USAGE: Final = "usage: python -m poiesis.filer in|out --document FILE --volume DIR [--settings FILE]"
MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024

_stopping = False


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    if options is None:
        print(USAGE, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        text = _read(options["--document"])
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("the document is not a JSON object")
        settings = FilerSettings.from_json(_read(options["--settings"])) if "--settings" in options else FilerSettings()
    except (OSError, ValueError, PoiesisError) as error:
        is_retryable = isinstance(error, PoiesisError) and error.retryable
        report = FilerReport(
            error=f"the filer cannot start: {error}", error_code="configuration", retryable=is_retryable
        )
    else:
        if settings.credentials_dir is not None:
            from poiesis.filer.bound_credentials import AMBIENT

            for name in filter(AMBIENT.match, list(os.environ)):
                del os.environ[name]
        report = stage(
            options["direction"],
            document,
            Path(options["--volume"]),
            settings,
            cancelled=lambda: _stopping,
            progress=_show_progress,
        )
    if report.error is not None:
        print(f"error: {report.error}", file=sys.stderr)
    print(
        f"{report.total_files} files, {report.total_bytes} bytes in {report.seconds:.1f} s", file=sys.stderr, flush=True
    )
    sys.stdout.write(format_report(report) + "\n")
    sys.stdout.flush()
    return 0 if report.error is None else 1


def _show_progress(files: int, size: int) -> None:
    print(f"{files} files, {size} bytes done", file=sys.stderr, flush=True)


def _parse(arguments: list[str]) -> dict[str, str] | None:
    """Three options, parsed here because importing argparse takes a tenth of the start."""
    direction, *rest = arguments or [""]
    words = [word for item in rest for word in (item.split("=", 1) if item.startswith("--") else (item,))]
    options = dict(zip(words[::2], words[1::2], strict=False))
    is_known = {"--document", "--volume"} <= set(options) <= {"--document", "--volume", "--settings"}
    if direction not in ("in", "out") or not is_known or len(words) % 2:
        return None
    return {"direction": direction, **options}


def _read(path: str) -> bytes:
    """The file, or for a large one its pieces `PATH.0`, `PATH.1`, … joined."""
    text, pieces = b"", itertools.takewhile(Path.exists, (Path(f"{path}.{i}") for i in itertools.count()))
    for piece in list(pieces) or [Path(path)]:
        with piece.open("rb") as file:
            text += file.read(MAX_DOCUMENT_BYTES + 1 - len(text))
    if len(text) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{path} is longer than {MAX_DOCUMENT_BYTES} bytes")
    return text


def _stop(_signal: int, _frame: FrameType | None) -> None:
    global _stopping
    _stopping = True


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # everything is written; tearing the interpreter down takes time and changes nothing
