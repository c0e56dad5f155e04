"""The rules of a task that the TES schema says only in words, and the site's limits. All problems are found at once.

`check` takes a `TaskSpec` whose types are right already and answers the spec to store, with what was dropped from it said in notes.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from poiesis.domain.errors import InvalidTask, Problem
from poiesis.domain.parameters import PARAMETERS
from poiesis.domain.plan import FORBIDDEN_DIRECTORIES, fixed_directory, has_wildcard, is_directory
from poiesis.domain.policy import Policy
from poiesis.domain.task import Executor, FileType, Input, Output, Resources, TaskSpec

_ENV_NAME: Final = re.compile(r"[^=\0]+")
_IMAGE: Final = re.compile(r"[^\s\0]+")
_CONTENT: Final = re.compile(r"\$\.inputs\[\d+\]\.content")
_ASKS_FOR_MATCHING: Final = re.compile(r"[*?]")
MAX_PATH_BYTES: Final = 4096
MAX_NAME_BYTES: Final = 255
MAX_URL_BYTES: Final = 16 * 1024


def check(spec: TaskSpec, policy: Policy) -> tuple[TaskSpec, tuple[str, ...]]:
    """The spec to store and notes for its system log (what was dropped and why). Raises: InvalidTask with every problem."""
    problems = list(_text_problems(dataclasses.asdict(spec), "$"))
    if problems:  # the other rules take text for granted
        raise InvalidTask(problems)
    limits = policy.limits
    problems += _counts(spec, policy)
    for i, executor in enumerate(spec.executors):
        problems += _executor(executor, f"$.executors[{i}]", policy)
    for i, item in enumerate(spec.inputs):
        problems += _input(item, f"$.inputs[{i}]", policy)
    total = sum(len((i.content or "").encode()) for i in spec.inputs)
    if total > limits.max_total_content_bytes:
        problems.append(
            Problem(
                "$.inputs", f"all content together is {total} bytes; at most {limits.max_total_content_bytes}, use URLs"
            )
        )
    for i, output in enumerate(spec.outputs):
        problems += _output(output, f"$.outputs[{i}]", policy)
    for i, volume in enumerate(spec.volumes):
        problems += _path(volume, f"$.volumes[{i}]")
    problems += _collisions(spec)
    for key, value in spec.tags.items():
        problems += _short(key, f"$.tags[{key[:40]!r}]", policy) + _short(value, f"$.tags[{key[:40]!r}]", policy)
    for name in ("name", "description"):
        problems += _short(getattr(spec, name), f"$.{name}", policy)
    resources, notes, more = _resources(spec.resources, policy)
    problems += more
    if problems:
        raise InvalidTask(problems)
    return dataclasses.replace(spec, resources=resources), notes


def _text_problems(value: Any, path: str) -> Iterator[Problem]:
    """Strings that no program argument, path or UTF-8 file can hold."""
    if isinstance(value, str):
        if "\0" in value and not _CONTENT.fullmatch(path):
            yield Problem(path, "holds a NUL character; remove it")
        try:
            value.encode()
        except UnicodeEncodeError:
            yield Problem(path, "holds half of a surrogate pair, which is no text; send valid Unicode")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _text_problems(key, path)
            yield from _text_problems(item, f"{path}.{str(key)[:40].encode(errors='replace').decode()}")
    elif isinstance(value, Sequence):
        for i, item in enumerate(value):
            yield from _text_problems(item, f"{path}[{i}]")


def _counts(spec: TaskSpec, policy: Policy) -> list[Problem]:
    limits = policy.limits
    problems = [
        Problem(f"$.{name}", f"{count} of them; this service takes at most {most}")
        for name, count, most in (
            ("executors", len(spec.executors), limits.max_executors),
            ("inputs", len(spec.inputs), limits.max_inputs),
            ("outputs", len(spec.outputs), limits.max_outputs),
            ("volumes", len(spec.volumes), limits.max_volumes),
            ("tags", len(spec.tags), limits.max_tags),
        )
        if count > most
    ]
    if not spec.executors:
        problems.append(Problem("$.executors", "is empty; a task needs at least one executor"))
    return problems


def _short(text: str | None, path: str, policy: Policy) -> list[Problem]:
    most = policy.limits.max_text_bytes
    if text is not None and len(text.encode()) > most:
        return [Problem(path, f"is longer than {most} bytes; shorten it")]
    return []


def _path(path: str, where: str) -> list[Problem]:
    """An absolute path in a container that can be mounted or written."""
    if not path.startswith("/"):
        return [Problem(where, f"{path!r} is relative; give an absolute path such as /data/{path or 'file'}")]
    parts = path.split("/")
    if ".." in parts or "." in parts:
        return [Problem(where, f"{path!r} holds '.' or '..'; write the path without them")]
    if "//" in path:
        return [Problem(where, f"{path!r} holds '//'; write single slashes")]
    if len(path.encode()) > MAX_PATH_BYTES or any(len(p.encode()) > MAX_NAME_BYTES for p in parts):
        return [Problem(where, f"is too long; at most {MAX_PATH_BYTES} bytes, and {MAX_NAME_BYTES} between slashes")]
    if path == "/":
        return [Problem(where, "is the root directory, which belongs to the image; use a directory below it")]
    top = "/" + parts[1]
    if top in FORBIDDEN_DIRECTORIES:
        return [Problem(where, f"{top} belongs to the system; use another directory such as /data")]
    return []


def _executor(executor: Executor, where: str, policy: Policy) -> list[Problem]:
    problems: list[Problem] = []
    if not _IMAGE.fullmatch(executor.image):
        problems.append(Problem(f"{where}.image", "give the name of a container image, without spaces"))
    if not executor.command or executor.command[0] == "":
        problems.append(Problem(f"{where}.command", "give the program to run as the first element"))
    most = policy.limits.max_command_bytes
    for i, argument in enumerate(executor.command):
        if len(argument.encode()) >= most:
            problems.append(
                Problem(
                    f"{where}.command[{i}]", f"is {most} bytes or longer; put it into an input with `content` instead"
                )
            )
    for name, value in executor.env.items():
        if not _ENV_NAME.fullmatch(name):
            problems.append(Problem(f"{where}.env", f"{name!r} is no name of a variable: empty or with '='"))
        elif len(name.encode()) + len(value.encode()) + 1 >= most:
            problems.append(
                Problem(f"{where}.env.{name[:40]}", f"is {most} bytes or longer; use an input with `content`")
            )
    size = sum(len(a.encode()) + 1 for a in executor.command)
    size += sum(len(n.encode()) + len(v.encode()) + 2 for n, v in executor.env.items())
    if size > 5 * most:
        problems.append(Problem(where, f"command and env together are {size} bytes; at most {5 * most}"))
    if executor.workdir is not None and executor.workdir != "/":
        problems += _path(executor.workdir, f"{where}.workdir")
    if executor.stdin is not None and not executor.stdin.startswith("/"):
        problems.append(Problem(f"{where}.stdin", f"{executor.stdin!r} is relative; give an absolute path"))
    for name in ("stdout", "stderr"):
        path = getattr(executor, name)
        if path is not None:
            found = _path(path, f"{where}.{name}")
            if not found and path.endswith("/"):
                found = [Problem(f"{where}.{name}", "ends with '/', as a directory does; give the path of a file")]
            problems += found
    return problems


def _url(url: str, where: str, schemes: frozenset[str], policy: Policy) -> list[Problem]:
    if len(url.encode()) > MAX_URL_BYTES:
        return [Problem(where, f"is longer than {MAX_URL_BYTES} bytes")]
    try:
        parts = urlsplit("file://" + url if url.startswith("/") else url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        return [Problem(where, f"is no URL: {error}")]
    if not parts.scheme:
        known = ", ".join(sorted(schemes))
        return [Problem(where, f"is no URL; give one with a scheme ({known}), such as s3://bucket/key")]
    if parts.scheme not in schemes:
        known = ", ".join(sorted(schemes)) or "none"
        return [Problem(where, f"scheme {parts.scheme!r} cannot be used here; usable: {known}")]
    if parts.scheme == "file":
        path = parts.path
        if host not in (None, "", "localhost"):
            return [Problem(where, "a file URL names no host; write file:///path")]
        if ".." in path.split("/"):
            return [Problem(where, "holds '..'; write the path without it")]
        normal = posixpath.normpath(path)
        if not any(normal == root or normal.startswith(root.rstrip("/") + "/") for root in policy.file_roots):
            roots = ", ".join(policy.file_roots) or "none are configured"
            return [Problem(where, f"{path!r} is not below a directory that this service may use ({roots})")]
    elif not host:
        return [Problem(where, f"names no {'bucket' if parts.scheme == 's3' else 'host'}")]
    return []


def _input(item: Input, where: str, policy: Policy) -> list[Problem]:
    problems = _path(item.path, f"{where}.path")
    if item.content is not None:
        size = len(item.content.encode())
        if size > policy.limits.max_content_bytes:
            most = policy.limits.max_content_bytes
            problems.append(Problem(f"{where}.content", f"is {size} bytes; at most {most}, use a URL for more"))
        if item.type is FileType.DIRECTORY:
            problems.append(Problem(f"{where}.type", "content makes a FILE, not a DIRECTORY"))
        if item.path.endswith("/"):
            problems.append(Problem(f"{where}.path", "ends with '/', but content makes a file"))
    elif not item.url:
        problems.append(Problem(f"{where}.url", "is missing; give a URL, or the file itself as `content`"))
    else:
        problems += _url(item.url, f"{where}.url", policy.url_schemes_in, policy)
    return problems


def _output(output: Output, where: str, policy: Policy) -> list[Problem]:
    problems = _path(output.path, f"{where}.path")
    problems += _url(output.url, f"{where}.url", policy.url_schemes_out, policy)
    if problems or not has_wildcard(output.path):
        return problems
    if fixed_directory(output.path) == "/":
        return [
            Problem(
                f"{where}.path", "matches in the root directory, which belongs to the image; match below a directory"
            )
        ]
    prefix = output.path_prefix
    if prefix:
        problems += [] if prefix == "/" else _path(prefix, f"{where}.path_prefix")
        if not problems and not output.path.startswith(prefix):
            problems.append(Problem(f"{where}.path_prefix", f"{prefix!r} is not the beginning of path {output.path!r}"))
        elif has_wildcard(prefix):
            problems.append(Problem(f"{where}.path_prefix", "holds wildcards; give the fixed beginning of the path"))
    elif _ASKS_FOR_MATCHING.search(output.path):
        problems.append(
            Problem(f"{where}.path_prefix", "is required when path holds wildcards (TES: tesOutput.path_prefix)")
        )
    return problems


def _collisions(spec: TaskSpec) -> list[Problem]:
    problems: list[Problem] = []
    kinds: dict[str, tuple[str, bool]] = {}  # path → (where, is a directory)
    for i, item in enumerate(spec.inputs):
        path, where = item.path.rstrip("/"), f"$.inputs[{i}].path"
        if path in kinds:
            problems.append(Problem(where, f"{item.path!r} is the path of {kinds[path][0]} too"))
        else:
            kinds[path] = (where, item.content is None and (is_directory(item) or item.type is None))
    for i, volume in enumerate(spec.volumes):
        path, where = volume.rstrip("/"), f"$.volumes[{i}]"
        if path in kinds:
            problems.append(Problem(where, f"{volume!r} is the path of {kinds[path][0]} too"))
        kinds[path] = (where, True)
    for i, output in enumerate(spec.outputs):
        path, where = output.path.rstrip("/"), f"$.outputs[{i}].path"
        if output.type is FileType.FILE and path in {v.rstrip("/") for v in spec.volumes}:
            problems.append(Problem(where, f"{output.path!r} is a volume; its type has to be DIRECTORY"))
    placed = [(path, where) for path, (where, _) in kinds.items()]
    placed += [(o.path.rstrip("/"), f"$.outputs[{i}].path") for i, o in enumerate(spec.outputs)]
    for path, where in placed:
        for parent in _parents(path):
            if parent in kinds and not kinds[parent][1]:
                problems.append(Problem(where, f"{path!r} is below {kinds[parent][0]}, which is a file"))
    urls = Counter(o.url for o in spec.outputs if not has_wildcard(o.path))
    for i, output in enumerate(spec.outputs):
        if urls.get(output.url, 0) > 1 and not is_directory(output):
            problems.append(Problem(f"$.outputs[{i}].url", "another output goes to the same URL; give each its own"))
    return problems


def _parents(path: str) -> Iterator[str]:
    while (path := posixpath.dirname(path)) != "/" and path:
        yield path


def _resources(resources: Resources | None, policy: Policy) -> tuple[Resources | None, tuple[str, ...], list[Problem]]:
    """The resources with supported backend parameters alone (lower-case keys), notes on what was dropped, problems."""
    if resources is None:
        return None, (), []
    problems: list[Problem] = []
    limits = policy.limits
    for name, most in (
        ("cpu_cores", limits.max_cpu_cores),
        ("ram_gb", limits.max_ram_gb),
        ("disk_gb", limits.max_disk_gb),
    ):
        asked = getattr(resources, name)
        if asked is not None and not 0 <= asked < 1e9:
            problems.append(Problem(f"$.resources.{name}", "give a number above zero, or leave it out"))
        elif asked is not None and most is not None and asked > most:
            problems.append(Problem(f"$.resources.{name}", f"asks for {asked:g}; this service gives at most {most:g}"))
    kept: dict[str, str] = {}
    notes: list[str] = []
    supported = policy.backend_parameters & PARAMETERS.keys()
    known = ", ".join(sorted(supported)) or "none"
    for key, value in resources.backend_parameters.items():
        where, name = f"$.resources.backend_parameters.{key[:60]}", key.lower()
        if name not in supported:
            if resources.backend_parameters_strict:
                problems.append(Problem(where, f"is not supported; supported keys: {known}"))
            else:
                notes.append(
                    f"backend parameter {key[:60]!r} is not supported and was ignored; supported keys: {known}"
                )
        elif name in kept:
            problems.append(Problem(where, "is given twice; keys are case-insensitive"))
        else:
            kept[name] = value
            try:
                PARAMETERS[name].parse(value)
            except ValueError as error:
                problems.append(Problem(where, f"{value[:60]!r} cannot be used: {error}"))
    accepted = dataclasses.replace(
        resources,
        cpu_cores=resources.cpu_cores or None,  # 0 asks for nothing
        ram_gb=resources.ram_gb or None,
        disk_gb=resources.disk_gb or None,
        backend_parameters=kept,
    )
    return accepted, tuple(notes[:50]), problems
