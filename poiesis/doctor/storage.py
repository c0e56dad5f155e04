"""Checks of S3 endpoints, as filers use them, and of the log store. Also run in a task's pod, where a cluster's credentials are."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final

from poiesis.config import LogSettings
from poiesis.doctor.clock import SYNCHRONIZE, check_skew, date_skew_s
from poiesis.doctor.result import Finding, Findings, error, ok, warning
from poiesis.domain.errors import AccessDenied, ConfigurationError, NotFound, PoiesisError, StorageUnavailable
from poiesis.domain.naming import new_task_id
from poiesis.filer.network import network_errors
from poiesis.filer.s3_client import S3Client
from poiesis.filer.s3_errors import WrongRegion, response_error
from poiesis.filer.s3_urls import s3_endpoints
from poiesis.filer.settings import FilerSettings, S3Endpoint
from poiesis.logstore.open import open_store
from poiesis.ports.logs import LogRef

MAX_SKEW_S: Final = 60.0  # S3 refuses requests from 15 minutes on
MAX_BODY_BYTES: Final = 64 * 1024
WILDCARDS: Final = "*?["
FAIL: Final = "Tasks with URLs there end with SYSTEM_ERROR."
KEYS: Final = "the Secret of filer.envSecrets (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"


def endpoints_to_check(settings: FilerSettings) -> tuple[S3Endpoint, ...]:
    """The configured ones; AWS, which is the default, only with credentials for it."""
    if settings.s3:
        return settings.endpoints
    used = ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_WEB_IDENTITY_TOKEN_FILE")
    return s3_endpoints(settings) if any(os.environ.get(name) for name in used) else ()


def check_endpoint(endpoint: S3Endpoint, settings: FilerSettings) -> Findings:
    """One request for a bucket that the endpoint lists, else for one that does not exist: its answer shows whether the endpoint is
    reachable in its style, whether it accepts the credentials, and its clock."""
    listed = [b for b in endpoint.buckets if not any(c in b for c in WILDCARDS)]
    buckets = listed or [f"poiesis-doctor-{secrets.token_hex(4)}"]
    failures: list[Finding] = []
    for bucket in buckets:
        found = list(_request(endpoint, settings, bucket, is_real=bool(listed)))
        failures += [f for f in found if f not in failures]
    yield from failures
    if not any(f.status.severity > 0 for f in failures):
        style = "bucket in the host name" if endpoint.virtual_style else "bucket in the path"
        access = "without credentials" if _is_anonymous(endpoint, settings) else "credentials accepted"
        yield ok(f"{endpoint.name}: {endpoint.url} ({style}, {access})")


def _is_anonymous(endpoint: S3Endpoint, settings: FilerSettings) -> bool:
    client = S3Client(settings)
    try:
        return client.ref(f"s3://{endpoint.name}/any").endpoint.provider is None
    finally:
        client.close()


def _request(endpoint: S3Endpoint, settings: FilerSettings, bucket: str, *, is_real: bool) -> Findings:
    url, skew = f"s3://{endpoint.name}/{bucket}", None
    with ExitStack() as stack:
        client = S3Client(settings)
        stack.callback(client.close)
        before = time.time()
        try:
            ref = client.ref(url)
            query = {"list-type": "2", "max-keys": "1"}
            with network_errors(url):
                target, headers = ref.endpoint.signed("GET", bucket, "", query=query)
                with ref.endpoint.pool(bucket).request("GET", target, headers) as response:
                    skew = date_skew_s(response.headers.get("date"), before)
                    body = response.read(MAX_BODY_BYTES)
                    if response.status != 200:
                        raise response_error(url, response, body)
        except (PoiesisError, WrongRegion) as failure:
            yield from _explained(failure, endpoint, bucket, is_real=is_real)
    if skew is not None:
        follows = "From 15 minutes on S3 servers refuse every request (RequestTimeTooSkewed)."
        yield from check_skew(f"{endpoint.name} ({endpoint.url})", skew, follows, limit_s=MAX_SKEW_S)


def _explained(failure: Exception, endpoint: S3Endpoint, bucket: str, *, is_real: bool) -> Findings:
    text = f"{endpoint.name}: {failure}"
    where = f"the endpoint {endpoint.name!r} of POIESIS_FILER__S3 (filer.s3)"
    if isinstance(failure, WrongRegion):
        if is_real:
            repair = f"Set region of {where} to {failure.region!r}, which saves a request for each bucket."
            yield warning(
                f"{endpoint.name}: the bucket {bucket} is in {failure.region}", "It works, by a detour.", repair
            )
        return
    if isinstance(failure, NotFound):
        if is_real:
            yield error(
                f"{endpoint.name}: there is no bucket {bucket}", FAIL, f"Create it, or correct buckets of {where}."
            )
        return
    if isinstance(failure, AccessDenied):
        if "(AccessDenied)" in str(failure) and not is_real:
            return  # the signature was accepted, and such a server hides whether a bucket exists
        repair = f"Correct {KEYS}, or the policy of the bucket."
        if "skew" in str(failure).lower() or "clocks" in str(failure):
            repair = SYNCHRONIZE
        elif "(AccessDenied)" in str(failure):
            repair = f"Allow its user s3:ListBucket, s3:GetObject and s3:PutObject on {bucket}, or correct {KEYS}."
        yield error(text, FAIL, repair)
    elif isinstance(failure, ConfigurationError):
        yield error(text, "Filers end at their start: every task with files fails.", f"Correct {where}.")
    elif isinstance(failure, StorageUnavailable):
        style = (
            f" With virtual_style every bucket needs a host name, such as {bucket}.HOST: create a wildcard DNS record, or set "
            "virtual_style to false."
            if endpoint.virtual_style
            else ""
        )
        repair = (
            f"Check url of {where}, that the server runs, ca_file for a private authority, and tasks.networkPolicy.extraEgress "
            f"for storage in the cluster or a private network.{style}"
        )
        yield error(text, FAIL, repair)
    else:
        yield error(text, FAIL, f"Check {where}.")


def check_log_store(settings: LogSettings) -> Findings:
    """Write a chunk, read it, delete it."""
    store = open_store(settings)
    if store is None:
        return
    task = new_task_id(datetime.now(UTC))
    follows = "Whole logs are not kept: only the ends of outputs are in tasks."
    try:
        with ExitStack() as stack, tempfile.TemporaryFile() as source:
            stack.callback(store.close)
            source.write(b"trial")
            source.flush()
            ref = LogRef(task, 1, 0, "stdout")
            stack.callback(store.delete, task)
            store.write(ref, 0, source.fileno(), 0, 5)
            chunk = store.chunks(ref, 0).chunks[0]
            if store.read(ref, chunk, 0, 5) != b"trial":
                yield error(f"{settings.url} returns another content than was stored", follows, "Check the store.")
    except (PoiesisError, OSError, IndexError) as failure:
        yield error(
            f"{settings.url} cannot be written, read and cleaned: {failure}",
            follows,
            "Check logs.url and logs.endpoint, the keys in logs.existingSecret, their rights (list, get, put, delete), and that "
            "the bucket or the claim exists.",
        )
        return
    yield ok(f"{settings.url}: an object can be written, read and deleted")
