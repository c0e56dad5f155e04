"""Inputs kept for other tasks: a service of its own whose cache is on a claim, and a source that counts how often it was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Final

import pytest

from tests.e2e.conftest import PART, Cluster, installation
from tests.e2e.site import Site, one_log, shell, site_of

CLAIM: Final = "reference-cache"
SIZE: Final = 8_000_000
SAME: Final = 6
RIGHT: Final = hashlib.sha256(bytes(SIZE)).hexdigest()


@pytest.fixture(scope="module")
def site(cluster: Cluster, image: str) -> Iterator[Site]:
    cache = {"existingClaim": CLAIM, "subPath": "inputs"}
    with installation(cluster, image, filer={"cache": cache}) as made:
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "labels": {PART: "cache"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        made.kubectl("apply", "-f", "-", stdin=json.dumps(claim))
        with site_of(made) as found:
            yield found


def test_tasks_at_once_with_the_same_input_fetch_it_once(site: Site):
    """All have it whole, each may change its own, and no executor sees the cache."""
    path = f"large/{SIZE}/genome"
    script = "sha256sum < /data/in; echo changed >> /data/in; ls /poiesis"
    task = {"inputs": [{"url": f"{site.web}/{path}", "path": "/data/in"}], "executors": [shell(script)]}
    for turn in ([site.post(task) for _ in range(SAME)], [site.post(task)]):
        for task_id in turn:
            log = one_log(site.complete(task_id))
            assert log["logs"][0]["stdout"].split() == [RIGHT, "-", "bin", "control"]
            assert not [line for line in log["system_logs"] if "cache" in line]
        assert site.fetched(path) == 1


def test_another_version_is_another_entry(site: Site):
    for version in ("one", "two"):
        path = f"large/{SIZE}/{version}"
        task = {"inputs": [{"url": f"{site.web}/{path}", "path": "/data/in"}], "executors": [shell("true")]}
        site.complete(site.post(task))
        assert site.fetched(path) == 1
