"""The dashboard's list of tasks on SQLite with 10^3 and 10^6 tasks, and what ten open browsers cost the API.

    python -m bench dashboard [--sizes 1000,1000000] [--repeat 30] [--seconds 30] [--directory DIR]

The stores are those of `bench lists`. Pages: CPU time of a request over HTTP in one process, client and store included, p50 and p99: the
time on a machine that does nothing else. Open browsers: ten streams of events as pages hold them, while one task a second changes its
state; shown is the CPU time of the server's process, less that of the changes without a stream.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench.lists import fill

PAGES: Final = {
    "first page": "/ui/tasks",
    "three states": "/ui/tasks?state=QUEUED&state=INITIALIZING&state=RUNNING",
    "name prefix, 1 in 1,000": "/ui/tasks?name=rare-",
    "tag, a third": "/ui/tasks?tag=project%3Dp0",
    "owner": "/ui/tasks?owner=user7",
    "oldest waiting first": "/ui/tasks?state=QUEUED&state=INITIALIZING&order=oldest",
    "longest running first": "/ui/tasks?order=longest",
    "grouped by a tag": "/ui/tasks?group=project",
    "count before a bulk cancel": "/ui/tasks/bulk?do=cancel&all=1",
}
BROWSERS: Final = 10


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,1000000")
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--directory", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve is not None:
        _serve(given.serve, given.seconds)
        return
    given.directory.mkdir(parents=True, exist_ok=True)
    for size in map(int, given.sizes.split(",")):
        path = given.directory / f"tasks-{size}.sqlite"
        fill(path, size)
        print(f"{size:,} tasks: milliseconds, p50 and p99 of {given.repeat}")
        for name, times in _pages(path, given.repeat).items():
            print(f"  {name:28} {_quantile(times, 0.5):7.1f} {_quantile(times, 0.99):7.1f}")
    alone, watched = (_cost(browsers, given.seconds) for browsers in (0, BROWSERS))
    print(f"{BROWSERS} open browsers: {watched - alone:.2%} of a core ({watched:.2%} with, {alone:.2%} without)")


def _pages(path: Path, repeat: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in PAGES}
    with TemporaryDirectory() as directory:
        Path(directory, "tasks.sqlite").symlink_to(path.absolute())
        with ExitStack() as running:
            url = running.enter_context(_site(Path(directory))).url
            for i in range(repeat + 2):  # the first rounds fill caches
                for name, page in PAGES.items():
                    begin = time.process_time()
                    with urllib.request.urlopen(url + page, timeout=60) as response:
                        response.read()
                    if i >= 2:
                        times[name].append((time.process_time() - begin) * 1000)
    return times


def _cost(browsers: int, seconds: int) -> float:
    """CPU time of the server over wall time, while one task a second changes."""
    with TemporaryDirectory() as directory, ExitStack() as streams:
        command = [sys.executable, "-m", "bench", "dashboard", "--serve", directory, "--seconds", str(seconds)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None and server.stdin is not None
        url = server.stdout.readline().strip()
        for _ in range(browsers):
            streams.enter_context(urllib.request.urlopen(f"{url}/poiesis/v1/events", timeout=60))
            with urllib.request.urlopen(f"{url}/ui/tasks", timeout=60) as page:
                page.read()
        server.stdin.write("go\n")
        server.stdin.flush()
        used = float(server.stdout.readline())
        streams.close()
        server.communicate(timeout=30)
    return used


def _serve(directory: Path, seconds: int) -> None:
    """Print the address, wait for a line, change a task every second, print the share of a core that the process has used."""
    from poiesis.domain.states import State

    with _site(directory) as site:
        made = [site.create(f"task {i}") for i in range(50)]
        print(site.url, flush=True)
        sys.stdin.readline()
        began, cpu = time.monotonic(), time.process_time()
        for i in range(seconds):
            site.change(made[i % len(made)], state=State.INITIALIZING if i < len(made) else State.RUNNING)
            time.sleep(max(0.0, began + i + 1 - time.monotonic()))
        print((time.process_time() - cpu) / (time.monotonic() - began), flush=True)


def _site(directory: Path) -> Any:
    from tests.browser.site import Site

    return Site(directory)


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, round(q * (len(values) - 1)))]


if __name__ == "__main__":
    main()
