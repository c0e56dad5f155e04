"""Creates with one Idempotency-Key, many at once, while the service is killed and started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from urllib3.exceptions import HTTPError

from tests.integration.embedded.service import Service, request, sh

CLIENTS = 50
TASK = {"name": "once", "executors": [sh("true")]}
PATIENCE_S = 60.0


def create(service: Service, key: str) -> str:
    """The id; repeated like a client does whose connection broke."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = request("POST", f"{service.api}/tasks", TASK, Idempotency_Key=key)
        except HTTPError:
            assert time.monotonic() < end
            time.sleep(0.05)
            continue
        if answer.status != 503:
            assert answer.status == 200, answer.text
            return str(answer.document["id"])


def test_many_creates_with_one_key_make_one_task_although_the_service_is_killed(
    make_service: Callable[..., Service],
) -> None:
    service = make_service().start()
    begun = Event()

    def post(_: int) -> str:
        begun.set()
        return create(service, '"one-key"')

    with ThreadPoolExecutor(CLIENTS) as pool:
        posted = [pool.submit(post, number) for number in range(CLIENTS)]
        begun.wait(PATIENCE_S)
        service.kill()
        service.start()
        ids = {each.result() for each in posted}

    assert len(ids) == 1
    listed = request("GET", f"{service.api}/tasks?name_prefix=once").document["tasks"]
    assert [task["id"] for task in listed] == list(ids)
    other = request("POST", f"{service.api}/tasks", {**TASK, "name": "once more"}, Idempotency_Key='"one-key"')
    assert (other.status, other.document["error"]) == (409, "conflict")
    service.wait(ids.pop(), "COMPLETE")
