"""A real Prometheus with the chart's alerts, built by `make monitoring`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import urllib3
import yaml

from tests.servers.process import missing, running

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "helm" / "poiesis" / "files" / "alerts.yaml"
PROGRAM = ROOT / ".cache" / "monitoring" / "prometheus"


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expression: str) -> list[float]:
        return [float(each["value"][1]) for each in self._get(f"query?query={quote(expression)}")["result"]]

    def alerts(self, state: str = "firing") -> set[str]:
        return {each["labels"]["alertname"] for each in self._get("alerts")["alerts"] if each["state"] == state}

    def _get(self, path: str) -> Any:
        answer = urllib3.request("GET", f"{self.url}/api/v1/{path}", timeout=10, retries=False)
        return json.loads(answer.data)["data"]


@contextmanager
def prometheus(targets: Sequence[tuple[str, Mapping[str, str]]]) -> Iterator[Prometheus]:
    """Reads the targets (`host:port`, and their labels) each second, and evaluates the rules as often."""
    if not PROGRAM.exists():
        missing("no Prometheus: run `make monitoring` (needs go)")
    groups = [{"targets": [target], "labels": dict(labels)} for target, labels in targets]
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "poiesis", "static_configs": groups}],
    }

    def command(directory: Path, ports: list[int]) -> list[str]:
        file = directory / "prometheus.yaml"
        file.write_text(yaml.safe_dump(configuration))
        address = f"127.0.0.1:{ports[0]}"
        return [
            str(PROGRAM),
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={address}",
        ]

    def ready(ports: list[int]) -> Prometheus:
        url = f"http://127.0.0.1:{ports[0]}"
        answer = urllib3.request("GET", f"{url}/-/ready", timeout=5, retries=False)
        if answer.status != 200:
            raise ConnectionError(f"Prometheus is not ready: {answer.status}")
        return Prometheus(url)

    with running("prometheus", 1, command, ready) as started:
        yield started
