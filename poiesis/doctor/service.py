"""Check of the running API."""

from __future__ import annotations

import json
from typing import Final

import urllib3

from poiesis.doctor.result import Findings, error, ok, warning
from poiesis.observability import without_credentials

MAX_BODY_BYTES: Final = 256 * 1024
PATH: Final = "/ga4gh/tes/v1"


def service_at(url: str) -> tuple[str, str] | None:
    """Name and version of the TES service at an address; None: another kind of server. Raises: OSError, urllib3's errors."""
    base = url.rstrip("/").removesuffix(PATH)
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=3, read=10), retries=False)
    with pool.request("GET", f"{base}{PATH}/service-info", preload_content=False) as response:
        body = response.read(MAX_BODY_BYTES)
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    kind = document.get("type") if isinstance(document, dict) else None
    if response.status != 200 or not isinstance(kind, dict) or kind.get("artifact") != "tes":
        return None
    return str(document.get("name"))[:100], str(document.get("version"))[:40]


def check_api(url: str) -> Findings:
    shown = without_credentials(url)
    try:
        found = service_at(url)
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as failure:
        yield error(
            f"the API at {shown} does not respond: {type(failure).__name__}",
            "Nobody can create or see tasks.",
            "Look at its pods (kubectl get pods -l app.kubernetes.io/component=api) and their logs; check the address, the "
            "Service, and api.networkPolicy.from.",
        )
        return
    if found is None:
        yield warning(
            f"the server at {shown} is not a TES service, or a proxy answers for it",
            "Clients with this address fail.",
            "Check the address, and the ingress or route.",
        )
    else:
        yield ok(f"{found[0]} {found[1]} at {shown}")
