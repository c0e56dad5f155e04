"""The ConfigMaps that all tasks share: the launcher's binaries, and the owner of every object."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from poiesis.cluster.kubernetes import objects
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError, translate, translated
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.config import ARCHITECTURES, shipped_launchers
from poiesis.domain.errors import ClusterRefused, ConfigurationError

CREATED_FOR_S: Final = 600.0  # how long the launcher's ConfigMap is assumed to exist


def with_launchers(settings: KubernetesSettings) -> KubernetesSettings:
    """With the shipped launchers unless others are set, and the default architecture: this process's own if there is a launcher for it."""
    if settings.delivery == "init":
        return settings
    found = dict(settings.launchers) or {name: str(path) for name, path in shipped_launchers().items()}
    own = ARCHITECTURES.get(platform.machine(), "amd64")
    default = settings.architecture or (own if own in found or not found else min(found))
    return replace(settings, launchers=found, architecture=default)


class InstanceOwner:
    """The ConfigMap that owns all objects, so that Kubernetes deletes them with it."""

    def __init__(self, client: Client, settings: KubernetesSettings) -> None:
        self._client = client
        self._name = settings.owner
        self._path = f"/api/v1/namespaces/{settings.namespace}/configmaps/{settings.owner}"
        self._reference: dict[str, Any] | None = None

    def reference(self) -> dict[str, Any] | None:
        """The owner reference, looked up once. None: no owner is set."""
        if self._name is not None and self._reference is None:
            with translated(f"get configmap {self._name}, the owner of all tasks"):
                found = self._client.get(self._path)
            self._reference = objects.owner("ConfigMap", self._name, found["metadata"]["uid"])
        return self._reference


class LauncherDelivery:
    """Raises: ConfigurationError when a launcher cannot be read."""

    def __init__(
        self,
        client: Client,
        settings: KubernetesSettings,
        owner: InstanceOwner,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._settings = settings
        self._owner = owner
        self._monotonic = monotonic
        self._path = f"/api/v1/namespaces/{settings.namespace}/configmaps"
        self._lock = threading.Lock()
        self._name = ""
        self._exists_until = float("-inf")
        try:
            paths = {} if settings.delivery == "init" else settings.launchers
            self._binaries = {architecture: Path(path).read_bytes() for architecture, path in paths.items()}
        except OSError as error:
            raise ConfigurationError(f"cannot read the launcher: {error}") from error

    def ensure(self) -> str | None:
        """Create the ConfigMap if needed and return its name. None: an init container delivers the launcher."""
        if self._settings.delivery == "init":
            return None
        with self._lock:
            if self._monotonic() >= self._exists_until:
                self._name = self._create()
                self._exists_until = self._monotonic() + CREATED_FOR_S
            return self._name

    def _create(self) -> str:
        """It runs in every task, so an existing ConfigMap must have the content that its name promises."""
        wanted = objects.launcher(self._binaries, self._settings, self._owner.reference())
        name: str = wanted["metadata"]["name"]
        try:
            self._client.create(self._path, wanted)
        except ApiError as error:
            if error.status != 409:
                raise translate(error, f"create configmap {name}") from error
            with translated(f"get configmap {name}"):
                found = self._client.get(f"{self._path}/{name}")
            if found.get("binaryData") != wanted["binaryData"]:
                raise ClusterRefused(
                    f"configmap {name} does not contain the launcher with that hash; delete it"
                ) from None
        return name
