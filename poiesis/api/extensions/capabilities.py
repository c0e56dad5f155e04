"""What this service can do, for clients that adapt themselves: limits, protocols, backend parameters, authentication."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from starlette.types import Scope

from poiesis import __version__
from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.oidc.settings import read_issuers
from poiesis.api.views import TES_VERSION
from poiesis.config import ApiSettings, ServiceSettings
from poiesis.domain.policy import Policy

VERSION: Final = "1.0.0"
"""Version of `specs/poiesis.openapi.yaml`."""


def operations(context: Context) -> dict[str, Handler]:
    services = context.services
    document = describe(services.policy, services.api, services.service)

    async def get(_: Scope) -> Document:
        return document

    return {"GetCapabilities": get}


def describe(policy: Policy, api: ApiSettings, service: ServiceSettings) -> dict[str, Any]:
    """A limit of None is left out: there is none."""
    limits = {name: value for name, value in asdict(policy.limits).items() if value is not None}
    return {
        "version": __version__,
        "tes_version": TES_VERSION,
        "limits": limits | {"max_body_bytes": api.max_body_bytes, "tail_bytes": policy.tail_bytes},
        "protocols": {"inputs": sorted(policy.url_schemes_in), "outputs": sorted(policy.url_schemes_out)},
        "backend_parameters": sorted(policy.backend_parameters),
        "gpu_types": list(service.gpu_types),
        "zones": list(service.zones),
        "authentication": list(api.auth),
        "login": _logins(api),
        "extensions": {"version": VERSION},
    }


def _logins(api: ApiSettings) -> list[dict[str, str]]:
    """Return the providers at which the command line can get tokens by the device flow."""
    issuers = read_issuers(api.oidc_issuers) if "oidc" in api.auth else ()
    return [
        {"issuer": issuer.url, "client_id": issuer.login_client, "scope": issuer.login_scope}
        for issuer in issuers
        if issuer.login_client is not None
    ]
