"""Time that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

START: Final = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


class ManualClock:
    """A `Clock` moved by the test. Times are aware UTC."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        return self._now

    def advance(self, by: timedelta) -> datetime:
        """Move on (or back, with a negative time) and return the new now."""
        self._now += by
        return self._now
