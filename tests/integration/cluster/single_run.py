"""One task on a local cluster in a separate process, so that it can run as another user: reads its options as JSON from stdin.

    python single_run.py DIRECTORY LAUNCHER

Prints what was observed as JSON: the sentence that `poiesis up` prints, and for each executor its record.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from poiesis.domain.task import Input, Output, Resources
from tests.integration.cluster.harness import bench, eventually, record, sh


def main() -> None:
    directory, launcher = map(Path, sys.argv[1:])
    wanted = json.load(sys.stdin)
    options = {n: tuple(map(Path, wanted[n])) for n in ("hidden", "visible") if n in wanted}
    with bench(directory, launcher, "process", **options) as lab:
        task = lab.task(
            *(sh(script) for script in wanted["scripts"]),
            inputs=tuple(Input(path, content="x") for path in wanted.get("inputs", ())),
            outputs=tuple(Output(path, f"file://{directory}.out") for path in wanted.get("outputs", ())),
            volumes=tuple(wanted.get("volumes", ())),
            resources=Resources(**wanted["resources"]) if "resources" in wanted else None,
        )
        seen = lab.ended(lab.launch(task))
        names = [f"executor-{n}" for n in range(len(wanted["scripts"]))]
        control = [p for p in lab.directory.glob("tasks/*/control/*/*") if p.suffix not in (".json", ".up", ".begun")]
        found = {
            "description": lab.cluster.describe(),
            "control_files": len(control),
            "lost": seen.pods[0].message if seen.pods[0].lost else None,
            "records": [] if seen.pods[0].lost else [asdict(record(seen, name)) for name in names],
        }
        lab.remove(task)
        eventually(lambda: not list(directory.glob("tasks/*")), "the removal")
        print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
