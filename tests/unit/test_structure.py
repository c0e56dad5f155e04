"""The size of functions. Complexity is checked by ruff (C901), the direction and circles of imports by import-linter (`make lint`)."""

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "poiesis"
MAX_LINES = 60
WHY = "# long because"  # in the line above a function that must be longer


def long_functions(source: str) -> Iterator[str]:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            length = node.end_lineno - node.lineno + 1
            if length > MAX_LINES and not lines[first - 2].strip().lower().startswith(WHY):
                yield f"{node.name}: {length} lines"


def test_functions_have_at_most_60_lines_or_a_comment_that_says_why() -> None:
    found = {str(path): list(long_functions(path.read_text())) for path in PACKAGE.rglob("*.py")}
    assert not {path: names for path, names in found.items() if names}


def test_a_long_function_is_found_and_a_comment_above_excuses_it() -> None:
    long = "def f():\n" + "    pass\n" * MAX_LINES
    assert list(long_functions(long)) == ["f: 61 lines"]
    assert not list(long_functions(f"# long because it is one table\n{long}"))
    assert not list(long_functions("def f():\n" + "    pass\n" * (MAX_LINES - 1)))


RESERVED = {*logging.makeLogRecord({}).__dict__, "message", "asctime"}


def reserved_log_fields(source: str) -> Iterator[str]:
    """Fields for which logging raises KeyError, in `extra` of a call or in a variable of that name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.keyword(arg="extra", value=ast.Dict(keys=keys))
                | ast.Assign(targets=[ast.Name(id="extra")], value=ast.Dict(keys=keys))
            ):
                yield from (str(k.value) for k in keys if isinstance(k, ast.Constant) and k.value in RESERVED)


def test_no_log_call_has_a_field_that_logging_refuses() -> None:
    found = {str(path): list(reserved_log_fields(path.read_text())) for path in PACKAGE.rglob("*.py")}
    assert not {path: names for path, names in found.items() if names}


def test_a_refused_log_field_is_found() -> None:
    assert list(reserved_log_fields('log.info("x", extra={"name": 1, "task_id": 2})')) == ["name"]
    assert list(reserved_log_fields('extra = {"message": 1}\nlog.info("x", extra=extra)')) == ["message"]
