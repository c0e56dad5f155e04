"""`poiesis task …`: a client of any TES server. The exit codes are those of `poiesis.cli.main`."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
import time
from typing import Any, Final
from urllib.parse import quote

from poiesis.cli.client import TesClient
from poiesis.cli.text import printable
from poiesis.domain.errors import ConfigurationError, InvalidTask, Problem, Unavailable
from poiesis.domain.states import TERMINAL

POLL_FROM_S: Final = 0.1
POLL_TO_S: Final = 5.0
MAX_OUTAGE_S: Final = 120.0


def run(arguments: argparse.Namespace) -> int:
    client = TesClient.of(arguments.server)
    if arguments.action == "wait":
        return _follow(client, arguments.id, arguments.timeout, as_json=arguments.json)
    actions = {
        "create": _create,
        "get": _get,
        "list": _list,
        "logs": _logs,
        "cancel": _cancel,
        "why": _why,
        "rerun": _rerun,
    }
    return actions[arguments.action](client, arguments)


def _create(client: TesClient, arguments: argparse.Namespace) -> int:
    return _created(client, client.create(_read_json(arguments.file)), arguments)


def _read_json(name: str) -> Any:
    """Of a file; `-` for standard input. Raises: ConfigurationError, InvalidTask."""
    try:
        if name == "-":
            return json.load(sys.stdin)
        with open(name, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise ConfigurationError(f"{name}: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidTask([Problem(name, f"invalid JSON: {error}")]) from error


def _created(client: TesClient, task_id: str, arguments: argparse.Namespace) -> int:
    if not arguments.wait:
        print(json.dumps({"id": task_id}) if arguments.json else printable(task_id))
        return 0
    return _follow(client, [task_id], arguments.timeout, as_json=arguments.json)


def _rerun(client: TesClient, arguments: argparse.Namespace) -> int:
    changes = {} if arguments.changes is None else _read_json(arguments.changes)
    new = client.extension("POST", f"/tasks/{quote(arguments.id, safe='')}:rerun", body=changes)
    return _created(client, str(new["id"]), arguments)


def _why(client: TesClient, arguments: argparse.Namespace) -> int:
    found = [client.extension("GET", f"/tasks/{quote(task_id, safe='')}/why") for task_id in arguments.id]
    if arguments.json:
        _print_json({"tasks": found})
        return 0
    for explanation in found:
        print(printable(f"{explanation.get('id')} {explanation.get('state')}: {explanation.get('why')}"))
    return 0


def _get(client: TesClient, arguments: argparse.Namespace) -> int:
    _print_json(client.get(arguments.id, arguments.view))
    return 0


def _list(client: TesClient, arguments: argparse.Namespace) -> int:
    query = [("view", "BASIC"), ("page_size", str(max(1, min(arguments.limit, 2047))))]
    query += [("state", arguments.state)] if arguments.state else []
    query += [("name_prefix", arguments.name_prefix)] if arguments.name_prefix else []
    for tag in arguments.tag:
        key, _, value = tag.partition("=")
        query += [("tag_key", key), ("tag_value", value)]
    tasks: list[dict[str, Any]] = []
    token = None
    while len(tasks) < arguments.limit:
        page = client.list([*query, ("page_token", token)] if token else query)
        tasks += page.get("tasks") or []
        token = page.get("next_page_token")
        if not token:
            break
    tasks = tasks[: arguments.limit]
    if arguments.json:
        _print_json({"tasks": tasks})
        return 0
    for task in tasks:
        created = str(task.get("creation_time", ""))[:19].replace("T", " ")
        line = f"{task['id']:28} {task.get('state', 'UNKNOWN'):15} {created:20} {task.get('name') or ''}"
        print(printable(line.replace("\n", " ")).rstrip())
    return 0


def _logs(client: TesClient, arguments: argparse.Namespace) -> int:
    if arguments.follow:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in client.follow_log(arguments.id, arguments.executor, "stderr" if arguments.stderr else "stdout"):
            parts = decoder.decode(piece).split("\r")  # progress bars use it
            sys.stdout.write("\r".join(map(printable, parts)))
            sys.stdout.flush()
        return 0
    task = client.get(arguments.id)
    if arguments.json:
        _print_json(task.get("logs") or [])
    else:
        print(printable("\n".join(render_logs(task))))
    return 0


def _cancel(client: TesClient, arguments: argparse.Namespace) -> int:
    for task_id in arguments.id:
        client.cancel(task_id)
        if not arguments.json:
            print(f"{task_id} is being canceled")
    return 0


def _print_json(document: Any) -> None:
    print(printable(json.dumps(document, indent=2, ensure_ascii=False)))


def render_logs(task: dict[str, Any]) -> list[str]:
    """Return the logs of a task in FULL view as lines of text."""
    lines = [f"{task.get('id')} {task.get('state')}"]
    for entry in task.get("logs") or []:
        lines += [f"  | {line}" for line in entry.get("system_logs") or []]
        for index, executor in enumerate(entry.get("logs") or []):
            lines.append(f"  executor {index}: exit code {executor.get('exit_code')}")
            for stream in ("stdout", "stderr"):
                lines += [f"    {stream}: {line}" for line in (executor.get(stream) or "").splitlines()]
        metadata = entry.get("metadata") or {}  # of Poiesis: the latest output of the running executor (docs/api.md)
        if "live_executor" in metadata:
            lines.append(f"  executor {metadata['live_executor']}: has not ended")
            for stream in ("stdout", "stderr"):
                lines += [f"    {stream}: {line}" for line in metadata.get(f"live_{stream}", "").splitlines()]
        lines += [f"  output {o['path']} -> {o['url']} ({o['size_bytes']} bytes)" for o in entry.get("outputs") or []]
    return lines


def _follow(client: TesClient, ids: list[str], timeout_s: float | None, *, as_json: bool) -> int:
    """Poll until all have ended, showing each change; tolerate server outages up to MAX_OUTAGE_S."""
    begin = time.monotonic()
    deadline = None if timeout_s is None else begin + timeout_s
    states: dict[str, str] = {}
    outage_since: float | None = None
    pause = POLL_FROM_S
    while any(states.get(i) not in TERMINAL for i in ids):
        for task_id in ids:
            if states.get(task_id) in TERMINAL:
                continue
            try:
                state = str(client.get(task_id, "MINIMAL").get("state", "UNKNOWN"))
            except Unavailable as error:
                outage_since = outage_since or time.monotonic()
                if time.monotonic() - outage_since > MAX_OUTAGE_S:
                    raise
                print(f"waiting for the server: {printable(str(error))}", file=sys.stderr)
                break
            outage_since = None
            if states.get(task_id) != state:
                states[task_id] = state
                pause = POLL_FROM_S
                if not as_json:
                    print(f"{time.monotonic() - begin:6.1f} s  {task_id}  {printable(state)}", flush=True)
        if deadline is not None and time.monotonic() > deadline:
            print(f"poiesis: stopped waiting after {timeout_s:g} s; the tasks keep running", file=sys.stderr)
            return 1
        if any(states.get(i) not in TERMINAL for i in ids):
            time.sleep(pause)
            pause = min(pause * 1.3, POLL_TO_S)
    failed = [i for i in ids if states[i] != "COMPLETE"]
    if as_json:
        print(json.dumps({"tasks": [{"id": i, "state": states[i]} for i in ids]}))
    else:
        for task_id in failed:
            print(printable("\n".join(render_logs(client.get(task_id)))))
    return 1 if failed else 0
