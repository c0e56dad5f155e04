"""The rules of a task that the TES schema states only in words, and the site's limits. All problems are found at once.

`check` takes a `TaskSpec` whose types are right already and returns the spec to store, with notes on what was dropped from it. Its cost is
near-linear in the size of the task, and each problem it reports is short.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from poiesis.domain.errors import InvalidTask, Problem
from poiesis.domain.images import image_problem
from poiesis.domain.parameters import PARAMETERS
from poiesis.domain.paths import is_within, sort_key, without_slash
from poiesis.domain.patterns import unescape
from poiesis.domain.plan import FORBIDDEN_DIRECTORIES, MAX_MOUNTS, declares_directory, is_directory, plan
from poiesis.domain.policy import Policy
from poiesis.domain.task import Executor, FileType, Input, Output, Resources, TaskSpec

_UNUSABLE: Final = re.compile(r"\\(x00|ud[89a-f])")  # a NUL character or an unpaired surrogate, in a repr
_WITH_HOST: Final = frozenset({"http", "https", "ftp", "ftps", "sftp", "drs"})
_WITHOUT_USER: Final = frozenset({"s3", "gs", "az"})  # their credentials are the site's or those of a binding
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # RFC 3986
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_CONTENT: Final = re.compile(r"\$\.inputs\[\d+\]\.content")
MAX_PATH_BYTES: Final = 4096  # Linux: PATH_MAX
MAX_NAME_BYTES: Final = 255  # Linux: NAME_MAX
MAX_URL_BYTES: Final = 16 * 1024
_VARIABLE_NAME: Final = re.compile(r"[ -<>-~]+")  # Kubernetes: of environment variables
_ZONE: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")  # Kubernetes: of a label


def check(spec: TaskSpec, policy: Policy) -> tuple[TaskSpec, tuple[str, ...]]:
    """The spec to store and notes for its system log (what was dropped and why). Raises: InvalidTask with every problem."""
    unusable = list(_text_problems(dataclasses.asdict(spec), "$")) if _UNUSABLE.search(repr(spec)) else []
    if unusable:  # the other rules rely on valid text
        raise InvalidTask(unusable)
    resources, notes, problems = _resources(spec.resources, policy)
    accepted = dataclasses.replace(spec, resources=resources)
    problems = [*_problems(spec, policy), *problems] or [*_mounts(accepted, policy)]
    if problems:
        raise InvalidTask(problems)
    return accepted, notes


def _problems(spec: TaskSpec, policy: Policy) -> Iterator[Problem]:
    limits = policy.limits
    for name in ("executors", "inputs", "outputs", "volumes", "tags"):
        count, most = len(getattr(spec, name)), getattr(limits, f"max_{name}")
        if count > most:
            yield Problem(f"$.{name}", f"too many: {count}; at most {most}")
    if not spec.executors:
        yield Problem("$.executors", "must not be empty: a task needs at least one executor")
    for i, executor in enumerate(spec.executors):
        yield from _executor(executor, f"$.executors[{i}]", policy)
    for i, item in enumerate(spec.inputs):
        yield from _input(item, f"$.inputs[{i}]", policy)
    total, most = sum(len((i.content or "").encode()) for i in spec.inputs), limits.max_total_content_bytes
    if total > most:
        yield Problem(
            "$.inputs", f"too much content: {total} bytes in total; at most {most}, use URLs for larger content"
        )
    outputs: list[tuple[int, Output]] = []  # those that may be parsed
    for i, output in enumerate(spec.outputs):
        path_problem = _path(output.path, is_pattern=True)
        if path_problem is None:
            outputs.append((i, output))
        yield from _output(output, path_problem, f"$.outputs[{i}]", policy)
    for i, volume in enumerate(spec.volumes):
        yield from _at(f"$.volumes[{i}]", _path(volume))
    yield from _repeated_inputs(spec.inputs)
    yield from _files_with_something_below(list(_placed(spec, outputs)))
    yield from _conflicting_outputs(spec.volumes, outputs)
    texts = [(f"$.tags[{key[:40]!r}]", text) for key, value in spec.tags.items() for text in (key, value)]
    for where, text in (*texts, ("$.name", spec.name or ""), ("$.description", spec.description or "")):
        if len(text.encode()) > limits.max_text_bytes:
            yield Problem(where, f"too long: {len(text.encode())} bytes; at most {limits.max_text_bytes}")


def _mounts(spec: TaskSpec, policy: Policy) -> Iterator[Problem]:
    executors = len(spec.executors)
    paths = len(spec.inputs) + len(spec.outputs) + len(spec.volumes) + 3 * executors
    if executors * paths <= MAX_MOUNTS:
        return
    count = executors * len(plan(spec, policy).mounts)
    if count > MAX_MOUNTS:
        advice = "put files below few directories such as /data"
        yield Problem("$", f"too many mount points: {count} in all executors; at most {MAX_MOUNTS}, {advice}")


def _text_problems(value: Any, path: str) -> Iterator[Problem]:
    """Strings that no program argument, path or UTF-8 file can hold."""
    if isinstance(value, str):
        if "\0" in value and not _CONTENT.fullmatch(path):
            yield Problem(path, "invalid text: must not contain a NUL character")
        try:
            value.encode()
        except UnicodeEncodeError:
            yield Problem(path, "invalid text: contains an unpaired surrogate; must be valid Unicode")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _text_problems(key, path)
            yield from _text_problems(item, f"{path}.{str(key)[:40].encode(errors='replace').decode()}")
    elif isinstance(value, Sequence):
        for i, item in enumerate(value):
            yield from _text_problems(item, f"{path}[{i}]")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:99] + "…")


def _at(where: str, message: str | None) -> list[Problem]:
    return [Problem(where, message)] if message else []


def _path(path: str, *, is_pattern: bool = False, is_stdin: bool = False, is_file: bool = False) -> str | None:
    """The problem of an absolute path in a container that can be mounted or written. `is_pattern`: with the escapes of output paths.
    `is_stdin`: may be anything in the image, such as /dev/zero."""
    if not path.startswith("/"):
        reason = f"must be absolute, such as {_quoted('/data/' + (path or 'file'))}"
    elif len(path.encode()) > MAX_PATH_BYTES:
        reason = f"must be at most {MAX_PATH_BYTES} bytes"
    elif is_stdin:
        return None
    elif ".." in (names := (unescape(path) if is_pattern else path).split("/")) or "." in names:
        reason = "must not contain '.' or '..' as a component"
    elif "//" in path:
        reason = "must not contain '//'"
    elif len(path) > MAX_NAME_BYTES // 4 and max(map(len, map(str.encode, names))) > MAX_NAME_BYTES:
        reason = f"each component must be at most {MAX_NAME_BYTES} bytes"
    elif path == "/":
        reason = "the root directory belongs to the image; use a directory below it"
    elif (top := f"/{names[1]}") in FORBIDDEN_DIRECTORIES:
        reason = f"{top} belongs to the system; use another directory, such as /data"
    elif is_file and path.endswith("/"):
        reason = "must be the path of a file, without a trailing '/'"
    else:
        return None
    return f"invalid path {_quoted(path)}: {reason}"


def _executor(executor: Executor, where: str, policy: Policy) -> Iterator[Problem]:
    yield from _at(f"{where}.image", image_problem(executor.image))
    if not executor.command or not executor.command[0]:
        yield Problem(f"{where}.command", "missing program: must be the first element")
    most = policy.limits.max_command_bytes
    too_long = f"too long: must be less than {most} bytes; use an input with `content` instead"
    size = 0
    for i, argument in enumerate(executor.command):
        size += (length := len(argument.encode()) + 1)
        if length > most:
            yield Problem(f"{where}.command[{i}]", too_long)
    for name, value in executor.env.items():
        size += (length := len(name.encode()) + len(value.encode()) + 2)
        if not _VARIABLE_NAME.fullmatch(name):
            message = f"invalid variable name {_quoted(name)}: must be printable ASCII characters other than '='"
            yield Problem(f"{where}.env", message)
        elif length > most:
            yield Problem(f"{where}.env.{name[:40]}", too_long)
    if size > 5 * most:
        yield Problem(where, f"too long: command and env are {size} bytes together; at most {5 * most}")
    if executor.workdir not in (None, "/"):
        yield from _at(f"{where}.workdir", _path(executor.workdir))
    if executor.stdin is not None:
        yield from _at(f"{where}.stdin", _path(executor.stdin, is_stdin=True))
    for name, path in (("stdout", executor.stdout), ("stderr", executor.stderr)):
        if path is not None:
            yield from _at(f"{where}.{name}", _path(path, is_file=True))


def _url(url: str, schemes: frozenset[str], policy: Policy) -> str | None:
    """The problem of a URL, without the URL in it, which may hold a password."""
    if len(url.encode()) > MAX_URL_BYTES:
        return f"invalid URL: must be at most {MAX_URL_BYTES} bytes"
    known = ", ".join(sorted(schemes)) or "none"
    if not url.startswith("/") and not _SCHEME.match(url):  # urlsplit drops blanks and control characters
        return f"invalid URL: missing scheme; use one of: {known}, such as s3://bucket/key"
    try:
        parts = urlsplit("file://" + url if url.startswith("/") else url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return "invalid URL: host and port must be host, host:port or [IPv6 address]:port, with a port from 0 to 65535"
    if parts.scheme not in schemes:
        return f"unsupported URL scheme {_quoted(parts.scheme)}: must be one of: {known}"
    if parts.scheme == "file":
        path = parts.path
        if host not in (None, "", "localhost"):
            return "invalid file URL: must not have a host; use file:///path"
        if ".." in path.split("/"):
            return "invalid file URL: must not contain '..'"
        if not any(is_within(posixpath.normpath(path), root) for root in policy.file_roots):
            roots = ", ".join(policy.file_roots) or "none are configured"
            return f"forbidden file URL: {_quoted(path)} is outside the directories that this service may use: {roots}"
    elif not host:
        part, example = ("host", "host/path") if parts.scheme in _WITH_HOST else ("bucket", "bucket/key")
        return f"invalid URL: missing {part}; use {parts.scheme}://{example}"
    elif parts.scheme in _WITH_HOST and (_CONTROL.search(url) or any(map(str.isspace, parts.netloc))):
        return "invalid URL: must not contain control characters, or blanks in the host; percent-encode them"
    elif parts.scheme in _WITHOUT_USER and "@" in parts.netloc:
        return f"invalid URL: must not contain a user or password; use {parts.scheme}://bucket/key"
    return None


def _input(item: Input, where: str, policy: Policy) -> Iterator[Problem]:
    yield from _at(f"{where}.path", _path(item.path))
    if item.content is not None:
        size, most = len(item.content.encode()), policy.limits.max_content_bytes
        if size > most:
            yield Problem(f"{where}.content", f"too long: {size} bytes; at most {most}, use a URL for more")
        if item.type is FileType.DIRECTORY:
            yield Problem(f"{where}.type", "invalid type DIRECTORY: must be FILE for an input with `content`")
        if item.path.endswith("/"):
            yield Problem(f"{where}.path", "invalid path: must not end with '/' for an input with `content`")
    elif not item.url:
        yield Problem(f"{where}.url", "missing: give a URL, or the file itself as `content`")
    else:
        yield from _at(f"{where}.url", _url(item.url, policy.url_schemes_in, policy))


def _output(output: Output, path_problem: str | None, where: str, policy: Policy) -> Iterator[Problem]:
    problems = _at(f"{where}.path", path_problem)
    problems += _at(f"{where}.url", _url(output.url, policy.url_schemes_out, policy))
    yield from problems
    if problems or not output.pattern.has_wildcard:
        return
    pattern, prefix = output.pattern, output.path_prefix
    if pattern.fixed_directory == "/":
        message = "invalid pattern: the root directory belongs to the image; match below a directory"
        yield Problem(f"{where}.path", message)
    elif not prefix:
        if pattern.needs_matching:
            yield Problem(f"{where}.path_prefix", "missing: required when path contains wildcards (TES 1.1)")
    elif len(prefix) > MAX_PATH_BYTES or not pattern.fixed_text.startswith(unescape(prefix)):
        expected = f"must be a leading part of path without wildcards, such as {_quoted(pattern.fixed_directory)}"
        yield Problem(f"{where}.path_prefix", f"invalid prefix {_quoted(prefix)}: {expected}")


@dataclass(frozen=True)
class _Placed:
    """What the task has at a path: `is_file`, `is_directory` where that is certain."""

    path: str
    where: str
    is_file: bool = False
    is_directory: bool = False


def _placed(spec: TaskSpec, outputs: Sequence[tuple[int, Output]]) -> Iterator[_Placed]:
    """An output of type FILE is not certainly a file: clients declare directories so."""
    for i, item in enumerate(spec.inputs):
        is_file = item.content is not None or not (is_directory(item) or item.type is None)
        yield _Placed(item.path, f"$.inputs[{i}].path", is_file, not is_file and declares_directory(item))
    for i, executor in enumerate(spec.executors):
        for name in ("stdin", "stdout", "stderr"):
            if path := getattr(executor, name):
                yield _Placed(path, f"$.executors[{i}].{name}", is_file=True)
    for i, volume in enumerate(spec.volumes):
        yield _Placed(volume, f"$.volumes[{i}]", is_directory=True)
    for i, output in outputs:
        if output.pattern.has_wildcard:
            yield _Placed(output.pattern.fixed_directory, f"$.outputs[{i}].path", is_directory=True)
        else:
            yield _Placed(output.pattern.literal, f"$.outputs[{i}].path", is_directory=declares_directory(output))
    for i, executor in enumerate(spec.executors):
        if executor.workdir:
            yield _Placed(executor.workdir, f"$.executors[{i}].workdir", is_directory=True)


def _conflicting_outputs(volumes: Sequence[str], outputs: Sequence[tuple[int, Output]]) -> Iterator[Problem]:
    directories = set(map(without_slash, volumes))
    sources: dict[str, set[str]] = {}  # by URL
    literals = {i: without_slash(output.pattern.literal) for i, output in outputs if not output.pattern.has_wildcard}
    for i, output in outputs:
        if i in literals:
            sources.setdefault(output.url, set()).add(literals[i])
    for i, output in outputs:
        where = f"$.outputs[{i}]"
        if output.type is FileType.FILE and literals.get(i) in directories:
            yield Problem(f"{where}.path", f"conflict: {_quoted(output.path)} is a volume; its type must be DIRECTORY")
        if len(sources.get(output.url, ())) > 1 and not is_directory(output):
            yield Problem(f"{where}.url", "conflict: another output has the same URL; each needs its own")


def _repeated_inputs(inputs: Sequence[Input]) -> Iterator[Problem]:
    """The same file at the same path twice is not a conflict."""
    first: dict[str, int] = {}
    for i, item in enumerate(inputs):
        j = first.setdefault(without_slash(item.path), i)
        if (inputs[j].url, inputs[j].content) != (item.url, item.content):
            message = f"conflict: {_quoted(item.path)} is also the path of $.inputs[{j}], which differs from this one"
            yield Problem(f"$.inputs[{i}].path", message)


def _files_with_something_below(placed: Sequence[_Placed]) -> Iterator[Problem]:
    """In the order of their paths, everything in a directory follows it: so only the last file can have the next path below it."""
    file: _Placed | None = None
    file_key = ""
    for key, item in sorted(((sort_key(item.path), item) for item in placed), key=lambda i: (i[0], not i[1].is_file)):
        if file is not None and key.startswith(file_key):
            if key != file_key:
                yield Problem(item.where, f"conflict: {_quoted(item.path)} is below {file.where}, which is a file")
            elif item.is_directory:
                yield Problem(
                    item.where, f"conflict: {_quoted(item.path)} is a directory here, but a file in {file.where}"
                )
        elif item.is_file:
            file, file_key = item, key


def _resources(resources: Resources | None, policy: Policy) -> tuple[Resources | None, tuple[str, ...], list[Problem]]:
    """The resources with only the supported backend parameters (lower-case keys), notes on what was dropped, problems."""
    if resources is None:
        return None, (), []
    problems: list[Problem] = []
    for name in ("cpu_cores", "ram_gb", "disk_gb"):
        asked, most = getattr(resources, name), getattr(policy.limits, f"max_{name}")
        if asked is not None and not 0 <= asked < 1e9:
            problems.append(Problem(f"$.resources.{name}", "invalid number: must be at least 0 and less than 1e9"))
        elif asked is not None and most is not None and asked > most:
            message = f"too much: {asked:g}; this service allows at most {most:g}"
            problems.append(Problem(f"$.resources.{name}", message))
    for i, zone in enumerate(resources.zones):
        if not _ZONE.fullmatch(zone):
            message = (
                f"invalid zone {_quoted(zone)}: must be a label value, such as 'eu-west-1a', of at most 63 characters"
            )
            problems.append(Problem(f"$.resources.zones[{i}]", message))
    kept: dict[str, str] = {}
    notes: list[str] = []
    supported = policy.backend_parameters & PARAMETERS.keys()
    known = ", ".join(sorted(supported)) or "none"
    for key, value in resources.backend_parameters.items():
        where, name = f"$.resources.backend_parameters.{key[:60]}", key.lower()
        if name not in supported:
            if resources.backend_parameters_strict:
                problems.append(Problem(where, f"unsupported backend parameter: must be one of: {known}"))
            else:
                notes.append(f"ignored unsupported backend parameter {key[:60]!r}; supported keys: {known}")
        elif name in kept:
            problems.append(Problem(where, "duplicate key: keys are case-insensitive"))
        else:
            kept[name] = value
            try:
                PARAMETERS[name](value)
            except ValueError as error:
                problems.append(Problem(where, f"invalid value {_quoted(value)}: {error}"))
    accepted = dataclasses.replace(
        resources,
        cpu_cores=resources.cpu_cores or None,  # 0 requests nothing
        ram_gb=resources.ram_gb or None,
        disk_gb=resources.disk_gb or None,
        backend_parameters=kept,
    )
    return accepted, tuple(notes[:50]), problems
