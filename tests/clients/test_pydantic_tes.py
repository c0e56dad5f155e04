"""pydantic-tes, the library with which Galaxy's Pulsar speaks TES: it sends every unset field as null, and reads answers strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.conftest import Client, programs_of
from tests.integration.embedded.service import Service

PROGRAM = """
import json, sys, time
from pydantictes.api import TesClient
from pydantictes.models import TesExecutor, TesInput, TesOutput, TesResources, TesTask

url, out = sys.argv[1:]
client = TesClient(url=url)
assert client.service_info() is not None
executors = [
    TesExecutor(image="alpine", command=["sh", "-c", "tr a-z A-Z < /pulsar/in > /pulsar/out"], workdir="/"),
    TesExecutor(image="alpine", command=["cat", "/pulsar/out"], workdir="/", stdout="/pulsar/shown"),
    TesExecutor(image="alpine", command=["sh", "-c", "echo end >&2; test ! -e /nothing"], workdir="/"),
]
task = TesTask(
    name="galaxy", volumes=["/pulsar"], inputs=[TesInput(path="/pulsar/in", content="reads", type="FILE")],
    outputs=[TesOutput(path="/pulsar/shown", url=out, type="FILE")], executors=executors, resources=TesResources(cpu_cores=1),
)
task_id = client.create_task(task).id
for _ in range(600):
    task = client.get_task(task_id, "FULL")
    if task.state.name in ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED"):
        break
    time.sleep(0.1)
assert [t.id for t in client.list_tasks().tasks][:1] == [task_id]
client.cancel_task(task_id)
log = task.logs[0]
codes, sizes = [e.exit_code for e in log.logs], [int(o.size_bytes) for o in log.outputs]
print(json.dumps({"state": task.state.name, "codes": codes, "sizes": sizes, "stderr": log.logs[2].stderr}))
"""  # fmt: skip


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(programs_of("pydantic-tes"), tmp_path)


def test_a_task_of_three_executors_that_share_a_volume(client: Client, service: Service, files: Path) -> None:
    done = client.python(PROGRAM, f"{service.url}/ga4gh/tes/", f"file://{files}/shown")
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "state": "COMPLETE",
        "codes": [0, 0, 0],
        "sizes": [5],
        "stderr": "end\n",
    }
    assert (files / "shown").read_text() == "READS"
