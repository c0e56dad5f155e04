"""Messages of the scheduler, as Kubernetes 1.28 to 1.34 write them."""

import pytest

from poiesis.cluster.kubernetes.scheduling import room_of
from poiesis.domain.observed import Room

NO_VICTIMS = "No preemption victims found for incoming pod"
UNHELPFUL = "Preemption is not helpful for scheduling"


def message(nodes: int, reasons: str, preemption: str) -> str:
    return f"0/{nodes} nodes are available: {reasons}. preemption: 0/{nodes} nodes are available: {preemption}."


def message_of_never(reasons: str) -> str:
    """Of a pod that may not preempt others."""
    return f"0/3 nodes are available: {reasons}. preemption: not eligible due to preemptionPolicy=Never."


@pytest.mark.parametrize(
    ("text", "room"),
    [
        (message(3, "3 Insufficient cpu", f"3 {NO_VICTIMS}"), Room.BUSY),
        (message(1, "1 Insufficient cpu, 1 Insufficient memory", f"1 {NO_VICTIMS}"), Room.BUSY),
        (message(1, "1 Too many pods", f"1 {NO_VICTIMS}"), Room.BUSY),
        (
            message(
                3,
                "1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector",
                f"1 {NO_VICTIMS}, 2 {UNHELPFUL}",
            ),
            Room.BUSY,
        ),
        (message(2, "2 Insufficient nvidia.com/gpu", f"2 {UNHELPFUL}"), Room.NO_NODE),
        (message(2, "2 node(s) didn't match Pod's node affinity/selector", f"2 {UNHELPFUL}"), Room.NO_NODE),
        (
            message(
                2, "1 Insufficient cpu, 1 node(s) had untolerated taint {dedicated: gpu, or: other}", f"2 {UNHELPFUL}"
            ),
            Room.NO_NODE,
        ),
        # as 1.34 writes them
        (
            "0/17 nodes are available: 1 Insufficient cpu, 16 node(s) had untolerated taint(s). no new claims to deallocate, preemption: "
            f"0/17 nodes are available: 17 {UNHELPFUL}.",
            Room.NO_NODE,
        ),
        (
            "0/17 nodes are available: 1 Insufficient cpu, 16 node(s) had untolerated taint(s). no new claims to deallocate, preemption: "
            f"0/17 nodes are available: 1 {NO_VICTIMS}, 16 {UNHELPFUL}.",
            Room.BUSY,
        ),
        (
            "0/2 nodes are available: 2 node(s) had untolerated taint(s). no new claims to deallocate, preemption: "
            f"0/2 nodes are available: 2 {UNHELPFUL}.",
            None,
        ),
        # a node that may return
        (message(1, "1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }", f"1 {UNHELPFUL}"), None),
        (message(1, "1 node(s) had untolerated taint(s) {node.kubernetes.io/unschedulable: }", f"1 {UNHELPFUL}"), None),
        (message(2, "1 Insufficient cpu, 1 node(s) were unschedulable", f"2 {UNHELPFUL}"), None),
        (message(1, "1 node(s) had volume node affinity conflict", f"1 {UNHELPFUL}"), None),
        # the volume is bound to a node that may be busy, or may never fit
        (
            message(
                2,
                "1 Insufficient nvidia.com/gpu, 1 node(s) had volume node affinity conflict",
                f"1 {NO_VICTIMS}, 1 {UNHELPFUL}",
            ),
            None,
        ),
        (message_of_never("1 Insufficient cpu, 2 node(s) didn't match PersistentVolume's node affinity"), None),
        # no counts of preemption: whether a node is large enough is not known
        (message_of_never("1 Insufficient cpu"), Room.BUSY),
        (message_of_never("1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector"), Room.BUSY),
        (message_of_never("1 Too many pods"), Room.BUSY),
        (message_of_never("3 node(s) didn't match Pod's node affinity/selector"), Room.NO_NODE),
        (message_of_never("3 node(s) had untolerated taint {dedicated: gpu}"), Room.NO_NODE),
        (message_of_never("3 node(s) had untolerated taint(s)"), None),
        (message_of_never("3 node(s) were unschedulable"), None),
        (
            "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to a terminating pod on the nominated node.",
            Room.BUSY,
        ),
        ("0/1 nodes are available: 1 Insufficient cpu. preemption: no candidate node for preemption.", Room.BUSY),
        ("0/1 nodes are available: 1 Insufficient cpu.", Room.BUSY),
        ("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.", None),
        ("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found", None),
        ("no nodes available to schedule pods", None),
        ("0/0 nodes are available: ", None),
        (None, None),
        ("", None),
    ],
)
def test_a_message_is_understood_or_left_open(text, room):
    assert room_of(text) is room


@pytest.mark.parametrize(
    ("text", "room"),
    [
        (message_of_never("3 Insufficient cpu"), Room.NO_NODE),
        (message_of_never("1 Insufficient cpu, 2 node(s) had untolerated taint(s)"), Room.NO_NODE),
        (message_of_never("2 Insufficient cpu, 1 node(s) were unschedulable"), Room.BUSY),
        (message_of_never("1 Insufficient cpu, 2 Too many pods"), Room.BUSY),
        (message(2, "2 Insufficient cpu", f"2 {NO_VICTIMS}"), Room.NO_NODE),  # before 1.31
        ("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found", None),
        (None, None),
    ],
)
def test_a_pod_that_is_known_to_be_larger_than_every_node_waits_for_none(text, room):
    assert room_of(text, too_large=True) is room


def test_a_long_message_costs_little():
    assert room_of("0/1 nodes are available: " + ", 1 " * 100_000) is None
