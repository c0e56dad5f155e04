"""The methods that a path of the API supports, for the header Allow of a 405."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_METHODS = ("get", "post", "put", "patch", "delete")


class AllowedMethods:
    def __init__(self, specification: Mapping[str, Any], base_paths: Iterable[str]) -> None:
        self._bases = "|".join(re.escape(base) for base in base_paths)
        paths = sorted(specification["paths"], key=len, reverse=True)  # `/tasks/{id}:cancel` before `/tasks/{id}`
        self._known = [(self._pattern(path), _allowed(specification["paths"][path])) for path in paths]

    def allowed(self, path: str) -> str:
        """Return the value of the header Allow."""
        return next((methods for pattern, methods in self._known if pattern.fullmatch(path)), "")

    def _pattern(self, path: str) -> re.Pattern[str]:
        return re.compile(f"(?:{self._bases})" + re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)))


def _allowed(item: Mapping[str, Any]) -> str:
    methods = [method.upper() for method in _METHODS if method in item]
    return ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
