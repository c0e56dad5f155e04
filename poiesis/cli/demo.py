"""`poiesis demo`: the service on a free port, a real task with a real file through two executors, its result, and the end of it all."""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
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
CANCEL_S: Final = 20  # the grace of a command and some more
IMAGE_DEADLINE: Final = timedelta(seconds=10)  # a demo is not worth waiting for a registry that is away


def run(arguments: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to end in good order, as after Ctrl-C
    if not EXAMPLES.is_dir():
        raise ConfigurationError("the demo needs the examples of a source checkout")
    with tempfile.TemporaryDirectory(prefix="poiesis-demo-") as folder:
        try:
            return _serve_and_run(arguments, Path(folder), arguments.runtime)
        except _NoImage as error:
            if arguments.runtime not in (None, "auto"):
                print(error)
                return 1
            print(f"\nThe image could not be pulled: {error}\nOnce more without images, as sandboxed processes.\n")
            return _serve_and_run(arguments, Path(folder), "process")


class _NoImage(Exception):
    pass


def _serve_and_run(arguments: argparse.Namespace, folder: Path, runtime: str | None) -> int:
    out = folder / "results"
    out.mkdir(exist_ok=True)
    options = argparse.Namespace(**vars(arguments))
    options.dir = arguments.dir or str(folder / "service")
    options.allow_dir = [*arguments.allow_dir, str(EXAMPLES), str(out)]
    options.runtime = runtime
    settings, filer = embedded_settings(options, port=0)
    settings = replace(settings, policy=replace(settings.policy, image_deadline=IMAGE_DEADLINE))
    configure_logging(settings.log_level, settings.log_format)
    with Embedded(settings, filer) as service:
        print(f"The service is up at {service.url}.\n{service.description}\n")
        return _run_task(TesClient(service.url, {}), out)


def _cancel(client: TesClient, task_id: str) -> None:
    begin = time.monotonic()
    client.cancel(task_id)
    while client.get(task_id, "MINIMAL")["state"] not in TERMINAL and time.monotonic() - begin < CANCEL_S:
        time.sleep(0.05)


def _run_task(client: TesClient, out: Path) -> int:
    text = Template((EXAMPLES / "fastq.json").read_text()).safe_substitute(DIR=EXAMPLES, OUT=out)
    print(f"Posting examples/fastq.json: {EXAMPLES / 'reads.fastq'} through two executors to {out / 'report.txt'}")
    begin = time.monotonic()
    task_id = client.create(json.loads(text))
    state = ""
    try:
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
    finally:  # a service that stops leaves running commands running
        if state not in TERMINAL:
            _cancel(client, task_id)
    print()
    task = client.get(task_id)
    told = (task.get("logs") or [{}])[0].get("metadata") or {}
    if told.get("failure_reason") == "ImagePullFailed":
        raise _NoImage(told.get("failure_message"))
    print("\n".join(render_logs(task)))
    report = out / "report.txt"
    if state != "COMPLETE" or not report.is_file():
        return 1
    print(f"\nThe output file {report.name}:\n")
    print(report.read_text())
    return 0
