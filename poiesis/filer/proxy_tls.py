"""Proxies from the environment, trusted certificates, and logins by host, for all schemes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from poiesis.domain.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

CA_BUNDLES: Final = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


def proxy_of(scheme: str, host: str) -> str | None:
    """The proxy for a host by HTTPS_PROXY, HTTP_PROXY and NO_PROXY. (The standard library's reader costs 20 ms of imports.)"""
    for name in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(","):
        if _covers(name.strip().lower(), host.lower().strip("[]")):
            return None
    name = f"{scheme}_proxy"
    # in a CGI program, HTTP_PROXY may come from the request header `Proxy`
    return os.environ.get(name) or (os.environ.get(name.upper()) if "REQUEST_METHOD" not in os.environ else None)


def _covers(item: str, host: str) -> bool:
    """Whether an entry of NO_PROXY (a domain, address or network, with or without a port, or `*`) matches the host."""
    if "/" in item:
        import ipaddress

        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(item, strict=False)
        except ValueError:
            return False
    if item.startswith("["):
        item = item[1:].partition("]")[0]
    elif item.count(":") == 1:
        item = item.partition(":")[0]
    domain = item.removeprefix("*.").lstrip(".")
    return item == "*" or (domain != "" and (host == domain or host.endswith("." + domain)))


def tls_context(ca_file: str | None = None, *, verify: bool = True) -> ssl.SSLContext:
    """A context that trusts the system's certificates or the environment's bundle, and `ca_file`. Raises: ConfigurationError."""
    import ssl  # a seventh of the start time, so only where TLS is used

    context = ssl.create_default_context()
    try:
        for name in CA_BUNDLES:
            if path := os.environ.get(name):
                context.load_verify_locations(path)
                break
        else:
            if not context.get_ca_certs():
                import certifi  # some images have no certificates

                context.load_verify_locations(certifi.where())
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"filer: cannot read certificates: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def logins(path: str | None) -> dict[str, tuple[str, str]]:
    """User and password by host from a netrc file; the key of `default` is empty. Raises: ConfigurationError."""
    if path is None:
        return {}
    import netrc

    try:
        found = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError) as error:
        raise ConfigurationError(f"filer: cannot read the netrc file: {type(error).__name__}") from None
    return {"" if host == "default" else host: (login, password or "") for host, (login, _, password) in found.items()}
