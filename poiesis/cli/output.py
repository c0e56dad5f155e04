"""What commands print: documents, tables and errors. Colours and widths only on a terminal; `rich` is imported only for one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from poiesis.cli.text import one_line, printable
from poiesis.domain.errors import PoiesisError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text as RichText

STYLES: Final = {
    "COMPLETE": "green",
    "EXECUTOR_ERROR": "red",
    "SYSTEM_ERROR": "red",
    "CANCELED": "yellow",
    "CANCELING": "yellow",
    "PREEMPTED": "yellow",
    "RUNNING": "cyan",
}
KEPT_WHOLE: Final = ("ID", "STATE")
"""Columns that a narrow terminal does not shorten."""
GAP: Final = "  "
MIN_WIDTH: Final = 4
MAX_CELL: Final = 500
MIN_REPEAT_S: Final = 0.2


@dataclass(frozen=True)
class Table:
    """`rows` may have any text; it is made printable here."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    header: bool = True

    def plain(self) -> list[str]:
        """Lines with columns as wide as their widest value, for pipes and files."""
        rows = [[one_line(cell) for cell in row] for row in self.rows]
        rows = [[column.upper() for column in self.columns], *rows] if self.header and rows else rows
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    def rich(self, width: int) -> RichText:
        """Lines of at most `width` cells: the widest columns are cut first, ids and states never."""
        from rich.cells import cell_len, set_cell_size
        from rich.text import Text

        titles = [column.upper() for column in self.columns]
        rows = [[one_line(cell)[:MAX_CELL] for cell in row] for row in self.rows]
        widths = [max(map(cell_len, column)) for column in zip(titles, *rows, strict=True)]
        shrinkable = [index for index, title in enumerate(titles) if title not in KEPT_WHOLE]
        excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
        for _ in range(excess):
            widest = max(shrinkable, key=lambda index: widths[index], default=None)
            if widest is None or widths[widest] <= MIN_WIDTH:
                break
            widths[widest] -= 1
        text = Text(no_wrap=True, overflow="crop", end="")
        for number, row in enumerate([titles, *rows] if self.header else rows):
            text.append("\n" if number else "")
            for index, (cell, room) in enumerate(zip(row, widths, strict=True)):
                text.append(GAP if index else "")
                cut = cell if cell_len(cell) <= room else set_cell_size(cell, room - 1) + "\u2026"
                style = "bold" if self.header and number == 0 else STYLES.get(cell, "")
                text.append(set_cell_size(cut, room) if index < len(widths) - 1 else cut, style)
        return text


def is_terminal() -> bool:
    return sys.stdout.isatty()


def console() -> Console:
    """Return the console of the terminal, which honours NO_COLOR and TERM=dumb."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False, soft_wrap=False)


def show_table(table: Table) -> None:
    if not table.rows:
        return
    if is_terminal():
        screen = console()
        screen.print(table.rich(screen.width))
    else:
        print("\n".join(table.plain()))


def show_document(document: Any, form: str = "json", *, indent: int | None = 2) -> None:
    """`form`: json or yaml. `indent` None: JSON in one line."""
    print(as_text(document, form, indent=indent))


def show_list(key: str, items: Sequence[Any], columns: Mapping[str, Callable[[Any], str]], form: str | None) -> None:
    """Objects with ids, in one of `options.FORMATS`; None: a table. `key` is their name in a document, and what there is none of."""
    if form in ("json", "yaml"):
        show_document({key: list(items)}, form)
    elif form == "name":
        for item in items:
            print(printable(str(item.get("id") or item.get("name") or "")))
    elif items:
        show_table(Table(tuple(columns), [[cell(item) for cell in columns.values()] for item in items]))
    else:
        note(f"no {key.replace('_', ' ')}")


def as_text(document: Any, form: str, *, indent: int | None = 2) -> str:
    if form != "yaml":
        return printable(json.dumps(document, indent=indent, ensure_ascii=False))
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip("\n")
    # an escape is only valid in quotes, which PyYAML uses when it may not write Unicode
    return text if printable(text) == text else yaml.safe_dump(document, sort_keys=False).rstrip("\n")


def report(error: PoiesisError) -> None:
    from poiesis.observability import without_credentials

    note(without_credentials(str(error)))


def note(message: str) -> None:
    print(f"poiesis: {printable(message)}", file=sys.stderr, flush=True)


def repeat(every_s: float | None, content: Callable[[], Sequence[str | Table]]) -> None:
    """Show tables and lines, once or with `every_s` until Ctrl-C: on a terminal in place, else one after the other.

    An outage of the server is shown, and ends the command only the first time. Raises: PoiesisError, KeyboardInterrupt.
    """
    if every_s is None:
        for part in content():
            show_table(part) if isinstance(part, Table) else print(printable(part))
        return
    every_s = max(MIN_REPEAT_S, every_s)
    first = content()
    if not is_terminal():
        for parts in chain([first], _again(every_s, content)):
            print("\n".join(_lines(parts)), flush=True)
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    screen = console()

    def drawn(parts: Sequence[str | Table]) -> Group:
        return Group(*(part.rich(screen.width) if isinstance(part, Table) else Text(printable(part)) for part in parts))

    with Live(drawn(first), console=screen, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(every_s)
            try:
                live.update(drawn(content()), refresh=True)
            except PoiesisError as error:
                live.update(Text(printable(str(error)), style="red"), refresh=True)


def _again(every_s: float, content: Callable[[], Sequence[str | Table]]) -> Iterable[Sequence[str | Table]]:
    while True:
        time.sleep(every_s)
        try:
            yield content()
        except PoiesisError as error:
            report(error)


def _lines(parts: Sequence[str | Table]) -> Iterable[str]:
    return chain.from_iterable(part.plain() if isinstance(part, Table) else [printable(part)] for part in parts)
