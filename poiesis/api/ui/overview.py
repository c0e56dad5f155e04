"""The overview: what runs, waits and fails, the last day by hours, quotas and waste. Administrators see all, users their own."""

from __future__ import annotations

from typing import Any, Final

from poiesis.api.ui.charts import count, ended_chart, wait, waits_chart
from poiesis.api.ui.site import Ui, current_user, page
from poiesis.domain.why import FAILURES, WAITS
from poiesis.services.overview import COUNTED, OverviewService, SharedOverviews

PATIENCE_S: Final = 0.06
"""How long a page waits for figures that have not been asked for lately; then it shows the last ones, or fetches them by itself."""


def register(ui: Ui) -> None:
    ui.add_link("Overview", "/ui/overview", order=10)
    ui.start = "/ui/overview"
    services = ui.services
    clock = services.tasks.clock
    service = OverviewService(
        services.tasks.repository, services.usage, services.tasks.reasons, clock, services.capacity
    )
    shared = SharedOverviews(service.read, clock)

    def show(template: str) -> Any:
        user = current_user()
        sees_all = user.access is None
        found = shared.get(None if sees_all else user.name, () if sees_all else user.groups, wait_s=PATIENCE_S)
        charts = (None, None) if found is None else (ended_chart(found.hours), waits_chart(found.hours))
        return page(
            template,
            overview=found,
            sees_all=sees_all,
            ended=charts[0],
            waits=charts[1],
            failures=FAILURES,
            waiting_words=WAITS,
            counted=COUNTED,
            short=count,
            wait=wait,
        )

    @ui.get("/overview")
    def overview() -> Any:
        return show("overview.html")

    @ui.get("/overview/now")
    def now() -> Any:
        return show("overview_now.html")
