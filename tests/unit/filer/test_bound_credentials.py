"""What a bound task's filers get of the site's settings, and of the files of its binding."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poiesis.domain.errors import AccessDenied, ConfigurationError
from poiesis.filer.bound_credentials import with_bound_credentials
from poiesis.filer.cloud import CloudFiler
from poiesis.filer.registry import Context
from poiesis.filer.s3_credentials import provider
from poiesis.filer.settings import FilerSettings
from poiesis.filer.transfer import Control, Pool

PROFILE = "[default]\naws_access_key_id = a\naws_secret_access_key = hush\n[lab]\naws_access_key_id = b\naws_secret_access_key = hush\n"


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "shared")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "shared")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")


@pytest.fixture
def bound(tmp_path: Path) -> Callable[..., FilerSettings]:
    def settings(files: dict[str, str], **site: Any) -> FilerSettings:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        found = FilerSettings(**site, credentials_dir=str(tmp_path), credentials_name="the Secret 'x'")
        return with_bound_credentials(found)

    return settings


SHARED_FILES = {"netrc_file": "/shared/netrc", "ssh_key_file": "/shared/key", "drs_token_file": "/shared/token"}
ENDPOINTS: dict[str, dict[str, Any]] = {
    "lab": {"url": "https://lab", "credentials_file": "/shared/aws", "profile": "p", "sse_key_file": "/shared/sse"},
    "far": {"url": "https://far", "access_key": "shared", "secret_key": "shared", "session_token": "shared"},
    "open": {"url": "https://open", "anonymous": True, "buckets": ["a*"], "ca_file": "/etc/ca"},
}


def keys_of(settings: FilerSettings) -> dict[str, str | None]:
    providers = {endpoint.name: provider(endpoint) for endpoint in settings.endpoints}
    return {name: None if found is None else found().access_key for name, found in providers.items()}


def test_of_the_shared_credentials_nothing_is_left(bound: Callable[..., FilerSettings]) -> None:
    settings = bound({"unrelated": ""}, s3=ENDPOINTS, cloud={"gs": {}, "az": {"account": "lab"}}, **SHARED_FILES)
    assert keys_of(settings) == {"lab": None, "far": None, "open": None}
    assert not any(
        "shared" in str(vars(e)[name]) for e in settings.endpoints for name in ("access_key", "credentials_file")
    )
    assert settings.endpoints[0].sse_key_file != "/shared/sse"
    assert (settings.netrc_file, settings.ssh_key_file, settings.drs_token_file) == (None, None, None)
    assert all(store.anonymous and not store.credentials for store in settings.cloud_stores.values())


def test_the_default_endpoint_has_none_either(
    bound: Callable[..., FilerSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.site")
    settings = bound({"unrelated": ""})
    assert keys_of(settings) == {"aws": None}
    assert settings.endpoints[0].url == "https://s3.site"


def test_other_options_of_endpoints_and_their_order_stay(bound: Callable[..., FilerSettings]) -> None:
    settings = bound({"unrelated": ""}, s3=ENDPOINTS)
    assert [endpoint.name for endpoint in settings.endpoints] == ["lab", "far", "open"]
    assert (settings.endpoints[2].buckets, settings.endpoints[2].ca_file) == (("a*",), "/etc/ca")


def test_each_endpoint_has_the_section_of_its_name_or_default(
    bound: Callable[..., FilerSettings], tmp_path: Path
) -> None:
    settings = bound({"credentials": PROFILE}, s3=ENDPOINTS)
    assert keys_of(settings) == {"lab": "b", "far": "a", "open": None}
    assert settings.endpoints[0].sse_key_file == str(tmp_path / "sse_key")


def test_the_files_of_a_binding_are_used(bound: Callable[..., FilerSettings], tmp_path: Path) -> None:
    files = {
        "AWS_ACCESS_KEY_ID": "mine\n", "AWS_SECRET_ACCESS_KEY": "hush\n", "AWS_SESSION_TOKEN": "t",
        "netrc": "", "ssh_key": "", "drs_token": "",
        "GOOGLE_SERVICE_ACCOUNT_KEY": "{}", "AZURE_STORAGE_ACCOUNT_NAME": "mine", "AZURE_STORAGE_ACCOUNT_KEY": "hush",
    }  # fmt: skip
    settings = bound(files, s3={"lab": {"url": "https://lab"}}, cloud={"gs": {}, "az": {"account": "lab"}})
    found = provider(settings.endpoints[0])
    assert found is not None and (found().access_key, found().secret_key, found().session_token) == (
        "mine",
        "hush",
        "t",
    )
    assert (settings.netrc_file, settings.ssh_key_file) == (str(tmp_path / "netrc"), str(tmp_path / "ssh_key"))
    assert settings.cloud_stores["gs"].credentials == {"service_account_key": "{}"}
    assert (settings.cloud_stores["az"].account, settings.cloud_stores["az"].credentials) == (
        "mine",
        {"account_key": "hush"},
    )
    assert "hush" not in repr(settings) and "hush" not in settings.to_json()


def test_a_cloud_store_beside_shared_variables_is_refused(
    bound: Callable[..., FilerSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """obstore reads the variables of its process, and would prefer some of them."""
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", "/var/run/token")
    settings = bound({"AZURE_STORAGE_SAS_TOKEN": "sig=x"}, cloud={"az": {"account": "lab"}})
    filer = CloudFiler(Context(settings, Control(settings), Pool(1), True, lambda url: filer))
    with pytest.raises(AccessDenied, match="AZURE_FEDERATED_TOKEN_FILE"):
        filer.stat("az://container/x")


@pytest.mark.parametrize("text", ["hush", "[lab]\nhush", "[a]\n[a]\nx=hush"])
def test_an_invalid_credentials_file_is_an_error_without_its_content(
    bound: Callable[..., FilerSettings], text: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"format of ~/\.aws/credentials") as caught:
        bound({"credentials": text})
    assert "hush" not in str(caught.value)


def test_a_binding_to_no_secret_has_no_credentials() -> None:
    settings = with_bound_credentials(FilerSettings(s3=ENDPOINTS, credentials_dir=os.devnull))
    assert keys_of(settings) == {"lab": None, "far": None, "open": None}


def test_a_missing_directory_is_an_error_with_the_name_of_the_secret(tmp_path: Path) -> None:
    settings = FilerSettings(credentials_dir=str(tmp_path / "none"), credentials_name="the Secret 's3-ada'")
    with pytest.raises(ConfigurationError, match=r"^the Secret 's3-ada' is missing or empty"):
        with_bound_credentials(settings)
