"""Toil with its TES batch system and its job store in S3: a CWL workflow of two steps.

Each job runs Toil again inside of its task: the environment of the client is put into PATH there, and the tools of the workflow run beside
it, as they do in Toil's own image without Singularity.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import Client, programs_of
from tests.integration.embedded.service import Service, request
from tests.servers.s3 import S3Server

# SeaweedFS has neither of the two; both concern only the bucket that Toil makes.
RUNNER = """
import toil.lib.aws.s3
toil.lib.aws.s3.enable_public_objects = toil.lib.aws.s3.enable_encryption = lambda *_, **__: None
from toil.cwl.cwltoil import main
raise SystemExit(main())
"""
TOOL = """
cwlVersion: v1.2
class: CommandLineTool
requirements: {{ResourceRequirement: {{ramMin: 1000, coresMin: 1}}}}
baseCommand: {command}
stdin: $(inputs.text.path)
stdout: {output}
inputs: {{text: File}}
outputs: {{result: stdout}}
"""
WORKFLOW = """
cwlVersion: v1.2
class: Workflow
inputs: {reads: File}
outputs:
  result: {type: File, outputSource: count/result}
steps:
  sort: {run: sort.cwl, in: {text: reads}, out: [result]}
  count: {run: count.cwl, in: {text: sort/result}, out: [result]}
"""


@pytest.mark.timeout(400)
def test_a_workflow_of_two_steps(service: Service, s3: S3Server, tmp_path: Path) -> None:
    client = Client(programs_of("toil"), tmp_path)
    client.write("workflow.cwl", WORKFLOW)
    client.write("sort.cwl", TOOL.format(command="sort", output="sorted.txt"))
    client.write("count.cwl", TOOL.format(command="[wc, -l]", output="count.txt"))
    client.write("reads.txt", "b\na\nc\n")
    store = {
        **{"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key, "AWS_DEFAULT_REGION": s3.region},
        **{"AWS_ENDPOINT_URL_S3": s3.endpoint, "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"},
    }
    inside = {**store, "PATH": f"{client.programs}:/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp"}
    client.run(
        *("python", "-c", RUNNER, "--jobStore", f"aws:{s3.region}:{s3.bucket}", "--batchSystem", "tes"),
        *("--tesEndpoint", service.url, "--retryCount", "0", "--disableProgress", "--no-container", "--outdir", "out"),
        *(part for name, value in inside.items() for part in ("--setEnv", f"{name}={value}")),
        *("workflow.cwl", "--reads", "reads.txt"),
        variables=store,
    )
    assert (tmp_path / "out" / "count.txt").read_text().strip() == "3"
    newest = request("GET", f"{service.api}/tasks?page_size=1&view=BASIC").document["tasks"][0]
    assert (newest["state"], newest["executors"][0]["command"][0]) == ("COMPLETE", "_toil_contained_executor")
