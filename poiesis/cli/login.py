"""`poiesis login`, `logout` and `whoami`, for any TES server whose users come from an OpenID provider."""

from __future__ import annotations

import argparse
import contextlib
import json
import threading
from typing import Any, Final

from poiesis.cli.client import HOW_TO_AUTHENTICATE, TesClient
from poiesis.cli.exits import MissingExtension
from poiesis.cli.logins import Login, Logins, server_key
from poiesis.cli.oidc import OidcClient, is_safe
from poiesis.cli.profiles import Server
from poiesis.cli.text import printable
from poiesis.domain.errors import ConfigurationError, Forbidden, PoiesisError, Unauthenticated

DEFAULT_SCOPE = "openid profile offline_access"
REVOKE_S: Final = 2.0
"""That a logout waits for the provider."""


def run(arguments: argparse.Namespace) -> int:
    return {"login": _login, "logout": _logout, "whoami": _whoami}[arguments.command](arguments)


def _login(arguments: argparse.Namespace) -> int:
    server = server_key(arguments.url)
    if not is_safe(server) and not arguments.insecure:
        raise ConfigurationError(
            f"the token would be sent to {server} unencrypted: use https, or --insecure on a network that you trust"
        )
    issuer, client_id, scope = _provider(arguments)
    client = OidcClient(issuer, client_id)
    login = client.begin(scope)
    print(printable(f"Log in to {server} at {issuer}:\n  open     {login.uri}"))
    print(printable(f"  {'check' if login.has_code else 'enter'}    {login.user_code}"), flush=True)
    Logins().save(Login(server, issuer, client_id, scope, client.finish(login)))
    print(printable(f"Logged in to {server} as {_name(arguments.server, issuer)}."))
    return 0


def _provider(arguments: argparse.Namespace) -> tuple[str, str, str]:
    """Issuer, client and scope: those of the command line, else what the server advertises."""
    scope = arguments.scope or DEFAULT_SCOPE
    if arguments.issuer and arguments.client_id:
        return arguments.issuer, arguments.client_id, scope
    offered = [item for item in _capabilities(arguments.url).get("login") or [] if isinstance(item, dict)]
    if arguments.issuer:
        offered = [item for item in offered if item.get("issuer") == arguments.issuer]
    if len(offered) > 1:
        issuers = ", ".join(str(item.get("issuer")) for item in offered)
        raise ConfigurationError(
            f"{arguments.url} accepts several OpenID providers: choose one with --issuer: {issuers}"
        )
    if not offered:
        raise ConfigurationError(
            f"{arguments.url} does not say which OpenID provider to use: name it with --issuer and --client-id"
        )
    item = offered[0]
    return str(item["issuer"]), arguments.client_id or str(item["client_id"]), arguments.scope or str(item["scope"])


def _capabilities(url: str) -> dict[str, Any]:
    try:
        return TesClient(url, {}).extension("GET", "/capabilities")
    except PoiesisError:  # another server than Poiesis
        return {}


def _logout(arguments: argparse.Namespace) -> int:
    logins = Logins()
    try:
        login = logins.get(arguments.url)
    except ConfigurationError:  # damaged: it is removed all the same
        login = None
    if not logins.remove(arguments.url):
        print(f"There is no login to {server_key(arguments.url)}.")
        return 0
    revoked = login is not None and _revoked(login)
    end = "" if revoked else " The provider did not revoke its tokens, which stay valid until they expire."
    print(f"Logged out of {server_key(arguments.url)}.{end}")
    return 0


def _revoked(login: Login) -> bool:
    """Whether the provider has ended the login, within REVOKE_S: a thread, because each of its requests may take longer."""
    ended: list[bool] = []

    def revoke() -> None:
        with contextlib.suppress(PoiesisError):
            ended.append(OidcClient(login.issuer, login.client_id).revoke(login.tokens))

    thread = threading.Thread(target=revoke, name="revoke", daemon=True)
    thread.start()
    thread.join(REVOKE_S)
    return ended == [True]


def _whoami(arguments: argparse.Namespace) -> int:
    found = _identity(arguments.server)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    print(printable(f"{found.get('name') or 'nobody: the server asks for no credentials'}"))
    for name in ("method", "admin", "groups", "scopes"):
        if value := found.get(name):
            print(printable(f"  {name}: {', '.join(map(str, value)) if isinstance(value, list) else value}"))
    return 0


def _identity(server: Server) -> dict[str, Any]:
    """Return who the caller is to the server; for a server without that operation, the name that the provider has."""
    try:
        return TesClient.of(server).extension("GET", "/whoami")
    except MissingExtension:
        logins = Logins()
        logins.access_token(server.url)  # refreshes
        login = logins.get(server.url)
        if login is None:
            raise Unauthenticated(
                f"no login to {server_key(server.url)}, and the server has no /poiesis/v1/whoami: run `poiesis login`"
            ) from None
        return {"name": OidcClient(login.issuer, login.client_id).user(login.tokens), "issuer": login.issuer}


def _name(server: Server, issuer: str) -> str:
    """Raises: Unauthenticated, Forbidden, when the server does not accept what the provider has issued."""
    try:
        return str(_identity(server).get("name") or "an unknown user")
    except (Unauthenticated, Forbidden) as error:
        reason = str(error).removesuffix(HOW_TO_AUTHENTICATE)
        raise type(error)(f"{server_key(server.url)} does not accept the token of {issuer}: {reason}") from None
    except PoiesisError:
        return "an unknown user"
