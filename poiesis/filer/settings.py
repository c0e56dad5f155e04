"""A site's settings of transfers: plain data, passed to filer containers as JSON.

Secrets are not passed: `to_json` leaves them out, and the container reads them where the site mounts them (the standard AWS variables and
files, `credentials_file` of an endpoint, a netrc file).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

from poiesis.domain.errors import ConfigurationError

MIB: Final = 1024 * 1024
SECRET: Final = frozenset({"access_key", "secret_key", "session_token", "credentials"})
OF_TASK: Final[Mapping[str, bool]] = {"setting": False}  # set for each task, not by a site


@dataclass(frozen=True)
class S3Endpoint:
    """One S3 service. Credentials are searched in this order: the ones given here (only in-process), `credentials_file` and
    `profile`, then, unless `anonymous`, the standard AWS chain: variables, web identity (IRSA), profile files; without any: anonymous."""

    name: str
    """Alias: `s3://NAME/bucket/key` names this endpoint, as its host does."""
    url: str = "https://s3.amazonaws.com"
    """Base URL, without a path."""
    region: str | None = None
    """None: AWS_REGION, else us-east-1."""
    buckets: tuple[str, ...] = ()
    """Names or patterns (`genomes-*`) of buckets that `s3://bucket/key` finds here."""
    virtual_style: bool = False
    """Bucket in the host name; never for buckets with dots over https, whose certificate would not fit."""
    anonymous: bool = False
    """Send no credentials."""
    profile: str | None = None
    """Section of the credentials file."""
    credentials_file: str | None = None
    """In the format of ~/.aws/credentials."""
    sse: str | None = None
    """Server-side encryption of uploads: `AES256`, or `aws:kms`, or `aws:kms:KEY`."""
    sse_key_file: str | None = None
    """32 bytes, of SSE-C: for uploads and downloads (https only)."""
    ca_file: str | None = None
    """Certificates to trust; None: those of the filers."""
    verify: bool = True
    """Whether the server's certificate is checked."""
    access_key: str | None = field(default=None, repr=False)
    """Only in-process, like the next two: not passed to containers."""
    secret_key: str | None = field(default=None, repr=False)
    """Of `access_key`."""
    session_token: str | None = field(default=None, repr=False)
    """Of temporary credentials."""


@dataclass(frozen=True)
class CloudStore:
    """Google Cloud Storage (`gs`) or Azure Blob Storage (`az`). Credentials come from the provider's standard variables and files (such as
    GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY), or from the identity of the node or the service account."""

    account: str | None = None
    """Storage account of `az`; None: AZURE_STORAGE_ACCOUNT_NAME."""
    endpoint: str | None = None
    """Instead of the provider's own."""
    anonymous: bool = False
    """Send no credentials."""
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Only in-process: the values of bound credentials, by obstore's names."""


class OtherVersion(ConfigurationError):
    """The service that wrote the settings is newer than this filer: during an upgrade or a rollback. The next attempt has one version."""

    retryable = True


@dataclass(frozen=True)
class FilerSettings:
    file_roots: tuple[str, ...] = ()
    """Directories that `file://` URLs may refer to, after symbolic links are resolved; empty: none."""
    file_hidden: tuple[str, ...] = ()
    """Directories below those that no URL may refer to; `poiesis up` adds its own directory."""
    s3: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """Endpoints by alias: the fields of `S3Endpoint`. The first one is the default for buckets that no other lists. Empty: AWS, or what
    AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL name."""

    cloud: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """Which of `gs` and `az` are offered: the fields of `CloudStore` by scheme, such as `{"gs": {}, "az": {"account": "lab"}}`."""

    parallel: int = 64
    """Concurrent connections, for files and parts of files together. http servers get at most 8 of them, ftp and sftp servers 4."""
    part_bytes: int = 16 * MIB
    """Size of the parts of a large file; larger where a protocol limits their number."""
    buffer_bytes: int = MIB // 2
    """Of each connection. Memory for data is `parallel` times this."""
    connect_timeout: timedelta = timedelta(seconds=10)
    """Of a connection to a server."""
    stall_timeout: timedelta = timedelta(seconds=60)
    """Time without a byte after which a transfer counts as broken. A transfer as a whole has no limit."""
    attempts: int = 6
    """At one file, part or listing, including the first; progress restarts the count, at most `max_resumes` times."""
    max_resumes: int = 1000
    """How often progress may restart the count of attempts."""
    retry_delay: timedelta = timedelta(milliseconds=300)
    """Before the second attempt; doubles with each further one up to `max_retry_delay`, with jitter."""
    max_retry_delay: timedelta = timedelta(seconds=20)
    """Upper bound of the delay before another attempt."""
    sync: bool = True
    """Whether inputs are synced to the disk before success is reported. Off where a crash loses the volume too."""
    max_files: int = 1_000_000
    """Maximum number of files of one task in one direction; more are an error, also in an endless listing."""
    max_file_bytes: int | None = None
    """Size limit of an input file; None: no limit."""
    max_output_bytes: int | None = None
    """Size limit of all outputs of a task together, a sparse file counted with its holes, which are uploaded; None: no limit."""

    http_put: bool = False
    """Whether outputs may be sent to http(s) URLs by PUT."""
    allow_addresses: tuple[str, ...] = ()
    """Networks (`10.1.0.0/16`) and host names that URLs of tasks may reach although they are private, loopback or link-local."""
    allow_unencrypted_credentials: bool = False
    """Whether filers that share a pod's network with a task's commands may send credentials (S3 keys, passwords, those of proxies) over
    unencrypted connections. Off: on Kubernetes such a task gets separate filer pods (the staged layout). No effect on one machine."""
    proxy: str | None = field(default=None, repr=False)
    """For http and https URLs; None: HTTPS_PROXY and HTTP_PROXY, with NO_PROXY."""
    resolve_before_proxy: bool = False
    """Whether hosts of http, https and drs URLs that are reached through a proxy have to resolve here too, to addresses that may be
    reached. Off: a name that only the proxy can resolve is left to the proxy's rules, which then have to keep tasks out of the site."""
    ca_file: str | None = None
    """Certificates to trust for https in addition to the system's."""
    netrc_file: str | None = None
    """User names and passwords by host, for http, ftp and sftp URLs without them."""
    max_redirects: int = 10
    """Of one http request."""

    ssh_key_file: str | None = None
    """Private key for sftp URLs without a password."""
    known_hosts_file: str | None = None
    """Keys of sftp hosts; None: a host whose key is unknown is refused."""
    drs_hosts: tuple[str, ...] = ()
    """Hosts that drs:// URLs may name; empty: every public one."""
    drs_token_file: str | None = None
    """Bearer token for DRS servers."""

    credentials_dir: str | None = field(default=None, metadata=OF_TASK)
    """Of a task that is bound to credentials of its own: the only source of them (`bound_credentials`)."""
    credentials_name: str = field(default="", metadata=OF_TASK)
    """What to call that directory in messages, such as `the Secret "s3-ada"`."""
    cache_scope: str = field(default="", metadata=OF_TASK)
    """Tasks share cached inputs only within a scope: those who may read an input with one set of credentials may not with another."""

    cache_dir: str | None = None
    """Directory of the input cache; None: no cache."""
    cache_bytes: int = 100 * 10**9
    """Size limit of the input cache."""
    cache_min_bytes: int = 1 * MIB
    """Smaller files are not cached."""

    def __post_init__(self) -> None:
        if not 1 <= self.parallel <= 256:
            raise ConfigurationError("filer: invalid parallel: must be between 1 and 256")
        if self.part_bytes < 5 * MIB or self.buffer_bytes < 4096 or self.attempts < 1:
            raise ConfigurationError(
                "filer: part_bytes must be at least 5 MiB, buffer_bytes at least 4096, attempts at least 1"
            )
        _ = self.endpoints, self.cloud_stores

    @cached_property
    def cloud_stores(self) -> dict[str, CloudStore]:
        """The stores of `cloud` by scheme, checked. Raises: ConfigurationError."""
        if unknown := sorted(set(self.cloud) - {"gs", "az"}):
            raise ConfigurationError(f"filer: unknown scheme {unknown[0]!r} in cloud: use gs or az")
        for scheme, options in self.cloud.items():
            _check_fields(CloudStore, options, f"cloud store {scheme!r} has")
        return {scheme: CloudStore(**options) for scheme, options in self.cloud.items()}

    @cached_property  # the planner reads it for each bucket of a task
    def endpoints(self) -> tuple[S3Endpoint, ...]:
        """The endpoints of `s3`, checked. Raises: ConfigurationError."""
        found = []
        for name, options in self.s3.items():
            _check_fields(S3Endpoint, options, f"s3 endpoint {name!r} has")
            buckets = options.get("buckets", ())
            if isinstance(buckets, str):
                raise ConfigurationError(f"filer: buckets of s3 endpoint {name!r} must be a list")
            found.append(S3Endpoint(**{**options, "name": name, "buckets": tuple(buckets)}))
        return tuple(found)

    def to_json(self) -> str:
        """What differs from the defaults, except secrets. During an upgrade or a rollback it may be read by a filer of another version,
        which does not know newer fields."""
        values: dict[str, Any] = {}
        defaults = FilerSettings()
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value == getattr(defaults, item.name):
                continue
            if item.name in ("s3", "cloud"):
                value = {n: {k: v for k, v in o.items() if k not in SECRET} for n, o in value.items()}
            elif item.name == "proxy" and value is not None and "@" in value:
                value = None  # it holds a password
            elif isinstance(value, timedelta):
                value = value.total_seconds()
            values[item.name] = value
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> FilerSettings:
        """Raises: ConfigurationError."""
        try:
            values = json.loads(text)
            known = {f.name: f for f in dataclasses.fields(cls)}
            if not isinstance(values, dict):
                raise ValueError("not an object")
            if unknown := sorted(set(values) - set(known)):
                raise OtherVersion(
                    f"the filer's settings have unknown fields, of another version: {', '.join(unknown)[:200]}"
                )
            for name, value in values.items():
                if "timedelta" in str(known[name].type):
                    values[name] = timedelta(seconds=value)
                elif isinstance(value, list):
                    values[name] = tuple(value)
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"the filer's settings cannot be read: {error}") from None


def _check_fields(kind: type[S3Endpoint | CloudStore], options: Mapping[str, Any], where: str) -> None:
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := ", ".join(sorted(set(options) - known)):
        raise ConfigurationError(f"filer: {where} unknown fields: {unknown}")
