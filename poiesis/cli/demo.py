"""`poiesis demo`: the service on a free port, a real task with a real file through two executors, its result, and the end of it all."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Final

from poiesis.cli.client import TERMINAL, TesClient
from poiesis.cli.task import render_logs
from poiesis.cli.up import Embedded, embedded_settings
from poiesis.domain.errors import ConfigurationError
from poiesis.observability import configure_logging

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT_S: Final = 100


def run(arguments: argparse.Namespace) -> int:
    if not EXAMPLES.is_dir():
        raise ConfigurationError("the demo needs the examples of a source checkout")
    with tempfile.TemporaryDirectory(prefix="poiesis-demo-") as folder:
        out = Path(folder) / "results"
        out.mkdir()
        arguments.dir = arguments.dir or str(Path(folder) / "service")
        arguments.allow_dir = [*arguments.allow_dir, str(EXAMPLES), str(out)]
        settings, filer = embedded_settings(arguments, port=0)
        settings = replace(settings, api=replace(settings.api, host="127.0.0.1"))
        configure_logging(settings.log_level, settings.log_format)
        with Embedded(settings, filer) as service:
            print(f"The service is up at {service.url}.\n{service.description}\n")
            return _run_task(TesClient(service.url, {}), out)


def _run_task(client: TesClient, out: Path) -> int:
    text = Template((EXAMPLES / "fastq.json").read_text()).safe_substitute(DIR=EXAMPLES, OUT=out)
    print(f"Posting examples/fastq.json: {EXAMPLES / 'reads.fastq'} through two executors to {out / 'report.txt'}")
    begin = time.monotonic()
    task_id = client.create(json.loads(text))
    state = ""
    while state not in TERMINAL:
        if time.monotonic() - begin > TIMEOUT_S:
            print(f"The task did not end within {TIMEOUT_S} s.")
            break
        seen = str(client.get(task_id, "MINIMAL")["state"])
        if seen != state:
            state = seen
            print(f"{time.monotonic() - begin:6.2f} s  {task_id}  {state}", flush=True)
        else:
            time.sleep(0.02)
    print()
    print("\n".join(render_logs(client.get(task_id))))
    report = out / "report.txt"
    if state != "COMPLETE" or not report.is_file():
        return 1
    print(f"\nThe output file {report.name}:\n")
    print(report.read_text())
    return 0
