"""The benchmarks: `python -m bench NAME …`; without a name, a list of them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> int:
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"usage: python -m bench {{{','.join(names)}}} … (each has --help)", file=sys.stderr)
        return 2
    name = sys.argv.pop(1)
    runpy.run_module(f"bench.{name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
