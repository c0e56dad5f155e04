"""`poiesis task …`: a client of any TES server. The exit codes are those of `poiesis.cli.exits`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

from poiesis.cli import exits
from poiesis.cli.client import TesClient
from poiesis.cli.columns import COLUMNS, DEFAULT, WIDE, dig, failure, state_of, table, time_text
from poiesis.cli.exits import Exit
from poiesis.cli.follow import Follower, print_how_to_continue, shown
from poiesis.cli.listing import Filter, list_tasks, top, unfinished
from poiesis.cli.logs import STREAMS, Sink, follow_logs, render_logs, with_executors
from poiesis.cli.options import object_id
from poiesis.cli.output import Table, note, repeat, report, show_document, show_table
from poiesis.cli.text import printable
from poiesis.domain.errors import ConfigurationError, InvalidTask, PoiesisError, Problem, Unauthenticated, Unavailable
from poiesis.domain.merge_patch import merge_patch
from poiesis.domain.states import TERMINAL

T = TypeVar("T")
MAX_IDS: Final = 100_000
MAX_BULK: Final = 1000  # ids of one request
MAX_INPUT_BYTES: Final = 256 * 1024 * 1024
MAX_SHOWN_FAILURES: Final = 5
READ_ONLY: Final = ("id", "state", "logs", "creation_time")


def run(arguments: argparse.Namespace) -> int:
    client = TesClient.of(arguments.server)
    if hasattr(arguments, "id"):
        arguments.id = list(_ids(arguments.id))
        if not arguments.id:
            note("no ids on standard input: nothing to do")
            return Exit.OK
    actions: dict[str, Callable[[TesClient, argparse.Namespace], int]] = {
        "create": _create,
        "get": _get,
        "list": _list,
        "top": _top,
        "wait": lambda client, arguments: _wait(client, arguments.id, arguments),
        "logs": _logs,
        "cancel": _cancel,
        "why": _why,
        "rerun": _rerun,
    }
    return actions[arguments.action](client, arguments)


def _ids(values: Iterable[str]) -> Iterator[str]:
    """`-` is replaced by the lines of standard input. Each id once. Raises: ConfigurationError."""
    found: dict[str, None] = {}
    for value in values:
        lines = [line.strip() for line in sys.stdin] if value == "-" else [value]
        try:
            found |= dict.fromkeys(object_id(line) for line in lines if line)
        except argparse.ArgumentTypeError as error:
            raise ConfigurationError(str(error)) from None
        if len(found) > MAX_IDS:
            raise ConfigurationError(f"more than {MAX_IDS} ids")
    return iter(found)


def _each(ids: Sequence[T], call: Callable[[T], Any]) -> tuple[list[Any], int]:
    """The results; errors about one task are reported, and the first one is the exit code. Raises: other errors."""
    results, code = [], int(Exit.OK)
    for each in ids:
        try:
            results.append(call(each))
        except (Unauthenticated, Unavailable, exits.MissingExtension):
            raise
        except PoiesisError as error:
            report(error)
            code = code or exits.of_error(error)
    return results, code


# ── documents ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _create(client: TesClient, arguments: argparse.Namespace) -> int:
    documents = [document for name in arguments.file for document in read_documents(name)]
    return _created(client, documents, client.create, arguments)


def _created(client: TesClient, sources: Sequence[T], create: Callable[[T], str], arguments: argparse.Namespace) -> int:
    """Tasks from all sources; what cannot be created does not hinder the others. Whatever happens, the new ids are shown."""
    created: list[str] = []
    try:
        _, code = _each(sources, lambda source: created.append(create(source)))
    except BaseException:
        if created:
            print_created(created, arguments)
        raise
    return _after_creation(client, created, arguments) or code


def read_documents(name: str) -> list[Any]:
    """Return the documents in a file, or in standard input for `-`: JSON, one after the other or as a list; YAML by the file's name.

    Raises: ConfigurationError, InvalidTask.
    """
    is_yaml = name.endswith((".yaml", ".yml"))
    try:
        if name == "-":
            text = sys.stdin.read(MAX_INPUT_BYTES)
        else:
            with open(name, encoding="utf-8") as file:
                text = file.read(MAX_INPUT_BYTES)
        documents = _yaml(text) if is_yaml else list(_json(text))
    except OSError as error:
        raise ConfigurationError(f"{name}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        kind = "YAML" if is_yaml else "JSON"
        raise InvalidTask([Problem(name, f"invalid {kind}: {error}")]) from error
    if not documents:
        raise InvalidTask([Problem(name, "invalid document: it is empty")])
    return documents


def _json(text: str) -> Iterator[Any]:
    decoder, position = json.JSONDecoder(), 0
    while text := text[position:].lstrip():
        document, position = decoder.raw_decode(text)
        yield from document if isinstance(document, list) else [document]


def _yaml(text: str) -> list[Any]:
    import yaml

    try:
        found = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return [each for document in found for each in (document if isinstance(document, list) else [document])]


def _after_creation(client: TesClient, ids: list[str], arguments: argparse.Namespace) -> int:
    if not arguments.wait or not ids:
        print_created(ids, arguments)
        return Exit.OK
    return _wait(client, ids, arguments)


def print_created(ids: Sequence[str], arguments: argparse.Namespace) -> None:
    if arguments.format in ("json", "yaml"):
        document = {"id": ids[0]} if len(ids) == 1 else {"tasks": [{"id": task_id} for task_id in ids]}
        show_document(document, arguments.format, indent=None)
        return
    for task_id in ids:
        print(printable(task_id))


def _rerun(client: TesClient, arguments: argparse.Namespace) -> int:
    changes = {} if arguments.changes is None else read_documents(arguments.changes)[0]
    return _created(client, arguments.id, lambda task_id: _rerun_one(client, task_id, changes), arguments)


def _rerun_one(client: TesClient, task_id: str, changes: Any) -> str:
    path = f"/tasks/{quote(task_id, safe='')}:rerun"
    instead = "the task is read and posted again"
    if (new := client.try_extension("POST", path, body=changes, instead=instead, name="rerun")) is not None:
        return str(new["id"])
    original = {key: value for key, value in client.get(task_id).items() if key not in READ_ONLY}
    copy = merge_patch(original, changes)
    if isinstance(copy, dict):
        copy["tags"] = {**(copy.get("tags") or {}), "rerun_of": task_id}
    return client.create(copy)


# ── looking ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _get(client: TesClient, arguments: argparse.Namespace) -> int:
    found, code = _each(arguments.id, lambda task_id: client.get(task_id, arguments.view))
    if found:
        show_tasks(found, arguments)
    return code


def show_tasks(tasks: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """In the requested format; one task as a document of its own."""
    form = arguments.format or "json"
    if form in ("json", "yaml"):
        show_document(tasks[0] if len(tasks) == 1 else {"tasks": tasks}, form)
    elif form == "name":
        _print_ids(tasks)
    else:
        show_table(table(tasks, _columns(arguments)))


def _print_ids(tasks: Sequence[Any]) -> None:
    ids = [str(task_id) for task in tasks if (task_id := dig(task, "id"))]
    for task_id in ids:
        print(printable(task_id))
    if left_out := len(tasks) - len(ids):
        note(f"{left_out} of {len(tasks)} tasks have no id in the response of the server")


def _columns(arguments: argparse.Namespace) -> Sequence[str]:
    if chosen := getattr(arguments, "columns", None):
        names: list[str] = chosen.lower().split(",")
        if unknown := [name for name in names if name not in COLUMNS]:
            raise ConfigurationError(f"unknown column {unknown[0]!r}: choose from {', '.join(COLUMNS)}")
        return names
    return WIDE if arguments.format == "wide" else DEFAULT


def _list(client: TesClient, arguments: argparse.Namespace) -> int:
    filter_ = Filter.of(arguments)
    form = arguments.format or "table"
    columns = _columns(arguments)
    if form in ("table", "wide"):
        header = not arguments.no_header

        def content() -> list[str | Table]:
            found = list_tasks(client, filter_, arguments.limit)
            if not found and arguments.watch is None:
                note("no tasks match" if filter_ != Filter() else "no tasks")
            return [table(found, columns, header=header)]

        repeat(arguments.watch, content)
        return Exit.OK
    _refuse_watch(arguments)
    return _show_documents(list_tasks(client, filter_, arguments.limit), form)


def _top(client: TesClient, arguments: argparse.Namespace) -> int:
    filter_, form = Filter.of(arguments), arguments.format or "table"
    if form == "table":
        repeat(arguments.watch, lambda: top(client, filter_, arguments.limit))
        return Exit.OK
    _refuse_watch(arguments)
    return _show_documents(unfinished(client, filter_)[0][: arguments.limit], form)


def _refuse_watch(arguments: argparse.Namespace) -> None:
    if arguments.watch is not None:
        raise ConfigurationError("--watch shows tables and sentences: leave out --output")


def _show_documents(tasks: list[dict[str, Any]], form: str) -> int:
    if form == "name":
        _print_ids(tasks)
    else:
        show_document({"tasks": tasks}, form)
    return Exit.OK


def _logs(client: TesClient, arguments: argparse.Namespace) -> int:
    streams = ["stderr"] if arguments.stderr else ["stdout"] if arguments.stdout else list(STREAMS)
    if arguments.follow:
        return _follow_logs(client, arguments, streams)
    if arguments.executor is not None or len(streams) == 1 or arguments.raw:
        return _print_output(client, arguments, streams)
    found, code = _each(arguments.id, client.get)
    if arguments.format in ("json", "yaml"):
        logs = [task.get("logs") or [] for task in found]
        many = {"tasks": [{"id": dig(t, "id"), "logs": each} for t, each in zip(found, logs, strict=True)]}
        if found:
            show_document(logs[0] if len(arguments.id) == 1 else many, arguments.format)
    else:
        for task in found:
            print(printable("\n".join(render_logs(task))))
    return code


def _follow_logs(client: TesClient, arguments: argparse.Namespace, streams: Sequence[str]) -> int:
    executors = None if arguments.executor is None else [arguments.executor]
    for task_id in arguments.id:
        try:
            with Sink(raw=arguments.raw) as sink:
                state = follow_logs(client, task_id, executors, streams, sink)
        except KeyboardInterrupt:
            print_how_to_continue([task_id], arguments.server.suffix)
            return Exit.INTERRUPTED
        if state in TERMINAL and state != "COMPLETE":  # perhaps before a command wrote anything
            why = failure(client.get(task_id))
            note(f"the task {task_id} ended as {state}{f': {why}' if why else ''}")
    return Exit.OK


def _print_output(client: TesClient, arguments: argparse.Namespace, streams: Sequence[str]) -> int:
    """Only what a command wrote, as TES shows it, for pipes."""
    executors = None if arguments.executor is None else [arguments.executor]
    found, code = _each(arguments.id, lambda task_id: with_executors(client.get(task_id), executors))
    sink = Sink(raw=arguments.raw)
    for task in found:
        logs = dig(task, "logs", -1, "logs") or []
        for index, entry in enumerate(logs):
            if arguments.executor in (None, index):
                for stream in streams:
                    text = str(dig(entry, stream) or "")
                    sink.writer(stream)(text.encode("utf-8", "surrogatepass"), final=True)
    sink.check()
    return code


def _why(client: TesClient, arguments: argparse.Namespace) -> int:
    if arguments.format in ("json", "yaml"):
        _refuse_watch(arguments)
        found, code = _each(arguments.id, lambda task_id: _explanation(client, task_id))
        show_document({"tasks": found}, arguments.format)
        return code
    codes: list[int] = []

    def content() -> list[str | Table]:
        found, code = _each(arguments.id, lambda task_id: _explanation(client, task_id))
        codes.append(code)
        return [part for each in found for part in _explained(each, with_history=arguments.history)]

    repeat(arguments.watch, content)
    return codes[0]


def _explained(explanation: dict[str, Any], *, with_history: bool) -> Iterator[str | Table]:
    yield f"{explanation.get('id')} {state_of(explanation)}: {explanation.get('why')}"
    changes = explanation.get("history") if with_history else None
    if isinstance(changes, list) and changes:
        keys = ("at", "state", "reason")
        yield Table(keys, [[time_text(dig(c, "at")), *(str(dig(c, key) or "") for key in keys[1:])] for c in changes])


def _explanation(client: TesClient, task_id: str) -> dict[str, Any]:
    path = f"/tasks/{quote(task_id, safe='')}/why"
    found = client.try_extension("GET", path, instead="what the task itself shows")
    if found is not None:
        return found
    task = client.get(task_id)
    return {"id": task_id, "state": state_of(task), "why": failure(task) or "the server gives no reason"}


# ── changing and waiting ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _cancel(client: TesClient, arguments: argparse.Namespace) -> int:
    results, code = _cancel_bulk(client, arguments.id)
    if results is None:  # which does not say what had ended before
        canceled, code = _each(arguments.id, client.cancel)
        results = dict.fromkeys(canceled, "is being canceled")
    if arguments.format in ("json", "yaml"):
        show_document({"tasks": [{"id": i, "result": text} for i, text in results.items()]}, arguments.format)
        return code
    for task_id, text in results.items():
        print(printable(task_id if arguments.format == "name" else f"{task_id} {text}"))
    return code


def _cancel_bulk(client: TesClient, ids: Sequence[str]) -> tuple[dict[str, str] | None, int]:
    results: dict[str, str] = {}
    code = int(Exit.OK)
    for start in range(0, len(ids), MAX_BULK):
        body = {"ids": ids[start : start + MAX_BULK]}
        instead = "one request for each task" if len(ids) > 1 else None
        found = client.try_extension("POST", "/tasks:cancel", body=body, instead=instead)
        if found is None:
            return None, Exit.OK
        results |= dict.fromkeys(found.get("canceled") or [], "is being canceled")
        results |= dict.fromkeys(found.get("unchanged") or [], "has ended or is being canceled already")
        for task_id in found.get("unknown") or []:
            note(f"no such task: {task_id!r}")
            code = code or Exit.UNKNOWN
        for task_id in found.get("forbidden") or []:
            note(f"not allowed to cancel {task_id!r}")
            code = code or Exit.NOT_AUTHORIZED
        for each in found.get("failed") or []:
            note(f"{dig(each, 'id')} was not canceled, try again: {dig(each, 'message')}")
            code = code or Exit.FAILED
    return results, code


def _wait(client: TesClient, ids: Sequence[str], arguments: argparse.Namespace) -> int:
    is_table = arguments.format in (None, "table", "wide")
    follower = Follower(client, ids, arguments.timeout, every_s=2 if is_table else 25)
    try:
        with shown(client, follower, plain=arguments.plain, silent=not is_table) as show:
            has_ended = follower.run(show)
    except KeyboardInterrupt:
        print_how_to_continue(follower.pending or follower.ids, arguments.server.suffix)
        return Exit.INTERRUPTED
    states = follower.states
    if not has_ended:
        count = len(follower.pending)
        note(
            f"stopped waiting after {arguments.timeout:g} s; {count} task{'s continue' if count > 1 else ' continues'}"
        )
        return Exit.TIMEOUT
    if arguments.format in ("json", "yaml"):
        document = {"tasks": [{"id": task_id, "state": states[task_id]} for task_id in follower.ids]}
        show_document(document, arguments.format, indent=None)
    elif arguments.format == "name":
        print("\n".join(map(printable, follower.ids)))
    else:
        _show_failures(client, [task_id for task_id in follower.ids if states[task_id] != "COMPLETE"])
    return exits.of_states(states.values())


def _show_failures(client: TesClient, failed: Sequence[str]) -> None:
    for task_id in failed[:MAX_SHOWN_FAILURES]:
        print(printable("\n".join(render_logs(client.get(task_id)))))
    if len(failed) > MAX_SHOWN_FAILURES:
        print(f"{len(failed) - MAX_SHOWN_FAILURES} more did not complete; for each: poiesis task logs ID")
