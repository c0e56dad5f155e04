"""Mutated task documents, as bytes: a valid document with one to four structured changes, and sometimes a change of its bytes.

Documents are changed as trees whose leaves may be `Raw` text, because much of what clients get wrong (duplicate keys, lone surrogates,
numbers beyond any type, nesting beyond any stack) cannot be written by a JSON library.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any, Final


class Raw(str):
    """JSON text that is written as it is."""


class Pairs(tuple[tuple[str, Any], ...]):
    """An object whose keys may repeat. Not changed any further."""


def encode(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(k)}:{encode(v)}" for k, v in value) + "}"
    if isinstance(value, dict):
        return encode(Pairs(value.items()))
    if isinstance(value, list):
        return "[" + ",".join(map(encode, value)) + "]"
    return json.dumps(value)


def nested(depth: int, opening: str = "[", closing: str = "]") -> Raw:
    return Raw(opening * depth + ("1" if opening != "[" else "") + closing * depth)


NUMBERS: Final[tuple[Any, ...]] = (
    0, -0.0, -1, 1, 1.0, 1.5, 2047, 2048, 2**31 - 1, 2**31, -(2**31) - 1, 2**53, 2**63, 2**64, 1e308, -1e308, 5e-324,
    *map(Raw, ("1e999", "-1e999", "1E-999", "NaN", "Infinity", "-Infinity", "0x10", "01", "+1", ".5", "1.", "1_0", "--1")),
    Raw("9" * 400), Raw("-" + "9" * 5000), Raw("1" + "0" * 100_000), Raw("0." + "1" * 5000), Raw("1e" + "9" * 300),
)  # fmt: skip
TEXTS: Final[tuple[Any, ...]] = (
    "", " ", "\t\n", "\0", "a\0b", "/", "//", "/..", "/../..", "..", ".", "~", "/data/./x", "/data//x", "/data/x/", "\\", "a:b",
    "\ufeff", "\u202eabc", "é", "e\u0301", "😀", "\x7f", "\x1b[31m", "%00", "%2e%2e%2f", "%", "${HOME}", "{{7*7}}", "`id`", "'\"", "<b>",
    "FILE", "DIRECTORY", "file", "COMPLETE", "UNKNOWN", "null", "true", "1", "2020-10-02T10:00:00Z",
    "s3://", "s3:///k", "s3://b", "s3://b/k", "s3://b/../k", "S3://B/K", "file:///etc/passwd", "file://host/x", "http://",
    "http://[::1", "://x",
    "http://h:99999/", "http://u:p@h/x", "ftp://h/\r\nDELE x", "gs://b/k", "drs://h/id", "data:,x", "javascript:x", "/data/*",
    "/data/[", "/data/[!a]",
    "/data/{a,b}", "/data/**/x", "/proc/self/environ", "/dev/null", "/", "/etc/passwd", "/a" * 300, "/" + "a" * 300, "x" * 70_000,
    "é" * 200_000,
    *map(Raw, ('"\\ud800"', '"\\udc00\\ud800"', '"a\\ud83d"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\x41"', '"\\"', '"unterminated',
    '"\ttab"')),
)  # fmt: skip
OTHERS: Final[tuple[Any, ...]] = (
    None, True, False, [], {}, [[]], [{}], [None], {"": None}, {"a": {"a": {}}}, ["x"] * 3000, {str(i): i for i in range(2000)},
    nested(100), nested(1_000), nested(100_000), nested(300, '{"a":', "}"), nested(50_000, '{"a":', "}"),
    Raw(""), Raw("undefined"), Raw("/* c */ 1"), Raw("[1,]"), Raw('{"a":1,}'), Raw("{'a':1}"), Raw("{1:2}"),
    Raw('{"__proto__":{"x":1}}'),
)  # fmt: skip
NAMES: Final = (
    "id", "state", "name", "description", "inputs", "outputs", "resources", "executors", "volumes", "tags", "logs", "creation_time",
    "url",
    "path", "type", "content", "image", "command", "env", "workdir", "stdin", "stdout", "cpu_cores", "ram_gb", "zones",
    "backend_parameters",
    "backend_parameters_strict", "ignore_error", "path_prefix", "streamable", "", " ", "\0", "Name", "EXECUTORS", "x", "é", "$ref",
    "__class__", "a.b", "$where",
)  # fmt: skip

TASKS: Final[tuple[dict[str, Any], ...]] = (
    {"executors": [{"image": "alpine", "command": ["true"]}]},
    {
        "name": "all of it",
        "description": "every field",
        "inputs": [
            {"url": "s3://b/in", "path": "/data/in", "type": "DIRECTORY", "name": "n", "description": "d", "streamable": True},
            {"content": "text", "path": "/data/text", "type": "FILE"},
        ],
        "outputs": [
            {"url": "s3://b/out", "path": "/data/*.txt", "path_prefix": "/data", "name": "n", "type": "FILE"},
            {"url": "s3://b/dir/", "path": "/out", "type": "DIRECTORY"},
        ],
        "resources": {
            **{"cpu_cores": 2, "ram_gb": 1.5, "disk_gb": 10, "preemptible": False, "zones": ["a"]},
            **{"backend_parameters": {"time_limit": "1h", "other": "x"}, "backend_parameters_strict": False},
        },
        "executors": [
            {
                **{"image": "alpine:3", "command": ["sh", "-c", "true"], "workdir": "/data", "stdin": "/data/text"},
                **{"stdout": "/out/o", "stderr": "/out/e", "env": {"A": "b"}, "ignore_error": True},
            },
            {"image": "quay.io/x/y@sha256:" + "a" * 64, "command": ["cat", "/data/text"]},
        ],
        "volumes": ["/vol", "/vol2"],
        "tags": {"k": "v", "project": "p"},
    },
    {
        **dict.fromkeys(("id", "state", "description", "logs", "creation_time", "tags", "outputs")),
        "name": "galaxy",
        "inputs": [{"name": None, "url": None, "path": "/shared/x", "type": "FILE", "content": "x"}],
        "volumes": ["/shared"],
        "resources": {"cpu_cores": 1, "ram_gb": None, "zones": None, "backend_parameters": None},
        "executors": [{"image": i, "command": ["true"], "workdir": "/", "env": None} for i in ("a", "b", "c")],
    },
)  # fmt: skip
"""Valid documents of different clients."""

Place = tuple[Any, Any]  # a container, and a key or index of it


def places(node: Any) -> list[Place]:
    """Every position in a document."""
    found: list[Place] = []
    todo = [node]
    while todo:
        here = todo.pop()
        if isinstance(here, dict) and here:
            found += [(here, key) for key in here]
            todo += here.values()
        elif isinstance(here, list) and len(here) < 100:
            found += [(here, index) for index in range(len(here))]
            todo += here
    return found


def any_value(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(chance.choice((NUMBERS, TEXTS, OTHERS))))


def _replace(chance: random.Random, holder: Any, key: Any) -> None:
    holder[key] = any_value(chance)


def _replace_by_the_same_type(chance: random.Random, holder: Any, key: Any) -> None:
    """What validation by type lets through."""
    value = holder[key]
    if isinstance(value, bool) or value is None:
        holder[key] = chance.choice((True, False, None))
    elif isinstance(value, int | float):
        holder[key] = chance.choice(NUMBERS)
    elif isinstance(value, str):
        holder[key] = chance.choice(TEXTS)
    elif isinstance(value, list):
        small = len(encode(value)) < 10_000  # a document of more than ten megabytes tests nothing but the limit
        holder[key] = value * chance.choice((0, 2, 3, 40, 700) if small else (0, 2))
    else:
        _add_key(chance, holder, key)


def _delete(_: random.Random, holder: Any, key: Any) -> None:
    del holder[key]


def _add_key(chance: random.Random, holder: Any, key: Any) -> None:
    target = holder[key] if isinstance(holder[key], dict) else holder
    if isinstance(target, dict):
        target[chance.choice(NAMES)] = any_value(chance)
    else:
        target.append(any_value(chance))


def _duplicate_key(chance: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    if isinstance(value, dict) and value:
        again = chance.choice(list(value))
        holder[key] = Pairs([*value.items(), (again, chance.choice((value[again], any_value(chance))))])
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(value))


def _rename(chance: random.Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[chance.choice((key.upper(), key + "s", key + "\0", f" {key}", chance.choice(NAMES)))] = holder.pop(key)


def _change_text(chance: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    if isinstance(value, str) and not isinstance(value, Raw):
        at = chance.randint(0, len(value))
        part = chance.choice(
            ("\0", "/", "..", "*", "[", "\ud800", "\n", "😀", "%", "a" * 5000, " ", ":", "@", "#", "?")
        )
        holder[key] = value[:at] + part + value[chance.choice((at, at + 1)) :]


def _wrap(chance: random.Random, holder: Any, key: Any) -> None:
    holder[key] = chance.choice(([holder[key]], {"value": holder[key]}, [[holder[key]]], json.dumps(str(holder[key]))))


CHANGES: Final[tuple[Callable[[random.Random, Any, Any], None], ...]] = (
    _replace, _replace_by_the_same_type, _replace_by_the_same_type, _delete, _add_key, _duplicate_key, _rename, _change_text,
    _change_text, _wrap,
)  # fmt: skip


def change_bytes(chance: random.Random, body: bytes) -> bytes:
    at = chance.randint(0, max(len(body) - 1, 0))
    return chance.choice(
        (
            lambda: body[:at],
            lambda: body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :],
            lambda: body[:at] + chance.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\xf4\x90\x80\x80")) + body[at:],
            lambda: b"\xef\xbb\xbf" + body,
            lambda: body.decode("utf-8", "replace").encode("utf-16"),
            lambda: body + chance.choice((b"}", body, b"\x00", b" " * 100_000, b"// end")),
            lambda: body[at:] + body[:at],
            lambda: b"",
        )
    )()  # fmt: skip


def mutated(chance: random.Random, valid: dict[str, Any]) -> bytes:
    """The bytes of `valid` with one to four changes; in one of ten, of its bytes too."""
    holder: dict[str, Any] = {"document": copy.deepcopy(valid)}
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        inner = places(holder)
        place, key = chance.choice(inner[1:] if len(inner) > 1 and chance.random() < 0.98 else inner)
        chance.choice(CHANGES)(chance, place, key)
        if "document" not in holder:
            return b""
    body = encode(holder["document"]).encode("utf-8", "surrogatepass")
    return change_bytes(chance, body) if chance.random() < 0.1 else body
