"""The cost of a task document from the body of a POST to its plan, as it grows tenfold, for several shapes.

    python -m bench documents [--size 300] [--steps 2] [--only deep]

Each row is one shape; each column one step, in milliseconds of CPU time (best of three) for the largest document, with the growth of the
cost for the last tenfold growth of the document: about 10 is linear. Bodies above the default limit of the API are measured all the same.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from poiesis.api.normalize import load_task, normalize, parse
from poiesis.api.views import Views
from poiesis.config import ApiSettings
from poiesis.domain.errors import InvalidTask
from poiesis.domain.plan import plan
from poiesis.domain.policy import Limits, Policy
from poiesis.domain.staging import tif_document, tof_document
from poiesis.domain.task import Task, TaskId, TaskSpec, View
from poiesis.domain.validate import check
from poiesis.repository.documents import to_document
from poiesis.repository.sqlite import tasks as sqlite

Json = dict[str, Any]
HUGE: Final = 10**9
POLICY: Final = Policy(limits=Limits(HUGE, HUGE, HUGE, HUGE, HUGE, HUGE, HUGE, HUGE, HUGE))
BASE: Final[Json] = {"executors": [{"image": "alpine", "command": ["true"]}]}
STEPS: Final = ("parse", "decode", "check", "plan", "filers", "store", "view")


def _inputs(paths: list[str]) -> Json:
    return BASE | {"inputs": [{"path": path, "url": f"s3://bucket/{i}"} for i, path in enumerate(paths)]}


def _outputs(paths: list[str], **fields: str) -> Json:
    return BASE | {"outputs": [{"path": path, "url": f"s3://bucket/{i}", **fields} for i, path in enumerate(paths)]}


def _deep(n: int) -> list[str]:
    """Paths of the maximum depth, each with its own tail."""
    return ["/d" * 2000 + f"/{i:07}" for i in range(max(n // 100, 1))]


SHAPES: Final[dict[str, Callable[[int], Json]]] = {
    "inputs in one directory": lambda n: _inputs([f"/data/{i}" for i in range(n)]),
    "inputs in distinct directories": lambda n: _inputs([f"/data/d{i}/x" for i in range(n)]),
    "inputs below the image's directories": lambda n: _inputs([f"/opt/d{i}/x" for i in range(n)]),
    "nested inputs": lambda n: _inputs(["/data" + "".join(f"/{c}" for c in str(i)) + "/x" for i in range(n)]),
    "one path many times": lambda n: _inputs(["/data/x"] * n),
    "conflicting inputs": lambda n: (
        BASE | {"inputs": [{"path": "/a" + "/a" * (i % 50), "content": "x"} for i in range(n)]}
    ),
    "outputs in distinct directories": lambda n: _outputs([f"/out/d{i}/x" for i in range(n)]),
    "declared directories": lambda n: _outputs([f"/out/d{i}" for i in range(n)], type="DIRECTORY"),
    "patterns": lambda n: _outputs([f"/out/d{i}/*.txt" for i in range(n)], path_prefix="/out"),
    "open brackets": lambda n: _outputs(["/o/" + "[[:" * 80 + f"{i}" for i in range(n // 10)]),
    "names with open brackets": lambda n: _outputs(
        [f"/o/{('[' * 240 + '/') * 16}{i}*" for i in range(n // 30)], path_prefix="/o"
    ),
    "too long paths": lambda n: _outputs(["/o/" + "[/" * 5_000 + f"{i}*" for i in range(n // 30)]),
    "volumes": lambda n: BASE | {"volumes": [f"/v/{i}" for i in range(n)]},
    "volumes and outputs": lambda n: (
        _outputs([f"/v/{i}/x" for i in range(n)]) | {"volumes": [f"/v/{i}" for i in range(n)]}
    ),
    "deep inputs": lambda n: _inputs(_deep(n)),
    "deep outputs": lambda n: _outputs(_deep(n), type="DIRECTORY"),
    "one path of many names": lambda n: _inputs(["/a" * n]),
    "tags": lambda n: BASE | {"tags": {f"k{i}": "v" for i in range(n)}},
    "env": lambda n: {"executors": [BASE["executors"][0] | {"env": {f"K{i}": "v" for i in range(n)}}]},
    "command": lambda n: {"executors": [BASE["executors"][0] | {"command": ["x"] * n}]},
    "stdout": lambda n: {"executors": [BASE["executors"][0] | {"stdout": f"/o/{i}/x"} for i in range(n)]},
    "workdirs": lambda n: {"executors": [BASE["executors"][0] | {"workdir": f"/work/{i}"} for i in range(n)]},
    "backend parameters": lambda n: BASE | {"resources": {"backend_parameters": {f"p{i}": "v" for i in range(n)}}},
    "long image": lambda n: {"executors": [{"image": "a-" * n, "command": ["true"]}]},
    "long text": lambda n: BASE | {"name": "é" * n},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=300, help="items of the smallest document")
    parser.add_argument("--steps", type=int, default=2, help="how often it grows tenfold")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    arguments = parser.parse_args()
    print(f"{'shape':38}{'bytes':>10}" + "".join(f"{step:>16}" for step in STEPS) + f"{'all':>16}")
    for name, make in SHAPES.items():
        if arguments.only in name:
            sizes = [arguments.size * 10**step for step in range(arguments.steps + 1)]
            smaller, larger = (_measure(make(size)) for size in sizes[-2:])
            cells = [f"{larger[s] * 1e3:9.1f}{_growth(smaller[s], larger[s]):>7}" for s in (*STEPS, "all")]
            print(f"{name:38}{larger['bytes']:>10.0f}" + "".join(cells))


def _growth(smaller: float, larger: float) -> str:
    return f"x{larger / smaller:.0f}" if smaller > 1e-4 else ""


def _measure(document: Json) -> dict[str, float]:
    """Seconds of CPU time for each step, best of three; steps that a refused task does not reach cost zero."""
    body = json.dumps(document).encode()
    runs = [_run(body) for _ in range(3)]
    best = {step: min(run.get(step, 0.0) for run in runs) for step in STEPS}
    return best | {"all": sum(best.values()), "bytes": len(body)}


def _run(body: bytes) -> dict[str, float]:
    cost: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        try:
            return work()
        finally:
            cost[step] = time.process_time() - started

    document = timed("parse", lambda: normalize(parse(body)))
    spec: TaskSpec = timed("decode", lambda: load_task(document))
    try:
        spec, _ = timed("check", lambda: check(spec, POLICY))
    except InvalidTask:
        return cost
    now = datetime(2026, 1, 31, tzinfo=UTC)
    task = Task(id=TaskId("x"), spec=spec, created_at=now, wake_at=now)
    made = timed("plan", lambda: plan(spec, POLICY))
    timed("filers", lambda: (tif_document(task, made), tof_document(task, made)))
    (_, core, bulk, *_), _ = timed("store", lambda: sqlite._encode(to_document(task)))
    timed("view", lambda: Views(ApiSettings()).task(sqlite._decode((1, None, core, bulk)), View.FULL))
    return cost


if __name__ == "__main__":
    main()
