"""The filers' own /etc/hosts and /etc/resolv.conf.

The kubelet gives all containers of a pod the same two files, and a command that runs as root can write to them: it could send a filer's
traffic, signed requests included, to an address of its choice. Filers that share a pod with commands therefore mount read-only files from
the Secret with their documents, which take precedence over the shared ones. The content is what the kubelet would have written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from poiesis.cluster.kubernetes.client import TOKEN_DIRECTORY
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.errors import ConfigurationError

OWN_RESOLV_CONF: Final = Path("/etc/resolv.conf")
LOCALHOST: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
MAX_SEARCH_DOMAINS: Final = 32  # as Kubernetes


def files(settings: KubernetesSettings) -> dict[str, bytes]:
    """By their keys in the Secret (`objects.NAME_FILES`). Raises: ConfigurationError when the pods' name servers are unknown."""
    return {"hosts": hosts(settings).encode(), "resolv.conf": _resolv_conf(settings).encode()}


def hosts(settings: KubernetesSettings) -> str:
    """localhost, and the site's `hostAliases`."""
    aliases = settings.extra_pod_spec.get("hostAliases") or []
    return LOCALHOST + "".join(f"{alias['ip']}\t{' '.join(alias.get('hostnames') or [])}\n" for alias in aliases)


def _resolv_conf(settings: KubernetesSettings) -> str:
    if settings.resolv_conf is not None:
        return settings.resolv_conf.rstrip("\n") + "\n"
    policy = settings.extra_pod_spec.get("dnsPolicy", "ClusterFirst")
    dns_config = settings.extra_pod_spec.get("dnsConfig") or {}
    if policy == "None":
        return merged("", dns_config)
    namespace = Path(TOKEN_DIRECTORY, "namespace")
    if not policy.startswith("ClusterFirst") or settings.kubeconfig is not None or not namespace.exists():
        raise ConfigurationError(
            "the name servers of task pods are unknown: set POIESIS_KUBERNETES__RESOLV_CONF to the content of /etc/resolv.conf in a "
            "pod of the tasks' namespace (needed outside the cluster and with a dnsPolicy other than ClusterFirst and None)"
        )
    own = OWN_RESOLV_CONF.read_text(encoding="utf-8")
    return merged(moved(own, namespace.read_text(encoding="utf-8").strip(), settings.namespace), dns_config)


def moved(text: str, namespace: str, target: str) -> str:
    """A pod's resolv.conf as a pod in the namespace `target` has it."""
    lines = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["search"]:
            prefix = f"{namespace}.svc."
            words[1:] = [f"{target}.svc.{w[len(prefix) :]}" if w.startswith(prefix) else w for w in words[1:]]
            line = " ".join(words)
        lines.append(line)
    return "\n".join(lines) + "\n"


def merged(text: str, dns_config: dict[str, Any]) -> str:
    """A resolv.conf with a pod's `dnsConfig` added, as the kubelet merges them."""
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword in found:
            found[keyword] += values
    servers = dict.fromkeys([*found["nameserver"], *(dns_config.get("nameservers") or [])])
    domains = list(dict.fromkeys([*found["search"], *(dns_config.get("searches") or [])]))[:MAX_SEARCH_DOMAINS]
    options = {o.partition(":")[0]: o for o in found["options"]}
    for option in dns_config.get("options") or []:
        value = option.get("value")
        options[option["name"]] = option["name"] if value in (None, "") else f"{option['name']}:{value}"
    lines = [f"nameserver {server}" for server in servers]
    lines += ["search " + " ".join(domains)] if domains else []
    lines += ["options " + " ".join(options.values())] if options else []
    return "\n".join(lines) + "\n"
