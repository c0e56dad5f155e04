"""A client that openapi-python-client generates from the document that the service serves."""

from __future__ import annotations

from pathlib import Path

from tests.clients.conftest import Client, programs_of
from tests.integration.embedded.service import Service

PROGRAM = """
import sys, time
from tes_client import Client
from tes_client.api.task_service import cancel_task, create_task, get_service_info, get_task, list_tasks
from tes_client.models import GetTaskView, ListTasksView, TesExecutor, TesState, TesTask

client = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
assert get_service_info.sync(client=client).type_.artifact == "tes"
body = TesTask(executors=[TesExecutor(image="alpine", command=["sh", "-c", "echo generated; exit 3"])], name="generated")
task_id = create_task.sync(client=client, body=body).id
running = (TesState.QUEUED, TesState.INITIALIZING, TesState.RUNNING)
while (task := get_task.sync(task_id, client=client, view=GetTaskView.FULL)).state in running:
    time.sleep(0.1)
cancel_task.sync(task_id, client=client)
page = list_tasks.sync(client=client, name_prefix="generated", page_size=1, view=ListTasksView.BASIC)
assert [t.id for t in page.tasks] == [task_id]
log = task.logs[0].logs[0]
print(task.state.value, log.exit_code, log.stdout.strip())
"""


def test_the_client_runs_a_task_to_its_end(service: Service, tmp_path: Path) -> None:
    client = Client(programs_of("generated"), tmp_path)
    client.write("configuration.yaml", "package_name_override: tes_client\n")
    client.run(
        *("openapi-python-client", "generate", "--url", f"{service.url}/ga4gh/tes/v1/openapi.json"),
        *("--config", "configuration.yaml", "--meta", "none", "--output-path", "tes_client"),
    )
    done = client.python(PROGRAM, f"{service.url}/ga4gh/tes/v1")
    assert done.stdout.split() == ["EXECUTOR_ERROR", "3", "generated"]
