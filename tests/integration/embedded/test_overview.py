"""The overview of a real service on one machine."""

from __future__ import annotations

import os
import re

from tests.integration.embedded.service import IMAGE, Service, eventually, request


def cpu_cores(service: Service) -> tuple[float, int] | None:
    """Requested by tasks in flight, and those of the machine; None: the figures are not there yet."""
    text = request("GET", f"{service.url}/ui/overview").text
    if "Room on this machine" not in text:
        return None
    row = text.partition("CPU cores, requested by tasks")[2].partition("</tr>")[0]
    requested, cores = re.findall(r"[\d.]+", re.sub(r"<svg.*|<[^>]*>", " ", row, flags=re.S))
    return float(requested), int(cores)


def test_the_room_of_the_machine_follows_tasks(service: Service) -> None:
    cores = len(os.sched_getaffinity(0))
    executor = {"image": IMAGE, "command": ["sleep", "60"]}
    task_id = service.post({"executors": [executor], "resources": {"cpu_cores": 1}})
    eventually(lambda: cpu_cores(service) == (1.0, cores), "request of the task on the page")
    service.cancel(task_id)
    service.wait(task_id, "CANCELED")
    eventually(lambda: cpu_cores(service) == (0.0, cores), "room that the task has left")
