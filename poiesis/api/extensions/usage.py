"""What tasks have used, by user, group or tag. Users see their own, admins all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.types import Scope

from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.parameters import PARAMETERS
from poiesis.api.users import USER, User
from poiesis.api.views import time_text
from poiesis.domain.errors import InvalidRequest
from poiesis.domain.usage import with_whole_numbers
from poiesis.ports.usage import Kind

MAX_PERIOD: Final = timedelta(days=366)
MAX_ROWS: Final = 1_000
FIRST_YEAR: Final = 2000
LAST_YEAR: Final = 2500


def operations(context: Context) -> dict[str, Handler]:
    service = context.services.usage

    async def usage(scope: Scope) -> Document:
        asked, user = scope[PARAMETERS], scope[USER]
        now = datetime.now(UTC)
        end = _time("to", asked.get("to"), now)
        begin = _time("from", asked.get("from"), end - timedelta(days=1))
        if not timedelta(0) < end - begin <= MAX_PERIOD:
            raise InvalidRequest("from", f"must be before `to`, by at most {MAX_PERIOD.days} days")
        kind = Kind(asked["by"])
        owner, names = _seen_by(user, kind)
        found = await context.call(service.usage, kind, begin, end, owner=owner, names=names)
        rows = sorted(found.uses.items(), key=lambda row: (-row[1].get("cpu_seconds", 0.0), row[0]))
        return {
            "from": time_text(found.begin),
            "to": time_text(found.end),
            "complete_until": time_text(found.until),
            "by": kind.value,
            "rows": [{"name": name, "figures": with_whole_numbers(figures)} for name, figures in rows[:MAX_ROWS]],
            "omitted": max(0, len(rows) - MAX_ROWS),
        }

    return {"GetUsage": usage}


def _seen_by(user: User, kind: Kind) -> tuple[str | None, Sequence[str] | None]:
    """The owner and the names that the user may see; None: all."""
    if user.access is None:
        return None, None
    if kind is Kind.GROUP:
        return None, sorted(user.groups)
    return user.name, None


def _time(name: str, text: str | None, default: datetime) -> datetime:
    """Raises: InvalidRequest."""
    if text is None:
        return default
    try:
        found = datetime.fromisoformat(text.replace(" ", "+"))  # a plus sign that was not escaped
        found = (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        if FIRST_YEAR <= found.year <= LAST_YEAR:
            return found
    except (ValueError, OverflowError):
        pass
    raise InvalidRequest(name, "must be a time such as 2026-11-29 or 2026-11-29T10:00:00Z")
