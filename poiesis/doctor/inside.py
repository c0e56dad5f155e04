"""The part of `trial` that runs in a task's pod: what a filer and what a command can do there. Prints findings as one line of JSON.

python -m poiesis.doctor.inside in --document D --volume V --settings S      in the place of a filer
python -m poiesis.doctor.inside network '{"closed": [[name, host, port], …], "poke": "host:port/path"}'   as a user's command
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from poiesis.doctor.result import Finding, Findings, Status, error, ok, warning

SECRETS: Final = "/poiesis/doctor"
"""Where the trial mounts every Secret that the settings name, each in a directory of its own; one that does not exist is an empty one."""
PULL: Final = (".dockerconfigjson", ".dockercfg")
CONNECT_S: Final = 3.0
SETTLE_S: Final = 3.0  # until a network plug-in that learns addresses from the API server knows a new pod
ROUNDS: Final = 3


def check_volume(volume: Path) -> Findings:
    path = volume / "doctor"
    try:
        path.write_bytes(b"trial")
        is_same = path.read_bytes() == b"trial"
        path.unlink()
    except OSError as failure:
        yield error(
            f"filers cannot write to the task's volume: {failure.strerror}",
            "Tasks with files fail.",
            "Set tasks.fsGroup (65532), unless the cluster assigns one; a storage driver without fsGroup support needs filer.runAsUser=0.",
        )
        return
    if is_same:
        yield ok("the task's volume can be written and read")


def check_secrets(directory: Path, pull: Sequence[str]) -> Findings:
    """Those that the settings name exist; `pull`: those that must be of an image registry."""
    found = 0
    for place in sorted(directory.iterdir()) if directory.is_dir() else ():
        keys = sorted(
            name for name in os.listdir(place) if not name.startswith("..data") and not name.startswith("..20")
        )
        name, is_pull = place.name, place.name in pull
        if not keys:
            follows = (
                "Images of private registries cannot be pulled."
                if is_pull
                else "Tasks of those who are bound to it fail."
            )
            kind = "docker-registry" if is_pull else "generic"
            what = f"there is no Secret {name} in the namespace of tasks, or it is empty"
            yield error(
                what,
                follows,
                f"Create it there (kubectl create secret {kind} {name} …), or correct the values that name it.",
            )
        elif is_pull and not any(_is_registry(place / key) for key in PULL if key in keys):
            yield error(
                f"the Secret {name} is not one of an image registry: it has {', '.join(keys)[:200]}",
                "Images of private registries cannot be pulled.",
                f"Create it with kubectl create secret docker-registry {name} --docker-server=… (type kubernetes.io/dockerconfigjson).",
            )
        else:
            found += 1
    if found:
        yield ok(f"{found} Secrets that the settings name exist")


def _is_registry(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content.get("auths", content))


def check_storage(settings: Path) -> Findings:
    from poiesis.doctor.storage import check_endpoint, endpoints_to_check
    from poiesis.filer.settings import FilerSettings

    read = FilerSettings.from_json(settings.read_bytes())
    for endpoint in endpoints_to_check(read):
        yield from check_endpoint(endpoint, read)


def check_network(closed: Sequence[tuple[str, str, int]], poke: str | None) -> Findings:
    time.sleep(SETTLE_S)
    if poke is not None:
        yield from _poke(poke)
    with ThreadPoolExecutor(max(len(closed), 1)) as pool:
        reached = [
            name for name, is_open in zip((c[0] for c in closed), pool.map(_stays_open, closed), strict=True) if is_open
        ]
    if reached:
        yield warning(
            f"a task's command can connect to: {', '.join(reached)}",
            "Commands of users can attack what is behind; only passwords protect it.",
            "Set tasks.networkPolicy.enabled=true, and use a network plug-in that enforces NetworkPolicy (Calico, Cilium, "
            "kube-network-policies); look for further policies that allow these connections.",
        )
    elif closed:
        yield ok(f"a task's command cannot connect to: {', '.join(c[0] for c in closed)}")


def _stays_open(target: tuple[str, str, int]) -> bool:
    """Not only in the first seconds of the pod."""
    for i in range(ROUNDS):
        time.sleep(SETTLE_S if i else 0)
        try:
            socket.create_connection(target[1:], CONNECT_S).close()
        except OSError:
            return False
    return True


def _poke(place: str) -> Findings:
    """The name is resolved, the monitor's port is reached, and it knows this pod from its watch."""
    address, _, path = place.partition("/")
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][4]
    except OSError as failure:
        yield error(
            f"a task's pod cannot resolve {host}: {failure.strerror}",
            "Inputs and outputs at host names fail, and ends of tasks are noticed late.",
            "Allow DNS in tasks.networkPolicy.dnsTo (by default any address at port 53), and check clusterDomain and tasks.extraPodSpec.",
        )
        return
    connection = http.client.HTTPConnection(str(found[0]), int(port), timeout=CONNECT_S)
    try:
        connection.request("POST", f"/{path}", body=b"")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as failure:
        yield warning(
            f"a task's pod cannot reach the monitor's port for pokes ({address}): {type(failure).__name__}",
            "Ends of tasks are noticed half a second later.",
            "Look at the monitor's pods and NetworkPolicy, tasks.networkPolicy, and ports.poke; or set tasks.poke.enabled=false.",
        )
        return
    finally:
        connection.close()
    if status not in (202, 429):
        yield warning(
            f"the listener at {address} does not know this pod (status {status})",
            "Ends of tasks are noticed half a second later.",
            "Check that the monitor follows this namespace and instance (POIESIS_KUBERNETES__NAMESPACE, __INSTANCE).",
        )
    else:
        yield ok("names are resolved, and pokes arrive at the monitor")


def findings_of(text: str) -> list[Finding]:
    """What `main` printed; empty if it is not that."""
    for line in text.splitlines():
        try:
            document = json.loads(line)
            return [Finding(Status(f["status"]), f["what"], f["follows"], f["repair"]) for f in document["findings"]]
        except (ValueError, KeyError, TypeError):
            continue
    return []


def main(argv: Sequence[str]) -> int:
    if argv[0] == "network":
        targets = json.loads(argv[1])
        found = list(check_network([(n, h, int(p)) for n, h, p in targets["closed"]], targets["poke"]))
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("--pull", action="append", default=[])
        parser.add_argument("direction")
        for name in ("--document", "--volume", "--settings"):
            parser.add_argument(name, type=Path, required=True)
        given = parser.parse_args(argv)
        found = [*check_volume(given.volume), *check_secrets(Path(SECRETS), given.pull), *check_storage(given.settings)]
    print(json.dumps({"findings": [dataclasses.asdict(f) for f in found]}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
