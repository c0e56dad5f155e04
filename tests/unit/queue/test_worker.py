"""The name of a worker, as operators see it."""

import socket

from poiesis.queue.worker import node_name


def test_a_worker_is_named_after_its_role_and_its_pod():
    assert node_name("torc") == f"torc@{socket.gethostname()}"
