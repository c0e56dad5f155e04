"""Sprocket with its TES backend: a WDL workflow that scatters over files in S3, to which Sprocket uploads its inputs itself."""

from __future__ import annotations

import json
from pathlib import Path

from tests.clients.conftest import Client, programs_of
from tests.integration.embedded.service import Service, request
from tests.servers.s3 import S3Server

WORKFLOW = """
version 1.2

task upper {
  input { File reads }
  command <<< tr a-z A-Z < ~{reads} > upper.txt; echo done >>>
  output { File result = "upper.txt"  String said = read_string(stdout()) }
  requirements { container: "alpine:3.20"  memory: "512 MiB" }
}

task total {
  input { Array[File] parts }
  command <<< cat ~{sep(" ", parts)} | wc -l >>>
  output { Int lines = read_int(stdout()) }
  requirements { container: "alpine:3.20"  memory: "512 MiB" }
}

workflow count {
  input { Array[File] reads }
  scatter (r in reads) { call upper { reads = r } }
  call total { parts = upper.result }
  output { Int lines = total.lines  Array[String] said = upper.said }
}
"""
SETTINGS = """
[run.backends.default]
type = "tes"
service = "{url}/ga4gh/tes/v1/"
inputs = "s3://{bucket}/inputs/"
outputs = "s3://{bucket}/outputs/"
interval = 1
insecure = true
"""


def test_a_workflow_that_scatters(service: Service, s3: S3Server, tmp_path: Path) -> None:
    client = Client(programs_of("sprocket"), tmp_path)
    client.write("count.wdl", WORKFLOW)
    client.write("sprocket.toml", SETTINGS.format(url=service.url, bucket=s3.bucket))
    for name, content in (("a.txt", "a\n"), ("b.txt", "b\nc\n")):
        client.write(name, content)
    client.write("inputs.json", json.dumps({"count.reads": ["a.txt", "b.txt"]}))
    done = client.run(
        *("sprocket", "run", "--skip-config-search", "--config", "sprocket.toml", "--unlocked", "--no-call-cache"),
        *("--aws-access-key-id", s3.access_key, "--aws-secret-access-key", s3.secret_key),
        *("--aws-default-region", s3.region, "--aws-endpoint-url", s3.endpoint),
        *("--target", "count", "count.wdl", "@inputs.json"),
    )
    assert json.loads(done.stdout[: done.stdout.rindex("}") + 1]) == {"count.lines": 3, "count.said": ["done", "done"]}
    tasks = request("GET", f"{service.api}/tasks?page_size=3").document["tasks"]
    assert [task["state"] for task in tasks] == ["COMPLETE"] * 3
