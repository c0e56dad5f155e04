"""A task document as a form, and back, without losing anything that the form does not show.

The form carries the document that it was filled from (`base`). A field that comes back as it was shown keeps its value of the document
exactly, also where its text could not express it; the keys that have no field stay as they are. Only a field that was changed is read.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from poiesis.api.errors import NotJson
from poiesis.api.normalize import parse
from poiesis.api.ui.text import STEERS
from poiesis.domain.errors import Problem

Document = dict[str, Any]

MAX_ROWS: Final = 60
"""Executors, inputs and outputs together: each is several parts of a form, of which a request has at most 1,000."""
MAX_BASE_BYTES: Final = 100_000
"""Limit of a document in the form: its fields repeat it, and a form has at most 500 kB."""
MAX_JSON_BYTES: Final = 300_000
"""Limit of a document that is edited as JSON."""
_MAP_LINE: Final = re.compile(r"([^=]+)=(.*)", re.DOTALL)


class Unreadable(ValueError):
    """What is wrong with the text of a field."""


@dataclass(frozen=True)
class Kind:
    """How a field is shown and read; `read` gives None for nothing. `lines`: whether its text may have line breaks."""

    show: Callable[[Any], str]
    read: Callable[[str], Any]
    lines: bool = False


def _number(text: str) -> float | int | None:
    text = text.strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e15:  # also not a number
        raise Unreadable("must be a number, such as 2 or 0.5")
    return int(value) if value.is_integer() else value


def _command(text: str) -> list[str] | None:
    try:
        return shlex.split(text) or None
    except ValueError as error:
        raise Unreadable(f"invalid quoting: {str(error).lower()}; quote arguments as in a shell") from None


def _map(text: str) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _MAP_LINE.fullmatch(line)
        if match is None:
            raise Unreadable(f"invalid line {number}: must be NAME=VALUE")
        name = match[1].strip()
        if name in found:
            raise Unreadable(f"duplicate {name[:60]!r} in line {number}: give each name once")
        found[name] = match[2]
    return found or None


TEXT: Final = Kind(lambda value: value, lambda text: text.strip() or None)
CONTENT: Final = Kind(lambda value: value, lambda text: text or None, lines=True)
NUMBER: Final = Kind(lambda value: f"{value:g}" if abs(value) < 1e6 else str(value), _number)
COMMAND: Final = Kind(shlex.join, _command, lines=True)
MAP: Final = Kind(lambda value: "\n".join(f"{k}={v}" for k, v in value.items()), _map, lines=True)
LINES: Final = Kind(
    "\n".join, lambda text: [line.strip() for line in text.split("\n") if line.strip()] or None, lines=True
)
WORDS: Final = Kind(", ".join, lambda text: [word for word in re.split(r"[\s,]+", text) if word] or None)
FLAG: Final = Kind(lambda value: "on" if value else "", lambda text: bool(text) or None)

TOP: Final[Mapping[str, Kind]] = {"name": TEXT, "description": TEXT, "volumes": LINES, "tags": MAP}
RESOURCES: Final[Mapping[str, Kind]] = {
    "cpu_cores": NUMBER,
    "ram_gb": NUMBER,
    "disk_gb": NUMBER,
    "preemptible": FLAG,
    "zones": WORDS,
    "backend_parameters": MAP,
}
ROWS: Final[Mapping[str, Mapping[str, Kind]]] = {
    "executors": {
        "image": TEXT,
        "command": COMMAND,
        "env": MAP,
        "workdir": TEXT,
        "stdin": TEXT,
        "stdout": TEXT,
        "stderr": TEXT,
        "ignore_error": FLAG,
    },
    "inputs": {"url": TEXT, "path": TEXT, "type": TEXT, "content": CONTENT},
    "outputs": {"path": TEXT, "url": TEXT, "type": TEXT, "path_prefix": TEXT},
}


@dataclass
class Row:
    """`base`: the index of its item in the document, as text; empty: a new one."""

    base: str = ""
    values: dict[str, str] = field(default_factory=dict)


def _new_row(name: str) -> Row:
    return Row("", dict.fromkeys(ROWS[name], ""))


@dataclass
class Form:
    """What the page shows: the texts of all fields, and the document that it was filled from, as JSON."""

    base: str
    values: dict[str, str]
    rows: dict[str, list[Row]]

    @classmethod
    def of_document(cls, document: Document) -> Form:
        """Return the form for a document that `reason_against` allows."""
        values = _shown(document, TOP) | _shown(document.get("resources", {}), RESOURCES, "resources-")
        rows = {
            name: [Row(str(i), _shown(item, kinds)) for i, item in enumerate(document.get(name, ()))]
            for name, kinds in ROWS.items()
        }
        rows["executors"] = rows["executors"] or [_new_row("executors")]
        return cls(json.dumps(document), values, rows)

    @classmethod
    def of_fields(cls, fields: Mapping[str, str]) -> Form:
        """Return the form that was sent. Unknown fields are ignored."""
        given = {name: text.replace("\r\n", "\n").replace("\r", "\n") for name, text in fields.items()}
        names = [*TOP, *(f"resources-{name}" for name in RESOURCES)]
        rows: dict[str, list[Row]] = {}
        left = MAX_ROWS
        for name, kinds in ROWS.items():
            count = min(_index(given.get(f"{name}-count", "")) or 0, left)
            left -= count
            rows[name] = [
                Row(given.get(f"{name}-{i}-base", ""), {key: given.get(f"{name}-{i}-{key}", "") for key in kinds})
                for i in range(count)
            ]
        return cls(fields.get("base", "{}"), {name: given.get(name, "") for name in names}, rows)

    def change_rows(self, action: str) -> str | None:
        """Carry out `add-NAME` or `remove-NAME-INDEX`, and return the name of a field to go on with; None: it is another action."""
        verb, _, rest = action.partition("-")
        name, _, place = rest.partition("-")
        if verb not in ("add", "remove") or name not in ROWS:
            return None
        rows = self.rows[name]
        if verb == "add" and sum(map(len, self.rows.values())) < MAX_ROWS:
            rows.append(_new_row(name))
        index = _index(place)
        if verb == "remove" and index is not None and index < len(rows):
            del rows[index]
        if name == "executors" and not rows:
            rows.append(_new_row(name))
        return f"{name}-{len(rows) - 1}-{next(iter(ROWS[name]))}" if rows else f"add-{name}"

    def document(self) -> tuple[Document, list[Problem]]:
        """The document that the fields describe, and problems of those that cannot be read."""
        base = _base(self.base)
        problems: list[Problem] = []
        found = dict(base)
        _apply(found, base, TOP, self.values, "", problems)
        resources = dict(base.get("resources", {}))
        _apply(resources, base.get("resources", {}), RESOURCES, self.values, "resources-", problems, "$.resources")
        _put(found, "resources", resources, present="resources" in base)
        for name, kinds in ROWS.items():
            items: list[Document] = []
            for row in self.rows[name]:
                index = _index(row.base)
                known = base.get(name, ())
                old = known[index] if index is not None and index < len(known) else {}
                if not old and not any(row.values.values()):
                    continue  # an empty new row
                item = dict(old)
                _apply(item, old, kinds, row.values, "", problems, f"$.{name}[{len(items)}]")
                items.append(item)
            _put(found, name, items, present=name in base)
        return found, problems

    def places(self) -> dict[str, str]:
        """JSON path of each field → the field's name: where problems are shown."""
        found = {f"$.{name}": name for name in TOP}
        found |= {f"$.resources.{name}": f"resources-{name}" for name in RESOURCES}
        for name, kinds in ROWS.items():
            number = 0
            for i, row in enumerate(self.rows[name]):
                if not row.base and not any(row.values.values()):
                    continue
                found |= {f"$.{name}[{number}].{key}": f"{name}-{i}-{key}" for key in kinds}
                number += 1
        return found


def reason_against(document: Any) -> str | None:
    """Why a document cannot be shown as a form; None: it can."""
    if not isinstance(document, dict):
        return "a task is an object"
    if len(json.dumps(document)) > MAX_BASE_BYTES:
        return f"it is larger than {MAX_BASE_BYTES // 1000} kB"
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "it has an unpaired surrogate"
    resources = document.get("resources", {})
    if not isinstance(resources, dict):
        return "resources is not an object"
    parts = [("", document, TOP), ("resources.", resources, RESOURCES)]
    for name, kinds in ROWS.items():
        items = document.get(name, [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            return f"{name} is not a list of objects"
        parts += [(f"{name}[{i}].", item, kinds) for i, item in enumerate(items)]
    if len(parts) - 2 > MAX_ROWS:
        return f"it has more than {MAX_ROWS} executors, inputs and outputs"
    for place, part, kinds in parts:
        for key, kind in kinds.items():
            if key in part and not _fits(part[key], kind):
                return f"{place}{key} has the wrong type"
    return None


def _fits(value: Any, kind: Kind) -> bool:
    if kind is FLAG:
        return isinstance(value, bool)
    if kind is NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is MAP:
        return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    if kind in (COMMAND, LINES, WORDS):
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(value, str)


def _shown(part: Mapping[str, Any], kinds: Mapping[str, Kind], prefix: str = "") -> dict[str, str]:
    return {prefix + name: kind.show(part[name]) if name in part else "" for name, kind in kinds.items()}


def _apply(
    found: Document,
    base: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    values: Mapping[str, str],
    prefix: str,
    problems: list[Problem],
    path: str = "$",
) -> None:
    for name, kind in kinds.items():
        text = values.get(prefix + name, "")
        shown = kind.show(base[name]) if name in base else ""
        if _as_sent(text, kind) == _as_sent(shown, kind):
            continue
        try:
            value = kind.read(text)
        except Unreadable as error:
            problems.append(Problem(f"{path}.{name}", str(error)))
            continue
        if value is None:
            found.pop(name, None)
        else:
            found[name] = value


def _as_sent(text: str, kind: Kind) -> str:
    """Return the text as browsers send it: with one kind of line breaks, and without any from a field of one line."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if kind.lines else text.replace("\n", "")


def _put(found: Document, name: str, value: Any, *, present: bool) -> None:
    if value or present:
        found[name] = value


def _base(text: str) -> Document:
    """An empty document for anything that is not usable, which a page of this service does not send."""
    try:
        base = parse(text.encode())
    except (NotJson, UnicodeEncodeError):
        return {}
    return base if reason_against(base) is None else {}


def _index(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) else None


# ── the same task by other means ────────────────────────────────────────────────────────────────────────────────────────────────────


def pretty(document: Document) -> str:
    """Return the document as JSON that can be copied into a terminal: control characters and unpaired surrogates are escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return STEERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def curl_command(document: Document, url: str, credentials: str) -> str:
    """`credentials`: arguments that name environment variables, not their values."""
    options = f" {credentials}" if credentials else ""
    body = _here_document(document)
    return f"curl{options} -H 'Content-Type: application/json' --data-binary @- {shlex.quote(url + '/tasks')} {body}"


def cli_command(document: Document, url: str, method: str = "") -> str:
    """`method`: how the user is authenticated. Credentials are named as in `curl_command`."""
    prefix, address = "", shlex.quote(url)
    if method == "basic":
        scheme, separator, rest = url.partition("://")
        address = f'{shlex.quote(scheme + separator)}"$TES_USER:$TES_PASSWORD"@{shlex.quote(rest)}'
    elif method == "api_key":
        prefix = 'POIESIS_TOKEN="$TES_KEY" '
    return f"{prefix}poiesis task create --url {address} - {_here_document(document)}"


def how_to_authenticate(url: str, method: str, has_keys: bool) -> str:
    """One sentence on what to do before the commands; empty: nothing. `has_keys`: the site has API keys."""
    own_key = "an API key (from `poiesis key create`, or your administrator)"
    return {
        "basic": "First set TES_USER and TES_PASSWORD in the shell (export) to the name and the password that you log in with.",
        "bearer": "First set TES_TOKEN in the shell (export) to the token that you log in with.",
        "api_key": f"First set TES_KEY in the shell (export) to {own_key}.",
        "oidc": f"First log in with `poiesis login --url {shlex.quote(url)}`; for curl, set TES_TOKEN in the shell (export) to "
        + (own_key if has_keys else "an access token of your provider")
        + ".",
    }.get(method, "")


def _here_document(document: Document) -> str:
    """Quoted, so that the shell changes nothing; its end cannot be a line of JSON."""
    return f"<<'END-OF-TASK'\n{pretty(document)}\nEND-OF-TASK"
