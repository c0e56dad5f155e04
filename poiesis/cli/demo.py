"""`poiesis demo`: start the service on a free port, run a task with a file through two executors, show its result, stop."""

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

from poiesis.cli.client import TesClient
from poiesis.cli.logs import render_logs
from poiesis.cli.up import Embedded, embedded_settings
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.states import TERMINAL
from poiesis.observability import configure_logging

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT_S: Final = 100
CANCEL_S: Final = 20  # a little more than the grace period of a command
IMAGE_DEADLINE: Final = timedelta(seconds=10)  # long enough for a registry that is available


def run(arguments: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to clean up as after Ctrl-C
    if not EXAMPLES.is_dir():
        raise ConfigurationError("missing examples: run the demo from a source checkout")
    with tempfile.TemporaryDirectory(prefix="poiesis-demo-") as directory:
        try:
            return _serve_and_run(arguments, Path(directory), arguments.runtime)
        except _ImagePullFailed as error:
            if arguments.runtime not in (None, "auto"):
                print(error)
                return 1
            print(f"\nThe image could not be pulled: {error}\nRetrying without images, as sandboxed processes.\n")
            return _serve_and_run(arguments, Path(directory), "process")


class _ImagePullFailed(Exception):
    pass


def _serve_and_run(arguments: argparse.Namespace, directory: Path, runtime: str | None) -> int:
    out = directory / "results"
    out.mkdir(exist_ok=True)
    options = argparse.Namespace(**vars(arguments))
    options.dir = arguments.dir or str(directory / "service")
    options.allow_dir = [*arguments.allow_dir, str(EXAMPLES), str(out)]
    options.runtime = runtime
    settings, filer = embedded_settings(options, port=0)
    if settings.api.auth:
        raise ConfigurationError("the demo has no credentials for its own service: unset POIESIS_API__AUTH")
    settings = replace(settings, policy=replace(settings.policy, image_deadline=IMAGE_DEADLINE))
    configure_logging(settings.log_level, settings.log_format)
    with Embedded(settings, filer) as service:
        print(f"The service is running at {service.url}.\n{service.description}\n")
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
    finally:  # stopping the service does not stop its commands
        if state not in TERMINAL:
            _cancel(client, task_id)
    print()
    task = client.get(task_id)
    metadata = (task.get("logs") or [{}])[0].get("metadata") or {}
    if metadata.get("failure_reason") == "ImagePullFailed":
        raise _ImagePullFailed(metadata.get("failure_message"))
    print("\n".join(render_logs(task)))
    report = out / "report.txt"
    if state != "COMPLETE" or not report.is_file():
        return 1
    print(f"\nThe output file {report.name}:\n")
    print(report.read_text())
    return 0
