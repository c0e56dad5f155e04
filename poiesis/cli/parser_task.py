"""The part of the command line that is about tasks."""

from __future__ import annotations

import argparse

from poiesis.cli.options import add_client_options, sub_commands


def add_task_actions(parser: argparse.ArgumentParser) -> None:
    add = sub_commands(parser)
    create = add("create", "create a task", "poiesis task create task.json --wait")
    create.add_argument("file", help="JSON file of the task; - for standard input")
    create.add_argument("--wait", action="store_true", help="follow it until it ends; exit 1 unless COMPLETE")
    create.add_argument("--timeout", type=float, help="stop waiting after this many seconds and exit 1")
    get = add("get", "show a task", "poiesis task get ID --view MINIMAL")
    get.add_argument("id")
    get.add_argument("--view", default="FULL", choices=["MINIMAL", "BASIC", "FULL"])
    list_ = add("list", "list tasks, newest first", "poiesis task list --state RUNNING --tag project=x")
    list_.add_argument("--state")
    list_.add_argument("--name-prefix")
    list_.add_argument("--tag", action="append", default=[], metavar="KEY[=VALUE]")
    list_.add_argument("--limit", type=int, default=50, help="maximum number of tasks (default: %(default)s)")
    wait = add(
        "wait", "follow tasks until they end; exit 1 unless all are COMPLETE", "poiesis task wait ID ID --timeout 600"
    )
    wait.add_argument("id", nargs="+")
    wait.add_argument("--timeout", type=float, help="stop waiting after this many seconds and exit 1")
    logs = add("logs", "show the output of a task's executors and its system logs", "poiesis task logs -f ID")
    logs.add_argument("id")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="print one log until its executor ends (Poiesis only)"
    )
    logs.add_argument("--executor", type=int, default=0, help="which executor to follow, from 0 (default: %(default)s)")
    logs.add_argument("--stderr", action="store_true", help="follow stderr instead of stdout")
    why = add("why", "show why tasks wait, what they do, or why they failed (Poiesis only)", "poiesis task why ID")
    why.add_argument("id", nargs="+")
    rerun = add(
        "rerun",
        "create a copy of a task, with changes (Poiesis only)",
        "poiesis task rerun ID --changes changes.json --wait",
    )
    rerun.add_argument("id")
    changes = "JSON file with changes of the request (JSON merge patch); - for standard input"
    rerun.add_argument("--changes", metavar="FILE", help=changes)
    rerun.add_argument("--wait", action="store_true", help="follow it until it ends; exit 1 unless COMPLETE")
    rerun.add_argument("--timeout", type=float, help="stop waiting after this many seconds and exit 1")
    cancel = add("cancel", "cancel tasks", "poiesis task cancel ID")
    cancel.add_argument("id", nargs="+")
    for action in (create, get, list_, wait, logs, cancel, why, rerun):
        add_client_options(action)
