"""The commands of the tutorials and how-tos that need a cluster, as printed; images are those of the test cluster."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import PAGES, Page, Run, parse
from tests.e2e.conftest import Cluster, values_for
from tests.e2e.programs import ROOT
from tests.e2e.site import BUSYBOX

ON_A_CLUSTER = [page for page in map(parse, PAGES) if page.is_for_a_cluster]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", ON_A_CLUSTER, ids=lambda page: page.name)
def test_the_commands_of_a_page(page: Page, cluster: Cluster, image: str, tmp_path: Path) -> None:
    namespace = f"docs-{secrets.token_hex(3)}"

    def change_file(name: str, text: str) -> str:
        if name != "values.yaml":
            return text.replace("busybox:1.36", BUSYBOX)
        printed, here = yaml.safe_load(text), values_for(image, namespace)
        for key in ("image", "mongodb", "redis", "api", "monitor"):  # one pod of each: a small cluster has room for few
            printed[key] = {**printed.get(key, {}), **here[key]}
        return json.dumps(printed)

    directory = tmp_path / "page"
    directory.mkdir()
    (directory / "helm").symlink_to(ROOT / "helm")
    programs = [str(Path(program).parent) for program in (cluster.kubectl_program, cluster.helm_program)]
    variables = {
        "KUBECONFIG": cluster.kubeconfig,
        "NAMESPACE": namespace,
        "POIESIS_URL": "http://127.0.0.1:8000",
    }
    try:
        with Run(page, directory, (), variables, programs, change_file) as run:
            run.all()
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
