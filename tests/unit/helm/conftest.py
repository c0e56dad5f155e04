"""The chart as Helm renders it, for each of its ci values files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.e2e.programs import find

CHART: Final = Path(__file__).resolve().parents[3] / "helm" / "poiesis"
CASES: Final = tuple(sorted(p.name.removesuffix("-values.yaml") for p in (CHART / "ci").glob("*-values.yaml")))
KUBERNETES: Final = "1.31.0"
RELEASE: Final = "demo"
NAMESPACE: Final = "services"

Json = dict[str, Any]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Rendered:
    """The output of `helm template` for one values file, and the values."""

    case: str
    objects: tuple[Json, ...]
    given: Json

    def of(self, *kinds: str) -> list[Json]:
        return [o for o in self.objects if o["kind"] in kinds]

    def named(self, kind: str, end: str) -> Json:
        """The only object of this kind with this suffix in its name."""
        found = [o for o in self.of(kind) if o["metadata"]["name"].endswith(end)]
        assert len(found) == 1, f"{kind} …{end}: {[o['metadata']['name'] for o in found]}"
        return found[0]

    def pods(self) -> Iterator[tuple[str, Json]]:
        """Component and pod template (metadata and spec) of every workload."""
        for item in self.of("Deployment", "StatefulSet"):
            template = item["spec"]["template"]
            yield template["metadata"]["labels"]["app.kubernetes.io/component"], template
        for item in self.of("Pod"):
            yield item["metadata"]["labels"]["app.kubernetes.io/component"], item

    def variables(self) -> dict[str, str]:
        """Of the ConfigMap shared by all roles."""
        found: dict[str, str] = self.named("ConfigMap", "-config")["data"]
        return found


@pytest.fixture(scope="session")
def helm() -> Run:
    program = find("helm")
    if program is None:
        pytest.skip("no helm in PATH, below CLUSTER_DIR or beside KUBECONFIG; set HELM to another")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture(scope="session")
def template(helm: Run) -> Run:
    """`template("-f", FILE, "--set", …)`: the chart rendered."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return helm("template", RELEASE, str(CHART), "-n", NAMESPACE, "--kube-version", KUBERNETES, *arguments)

    return run


@pytest.fixture(scope="session")
def render(template: Run) -> Callable[[str], Rendered]:
    @cache
    def run(case: str) -> Rendered:
        values = CHART / "ci" / f"{case}-values.yaml"
        done = template("-f", str(values))
        assert done.returncode == 0, done.stderr
        objects = tuple(o for o in yaml.safe_load_all(done.stdout) if o)
        return Rendered(case, objects, yaml.safe_load(values.read_text()))

    return run


@pytest.fixture(params=CASES)
def chart(request: pytest.FixtureRequest, render: Callable[[str], Rendered]) -> Rendered:
    """Each ci values file in turn."""
    return render(request.param)
