"""Webhooks of a real service, which is killed while it sends them, and a receiver that is down for a while."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import pytest
from standardwebhooks import Webhook

from tests.integration.embedded.service import Service, eventually, request, run_poiesis, sh

TASKS: Final = 8
LOOPBACK: Final = {"POIESIS_WEBHOOKS__ALLOW_HTTP": "true", "POIESIS_WEBHOOKS__ALLOW_ADDRESSES": "127.0.0.1"}


class Receiver(ThreadingHTTPServer):
    """Keeps what it accepts; refuses everything while `is_down`."""

    daemon_threads = True

    def __init__(self) -> None:
        self.is_down = False
        self.refused = 0
        self.accepted: list[tuple[dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/events"

    def documents(self, secret: str) -> list[dict[str, Any]]:
        """Of everything accepted; the signatures are checked."""
        return [Webhook(secret).verify(body, headers) for headers, body in list(self.accepted)]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.is_down:
            self.server.refused += 1
        else:
            self.server.accepted.append(({k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(503 if self.server.is_down else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def registered(service: Service, receiver: Receiver, *options: str) -> tuple[str, str]:
    """The id and the secret."""
    done = run_poiesis("webhook", "create", receiver.url, "--url", service.url, "--json", *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    return document["id"], document["secret"]


def test_each_change_arrives_under_one_id_although_service_and_receiver_fail(
    make_service: Callable[..., Service], receiver: Receiver
) -> None:
    service = make_service(**LOOPBACK).start()
    _, secret = registered(service, receiver)
    receiver.is_down = True
    ids = [service.post({"executors": [sh("true")]}) for _ in range(TASKS)]
    eventually(lambda: receiver.refused, "an attempt")
    service.kill()
    service.start()
    receiver.is_down = False
    for task_id in ids:
        service.wait(task_id)

    def has_all() -> bool:
        seen = {(d["data"]["id"], d["data"]["state"]) for d in receiver.documents(secret)}
        return seen >= {(task_id, state) for task_id in ids for state in ("QUEUED", "COMPLETE")}

    eventually(has_all, "message of each beginning and end", deadline_s=120)  # the killed process held a lease
    by_sequence: defaultdict[int, set[str]] = defaultdict(set)
    states: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for (headers, _), document in zip(receiver.accepted, receiver.documents(secret), strict=False):
        data = document["data"]
        by_sequence[data["sequence"]].add(headers["webhook-id"])
        states[data["id"]][data["sequence"]] = data["state"]
    assert all(len(message_ids) == 1 for message_ids in by_sequence.values())
    for task_id in ids:
        seen = [state for _, state in sorted(states[task_id].items())]
        assert seen[0] == "QUEUED" and seen[-1] == "COMPLETE"


def test_webhooks_are_managed_by_the_command_line(make_service: Callable[..., Service], receiver: Receiver) -> None:
    service = make_service(**LOOPBACK).start()
    url = ("--url", service.url)
    webhook_id, secret = registered(service, receiver, "--state", "COMPLETE", "--description", "portal")
    task_id = service.post({"executors": [sh("true")]})
    eventually(lambda: receiver.accepted, "a message")

    assert [(d["type"], d["data"]["id"]) for d in receiver.documents(secret)] == [("task.complete", task_id)]
    header, listed = run_poiesis("webhook", "list", *url).stdout.splitlines()
    assert header.split() == ["ID", "STATUS", "CHANGES", "TO", "URL"]
    assert listed.split() == [webhook_id, "enabled", "COMPLETE", receiver.url]
    assert run_poiesis("webhook", "dead-letters", webhook_id, *url).stdout == ""
    assert run_poiesis("webhook", "replay", webhook_id, *url).stdout == "0 messages are sent again\n"
    assert run_poiesis("webhook", "enable", webhook_id, *url).stdout == f"{webhook_id} is enabled\n"
    assert run_poiesis("webhook", "delete", webhook_id, *url).stdout == f"{webhook_id} is deleted\n"
    unknown = run_poiesis("webhook", "delete", webhook_id, *url)
    assert (unknown.returncode, unknown.stderr) == (1, f"poiesis: no such webhook: '{webhook_id}'\n")


def test_a_private_address_is_refused_by_default(make_service: Callable[..., Service], receiver: Receiver) -> None:
    service = make_service(POIESIS_WEBHOOKS__ALLOW_HTTP="true").start()
    webhook_id, _ = registered(service, receiver)
    service.post({"executors": [sh("true")]})
    path = f"{service.url}/poiesis/v1/webhooks/{webhook_id}"

    eventually(lambda: request("GET", path).document["failures"], "a failed attempt")
    assert (receiver.accepted, receiver.refused) == ([], 0)
