"""Settings: one typed, frozen value read once from `POIESIS_…` variables, `__` between levels.

`read` fills any frozen dataclass, also nested ones, so that each adapter defines its own settings and `bootstrap` reads
them all: `POIESIS_POLICY__MAX_ATTEMPTS=5`, `POIESIS_KUBERNETES__NAMESPACE=tasks`. Values are text for str, numbers, `true`/`false`,
durations (`90s`, `15m`, `2h`, `1d`), and comma-separated lists or JSON for collections. An unknown variable is an error that suggests the
closest name. Secrets may come from a file: `POIESIS_MONGO_URI_FILE=/run/secrets/uri`, and their fields are hidden in `repr`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import poiesis
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.parameters import parse_bool, parse_duration
from poiesis.domain.policy import Policy
from poiesis.domain.quotas import AdmissionRules

PREFIX: Final = "POIESIS_"
MIN_RETENTION: Final = timedelta(days=1)  # as long as an idempotency key stands for its task (ports.idempotency.KEPT)
CLOSE: Final = 0.7  # part of equal characters of names where one may be a misspelling of the other
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}  # from `uname -m` to Kubernetes' names
T = TypeVar("T")


def shipped_launchers() -> Mapping[str, Path]:
    """Return the launchers inside the package, by architecture (`amd64`, `arm64`)."""
    return {p.name.removeprefix("launcher-"): p for p in sorted(Path(poiesis.__file__).parent.glob("bin/launcher-*"))}


@dataclass(frozen=True)
class RateLimits:
    """Shared by all processes of the API through Redis."""

    enabled: Literal["auto", "on", "off"] = "auto"
    """auto: with authentication. Without it a service has no users to be fair to, and an address may be that of a proxy for all."""
    requests_per_s: float = 500.0
    """Of each user; without authentication, of each address. Above what the engines that poll each of their tasks need."""
    request_burst: int = 5_000
    """Requests that a user who has been idle may send at once."""
    body_bytes_per_s: float = 32 * 1024 * 1024
    """Of the bodies of a user's requests."""
    body_burst_bytes: int = 256 * 1024 * 1024
    """Bytes of bodies that a user who has been idle may send at once."""
    address_requests_per_s: float = 50.0
    """Of each address (one /64 network of IPv6), without valid credentials: refused ones, service-info and pages."""
    address_request_burst: int = 500
    """The same at once."""
    redis_timeout_ms: int = 50
    """Milliseconds. How long a request waits for Redis. After that each process limits by itself, and tries Redis again a second later."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, str):
                _require(value > 0, f"invalid {PREFIX}API__LIMITS__{item.name.upper()} {value}: must be more than 0")


@dataclass(frozen=True)
class DashboardSettings:
    """The web pages at /ui (docs/dashboard.md)."""

    enabled: bool = True
    url: str | None = None
    """Address of the service as browsers see it, such as `https://tes.example.org`, where a proxy that is not in `trusted_proxies` ends
    TLS; None: that of each request."""
    session_lifetime: timedelta = timedelta(hours=12)
    """How long a login in the browser lasts."""

    def __post_init__(self) -> None:
        name = f"{PREFIX}API__DASHBOARD__"
        _require(
            self.url is None or _is_origin(self.url),
            f"invalid {name}URL {self.url!r}: must be http:// or https:// with a host, and no path",
        )
        _require(self.session_lifetime > timedelta(0), f"invalid {name}SESSION_LIFETIME: must be longer than 0")


@dataclass(frozen=True)
class ApiSettings:
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """0: any free port."""
    workers: int = 1
    """Worker processes; the limits below apply to each."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in `Host` that requests may use without authentication, in addition to loopback names and, unless `host` is a loopback address,
    `host`, the machine's name and any IP address. `*.example.org` stands for all names below it, `*` for any name (docs/api.md)."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the API, such as `https://portal.example.org`; `*` for all."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies in front of the API. Their `X-Forwarded-For` names the client, and their connections do not count
    towards `max_connections_per_address`."""
    auth: tuple[str, ...] = ()
    """Authentication methods, any of basic, bearer (tokens of the credentials file), oidc (tokens of OpenID providers), api_key; empty:
    no authentication, which is possible on a loopback address, or with `allow_anonymous`."""
    allow_anonymous: bool = False
    """Give everyone who can connect to `host` all rights where `auth` is empty."""
    credentials_file: str | None = None
    """JSON file of users, tokens and keys; see docs/operators.md."""
    key_lifetime: timedelta | None = timedelta(days=365)
    """Longest lifetime of an API key; None: there may be keys that never expire."""
    oidc_issuers: str = field(default="", repr=False)
    """OpenID providers for the method oidc: a JSON list of objects, see below. May contain secrets: prefer
    POIESIS_API__OIDC_ISSUERS_FILE."""
    max_connections: int = 512
    """Open connections. A new one closes the connection that has been idle longest; it is refused when all are busy."""
    max_connections_per_address: int = 256
    """The same for one client address, or one /64 network of IPv6."""
    max_streams: int = 4096
    """Requests that wait for events (`events`, `wait`). They do not count towards `max_connections`; further ones get 429."""
    max_streams_per_user: int = 512
    """The same for one user, or without authentication for one client address."""
    max_header_bytes: int = 32 * 1024
    """Of the request line and headers of a request."""
    max_body_bytes: int = 10 * 1024 * 1024 - 1
    """Of the body of a request. `content` of inputs has its own limits in the policy."""
    max_buffered_bytes: int = 20 * 1024 * 1024
    """Total of all bodies above 64 KiB that are being received or processed; further ones wait, then get 503. Half of it, and at least
    `max_body_bytes`, is for each user. A body takes up to 25 times its size in memory."""
    header_timeout: timedelta = timedelta(seconds=10)
    """How long a request line and its headers may take."""
    body_timeout: timedelta = timedelta(seconds=15)
    """How long a body may take, in addition to one second for each 16 KiB."""
    idle_timeout: timedelta = timedelta(seconds=75)
    """How long an idle connection stays open. Longer than the usual 60 s of proxies, so that the proxy closes first."""
    limits: RateLimits = field(default_factory=RateLimits)
    dashboard: DashboardSettings = field(default_factory=DashboardSettings)
    audit: str = "auto"
    """Where each write and each refused request is recorded as a line of JSON (docs/operators.md): stdout, stderr, off, or the absolute
    path of a file. auto: stdout, but off with `poiesis up`."""
    client_safe_states: bool = False
    """Show CANCELING as RUNNING, for clients that treat CANCELING as the end of a task, such as Galaxy with Pulsar (docs/api.md)."""
    queued_as_initializing: bool = False
    """Show QUEUED as INITIALIZING, for Galaxy with Pulsar, which treats QUEUED as a failure."""
    preempted_as_system_error: bool = True
    """Show PREEMPTED as SYSTEM_ERROR, since most clients wait forever for a PREEMPTED task to end."""

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, f"invalid port {self.port}: must be between 0 and 65535")
        for name in (
            "workers",
            "max_connections",
            "max_connections_per_address",
            "max_streams",
            "max_streams_per_user",
            "max_body_bytes",
            "max_buffered_bytes",
        ):
            _require_at_least(1, getattr(self, name), f"API__{name.upper()}")
        _require_at_least(1024, self.max_header_bytes, "API__MAX_HEADER_BYTES")
        _require(
            self.audit in ("auto", "off", "stdout", "stderr") or self.audit.startswith("/"),
            f"invalid {PREFIX}API__AUDIT {self.audit!r}: use stdout, stderr, off, auto or an absolute path",
        )
        for name in ("header_timeout", "body_timeout", "idle_timeout"):
            _require(getattr(self, name) > timedelta(0), f"invalid {PREFIX}API__{name.upper()}: must be longer than 0")


@dataclass(frozen=True)
class ServiceSettings:
    """Shown in service-info (GA4GH service-info 1.0.0)."""

    id: str = "org.example.poiesis"
    name: str = "Poiesis"
    description: str = "GA4GH Task Execution Service"
    organization_name: str = "Poiesis"
    organization_url: str = "https://example.org"
    contact_url: str | None = None
    documentation_url: str | None = None
    environment: str | None = None
    storage: tuple[str, ...] = ()
    """URL prefixes that clients may use, such as s3://bucket/; empty: derived from the enabled schemes."""
    gpu_types: tuple[str, ...] = ()
    """Values of the backend parameter gpu_type that users should know (shown in /poiesis/v1/capabilities)."""
    zones: tuple[str, ...] = ()
    """Zones that users should know (shown there too)."""


@dataclass(frozen=True)
class WebhookSettings:
    """Messages to users' webhooks (docs/operators.md)."""

    max_per_user: int = 20
    """Webhooks of one user; 0: none may be registered."""
    allow_http: bool = False
    """Whether URLs may begin with http://; messages are signed, but not encrypted then."""
    allow_addresses: tuple[str, ...] = ()
    """Networks (`10.1.0.0/16`) and host names that webhooks may reach although they are private, loopback or link-local."""
    ca_file: str | None = None
    """Certificates to trust in addition to the system's."""

    def __post_init__(self) -> None:
        _require_at_least(0, self.max_per_user, "WEBHOOKS__MAX_PER_USER")


@dataclass(frozen=True)
class LogSettings:
    """The log store, which keeps the whole output of executors (docs/operators.md)."""

    url: str | None = None
    """`s3://BUCKET/PREFIX`, or `file:///DIRECTORY`; None: only the tails of the tasks' logs are kept."""
    endpoint: str | None = None
    """Base URL of the S3 service; None: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else AWS."""
    region: str | None = None
    """None: AWS_REGION, else us-east-1."""
    virtual_style: bool = False
    """Bucket in the host name."""
    ca_file: str | None = None
    """Certificates to trust in addition to the system's."""
    access_key: str | None = field(default=None, repr=False)
    """None, like the next one: the standard AWS variables, files and roles."""
    secret_key: str | None = field(default=None, repr=False)
    """Of `access_key`."""
    max_bytes: int = 10**9
    """Of each stream of each executor; what it writes after that is only in the tail. At most 10^12."""
    backlog_bytes: int = 128 * 1024 * 1024
    """Of each stream, on the node's disk, while the store is slower than the command."""
    max_stall: timedelta = timedelta(seconds=10)
    """How long in total a full backlog may delay a command; after that nothing more of its output is kept."""
    interval: timedelta = timedelta(seconds=1)
    """How old output becomes before it is stored. A shorter interval costs more requests."""
    finish: timedelta = timedelta(seconds=10)
    """How long after the end of a pod's executors the rest of their output may take to be stored."""

    def __post_init__(self) -> None:
        if self.url is not None:
            _require(
                self.url.startswith(("s3://", "file:///")),
                f"invalid {PREFIX}LOGS__URL: must be s3://BUCKET/PREFIX or file:///DIRECTORY",
            )
        _require(1 <= self.max_bytes <= 10**12, f"invalid {PREFIX}LOGS__MAX_BYTES: must be between 1 and 10^12")
        _require_at_least(8 * 1024 * 1024, self.backlog_bytes, "LOGS__BACKLOG_BYTES")
        _require(self.interval > timedelta(0), f"invalid {PREFIX}LOGS__INTERVAL: must be longer than 0")
        _require(
            (self.access_key is None) == (self.secret_key is None),
            f"{PREFIX}LOGS__ACCESS_KEY and {PREFIX}LOGS__SECRET_KEY need each other",
        )


@dataclass(frozen=True)
class TracingSettings:
    """Traces of tasks (docs/observability.md)."""

    endpoint: str | None = None
    """Of a collector that takes OTLP over HTTP, such as http://otel-collector:4318. None: OTEL_EXPORTER_OTLP_ENDPOINT; without both,
    nothing is recorded. The other OTEL_EXPORTER_OTLP_… variables (headers, certificates) are read as well."""
    ratio: float = 1.0
    """Which part of all traces is recorded, by their ids, so that a trace is recorded as a whole or not at all."""

    def __post_init__(self) -> None:
        _require(0 <= self.ratio <= 1, f"invalid {PREFIX}TRACING__RATIO {self.ratio}: must be between 0 and 1")
        if self.endpoint is not None:
            _require(
                self.endpoint.startswith(("http://", "https://")),
                f"invalid {PREFIX}TRACING__ENDPOINT: must be http://HOST:PORT or https://HOST:PORT",
            )


@dataclass(frozen=True)
class Settings:
    mongo_uri: str = field(default="mongodb://127.0.0.1:27017", repr=False)
    """Of the store. May contain a password: prefer POIESIS_MONGO_URI_FILE."""
    mongo_database: str = "poiesis"
    """Name of the database in MongoDB."""
    redis_uri: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    """Of the broker. May contain a password: prefer POIESIS_REDIS_URI_FILE."""
    directory: str = ".poiesis"
    """Embedded mode: directory of the database and the tasks' files."""
    runtime: str = "auto"
    """Embedded mode: auto, docker, podman or process."""
    max_parallel: int | None = None
    """Embedded mode: tasks that run concurrently; None: twice the number of cores."""
    max_processes: int = 512
    """Embedded mode: maximum number of processes and threads of one command."""
    visible_directories: tuple[str, ...] = ()
    """Embedded mode: directories of the host that commands in the process sandbox can read, such as a conda installation in a home
    directory. System directories (`/usr`, `/opt`, parts of `/etc`) always are."""
    credentials: Mapping[str, str] = field(default_factory=dict)
    """Embedded mode: directories of credentials of users' own, by user, `group:NAME`, or `*` for all others: a JSON object. Their tasks
    use these and none of the service's (docs/operators.md). An empty path: none at all."""
    role_threads: int = 4
    """Links that the worker of a role handles concurrently."""
    resync: timedelta = timedelta(seconds=5)
    """How often the store is queried for tasks that are due."""
    monitor_threads: int = 8
    """Tasks that the monitor reconciles concurrently."""
    listen: str = "0.0.0.0:8081"
    """Where every role serves health checks and metrics."""
    metrics_listen: str | None = None
    """Embedded mode: where health checks and metrics are served, such as 127.0.0.1:8081; None: nowhere."""
    usage_tags: tuple[str, ...] = ("project",)
    """Keys of tags that usage is summed by, besides users and groups (docs/api.md)."""
    retention: timedelta | None = None
    """How long tasks stay in the store after their end, at least 1d; None: forever."""
    events_retention: timedelta = timedelta(days=30)
    """How long events stay in their log: a client or webhook that was away longer misses some."""
    shutdown_grace: timedelta = timedelta(seconds=25)
    """How long after SIGTERM a process ends at the latest. Keep it below Kubernetes' terminationGracePeriodSeconds (30)."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    log_format: str = "json"
    """`json`, or `text` for terminals."""
    api: ApiSettings = field(default_factory=ApiSettings)
    service: ServiceSettings = field(default_factory=ServiceSettings)
    policy: Policy = field(default_factory=Policy)
    admission: AdmissionRules = field(default_factory=AdmissionRules)
    logs: LogSettings = field(default_factory=LogSettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)

    def __post_init__(self) -> None:
        for name in ("max_parallel", "max_processes", "role_threads", "monitor_threads"):
            _require_at_least(1, getattr(self, name), name.upper())
        for name in ("stage_in_deadline", "stage_out_deadline"):
            is_positive = getattr(self.policy, name) > timedelta(0)
            _require(is_positive, f"invalid {PREFIX}POLICY__{name.upper()}: must be longer than 0")
        hour = timedelta(hours=1)
        _require(self.events_retention >= hour, f"invalid {PREFIX}EVENTS_RETENTION: must be at least 1h")
        _require(
            self.retention is None or self.retention >= MIN_RETENTION,
            f"invalid {PREFIX}RETENTION: must be at least 1d, because a repeated request with its idempotency key finds its task for a day",
        )
        after, attempts = self.policy.on_demand_after, self.policy.max_attempts
        _require(
            after is None or 1 <= after < attempts,
            f"invalid {PREFIX}POLICY__ON_DEMAND_AFTER {after}: must be at least 1 and less than"
            f" {PREFIX}POLICY__MAX_ATTEMPTS ({attempts}), so that an attempt is left for on-demand nodes",
        )


def _require(is_valid: bool, message: str) -> None:
    if not is_valid:
        raise ConfigurationError(message)


def _is_origin(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and url == f"{parts.scheme}://{parts.netloc}"
    except ValueError:
        return False


def _require_at_least(least: int, value: int | None, name: str) -> None:
    _require(value is None or value >= least, f"invalid {PREFIX}{name} {value}: must be at least {least}")


def read(cls: type[T], environ: Mapping[str, str], prefix: str = PREFIX, *, others: tuple[str, ...] = ()) -> T:
    """Return an instance of the dataclass `cls` from the variables that begin with `prefix`.

    `others`: prefixes of variables that other readers read. Raises: ConfigurationError with the variable and what is allowed.
    """
    reader = _Reader(environ)
    value = reader.build(cls, prefix)
    for _, message in reader.unknown(prefix, others):
        raise ConfigurationError(message)
    return value


def read_all(
    cls: type[T], environ: Mapping[str, str], prefix: str = PREFIX, *, others: tuple[str, ...] = ()
) -> tuple[T, list[tuple[str, str]]]:
    """Like `read`, but with every problem instead of the first one: (variable, or prefix of several; message). The value has defaults in
    place of what is invalid."""
    reader = _Reader(environ, [])
    value = reader.build(cls, prefix)
    return value, [*reader.problems, *reader.unknown(prefix, others)]


def is_setting(item: dataclasses.Field[Any]) -> bool:
    """Whether a field is read from a variable; `bootstrap` fills the others."""
    return bool(item.metadata.get("setting", True))


def _is_close(name: str, known: str) -> bool:
    """Whether a name may be a misspelling of another one: words that both begin with, such as the prefix of all settings, do not count."""
    matcher = difflib.SequenceMatcher(None, name, known, autojunk=False)
    first = matcher.get_matching_blocks()[0]
    same = name.rfind("_", 0, first.size) + 1 if first.a == first.b == 0 else 0
    matcher.set_seqs(name[same:], known[same:])
    return matcher.ratio() >= CLOSE


class _Reader:
    """`problems`: a list where problems are collected; None: the first one is raised."""

    def __init__(self, environ: Mapping[str, str], problems: list[tuple[str, str]] | None = None) -> None:
        self._environ = environ
        self._collects = problems is not None
        self.problems = problems or []
        self.seen: set[str] = set()
        self.names: set[str] = set()

    def unknown(self, prefix: str, others: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        candidates = {n for n in self._environ if n.startswith(prefix) and not any(n.startswith(o) for o in others)}
        for name in sorted(candidates - self.seen):
            near = [known for known in difflib.get_close_matches(name, sorted(self.names)) if _is_close(name, known)]
            yield name, f"unknown setting {name}" + (f"; did you mean {near[0]}?" if near else "")

    def _attempt(self, name: str, made: Callable[[], T], default: Callable[[], T]) -> T:
        try:
            return made()
        except ConfigurationError as error:
            if not self._collects:
                raise
            self.problems.append((name, str(error)))
            return default()

    def build(self, cls: type[T], prefix: str) -> T:
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            if not is_setting(item):
                continue
            kind, name = hints[item.name], prefix + item.name.upper()
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                values[item.name] = self.build(kind, name + "__")
                continue
            value = self._attempt(name, partial(self._value, kind, name), lambda: MISSING)
            if value is not MISSING:
                values[item.name] = value
        return self._attempt(prefix, lambda: cls(**values), cls)

    def _value(self, kind: Any, name: str) -> Any:
        """MISSING: the variable is not set."""
        text = self._text(name)
        if text is None:
            return MISSING
        try:
            return _parse(kind, text)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"invalid {name}: {error}") from None

    def _text(self, name: str) -> str | None:
        self.names |= {name, name + "_FILE"}
        self.seen |= {name, name + "_FILE"}
        if name in self._environ:
            return self._environ[name]
        path = self._environ.get(name + "_FILE")
        if path is None:
            return None
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:  # its message would show the file's bytes
            raise ConfigurationError(f"cannot read {name}_FILE: {path} is not UTF-8 text") from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot read {name}_FILE: {error}") from None


def _parse(kind: Any, text: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        return None if text.strip().lower() in {"", "none"} else _parse(inner[0], text)
    if origin in (tuple, frozenset):
        return origin(_parse(typing.get_args(kind)[0], part) for part in _parts(text))
    if origin is typing.Literal:
        if text not in typing.get_args(kind):
            raise ValueError(f"must be one of {', '.join(typing.get_args(kind))}")
        return text
    if origin is not None or kind is dict:
        value = _json(text)
        if not isinstance(value, dict):
            raise ValueError("must be a JSON object")
        of = typing.get_args(kind)[-1] if origin is not None else None
        return {k: _from_json(of, v) for k, v in value.items()} if dataclasses.is_dataclass(of) else value
    if kind is bool:
        return parse_bool(text)
    if kind is timedelta:
        return timedelta(0) if text.strip() in {"0", "0s"} else parse_duration(text)
    try:
        return kind(text)
    except ValueError:
        raise ValueError("must be a whole number" if kind is int else "must be a number") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("must be JSON") from None


def _from_json(cls: Any, value: Any) -> Any:
    """Return an instance of the dataclass `cls` from a JSON object of its fields."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object with fields of {cls.__name__}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})


def _parts(text: str) -> Iterator[str]:
    if text.strip().startswith("["):
        for item in _json(text):
            yield item if isinstance(item, str) else json.dumps(item)
        return
    yield from (part.strip() for part in text.split(",") if part.strip())
