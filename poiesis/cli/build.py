"""A task from the options of `poiesis run`. Pure, but for the files of `--input-content`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from poiesis.domain.errors import ConfigurationError

MAX_CONTENT_BYTES: Final = 128 * 1024
"""Limit of `content` of an input (spec: tesInput.content)."""
_INPUT: Final = re.compile(r"(?P<url>.+):(?P<path>/(?!/).*)")
_OUTPUT: Final = re.compile(r"(?P<path>/.*?):(?P<url>[A-Za-z][A-Za-z0-9+.-]*://.*)")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WILDCARD: Final = re.compile(r"[*?\[]")


def task_of(options: argparse.Namespace) -> dict[str, Any]:
    """The document. Raises: ConfigurationError, with what to change."""
    if not options.command_line:
        raise ConfigurationError(f"missing command: poiesis run {options.image} -- COMMAND [ARGUMENT ...]")
    executor = {
        "image": options.image,
        "command": options.command_line,
        "workdir": options.workdir,
        "stdin": options.stdin,
        "stdout": options.stdout,
        "stderr": options.stderr,
        "env": _pairs(options.env, "--env"),
    }
    parameters = _pairs(options.backend_parameter, "--backend-parameter")
    if options.gpu is not None:
        parameters["gpu"] = str(options.gpu)
    cpu = options.cpu
    resources = {
        "cpu_cores": int(cpu) if cpu is not None and cpu == int(cpu) else cpu,
        "ram_gb": options.ram,
        "disk_gb": options.disk,
        "preemptible": options.preemptible or None,
        "backend_parameters": parameters,
    }
    task = {
        "name": options.name,
        "description": options.description,
        "tags": _pairs(options.tag, "--tag"),
        "inputs": [*map(_input, options.input), *map(_content, options.input_content)],
        "outputs": [*map(_output, options.output)],
        "volumes": options.volume,
        "resources": _without_empty(resources),
        "executors": [_without_empty(executor)],
    }
    return _without_empty(task)


def _without_empty(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value not in (None, {}, [])}


def _pairs(values: Iterable[str], option: str) -> dict[str, str]:
    found = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"invalid {option} {value!r}: KEY=VALUE is needed")
        found[key] = text
    return found


def _input(value: str) -> dict[str, Any]:
    if not _SCHEME.match(value):
        name = value.partition(":")[0]
        raise ConfigurationError(
            f"invalid --input {value!r}: {name!r} is a local path, which is not uploaded. Put the file where the "
            f"server can read it and name its URL (s3://, https://, ...), send a small text file within the task by --input-content "
            f"{name}:/PATH, or, if the server runs on this machine and allows it (`poiesis up --allow-dir`), use file://{Path(name).absolute()}:/PATH"
        )
    match = _INPUT.fullmatch(value)
    if match is None or not _SCHEME.match(match["url"]) or match["url"].endswith(":"):
        raise ConfigurationError(f"invalid --input {value!r}: missing path in the container: URL:/PATH is needed")
    return {"url": match["url"], "path": _path(match["path"]), **_type(match["path"])}


def _content(value: str) -> dict[str, Any]:
    match = _INPUT.fullmatch(value)
    if match is None:
        raise ConfigurationError(f"invalid --input-content {value!r}: FILE:/PATH is needed")
    name = match["url"]
    try:
        with open(name, "rb") as file:
            data = file.read(MAX_CONTENT_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read --input-content {name}: {error.strerror}") from None
    if len(data) > MAX_CONTENT_BYTES:
        raise ConfigurationError(
            f"--input-content {name} has more than {MAX_CONTENT_BYTES} bytes: put it on storage, and name its URL by --input"
        )
    try:
        return {"path": match["path"], "content": data.decode()}
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"--input-content {name} is not UTF-8 text: put it on storage, and use --input"
        ) from None


def _output(value: str) -> dict[str, Any]:
    match = _OUTPUT.fullmatch(value)
    if match is None:
        raise ConfigurationError(
            f"invalid --output {value!r}: /PATH:URL is needed, a path in the container and the URL that gets it"
        )
    path, found = match["path"], {"path": _path(match["path"]), "url": match["url"], **_type(match["path"])}
    if wildcard := _WILDCARD.search(path):
        found["path_prefix"] = path[: wildcard.start()].rpartition("/")[0] or "/"
    return found


def _path(path: str) -> str:
    return path.rstrip("/") or "/"


def _type(path: str) -> dict[str, str]:
    """A path with a slash at its end is a directory."""
    return {"type": "DIRECTORY"} if path.endswith("/") else {}
