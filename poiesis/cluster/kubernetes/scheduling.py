"""What the scheduler's message about a pod without a node means: no room now, or no node that could ever run it. Pure.

    0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector. no new claims to deallocate,
    preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling.

    0/3 nodes are available: 3 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.

Preemption is not helpful on a node that could not run the pod even if it was empty: it lacks a label, has a taint, or is too small (the
scheduler of Kubernetes 1.31 and later; earlier ones do not tell a small node from a busy one). Of a pod that may preempt no others the
message does not say that; then only labels and taints show it, or that the pod is known to be larger than every node. All that is only
certain where each reason is a lasting one: a node that is cordoned, not ready or short of disk space may return. Kubernetes 1.34 no longer
names taints; then they count as lasting unless all nodes have one, which is rather an outage.

A node with a volume affinity conflict has room for the pod, but does not reach its volume. Then the nodes that do may be busy, or may never
fit, which earlier schedulers do not tell apart: such a pod must not wait without a deadline.
"""

from __future__ import annotations

import re
from typing import Final

from poiesis.domain.observed import Room

_NODES: Final = re.compile(r"0/(\d+) nodes are available: ([^\n]*)", re.IGNORECASE)
_COUNTED: Final = re.compile(r"\s*(\d+) (.+?)\s*")
_UNHELPFUL: Final = "preemption is not helpful"
_NEVER: Final = re.compile(r"preemptionpolicy[=:] ?never", re.IGNORECASE)
_FULL: Final = re.compile(r"(insufficient |too many pods)", re.IGNORECASE)
_OUT_OF_REACH: Final = re.compile(
    r"node\(s\) (had volume node affinity conflict|didn't match PersistentVolume's node affinity)", re.IGNORECASE
)
_LASTING: Final = re.compile(
    r"(insufficient |node\(s\) didn't match pod's node affinity|node\(s\) didn't match node selector"
    r"|node\(s\) had untolerated taint(?!(?:\(s\))? \{node\.(kubernetes\.io|cloudprovider)))",
    re.IGNORECASE,
)
_UNNAMED_TAINT: Final = re.compile(r"node\(s\) had untolerated taint\(s\)(?! \{)", re.IGNORECASE)


def room_of(message: str | None, *, too_large: bool = False) -> Room | None:
    """None: not known. `too_large`: the pod requests more than any node has."""
    found = _NODES.search(message or "")
    if not found:
        return None
    nodes = int(found[1])
    filters, _, preemption = found[2].partition(" preemption: ")
    reasons = _counted(filters)
    if not nodes or not reasons:
        return None
    unhelpful = sum(
        count for count, text in _counted(preemption.partition(": ")[2]) if text.lower().startswith(_UNHELPFUL)
    )
    is_full = any(_FULL.match(text) for _, text in reasons)
    is_unfit = unhelpful >= nodes or too_large or (not is_full and _NEVER.search(preemption) is not None)
    if is_unfit and all(_LASTING.match(text) for _, text in reasons):
        return None if all(_UNNAMED_TAINT.match(text) for _, text in reasons) else Room.NO_NODE
    may_fit = unhelpful < nodes and not any(_OUT_OF_REACH.match(text) for _, text in reasons)
    return Room.BUSY if is_full and may_fit else None


def _counted(text: str) -> list[tuple[int, str]]:
    """`1 Insufficient cpu, 2 node(s) had …`: the counts with their reasons. Taints may contain commas."""
    parts = re.split(r",(?= \d+ )", text.strip().rstrip("."))
    return [(int(match[1]), match[2]) for part in parts if (match := _COUNTED.fullmatch(part))]
