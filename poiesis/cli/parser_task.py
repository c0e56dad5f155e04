"""The part of the command line that is about tasks."""

from __future__ import annotations

import argparse
from typing import Any

from poiesis.cli.options import (
    FORMATS,
    Add,
    add_client_options,
    add_repeatable,
    gigabytes,
    object_id,
    positive,
    seconds,
    since,
    sub_commands,
)

DOCUMENT = ("json", "yaml")
WITH_NAME = (*DOCUMENT, "name")
ALL = ("table", "wide", *WITH_NAME)
ID = "id of a task (several are possible); - reads ids from standard input, one per line"


def add_run(add: Add) -> None:
    parser = add(
        "run",
        "run a command in a container as a task, and show its output",
        "poiesis run alpine -- echo hello",
        "poiesis run --cpu 4 --ram 8 --input s3://data/reads.fq:/in/reads.fq --output /out/:s3://results/run7/ quay.io/biocontainers/fastqc"
        ":0.12.1--hdfd78af_0 -- fastqc -o /out /in/reads.fq",
        "poiesis run --input-content list.txt:/in/list.txt alpine -- sort /in/list.txt | head",
        "poiesis run --detach --name nightly --tag project=x alpine -- sleep 60",
        "poiesis run --dry-run --gpu 1 tensorflow/tensorflow -- python train.py",
        more=(
            "States go to stderr, output of the command to stdout and stderr, while it runs if the server keeps whole logs, else at its\n"
            "end. The exit code is that of the command. With Ctrl-C the task continues. Nothing is uploaded from this machine but the\n"
            "files of --input-content; --stdin, --stdout and --stderr are files in the container."
        ),
    )
    parser.hint = "; the command comes after --, as in: poiesis run IMAGE -- COMMAND"
    parser.add_argument("image", metavar="IMAGE", help="container image")
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="command with its arguments, after --")
    _add_files(parser)
    _add_resources(parser)
    add_repeatable(parser, "--env", "KEY=VALUE", "environment variable")
    parser.add_argument("--workdir", metavar="PATH", help="working directory in the container")
    parser.add_argument("--name", help="name of the task")
    parser.add_argument("--description", help="description of the task")
    add_repeatable(parser, "--tag", "KEY=VALUE", "tag of the task")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--follow", action="store_true", help="wait for the end and show the output (the default)")
    how.add_argument("-d", "--detach", action="store_true", help="print the id and do not wait")
    how.add_argument("--dry-run", action="store_true", help="print the task as JSON and do not post it")
    _add_timeout(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="do not show states, only the output")
    parser.add_argument("--raw", action="store_true", help="print the output unchanged, with control characters")
    add_client_options(parser, formats=ALL, option="--output-format")


def _add_files(parser: argparse.ArgumentParser) -> None:
    add_repeatable(
        parser, "--input", "URL:PATH", "file to fetch to a path in the container; a path that ends in / is a directory"
    )
    add_repeatable(
        parser, "--input-content", "FILE:PATH", "send a text file of this machine, at most 128 KiB, within the task"
    )
    add_repeatable(
        parser,
        "--output",
        "PATH:URL",
        "file to store at a URL; / at the end for a directory, wildcards for several files",
    )
    add_repeatable(parser, "--volume", "PATH", "writable directory")
    for stream, does in (("stdin", "read"), ("stdout", "write"), ("stderr", "write")):
        text = f"file in the container to {does} as {stream} of the command"
        parser.add_argument(f"--{stream}", metavar="PATH", help=text)


def _add_resources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cpu", type=positive, metavar="CORES", help="CPU cores")
    parser.add_argument("--ram", type=gigabytes, metavar="GB", help="memory in GB, or with a unit: 512M")
    parser.add_argument("--disk", type=gigabytes, metavar="GB", help="disk in GB, or with a unit")
    parser.add_argument("--gpu", type=int, metavar="N", help="number of GPUs (backend parameter gpu of Poiesis)")
    parser.add_argument("--preemptible", action="store_true", help="allow a machine that may be taken away")
    add_repeatable(parser, "--backend-parameter", "KEY=VALUE", "backend parameter")


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=seconds, metavar="TIME", help="stop waiting after 90 (seconds), 10m, 2h; the task continues"
    )


def _add_waiting(parser: argparse.ArgumentParser, *, optional: bool) -> None:
    if optional:
        parser.add_argument("--wait", action="store_true", help="wait until they have ended, as `task wait`")
    _add_timeout(parser)
    parser.add_argument("--plain", action="store_true", help="lines instead of a live table on a terminal")


def _add_filters(parser: argparse.ArgumentParser, *, limit: int) -> None:
    states = "only tasks in these states (repeatable, or separated by commas)"
    parser.add_argument("--state", action="append", default=[], metavar="STATE", help=states)
    parser.add_argument(
        "--name", "--name-prefix", dest="name_prefix", metavar="PREFIX", help="only names that begin so"
    )
    add_repeatable(parser, "--tag", "KEY[=VALUE]", "only with this tag")
    parser.add_argument(
        "--since", type=since, metavar="TIME", help="only created since 2026-03-01, 2026-03-01T12:00:00Z, or 2h ago"
    )
    parser.add_argument(
        "--limit", type=_count, default=limit, metavar="N", help="maximum number of tasks (default: %(default)s)"
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"invalid number {text}: must be between 1 and 1000000")
    return int(text)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-w",
        "--watch",
        nargs="?",
        type=positive,
        const=2.0,
        metavar="SECONDS",
        help="show it again and again (every 2 seconds)",
    )


def add_task_actions(parser: argparse.ArgumentParser) -> None:
    add = sub_commands(parser)
    _add_create(add)
    _add_looks(add)
    _add_logs(add)
    wait = add(
        "wait",
        "wait for tasks until they have ended",
        "poiesis task wait ID",
        "poiesis task list --state RUNNING -o name | poiesis task wait - --timeout 2h",
        more=(
            "On a terminal a table shows all of them and what they do now; elsewhere each change is a line. The output of those that\n"
            "failed is shown at the end. With Ctrl-C the tasks continue."
        ),
    )
    _add_ids(wait)
    _add_waiting(wait, optional=False)
    cancel = add(
        "cancel",
        "cancel tasks",
        "poiesis task cancel ID ID",
        "poiesis task list --tag run=7 --state QUEUED,RUNNING --limit 1000 -o name | poiesis task cancel -",
    )
    _add_ids(cancel)
    add_client_options(wait, formats=ALL)
    add_client_options(cancel, formats=ALL)


def _add_ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", nargs="+", metavar="ID", type=object_id, help=ID)


def _add_create(add: Add) -> None:
    create = add(
        "create",
        "create tasks from documents, and print their ids",
        "poiesis task create task.json --wait",
        "poiesis task create *.json -o json",
        "poiesis run --dry-run alpine -- date | poiesis task create -",
    )
    file = "JSON or YAML file with a task or a list of tasks (several are possible); - for standard input: JSON"
    create.add_argument("file", nargs="+", metavar="FILE", help=file)
    _add_waiting(create, optional=True)
    rerun = add(
        "rerun",
        "create copies of tasks, with changes",
        "poiesis task rerun ID --wait",
        "poiesis task rerun ID --changes more-memory.json",
        """echo '{"resources": {"ram_gb": 16}}' | poiesis task rerun ID --changes -""",
        more="Without the extension of Poiesis the task is read and posted again.",
    )
    _add_ids(rerun)
    changes = "JSON or YAML file with changes of the task (JSON merge patch); - for standard input"
    rerun.add_argument("--changes", metavar="FILE", help=changes)
    _add_waiting(rerun, optional=True)
    add_client_options(create, formats=ALL)
    add_client_options(rerun, formats=ALL)


def _add_looks(add: Add) -> None:
    columns = (
        "id, state, name, created, started, ended, duration, cpu, ram, disk, image, tags, exit, reason, node, attempts, "
        "peak, inputs, outputs"
    )
    column: dict[str, Any] = {"metavar": "NAMES", "help": f"columns of a table, separated by commas, of {columns}"}
    get = add(
        "get", "show tasks", "poiesis task get ID", "poiesis task get ID ID -o table --columns id,exit,reason,peak"
    )
    _add_ids(get)
    get.add_argument(
        "--view", default="FULL", choices=["MINIMAL", "BASIC", "FULL"], help="how much of it (default: FULL)"
    )
    get.add_argument("--columns", **column)
    list_ = add(
        "list",
        "list tasks, newest first",
        "poiesis task list",
        "poiesis task list --state RUNNING,QUEUED --tag project=x --since 2h -o wide",
        "poiesis task list --state EXECUTOR_ERROR -o name | poiesis task why -",
        "poiesis task list --columns id,exit,reason,name --watch",
    )
    _add_filters(list_, limit=50)
    list_.add_argument("--columns", **column)
    list_.add_argument("--no-header", action="store_true", help="without the line of names above")
    _add_watch(list_)
    top = add(
        "top",
        "show what runs and waits: the longest running first, then the oldest waiting, and why",
        "poiesis task top",
        "poiesis task top --tag project=x --watch 5",
    )
    _add_filters(top, limit=20)
    _add_watch(top)
    why = add(
        "why",
        "show why tasks wait, what they do, or why they failed",
        "poiesis task why ID",
        "poiesis task why ID --history",
        more="Without the extension of Poiesis it is what the task itself shows.",
    )
    _add_ids(why)
    why.add_argument(
        "--history", action="store_true", help="also the changes of state and reason so far, with their times (UTC)"
    )
    _add_watch(why)
    add_client_options(get, formats=ALL)
    add_client_options(list_, formats=ALL)
    add_client_options(top, formats=FORMATS)
    add_client_options(why, formats=DOCUMENT)


def _add_logs(add: Add) -> None:
    logs = add(
        "logs",
        "show the output of tasks, their exit codes and system logs",
        "poiesis task logs ID",
        "poiesis task logs -f ID",
        "poiesis task logs ID --executor 1 --stdout --raw > result.txt",
        more="With -f, --executor, --stdout, --stderr or --raw only what the commands wrote; with -f until they have ended.",
    )
    _add_ids(logs)
    logs.add_argument(
        "-f", "--follow", action="store_true", help="show what is written, too, until the commands have ended"
    )
    logs.add_argument("--executor", type=int, metavar="N", help="only of this executor, from 0 (default: all)")
    which = logs.add_mutually_exclusive_group()
    which.add_argument("--stdout", action="store_true", help="only stdout")
    which.add_argument("--stderr", action="store_true", help="only stderr")
    logs.add_argument("--raw", action="store_true", help="print the output unchanged, with control characters")
    add_client_options(logs, formats=DOCUMENT)
