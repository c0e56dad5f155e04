"""cwl-tes: a CWL workflow of two steps over shared directories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.conftest import Client, programs_of
from tests.integration.embedded.service import Service

WORKFLOW = """
cwlVersion: v1.0
class: Workflow
inputs: {reads: File}
outputs:
  counted: {type: File, outputSource: count/counted}
steps:
  sort:
    in: {reads: reads}
    out: [sorted]
    run:
      class: CommandLineTool
      requirements: {DockerRequirement: {dockerPull: alpine}}
      baseCommand: [sort]
      stdin: $(inputs.reads.path)
      stdout: sorted.txt
      inputs: {reads: File}
      outputs: {sorted: stdout}
  count:
    in: {sorted: sort/sorted}
    out: [counted]
    run:
      class: CommandLineTool
      requirements: {DockerRequirement: {dockerPull: alpine}}
      baseCommand: [sh, -c, 'wc -l < "$0" > counted.txt; exit 3']
      successCodes: [3]
      inputs: {sorted: {type: File, inputBinding: {position: 1}}}
      outputs: {counted: {type: File, outputBinding: {glob: counted.txt}}}
"""


@pytest.fixture
def client(files: Path) -> Client:
    return Client(programs_of("cwl-tes"), files)


def test_a_workflow_of_two_steps(client: Client, service: Service, files: Path) -> None:
    """The second step exits with a code that its author declared a success."""
    client.write("workflow.cwl", WORKFLOW)
    client.write("reads.txt", "b\na\nc\n")
    places = [option for name in ("tmpdir-prefix", "tmp-outdir-prefix") for option in (f"--{name}", f"{files}/{name}/")]
    (files / "out").mkdir()
    done = client.run(
        "cwl-tes", "--tes", service.url, *places, "--outdir", str(files / "out"), "workflow.cwl", "--reads", "reads.txt"
    )
    assert json.loads(done.stdout)["counted"]["size"] == 2
    assert (files / "out" / "counted.txt").read_text().strip() == "3"
