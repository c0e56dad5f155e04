"""The backend parameters that Poiesis understands (spec: tesResources.backend_parameters; keys are case-insensitive).

One table of keys, parsers and meanings. `Policy.backend_parameters` has those that this service supports; service-info lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from poiesis.domain.policy import Policy

_DURATION: Final = re.compile(r"([0-9]{1,18})(s|m|h|d)?")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_DURATION: Final = timedelta(days=36500)  # still a date when added to any time of this century
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,61}[A-Za-z0-9])?")


def parse_duration(text: str) -> timedelta:
    """`90`, `90s`, `15m`, `2h` or `1d`, positive. Raises: ValueError."""
    match = _DURATION.fullmatch(text.strip().lower())
    if not match or int(match[1]) == 0:
        raise ValueError("must be a positive duration, such as 3600, 90s, 15m, 2h or 1d")
    seconds = int(match[1]) * _SECONDS[match[2] or "s"]
    if seconds > MAX_DURATION.total_seconds():
        raise ValueError(f"must be at most {MAX_DURATION.days}d")
    return timedelta(seconds=seconds)


def parse_bool(text: str) -> bool:
    if text.strip().lower() in {"true", "1", "yes"}:
        return True
    if text.strip().lower() in {"false", "0", "no"}:
        return False
    raise ValueError("must be true or false")


def parse_count(text: str) -> int:
    if not re.fullmatch(r"\d{1,4}", text.strip()):
        raise ValueError("must be a whole number from 0 to 9999")
    return int(text)


def parse_size_gb(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,9})?", text.strip()) or float(text) <= 0:
        raise ValueError("must be a positive number of gigabytes")
    return float(text)


def parse_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            "must be 1 to 63 letters, digits, '-', '_', '.' and '/', beginning and ending with a letter or digit"
        )
    return text


PARAMETERS: Final[Mapping[str, Callable[[str], object]]] = {
    "time_limit": parse_duration,  # of each executor: 3600, 90s, 15m, 2h or 1d
    "optional_outputs": parse_bool,  # true: a declared output that is missing is not an error
    "gpu": parse_count,  # for each executor
    "gpu_type": parse_name,  # value of the node label that the site maps it to
    "shm_gb": parse_size_gb,  # of /dev/shm
    "architecture": parse_name,  # of the node: amd64 or arm64
    "node_class": parse_name,  # of nodes that the site has defined
    "priority_class": parse_name,  # a Kubernetes PriorityClass that the site allows
    "service_class": parse_name,  # a bundle of settings that the site has defined, such as burst or guaranteed
    "queue": parse_name,  # Kueue's local queue, where the site uses Kueue
    "memory_retries": parse_count,  # with twice the memory each, after an out-of-memory kill
}


def time_limit(parameters: Mapping[str, str], policy: Policy) -> timedelta | None:
    """The limit of each executor: the requested one or the default, at most the site's maximum."""
    asked = parameters.get("time_limit")
    limit = parse_duration(asked) if asked else policy.default_time_limit
    if policy.max_time_limit is None:
        return limit
    return policy.max_time_limit if limit is None else min(limit, policy.max_time_limit)


def outputs_are_optional(parameters: Mapping[str, str]) -> bool:
    return parse_bool(parameters.get("optional_outputs", "false"))


def gpu_count(parameters: Mapping[str, str]) -> int:
    return parse_count(parameters.get("gpu", "0"))
