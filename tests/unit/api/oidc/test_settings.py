"""The settings of issuers: what is refused, and that nothing secret is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poiesis.api.oidc.settings import Issuer, is_secure, read_issuers
from poiesis.domain.errors import ConfigurationError

LAB: dict[str, Any] = {"name": "lab", "url": "https://login.example.org", "audiences": ["tes"]}
ASKING = {"introspection": "opaque", "client_id": "tes", "client_secret": "very-secret"}


def test_an_issuer_needs_three_fields() -> None:
    [issuer] = read_issuers(json.dumps([LAB]))
    assert issuer == Issuer(name="lab", url="https://login.example.org", audiences=("tes",))
    assert "HS256" not in issuer.algorithms and "none" not in issuer.algorithms


@pytest.mark.parametrize(
    ("issuers", "words"),
    [
        ("{}", "must be a JSON list"),
        ("[1]", "must be a JSON list"),
        ("no json", "must be a JSON list"),
        ([], "at least one"),
        ([{}], "name"),
        ([{**LAB, "name": "Lab"}], "name"),
        ([{**LAB, "name": "a:b"}], "name"),
        ([{**LAB, "audience": "tes"}], "unknown field audience"),
        ([{**LAB, "audiences": []}], "audiences: must not be empty"),
        ([{**LAB, "audiences": "tes"}], "audiences"),
        ([{**LAB, "audiences": [""]}], "audiences"),
        ([{**LAB, "url": "http://login.example.org"}], "https://"),
        ([{**LAB, "url": "https://login.example.org?a=b"}], "https://"),
        ([{**LAB, "url": "https://user:very-secret@login.example.org"}], "https://"),
        ([{**LAB, "algorithms": ["RS256", "HS256"]}], "algorithms"),
        ([{**LAB, "algorithms": ["none"]}], "algorithms"),
        ([{**LAB, "algorithms": []}], "algorithms"),
        ([{**LAB, "leeway_s": 3600}], "leeway_s"),
        ([{**LAB, "group_claims": ["groups", "ga4gh_passport_v1"]}], "ga4gh_passport_v1: visas"),
        ([{**LAB, "group_pattern": "("}], "group_pattern"),
        ([{**LAB, "admin_values": ["x"]}], "admin_claims or group_claims"),
        ([{**LAB, "introspection": "always"}], "client_id"),
        ([{**LAB, "introspection": "always", "client_secret": "very-secret"}], "client_id"),
        ([{**LAB, **ASKING, "client_secret_file": "/does/not/exist"}], "cannot read /does/not/exist"),
        ([{**LAB, "client_secret": 1}], "client_secret"),
        ([LAB, LAB], "same name"),
        ([LAB, {**LAB, "name": "other"}], "same url"),
        ([{**LAB, "prefix_names": False}, {**LAB, "name": "b", "url": "https://b", "prefix_names": False}], "prefix"),
        (
            [{**LAB, **ASKING}, {**LAB, **ASKING, "name": "b", "url": "https://b"}],
            "only one issuer can have introspection",
        ),
    ],
)
def test_that_are_invalid_are_refused_without_secrets(issuers: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match="POIESIS_API__OIDC_ISSUERS") as caught:
        read_issuers(issuers if isinstance(issuers, str) else json.dumps(issuers))
    assert words in str(caught.value)
    assert "very-secret" not in str(caught.value)


def test_a_secret_may_be_in_a_file_and_is_in_no_repr(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("very-secret\n")
    asking = {name: value for name, value in ASKING.items() if name != "client_secret"}
    [issuer] = read_issuers(json.dumps([{**LAB, **asking, "client_secret_file": str(file)}]))
    assert issuer.secret() == "very-secret"
    assert "very-secret" not in repr(read_issuers(json.dumps([{**LAB, **ASKING}])))


@pytest.mark.parametrize(
    ("url", "secure"),
    [
        ("https://a.example", True),
        ("https://a.example:8443/realms/x/", True),
        ("http://127.0.0.1:9000", True),
        ("http://[::1]:9000", True),
        ("http://localhost:9000/", True),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("http://10.0.0.1", False),
        ("ftp://a.example", False),
        ("file:///etc/passwd", False),
        ("https://", False),
        ("https://[", False),
        ("https://a.example\n", False),
        ("//a.example", False),
        (None, False),
        (1, False),
    ],
)
def test_only_encrypted_and_local_addresses_are_secure(url: Any, secure: bool) -> None:
    assert is_secure(url) is secure
