"""The filers' own /etc/hosts and /etc/resolv.conf.

The kubelet gives all containers of a pod the same two files, and a command that runs as root can write to them: it could send a filer's
traffic, signed requests included, to an address of its choice. Filers that share a pod with commands therefore mount read-only files from
the Secret with their documents, which take precedence over the shared ones. The content is what the kubelet would have written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from poiesis.cluster.kubernetes.client import TOKEN_DIRECTORY
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.errors import ConfigurationError

OWN_RESOLV_CONF: Final = Path("/etc/resolv.conf")
RESOLVER_OPTIONS: Final = "options timeout:1 attempts:4\n"  # by default a lost datagram costs five seconds
LOCALHOST: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


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
    namespace = Path(TOKEN_DIRECTORY, "namespace")
    changed = {"dnsPolicy", "dnsConfig"} & settings.extra_pod_spec.keys()
    if changed or settings.kubeconfig is not None or not namespace.exists():
        raise ConfigurationError(
            "the name servers of task pods are unknown: set POIESIS_KUBERNETES__RESOLV_CONF to the content of /etc/resolv.conf in a "
            "pod of the tasks' namespace (needed outside the cluster, and with dnsPolicy or dnsConfig in EXTRA_POD_SPEC)"
        )
    return moved(
        OWN_RESOLV_CONF.read_text(encoding="utf-8"), namespace.read_text(encoding="utf-8").strip(), settings.namespace
    )


def moved(text: str, namespace: str, target: str) -> str:
    """A pod's resolv.conf as a pod in the namespace `target` has it: the search list begins with the pod's namespace. A lost question is
    repeated sooner than by default."""
    text = re.sub(rf"(?m)^(search\s+){re.escape(namespace)}\.svc\.", rf"\g<1>{target}.svc.", text)
    return text if re.search(r"(?m)^options\b.*\btimeout:", text) else text.rstrip("\n") + "\n" + RESOLVER_OPTIONS
