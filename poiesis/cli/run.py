"""`poiesis run`: build a task from options, post it, show its states and output, and exit as its command did."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from poiesis.cli import exits
from poiesis.cli.build import task_of
from poiesis.cli.client import TesClient
from poiesis.cli.columns import exit_code, failure
from poiesis.cli.exits import Exit
from poiesis.cli.follow import Follower, Lines, print_how_to_continue
from poiesis.cli.logs import LiveLogs, Sink
from poiesis.cli.output import note, show_document
from poiesis.cli.task import print_created, show_tasks
from poiesis.cli.text import printable
from poiesis.domain.errors import ConfigurationError


def run(arguments: argparse.Namespace) -> int:
    if arguments.detach and arguments.timeout is not None:
        raise ConfigurationError("--timeout is for following a task: leave out --detach")
    task = task_of(arguments)
    if arguments.dry_run:
        show_document(task, "yaml" if arguments.format == "yaml" else "json")
        return Exit.OK
    client = TesClient.of(arguments.server)
    task_id = _create(client, task)
    if arguments.detach:
        print_created([task_id], arguments)
        return Exit.OK
    try:
        with Sink(raw=arguments.raw) as sink:
            return _follow(client, task_id, arguments, sink)
    except KeyboardInterrupt:
        print_how_to_continue([task_id], arguments.server.suffix)
        return Exit.INTERRUPTED


def _create(client: TesClient, task: dict[str, Any]) -> str:
    try:
        return client.create(task)
    except KeyboardInterrupt:
        note("interrupted before the server answered: the task may have been created; see `poiesis task list`")
        raise


def _follow(client: TesClient, task_id: str, arguments: argparse.Namespace, sink: Sink) -> int:
    """States go to stderr, output of the command to its streams, and the end of the task after all output; with an output format, only the
    document at the end."""
    has_format = arguments.format is not None
    shows_states = not has_format and not arguments.quiet
    follower = Follower(client, [task_id], arguments.timeout, every_s=5)
    lines = Lines(to_stderr=True)
    logs = LiveLogs(client, task_id, sink, [0])

    def show(changes: Mapping[str, str]) -> None:
        sink.check()
        if has_format:
            return
        if shows_states and follower.pending:
            lines(changes)
        if follower.states.get(task_id) not in ("QUEUED", "INITIALIZING"):
            logs.start()

    if not arguments.quiet:
        note(f"created task {task_id}")
    if not follower.run(show):
        note(f"stopped waiting after {follower.timeout_s:g} s; the task {task_id} continues")
        return Exit.TIMEOUT
    task = client.get(task_id)
    if has_format:
        show_tasks([task], arguments)
    else:
        logs.finish(task)
    sink.close()
    if shows_states:
        lines(follower.states)
    return _ended(task, follower.states[task_id], quiet=arguments.quiet)


def _ended(task: dict[str, Any], state: str, *, quiet: bool) -> int:
    """Return the exit code: that of the command where the task ended because of it."""
    code = exit_code(task)
    if state == "COMPLETE":
        return Exit.OK
    if not quiet or state != "EXECUTOR_ERROR":
        reason = failure(task)
        note(f"the task ended as {printable(state)}{f': {reason}' if reason else ''}")
    return code if state == "EXECUTOR_ERROR" and code else exits.of_states([state])
