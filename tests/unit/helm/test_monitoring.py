"""What the chart has for Prometheus and Grafana: alerts fire when they should and not otherwise, every metric in them exists, each alert
has a section in docs/runbooks.md."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from poiesis import metrics
from tests.unit.helm.conftest import CHART, Rendered

ROOT: Final = CHART.parents[1]
ALERTS: Final = CHART / "files" / "alerts.yaml"
RULES: Final[dict[str, dict[str, Any]]] = {
    rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
}
DASHBOARDS: Final = sorted((CHART / "files" / "dashboards").glob("*.json"))
TARGET_LABELS: Final = {"namespace", "le"}
KINDS: Final = {described.name: described for described in metrics.CATALOGUE}


@dataclass(frozen=True)
class Case:
    """`series`: values every 30 s from 0 on, in promtool's notation. `firing`: exactly these alerts at the time `at`."""

    title: str
    series: dict[str, str]
    firing: Sequence[str] = ()
    at: str = "40m"


UP: Final = {  # of an installation without work and without faults
    "poiesis_build_info": "1x200",
    "poiesis_monitor_is_leader": "1x200",
    'poiesis_loop_last_success_timestamp_seconds{loop="relay"}': "0+30x200",
    'poiesis_loop_last_success_timestamp_seconds{loop="purge-events"}': "0+30x10 300x190",
    'poiesis_dependency_up{dependency="broker"}': "1x200",
    'poiesis_dependency_up{dependency="store"}': "1x200",
    "poiesis_admission_is_full": "0x200",
    "poiesis_leaked_tasks": "0x200",
    "poiesis_event_relay_lag_seconds": "0x200",
}
REQUESTS: Final = 'poiesis_http_requests_total{route="/ga4gh/tes/v1/tasks",code="%s"}'


def latency(metric: str, quick: str, slow: str, labels: str = "") -> dict[str, str]:
    """A histogram of two buckets: up to 0.25 s, and slower."""
    return {
        f'{metric}_bucket{{{labels}le="0.25"}}': quick,
        f'{metric}_bucket{{{labels}le="5"}}': slow,
        f'{metric}_bucket{{{labels}le="+Inf"}}': slow,
    }


HTTP: Final = "poiesis_http_request_duration_seconds"
STORE: Final = "poiesis_store_operation_duration_seconds"
LINKS: Final = 'poiesis_link_duration_seconds_count{link="torc.prepare"}'
QUEUED: Final = 'poiesis_queued_tasks{service_class="default"}'
AGE: Final = 'poiesis_queued_oldest_age_seconds{service_class="default"}'
CASES: Final = (
    Case("nothing happens", {}),
    Case("one request in ten fails", {REQUESTS % 200: "0+90x200", REQUESTS % 500: "0+10x200"}, ["PoiesisApiErrors"]),
    Case("requests are wrong", {REQUESTS % 200: "0+90x200", REQUESTS % 404: "0+90x200"}),
    Case(
        "the API is not ready",
        {'poiesis_http_requests_total{route="/readyz",code="503"}': "0+10x200", REQUESTS % 200: "0+10x200"},
    ),
    Case("responses are slow", latency(HTTP, "0+90x200", "0+100x200", 'route="/t",'), ["PoiesisApiSlow"]),
    Case("clients wait for events", latency(HTTP, "0x200", "0+100x200", 'route="/poiesis/v1/tasks:wait",')),
    Case("Redis is away", {'poiesis_dependency_up{dependency="broker"}': "1x60 0x140"}, ["PoiesisRedisDown"]),
    Case("Redis was away for a moment", {'poiesis_dependency_up{dependency="broker"}': "1x60 0x1 1x139"}, (), "31m"),
    Case("the store is away", {'poiesis_dependency_up{dependency="store"}': "0x200"}, ["PoiesisStoreDown"]),
    Case("the store is slow", latency(STORE, "0+90x200", "0+100x200", 'operation="find",'), ["PoiesisStoreSlow"]),
    Case("the store fails", {'poiesis_store_errors_total{operation="find"}': "0+10x200"}, ["PoiesisStoreErrors"]),
    Case("no monitor leads", {"poiesis_monitor_is_leader": "1x60 0x140"}, ["PoiesisMonitorWithoutLeader"]),
    Case("a watch is stale", {'poiesis_watch_age_seconds{resource="pods"}': "0+30x200"}, ["PoiesisWatchStale"]),
    Case("a watch gets bookmarks", {'poiesis_watch_age_seconds{resource="pods"}': "10x200"}),
    Case(
        "no worker runs", {'poiesis_broker_messages{queue="torc"}': "5x200", LINKS: "9x200"}, ["PoiesisLinksNotRunning"]
    ),
    Case("workers are busy", {'poiesis_broker_messages{queue="torc"}': "5x200", LINKS: "0+9x200"}),
    Case(
        "links fail",
        {'poiesis_link_failures_total{link="torc.prepare"}': "0+3x200", LINKS: "0+9x200"},
        ["PoiesisLinkFailures"],
    ),
    Case("the admitter is away", {QUEUED: "3x200"}, ["PoiesisAdmissionStalled"]),
    Case("a task waits for its turn", {QUEUED: "3x200", "poiesis_admission_round_duration_seconds_count": "0+9x200"}),
    Case("a task waits although there is room", {AGE: "0+30x300"}, ["PoiesisQueueOldWithRoom"], "100m"),
    Case("a task waits for room", {AGE: "0+30x300", "poiesis_admission_is_full": "1x300"}, (), "100m"),
    Case(
        "tasks fail",
        {
            'poiesis_tasks_ended_total{state="SYSTEM_ERROR",reason="InputFailed"}': "0+1x200",
            'poiesis_tasks_ended_total{state="COMPLETE",reason=""}': "0+3x200",
        },
        ["PoiesisSystemErrors"],
    ),
    Case(
        "the only task of the day fails", {'poiesis_tasks_ended_total{state="SYSTEM_ERROR",reason="Bug"}': "0x60 1x140"}
    ),
    Case("objects are left over", {"poiesis_leaked_tasks": "2x200"}, ["PoiesisLeakedObjects"]),
    Case("the sweep cleans up", {"poiesis_leaked_tasks": "0x40 2x10 0x150"}),
    Case(
        "the API server refuses",
        {
            'poiesis_kubernetes_requests_total{verb="create",resource="pods",code="429"}': "0+3x200",
            'poiesis_kubernetes_requests_total{verb="create",resource="pods",code="201"}': "0+3x200",
        },
        ["PoiesisKubernetesErrors"],
    ),
    Case("events are late", {"poiesis_event_relay_lag_seconds": "90x200"}, ["PoiesisRelayLag"]),
    Case(
        "a job hangs",
        {'poiesis_loop_last_success_timestamp_seconds{loop="relay"}': "0+30x20 600x180"},
        ["PoiesisJobStalled"],
    ),
    Case(
        "no notifier runs",
        {'poiesis_loop_last_success_timestamp_seconds{loop="relay"}': ""},
        ["PoiesisNotifierMissing"],
    ),
    Case(
        "a receiver is gone",
        {'poiesis_webhook_deliveries_total{result="dead"}': "0x20 1x180"},
        ["PoiesisWebhookDeadLetters"],
    ),
    Case("the audit is lost", {"poiesis_audit_lost_total": "0x70 5x130"}, ["PoiesisAuditLost"]),
)


@pytest.fixture(scope="session")
def promtool() -> str:
    built = ROOT / ".cache" / "monitoring" / "promtool"
    found = str(built) if built.exists() else shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool: run `make monitoring` (needs go), or add it to PATH")
    return found


def unit_test(case: Case) -> dict[str, Any]:
    series = {name: values for name, values in (UP | case.series).items() if values}
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(case.firing)]
    firing = 'sort(count by (alertname) (ALERTS{alertstate="firing"}))'
    return {
        "name": case.title,
        "interval": "30s",
        "input_series": [{"series": in_namespace(name), "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": case.at, "exp_samples": samples}],
    }


def in_namespace(series: str) -> str:
    name, _, labels = series.rstrip("}").partition("{")
    return f'{name}{{namespace="tes"{"," if labels else ""}{labels}}}'


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_these_alerts_fire_and_no_others(promtool: str, tmp_path: Path, case: Case) -> None:
    file = tmp_path / "test.yaml"
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": "30s", "tests": [unit_test(case)]}
    file.write_text(yaml.safe_dump(document))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_in_a_case() -> None:
    assert {name for case in CASES for name in case.firing} == RULES.keys()


def test_prometheus_accepts_the_rules(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def unknown(expression: str) -> list[str]:
    """Metrics and labels in an expression that do not exist."""
    wrong = []
    for name, labels in re.findall(r"(poiesis_\w+)(?:\{([^}]*)\})?", expression):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        described = KINDS.get(name) or KINDS.get(base)
        if described is None or (name in KINDS) is (described.kind == "histogram"):
            wrong.append(name)
        else:
            wrong += [
                f"{name}: {label}"
                for label in re.findall(r"(\w+)\s*[=!]", labels)
                if label not in TARGET_LABELS | {*described.labels}
            ]
    return wrong


@pytest.mark.parametrize("name", RULES)
def test_an_alert_uses_metrics_that_exist_and_has_a_runbook(name: str) -> None:
    rule = RULES[name]
    assert unknown(rule["expr"]) == [] and "poiesis_" in rule["expr"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    headings = [
        line.lower() for line in (ROOT / "docs" / "runbooks.md").read_text().splitlines() if line.startswith("## ")
    ]
    assert rule["annotations"]["runbook_url"] == f"RUNBOOKS#{name.lower()}"
    assert f"## {name.lower()}" in headings


def test_every_runbook_belongs_to_an_alert() -> None:
    text = (ROOT / "docs" / "runbooks.md").read_text()
    assert set(re.findall(r"^## (Poiesis\w+)", text, re.MULTILINE)) == RULES.keys()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_what_its_source_makes_and_uses_metrics_that_exist(path: Path) -> None:
    text = path.read_text()
    made = runpy.run_path(str(ROOT / "docs" / "make_dashboards.py"))["documents"]()
    assert made[path.name] == text, "run: python docs/make_dashboards.py"
    targets = [t["expr"] for panel in json.loads(text)["panels"] for t in panel.get("targets", [])]
    assert len(targets) > 5
    assert [wrong for expr in targets for wrong in unknown(expr)] == []


def test_promtool_can_parse_every_expression_of_the_dashboards(promtool: str, tmp_path: Path) -> None:
    expressions = [
        t["expr"].replace("$__rate_interval", "5m").replace("$namespace", "tes")
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for t in panel.get("targets", [])
    ]
    rules = [{"record": f"test:{number}", "expr": expr} for number, expr in enumerate(expressions)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_has_alerts_and_dashboards_where_they_are_switched_on(chart: Rendered) -> None:
    rules = chart.of("PrometheusRule")
    boards = [o for o in chart.of("ConfigMap") if "grafana_dashboard" in o["metadata"]["labels"]]
    if chart.case != "everything":
        assert not rules and not boards
        return
    found = {rule["alert"]: rule for group in rules[0]["spec"]["groups"] for rule in group["rules"]}
    assert found.keys() == RULES.keys()
    assert (
        found["PoiesisRedisDown"]["annotations"]["runbook_url"]
        == "https://docs.example.org/runbooks.html#poiesisredisdown"
    )
    assert "{{ $value" in found["PoiesisApiErrors"]["annotations"]["summary"]
    assert {name for board in boards for name in board["data"]} == {path.name for path in DASHBOARDS}
    for board in boards:
        assert all(json.loads(text)["panels"] for text in board["data"].values())
