"""Leader election among the monitors with a Lease (coordination.k8s.io).

The candidate that writes its name into the Lease leads, and renews it every `retry`. A leader that could not renew for `renew_deadline`
stops by itself; the others take over `lease` after they saw the last change, which is later. Each candidate only uses its own clock. All
writes carry the resourceVersion that was read, so only one of two concurrent writers succeeds.

A leader that hangs (suspended, starved) may still consider itself the leader while it hangs. That is tolerated: two active monitors do the
same things twice for a moment, and those are idempotent.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from poiesis.cluster.kubernetes import labels
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.cluster.kubernetes.rights import lease_name
from poiesis.cluster.kubernetes.settings import KubernetesSettings

log = logging.getLogger(__name__)

LEASE: Final = timedelta(seconds=15)
RENEW_DEADLINE: Final = timedelta(seconds=10)
RETRY: Final = timedelta(seconds=2)
CALL_S: Final = 2  # of one call, for connecting and for reading: must not outlast the lease


class Election:
    """`on_start` is called when this process becomes the leader, `on_stop` when it stops leading; both from the election's thread, and
    both must return quickly, or the Lease is not renewed. `name`: of the Lease. `identity`: unique to this process."""

    def __init__(
        self,
        settings: KubernetesSettings,
        on_start: Callable[[], None],
        on_stop: Callable[[], None],
        *,
        name: str | None = None,
        identity: str | None = None,
        client: Client | None = None,
        lease: timedelta = LEASE,
        renew_deadline: timedelta = RENEW_DEADLINE,
        retry: timedelta = RETRY,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        if not retry < renew_deadline < lease:
            raise ValueError("invalid election settings: must have retry < renew_deadline < lease")
        short = timedelta(seconds=CALL_S)
        self._client = client or Client(replace(settings, attempts=1, connect_timeout=short, read_timeout=short))
        self._settings = settings
        self._on_start = on_start
        self._on_stop = on_stop
        self.name = name or lease_name(settings)
        self.identity = identity or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases"
        self._lease = lease
        self._renew_deadline = renew_deadline
        self._retry = retry
        self._monotonic = monotonic
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait
        self._leads = False
        self._renewed_at: float | None = None
        self._seen: tuple[str, str] | None = None  # holder and resourceVersion of the last change
        self._seen_at = 0.0
        self._thread = threading.Thread(target=self.run, name="election", daemon=True)

    @property
    def is_leader(self) -> bool:
        """False as soon as the renew deadline has passed, even if the election's thread hangs."""
        renewed = self._renewed_at
        return self._leads and renewed is not None and not self._is_over(renewed, self._renew_deadline)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop; a leader releases the lease at once instead of letting it expire."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(10)
        self._client.close()

    def run(self) -> None:
        while not self._closed.is_set():
            self.step()
            self._wait(self._retry.total_seconds())
        if self._leads:
            self._stop("closed")
            self._release()

    def step(self) -> None:
        """Try once to acquire or renew the lease."""
        began = self._monotonic()
        try:
            held = self._try()
        except ApiError as error:
            held = False
            log.warning("lease_not_reached", extra={"lease": self.name, "error": str(error)})
        except Exception:
            held = False
            log.exception("election_bug", extra={"lease": self.name})
        if held:
            self._renewed_at = began
            if not self._leads:
                self._leads = True
                log.info("leading", extra={"lease": self.name, "identity": self.identity})
                self._call(self._on_start)
        elif self._leads and (self._lost_to_another() or not self.is_leader):
            self._stop("lost")

    def _try(self) -> bool:
        """Whether this process holds the lease now. Raises: ApiError."""
        path = f"{self._path}/{self.name}"
        try:
            found = self._client.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            return self._write(None)
        spec = found.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        self._notice(holder, str(found["metadata"].get("resourceVersion")))
        duration = timedelta(seconds=int(spec.get("leaseDurationSeconds") or self._lease.total_seconds()))
        if holder in (self.identity, "") or self._is_over(self._seen_at, duration):
            return self._write(found)
        return False

    def _write(self, found: dict[str, Any] | None) -> bool:
        """Create, acquire or renew the Lease. False: another candidate was first."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old: dict[str, Any] = dict((found or {}).get("spec") or {})
        is_renewal = old.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self._lease.total_seconds()),
            "acquireTime": old.get("acquireTime") if is_renewal else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if is_renewal or found is None else 1),
        }
        try:
            if found is None:
                common = labels.common(self._settings, "monitor")
                body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
                written = self._client.create(
                    self._path, {**body, "metadata": {"name": self.name, "labels": common}, "spec": spec}
                )
            else:
                written = self._client.replace(f"{self._path}/{self.name}", {**found, "spec": spec})
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        self._notice(self.identity, str(written["metadata"].get("resourceVersion")))
        return True

    def _notice(self, holder: str, version: str) -> None:
        if self._seen != (holder, version):
            self._seen, self._seen_at = (holder, version), self._monotonic()

    def _lost_to_another(self) -> bool:
        return self._seen is not None and self._seen[0] not in (self.identity, "")

    def _is_over(self, since: float, duration: timedelta) -> bool:
        return self._monotonic() - since > duration.total_seconds()

    def _stop(self, why: str) -> None:
        self._leads = False
        log.warning("no_longer_leading", extra={"lease": self.name, "identity": self.identity, "why": why})
        self._call(self._on_stop)

    def _release(self) -> None:
        try:
            found = self._client.get(f"{self._path}/{self.name}")
            if (found.get("spec") or {}).get("holderIdentity") == self.identity:
                spec = {**found["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                self._client.replace(f"{self._path}/{self.name}", {**found, "spec": spec})
        except ApiError as error:
            log.info("lease_not_released", extra={"lease": self.name, "error": str(error)})

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            log.exception("election_callback_failed", extra={"lease": self.name})
