"""HTTP to the API server: the official client's configuration, TLS and connection pool, with plain dicts.

The generated API classes convert every response into model objects, which costs milliseconds of CPU per pod for no benefit, so calls use
`ApiClient`'s pool with JSON. Every call has time-outs, and calls that may succeed later are repeated a few times with back-off and jitter.
All writes can be repeated: names are deterministic, so a create that had succeeded gets a 409 the next time.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.utils.keepalive import tcp_keepalive_socket_options

from poiesis.cluster.kubernetes.errors import ApiError, from_answer, rule_for
from poiesis.cluster.kubernetes.pace import Pace
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.errors import ConfigurationError
from poiesis.metrics import KUBERNETES_REQUESTS, KUBERNETES_SECONDS

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ANSWER_BYTES: Final = 128 * 1024 * 1024
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
FIRST_DELAY_S: Final = 0.2  # then 0.4, 0.8, …: with four attempts 1.4 s, jitter aside
# if the server asks for more, the call fails as `Unavailable` instead of blocking a worker
LONGEST_DELAY_S: Final = 5.0
JSON: Final = "application/json"
TOKEN_DIRECTORY: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


def configuration(settings: KubernetesSettings) -> Configuration:
    """Of the pod's service account (its token is reloaded every minute), else of a kubeconfig.

    Raises: ConfigurationError.
    """
    found = Configuration()
    in_cluster = settings.kubeconfig is None and os.path.exists(f"{TOKEN_DIRECTORY}/token")
    try:
        if in_cluster:
            config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=settings.kubeconfig, context=settings.context, client_configuration=found
            )
    except (config.ConfigException, OSError) as error:
        raise ConfigurationError(f"cannot configure access to Kubernetes: {error}") from error
    found.retries = 0  # retries are handled here
    found.connection_pool_maxsize = settings.pool_size
    # a dead connection is noticed after half a minute, also while a watch waits on it
    found.socket_options = tcp_keepalive_socket_options(idle=15, interval=5, count=3)
    return found


class Stream:
    """Lines of a streaming response. `close` from another thread ends the iteration at once."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        """Raises: ApiError (status 0) when the connection breaks; an incomplete last line is dropped."""
        rest = b""
        try:
            for chunk in self._response.stream(64 * 1024):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line for line in lines if line)
                if len(rest) > MAX_LINE_BYTES:
                    raise ApiError(0, "LineTooLong", f"line of more than {MAX_LINE_BYTES} bytes")
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            if not self._closed.is_set():
                raise ApiError(0, type(error).__name__, str(error)) from error
        finally:
            self._response.close()

    def close(self) -> None:
        self._closed.set()
        try:
            self._response.shutdown()
        except (ValueError, RuntimeError, OSError, NotImplementedError):
            log.debug("stream_already_closed")


class Client:
    """`calls` counts requests by verb and kind. `host`: the API server's URL. Every method raises ApiError."""

    def __init__(
        self,
        settings: KubernetesSettings,
        configuration_: Configuration | None = None,
        *,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configuration = configuration_ or configuration(settings)
        self._api = ApiClient(self._configuration)
        self.host: str = self._configuration.host.rstrip("/")
        self._connect_s = settings.connect_timeout.total_seconds()
        self._read_s = settings.read_timeout.total_seconds()
        self._attempts = max(1, settings.attempts)
        self._sleep = sleep
        self._jitter = jitter
        self.monotonic = monotonic
        self._paces = {verb: Pace(settings.writes_per_second, monotonic) for verb in ("POST", "DELETE")}
        self.calls: Counter[str] = Counter()

    def get(self, path: str, query: Mapping[str, object] | None = None) -> dict[str, Any]:
        return self._repeat(_document, "GET", path, query)

    def create(self, path: str, body: Mapping[str, Any], *, until: float | None = None) -> dict[str, Any]:
        """`until`: the time of `monotonic` when the last attempt must have ended."""
        return self._repeat(_document, "POST", path, body=body, until=until)

    def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._repeat(_document, "PUT", path, body=body)

    def delete(self, path: str, options: Mapping[str, Any]) -> bool:
        """Whether the object existed."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        try:
            self._repeat(_document, "DELETE", path, body=body)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def text(self, path: str, query: Mapping[str, object], limit_bytes: int, timeout_s: float) -> str:
        """The last `limit_bytes` of a plain-text response; no more than that is kept in memory. Tried once."""
        deadline = time.monotonic() + timeout_s

        def read(response: urllib3.BaseHTTPResponse) -> str:
            kept = b""
            for chunk in response.stream(256 * 1024):
                kept = (kept + chunk)[-limit_bytes:]
                if time.monotonic() > deadline:
                    response.close()
                    raise ApiError(0, "ReadTimeoutError", f"not read within {timeout_s:g} s")
            response.release_conn()
            return kept.decode("utf-8", "replace")

        return self._once(read, "GET", path, query, read_s=timeout_s)

    def stream(self, path: str, query: Mapping[str, object], *, read_timeout_s: float) -> Stream:
        return self._once(Stream, "GET", path, query, read_s=read_timeout_s)

    def close(self) -> None:
        self._api.close()  # type: ignore[no-untyped-call]

    # ── one call ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _repeat(
        self,
        read: Callable[[urllib3.BaseHTTPResponse], T],
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, Any] | None = None,
        until: float | None = None,
    ) -> T:
        payload = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        attempt, delay, pace = 1, FIRST_DELAY_S, self._paces.get(method)
        while True:
            if pace is not None:
                self._await_turn(pace)
            if until is not None and self.monotonic() + self._connect_s + self._read_s > until:
                raise ApiError(0, "TooLate", "not tried again: earlier calls took too long")
            try:
                result = self._once(read, method, path, query, payload, self._read_s)
                if pace is not None:
                    pace.accepted()
                return result
            except ApiError as error:
                wait = max(delay * (0.5 + self._jitter()), error.retry_after or 0.0)
                if pace is not None and error.status == 429:
                    pace.refused(wait)
                if not rule_for(error).again or attempt == self._attempts or wait > LONGEST_DELAY_S:
                    raise
                log.info("api_call_repeated", extra={"attempt": attempt, "error": str(error), "wait_s": round(wait, 2)})
                self._sleep(wait)
                attempt, delay = attempt + 1, delay * 2

    def _await_turn(self, pace: Pace) -> None:
        wait = pace.reserve(LONGEST_DELAY_S)
        if wait > LONGEST_DELAY_S:
            raise ApiError(
                429, "Paced", f"the API server is busy: this process writes {pace.rate:.0f} objects a second", wait
            )
        if wait > 0:
            self._sleep(wait)

    def _once(
        self,
        read: Callable[[urllib3.BaseHTTPResponse], T],
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        payload: bytes | None = None,
        read_s: float | None = None,
    ) -> T:
        headers = {"Accept": JSON, "User-Agent": "poiesis"} | ({"Content-Type": JSON} if payload is not None else {})
        token = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            headers["Authorization"] = token
        verb = _verb(method, path, query)
        self.calls[verb] += 1
        began = time.monotonic()
        response = None
        try:
            response = self._api.rest_client.pool_manager.request(
                method,
                f"{self.host}{path}" + (f"?{urlencode(query)}" if query else ""),
                body=payload,
                headers=headers,
                timeout=urllib3.Timeout(connect=self._connect_s, read=read_s),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            if 200 <= response.status < 300:
                return read(response)
            raise from_answer(response.status, _body(response), response.headers.get("Retry-After"))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if response is not None:
                response.close()
            raise ApiError(0, type(error).__name__, str(error)) from error
        finally:
            _measure(verb, 0 if response is None else response.status, time.monotonic() - began)


def _measure(verb: str, status: int, seconds: float) -> None:
    """`verb`: of `_verb`, such as `create pods`."""
    name, _, resource = verb.partition(" ")
    KUBERNETES_REQUESTS.labels(name, resource, str(status)).inc()
    KUBERNETES_SECONDS.labels(name).observe(seconds)


def _body(response: urllib3.BaseHTTPResponse) -> bytes:
    body = response.read(MAX_ANSWER_BYTES + 1)
    if len(body) > MAX_ANSWER_BYTES:
        raise urllib3.exceptions.HTTPError(f"response of more than {MAX_ANSWER_BYTES} bytes")
    response.release_conn()
    return body


def _document(response: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    body = _body(response)
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ApiError(0, "NotJson", f"response is not a JSON object: {body[:100]!r}")
    return document


def _verb(method: str, path: str, query: Mapping[str, object] | None) -> str:
    """`create pods`, `list pods`, `get pods/log`, …: as in RBAC and the audit log."""
    parts = path.strip("/").split("/")
    place = parts.index("namespaces") + 2 if "namespaces" in parts[:-2] else len(parts) - 1
    kind, *rest = parts[place:]
    subresource = f"/{rest[1]}" if len(rest) > 1 else ""
    verb = {"POST": "create", "PUT": "update", "DELETE": "delete"}.get(method, "get" if rest else "list")
    return f"{'watch' if query and query.get('watch') else verb} {kind}{subresource}"
