"""How long a full garbage collection stops a process with the application, before and after its objects are left out of it.

python -m bench garbage [--rounds 5]
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from statistics import median

from poiesis.api.memory import freeze_started_objects
from poiesis.bootstrap import Bootstrap
from poiesis.config import ApiSettings, Settings
from poiesis.filer.settings import FilerSettings


def collection() -> float:
    """Seconds of a full collection."""
    began = time.perf_counter()
    gc.collect()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with (
        tempfile.TemporaryDirectory() as directory,
        Bootstrap(Settings(directory=directory, runtime="process", api=ApiSettings()), FilerSettings()) as parts,
    ):
        from poiesis.api.app import create_app

        app = create_app(parts.api_services())
        gc.collect()
        before = median(collection() for _ in range(rounds))
        freeze_started_objects()
        after = median(collection() for _ in range(rounds))
        print(f"{type(app).__name__}: {gc.get_freeze_count()} objects left out")
        print(f"a full collection: {1e3 * before:.1f} ms before, {1e3 * after:.2f} ms after")


if __name__ == "__main__":
    main()
