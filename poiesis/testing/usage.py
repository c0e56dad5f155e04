"""Sums of usage in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from poiesis.ports.usage import HOUR, Kind, Use


class MemoryUsageStore:
    def __init__(self) -> None:
        self._hours: dict[datetime, list[Use]] = {}

    def rolled_until(self) -> datetime | None:
        return max(self._hours) + HOUR if self._hours else None

    def replace(self, hour: datetime, uses: Sequence[Use]) -> None:
        self._hours[hour] = list(uses)

    def between(
        self,
        kind: Kind,
        begin: datetime,
        end: datetime,
        *,
        owner: str | None = None,
        names: Sequence[str] | None = None,
    ) -> Iterator[Use]:
        for hour, uses in sorted(self._hours.items()):
            for use in uses:
                if (
                    begin <= hour < end
                    and use.kind is kind
                    and owner in (None, use.owner)
                    and (names is None or use.name in names)
                ):
                    yield use
