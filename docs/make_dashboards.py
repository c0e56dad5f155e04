"""Writes the Grafana dashboards of the chart: `python docs/make_dashboards.py`. A test compares them, and checks every metric in them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).resolve().parents[1] / "helm" / "poiesis" / "files" / "dashboards"
N: Final = 'namespace=~"$namespace"'
WIDTH: Final = 8
HEIGHT: Final = 8

Panel = tuple[str, str, list[tuple[str, str]]]
"""Title, unit, and queries with their legends."""


def _rate(metric: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{N}{labels}}}[$__rate_interval]))"


def _quantile(metric: str, by: str, q: float = 0.95, labels: str = "") -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{{{N}{labels}}}[$__rate_interval])))"


def _most(metric: str, by: str, labels: str = "") -> str:
    return f"max by ({by}) ({metric}{{{N}{labels}}})"


TASKS: Final[list[Panel]] = [
    ("Tasks by state", "short", [(_most("poiesis_tasks", "state"), "{{state}}")]),
    ("Created a second", "reqps", [(_rate("poiesis_tasks_created_total", "namespace"), "created")]),
    ("Ended a second", "reqps", [(_rate("poiesis_tasks_ended_total", "state"), "{{state}}")]),
    (
        "Failures by reason",
        "reqps",
        [(_rate("poiesis_tasks_ended_total", "reason", ', reason!=""'), "{{reason}}")],
    ),
    ("Phases, 95th percentile", "s", [(_quantile("poiesis_task_phase_duration_seconds", "phase"), "{{phase}}")]),
    ("Staged", "Bps", [(_rate("poiesis_staged_bytes_total", "direction"), "{{direction}}")]),
    ("Waiting for admission", "short", [(_most("poiesis_queued_tasks", "service_class"), "{{service_class}}")]),
    ("Oldest waiting", "s", [(_most("poiesis_queued_oldest_age_seconds", "service_class"), "{{service_class}}")]),
    (
        "Waiting time, 95th percentile",
        "s",
        [(_quantile("poiesis_admission_wait_seconds", "service_class"), "{{service_class}}")],
    ),
    (
        "Part of the site's quota in use",
        "percentunit",
        [
            (
                f"{_most('poiesis_admission_held', 'resource')} / {_most('poiesis_admission_limit', 'resource')}",
                "{{resource}}",
            )
        ],
    ),
    ("Admitted and refused", "reqps", [(_rate("poiesis_admissions_total", "decision"), "{{decision}}")]),
    ("Left over objects", "short", [(_most("poiesis_leaked_tasks", "namespace"), "tasks")]),
]
SERVICE: Final[list[Panel]] = [
    (
        "Dependencies and leaders",
        "short",
        [
            (_most("poiesis_dependency_up", "dependency"), "{{dependency}}"),
            (f"sum by (namespace) (poiesis_monitor_is_leader{{{N}}})", "leading monitors"),
        ],
    ),
    ("Requests by code", "reqps", [(_rate("poiesis_http_requests_total", "code"), "{{code}}")]),
    (
        "Latency by route, 99th percentile",
        "s",
        [(_quantile("poiesis_http_request_duration_seconds", "route", 0.99), "{{route}}")],
    ),
    (
        "Store, 99th percentile",
        "s",
        [(_quantile("poiesis_store_operation_duration_seconds", "operation", 0.99), "{{operation}}")],
    ),
    ("Store errors", "reqps", [(_rate("poiesis_store_errors_total", "operation"), "{{operation}}")]),
    ("Links waiting in Redis", "short", [(_most("poiesis_broker_messages", "queue"), "{{queue}}")]),
    ("Links a second", "reqps", [(_rate("poiesis_link_duration_seconds_count", "link"), "{{link}}")]),
    ("Links, 95th percentile", "s", [(_quantile("poiesis_link_duration_seconds", "link"), "{{link}}")]),
    (
        "Failed links and lost races",
        "reqps",
        [
            (_rate("poiesis_link_failures_total", "link"), "{{link}}"),
            (_rate("poiesis_reconcile_conflicts_total", "namespace"), "lost races"),
        ],
    ),
    ("Reconcile, 95th percentile", "s", [(_quantile("poiesis_reconcile_duration_seconds", "reason"), "{{reason}}")]),
    (
        "Kubernetes requests",
        "reqps",
        [(_rate("poiesis_kubernetes_requests_total", "verb, resource"), "{{verb}} {{resource}}")],
    ),
    (
        "Kubernetes errors",
        "reqps",
        [(_rate("poiesis_kubernetes_requests_total", "code", ', code!~"2.."'), "{{code}}")],
    ),
    ("Age of watches", "s", [(_most("poiesis_watch_age_seconds", "resource"), "{{resource}}")]),
    ("Tasks waiting in the monitor", "short", [(_most("poiesis_work_queue_tasks", "namespace"), "tasks")]),
    ("Pokes", "reqps", [(_rate("poiesis_pokes_total", "result"), "{{result}}")]),
    ("Relay lag", "s", [(_most("poiesis_event_relay_lag_seconds", "namespace"), "lag")]),
    ("Webhooks", "reqps", [(_rate("poiesis_webhook_deliveries_total", "result"), "{{result}}")]),
    (
        "Refused by limits, and lost audit lines",
        "reqps",
        [
            (_rate("poiesis_requests_limited_total", "limit"), "{{limit}}"),
            (_rate("poiesis_audit_lost_total", "namespace"), "audit"),
        ],
    ),
    (
        "Time since a job succeeded",
        "s",
        [(f"time() - {_most('poiesis_loop_last_success_timestamp_seconds', 'loop')}", "{{loop}}")],
    ),
]


def documents() -> dict[str, str]:
    boards = {"poiesis-tasks": ("Poiesis: tasks", TASKS), "poiesis-service": ("Poiesis: service", SERVICE)}
    return {
        f"{uid}.json": json.dumps(_board(uid, title, panels), indent=1) + "\n"
        for uid, (title, panels) in boards.items()
    }


def _board(uid: str, title: str, panels: list[Panel]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {
            "name": "namespace",
            "type": "query",
            "label": "Namespace",
            "datasource": source,
            "query": "label_values(poiesis_build_info, namespace)",
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    return {
        "uid": uid,
        "title": title,
        "tags": ["poiesis"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables},
        "panels": [_panel(number, panel, source) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    title, unit, queries = panel
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": number % 3 * WIDTH, "y": number // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend, "datasource": source}
            for index, (expr, legend) in enumerate(queries)
        ],
    }


if __name__ == "__main__":
    for name, text in documents().items():
        (TARGET / name).write_text(text)
        sys.stdout.write(f"{TARGET / name} written\n")
