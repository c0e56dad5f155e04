"""The backend parameters that Poiesis understands (spec: tesResources.backend_parameters; keys are case-insensitive).

One table: key, what its value has to look like, what it means. `Policy.backend_parameters` says which of them this service takes;
service-info advertises those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from poiesis.domain.policy import Policy

_DURATION: Final = re.compile(r"([0-9]{1,18})(s|m|h|d)?")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_DURATION: Final = timedelta(days=36500)  # added to any time of this century it is still a date
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,61}[A-Za-z0-9])?")


def parse_duration(text: str) -> timedelta:
    """`90`, `90s`, `15m`, `2h` or `1d`, above zero. Raises: ValueError."""
    match = _DURATION.fullmatch(text.strip().lower())
    if not match or int(match[1]) == 0:
        raise ValueError("give a time above zero such as 3600, 90s, 15m, 2h or 1d")
    seconds = int(match[1]) * _SECONDS[match[2] or "s"]
    if seconds > MAX_DURATION.total_seconds():
        raise ValueError(f"give at most {MAX_DURATION.days}d")
    return timedelta(seconds=seconds)


def parse_bool(text: str) -> bool:
    if text.strip().lower() in {"true", "1", "yes"}:
        return True
    if text.strip().lower() in {"false", "0", "no"}:
        return False
    raise ValueError("give true or false")


def parse_count(text: str) -> int:
    if not re.fullmatch(r"\d{1,4}", text.strip()):
        raise ValueError("give a whole number")
    return int(text)


def parse_size_gb(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,9})?", text.strip()) or float(text) <= 0:
        raise ValueError("give gigabytes as a number above zero")
    return float(text)


def parse_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("give a name of at most 63 letters, digits, '-', '_', '.' or '/'")
    return text


@dataclass(frozen=True)
class Parameter:
    """`kubernetes_only`: has no meaning on a single machine and is refused or dropped there."""

    key: str
    parse: Callable[[str], object]
    meaning: str
    kubernetes_only: bool = True


PARAMETERS: Final[Mapping[str, Parameter]] = {
    p.key: p
    for p in (
        Parameter("time_limit", parse_duration, "Longest run time of each executor: 3600, 90s, 15m, 2h or 1d.", False),
        Parameter("optional_outputs", parse_bool, "true: a declared output that is missing is no error.", False),
        Parameter("gpu", parse_count, "Number of GPUs for each executor."),
        Parameter("gpu_type", parse_name, "Kind of GPU: value of the node label that the site maps it to."),
        Parameter("shm_gb", parse_size_gb, "Size of /dev/shm in gigabytes."),
        Parameter("architecture", parse_name, "Processor architecture of the node: amd64 or arm64."),
        Parameter("node_class", parse_name, "A class of nodes that the site has defined."),
        Parameter("priority_class", parse_name, "A Kubernetes PriorityClass that the site allows."),
        Parameter(
            "service_class", parse_name, "A bundle of settings that the site has defined, such as burst or guaranteed."
        ),
        Parameter("queue", parse_name, "Kueue's local queue, where the site uses Kueue."),
        Parameter(
            "memory_retries",
            parse_count,
            "Repeat up to this many times with twice the memory after an out-of-memory kill.",
        ),
    )
}


def time_limit(parameters: Mapping[str, str], policy: Policy) -> timedelta | None:
    """The limit of each executor: what the task asks for or the default, never above the site's maximum."""
    asked = parameters.get("time_limit")
    limit = parse_duration(asked) if asked else policy.default_time_limit
    if policy.max_time_limit is None:
        return limit
    return policy.max_time_limit if limit is None else min(limit, policy.max_time_limit)


def outputs_are_optional(parameters: Mapping[str, str]) -> bool:
    return parse_bool(parameters.get("optional_outputs", "false"))


def gpu_count(parameters: Mapping[str, str]) -> int:
    return parse_count(parameters.get("gpu", "0"))
