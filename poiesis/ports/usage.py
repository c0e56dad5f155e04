"""Where hourly sums of what tasks have used are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

HOUR: Final = timedelta(hours=1)


class Kind(StrEnum):
    """What usage is summed by."""

    USER = "USER"
    GROUP = "GROUP"
    TAG = "TAG"


@dataclass(frozen=True)
class Use:
    """What the tasks that ended in one hour have used together.

    `name`: of the user or group, or `KEY=VALUE` of a tag. `owner`: whose tasks; empty for groups and for tasks without an owner. `figures`:
    those of `domain.usage` and `tasks`, their number; sums, but `peak_memory_bytes` is the largest.
    """

    hour: datetime
    kind: Kind
    name: str
    owner: str
    figures: Mapping[str, float]


class UsageStore(Protocol):
    """Raises RepositoryUnavailable if the store does not answer; all methods are safe to retry."""

    def rolled_until(self) -> datetime | None:
        """The end of the last hour that was stored; None: none yet."""

    def replace(self, hour: datetime, uses: Sequence[Use]) -> None:
        """Store all sums of an hour instead of those that are stored, and remember that it is done."""

    def between(
        self,
        kind: Kind,
        begin: datetime,
        end: datetime,
        *,
        owner: str | None = None,
        names: Sequence[str] | None = None,
    ) -> Iterator[Use]:
        """The sums of the hours from `begin` on and before `end`, in any order; of one owner, or with certain names, if given."""
