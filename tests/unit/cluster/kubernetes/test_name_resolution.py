"""The filers' /etc/hosts and /etc/resolv.conf."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from poiesis.cluster.kubernetes import name_resolution
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.errors import ConfigurationError

PLAIN = KubernetesSettings(namespace="tasks")
OWN = "search poiesis.svc.cluster.local svc.cluster.local cluster.local example.org\nnameserver 10.96.0.10\noptions ndots:5\n"


def of(settings: KubernetesSettings) -> str:
    return name_resolution.files(settings)["resolv.conf"].decode()


@pytest.fixture
def in_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in the service's pod in the namespace `poiesis`."""
    (tmp_path / "namespace").write_text("poiesis")
    (tmp_path / "resolv.conf").write_text(OWN)
    monkeypatch.setattr(name_resolution, "TOKEN_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(name_resolution, "OWN_RESOLV_CONF", tmp_path / "resolv.conf")


@pytest.mark.usefixtures("in_a_pod")
def test_names_are_resolved_as_in_a_pod_of_the_tasks_namespace() -> None:
    assert of(PLAIN) == (
        "search tasks.svc.cluster.local svc.cluster.local cluster.local example.org\nnameserver 10.96.0.10\noptions ndots:5\n"
        "options timeout:1 attempts:4\n"
    )


def test_a_time_out_that_the_pods_have_is_kept() -> None:
    text = f"{OWN}options timeout:2\n"
    assert name_resolution.moved(text, "other", "tasks") == text


def test_the_site_can_set_the_content() -> None:
    assert of(replace(PLAIN, resolv_conf="nameserver 10.0.0.53")) == "nameserver 10.0.0.53\n"


def test_unknown_name_servers_are_an_error_at_the_start(in_a_pod: None) -> None:
    for settings in (
        replace(PLAIN, kubeconfig="/home/me/.kube/config"),
        replace(PLAIN, extra_pod_spec={"dnsPolicy": "Default"}),
        replace(PLAIN, extra_pod_spec={"dnsConfig": {"nameservers": ["10.0.0.53"]}}),
    ):
        with pytest.raises(ConfigurationError, match="POIESIS_KUBERNETES__RESOLV_CONF"):
            name_resolution.files(settings)


def test_host_aliases_of_the_site_hold_for_filers_too() -> None:
    aliases = [{"ip": "10.0.0.1", "hostnames": ["s3", "s3.example.org"]}]
    found = name_resolution.hosts(replace(PLAIN, extra_pod_spec={"hostAliases": aliases}))
    assert found == "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\ts3 s3.example.org\n"


@pytest.mark.parametrize("proxy", ["http://localhost:3128", "127.0.0.2:3128", "http://[::1]:3128"])
def test_a_proxy_within_the_pod_is_refused(proxy: str) -> None:
    """A task's command could listen there and read what filers send."""
    with pytest.raises(ConfigurationError, match="https_proxy"):
        replace(PLAIN, filer_env={"https_proxy": proxy})
    assert replace(PLAIN, filer_env={"https_proxy": "http://proxy:3128", "no_proxy": "localhost"}).filer_env
