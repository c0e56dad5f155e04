"""GET /capabilities."""

from __future__ import annotations

import json

import pytest

from poiesis.api.app import load_specification
from poiesis.config import ApiSettings, ServiceSettings
from poiesis.domain.policy import Limits, Policy
from tests.unit.api.service import Site


def test_lists_limits_protocols_parameters_and_authentication(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("auth") / "users.json"
    file.write_text("[]")
    policy = Policy(limits=Limits(max_cpu_cores=8, max_inputs=5), backend_parameters=frozenset({"gpu", "time_limit"}))
    site = Site(
        api=ApiSettings(auth=("bearer",), credentials_file=str(file)),
        policy=policy,
        service=ServiceSettings(gpu_types=("t4",), zones=("a", "b")),
    )
    document = site.client.get("/poiesis/v1/capabilities").json()
    assert document["tes_version"] == "1.1.0"
    assert document["limits"]["max_cpu_cores"] == 8
    assert document["limits"]["max_inputs"] == 5
    assert "max_ram_gb" not in document["limits"]
    assert document["backend_parameters"] == ["gpu", "time_limit"]
    assert document["protocols"] == {"inputs": ["file", "http", "https", "s3"], "outputs": ["file", "s3"]}
    assert document["authentication"] == ["bearer"]
    assert document["extensions"] == {"version": load_specification("poiesis.openapi.yaml")["info"]["version"]}
    assert (document["gpu_types"], document["zones"]) == (["t4"], ["a", "b"])


def test_advertises_the_clients_of_providers_for_the_command_line_without_secrets() -> None:
    issuer = {
        "name": "lab",
        "url": "https://id.example",
        "audiences": ["tes"],
        "client_id": "x",
        "client_secret": "hush",
    }
    other = {
        "name": "far",
        "url": "https://id.far",
        "audiences": ["tes"],
        "login_client": "cli",
        "login_scope": "openid",
    }
    site = Site(api=ApiSettings(auth=("oidc",), oidc_issuers=json.dumps([issuer, other])))
    response = site.client.get("/poiesis/v1/capabilities")
    assert response.json()["login"] == [{"issuer": "https://id.far", "client_id": "cli", "scope": "openid"}]
    assert "hush" not in response.text
