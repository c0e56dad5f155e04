"""One machine, no server: docker, podman or plain processes. `cluster.py` is the port; `supervisor.py` takes pods through their turns."""

from poiesis.cluster.local.cluster import LocalCluster
from poiesis.cluster.local.process_runtime import credential_files
from poiesis.cluster.local.supervisor import Filers, LogKeeping

__all__ = ["Filers", "LocalCluster", "LogKeeping", "credential_files"]
