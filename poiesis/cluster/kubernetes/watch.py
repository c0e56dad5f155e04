"""List and watch: keeps the cache up to date.

    list all pages ──▶ watch from the list's resourceVersion ──▶ events, bookmarks
         ▲                     │ ends (time-out, connection lost): watch again from the last version seen
         └─────────────────────┘ 410 (too old), or `relist` has elapsed: list again; what is not listed is gone

One thread per kind. Nothing counts as absent before the first list, nor while the stream has been down for more than a moment.
An event only updates the cache, which notifies its listener; the next list finds what was missed.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from poiesis.cluster.kubernetes.cache import Cache, View
from poiesis.cluster.kubernetes.client import Client, Stream
from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.metrics import WATCH_AGE

log = logging.getLogger(__name__)

FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
FRESH_S: Final = 5.0  # how long the cache counts as current without a stream
SILENCE_S: Final = 30.0  # after the server's own time-out, when a stream counts as dead


class Watch:
    """Feeds one kind of object into the cache until `close`."""

    def __init__(
        self,
        client: Client,
        settings: KubernetesSettings,
        kind: str,
        selector: str,
        project: Callable[[Mapping[str, Any]], View | None],
        cache: Cache,
        *,
        api: str = "/api/v1",
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._kind = kind
        self._path = f"{api}/namespaces/{settings.namespace}/{kind}"
        self._selector = selector
        self._project = project
        self._cache = cache
        self._monotonic = monotonic
        self._jitter = jitter
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._last_contact: float | None = None  # None: not listed yet
        self._listed_at = 0.0
        self._last_sent_at = monotonic()  # when the API server last sent something
        self._thread = threading.Thread(target=self.run, name=f"watch-{kind}", daemon=True)
        self.synced = threading.Event()

    def start(self) -> None:
        WATCH_AGE.labels(self._kind).set_function(lambda: self._monotonic() - self._last_sent_at)
        self._thread.start()

    def is_fresh(self) -> bool:
        """Whether the cache is current: listed, and a stream is open or was a moment ago."""
        with self._lock:
            if self._last_contact is None:
                return False
            return self._stream is not None or self._monotonic() - self._last_contact < FRESH_S

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(5)

    def run(self) -> None:
        version: str | None = None
        failures = 0
        while not self._closed.is_set():
            began = self._monotonic()
            try:
                if version is None or began - self._listed_at > self._settings.relist.total_seconds():
                    version = self._list()
                version = self._follow(version)
                failures = 0 if self._monotonic() - began > 1 else failures + 1
            except ApiError as error:
                if error.status == 410:
                    version = None
                failures += 1
                log.info("watch_broken", extra={"kind": self._kind, "error": str(error), "failures": failures})
            except Exception:
                version = None  # a bug; the next list repairs the cache
                failures += 1
                log.exception("watch_bug", extra={"kind": self._kind})
            if failures and not self._closed.is_set():
                self._wait(min(FIRST_DELAY_S * 2 ** (failures - 1), LONGEST_DELAY_S) * (0.5 + self._jitter()))

    def _list(self) -> str:
        """Pages are projected one at a time, so at most one page of JSON is in memory."""
        views: list[tuple[int, View]] = []
        query: dict[str, object] = {"labelSelector": self._selector, "limit": self._settings.page_size}
        while True:
            page = self._client.get(self._path, query)
            for document in page.get("items") or []:
                view = self._project(document)
                if view is not None:
                    views.append((_version(document.get("metadata") or {}), view))
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        self._cache.replace_all(self._kind, views)
        now = self._monotonic()
        with self._lock:
            self._last_contact = now
        self._listed_at = self._last_sent_at = now
        self.synced.set()
        return str(metadata.get("resourceVersion") or "0")

    def _follow(self, version: str) -> str:
        """Process events from `version` until the stream ends; return the version to continue from."""
        self._resume = version
        seconds = max(1, int(self._settings.watch_timeout.total_seconds() * (0.75 + self._jitter() / 2)))
        query: dict[str, object] = {
            "labelSelector": self._selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": seconds,
        }
        try:
            stream = self._client.stream(self._path, query, read_timeout_s=seconds + SILENCE_S)
            with self._lock:
                self._stream = stream
            if self._closed.is_set():
                stream.close()
            for line in stream:
                self._last_sent_at = self._monotonic()
                self._take(line)
        except ApiError as error:
            if error.status != 0:
                raise
            log.info("watch_interrupted", extra={"kind": self._kind, "error": str(error)})
            if self._resume == version:
                raise
        finally:
            with self._lock:
                if self._stream is not None:
                    self._last_contact = self._monotonic()
                self._stream = None
        return self._resume

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            what, document = event["type"], event["object"]
            metadata = document.get("metadata") or {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ApiError(0, "NotAnEvent", repr(line[:100])) from error
        if what == "ERROR":
            raise ApiError(int(document.get("code") or 500), str(document.get("reason")), str(document.get("message")))
        if what in ("ADDED", "MODIFIED", "DELETED"):
            view = self._project(document)
            if view is not None and what == "DELETED":
                self._cache.delete(self._kind, _version(metadata), view)
            elif view is not None:
                self._cache.put(self._kind, _version(metadata), view)
        if metadata.get("resourceVersion"):
            self._resume = str(metadata["resourceVersion"])


def _version(metadata: Mapping[str, Any]) -> int:
    """0: not comparable."""
    text = str(metadata.get("resourceVersion") or "")
    return int(text) if text.isdecimal() else 0
