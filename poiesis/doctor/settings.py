"""Checks of the settings, and of the files that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from poiesis.config import PREFIX
from poiesis.doctor.result import Findings, error, ok, warning
from poiesis.doctor.site import Site
from poiesis.domain.errors import ConfigurationError

REFERENCE: Final = "docs/configuration.md has every setting with its default"


def check_settings(site: Site) -> Findings:
    """Every problem at once, where a role stops at its first one."""
    for name, message in site.problems:
        what = message if name in message else f"{name}…: {message}"
        yield error(what, "Every process of the service ends at its start.", f"Correct or remove it; {REFERENCE}.")
    if not site.problems:
        count = sum(name.startswith(PREFIX) for name in site.environ)
        yield ok(f"{count} variables, all known and valid")
    api = site.settings.api
    if site.is_for("api") and site.mode == "kubernetes" and not api.auth and api.allow_anonymous:
        yield warning(
            "the API has no authentication (POIESIS_API__ALLOW_ANONYMOUS)",
            "Everyone who can connect to it can run commands in the cluster, and see and cancel all tasks.",
            "Set api.auth.methods in the chart's values (POIESIS_API__AUTH), unless a proxy in front authenticates.",
        )


def check_files(site: Site) -> Findings:
    """Files that the settings name are there and can be read by this process."""
    found = named = 0
    for name, path, read in _files(site):
        named += 1
        try:
            read(Path(path))
            found += 1
        except ConfigurationError as failure:
            yield error(str(failure), "The processes that use it end at their start.", f"Correct the file, or {name}.")
        except OSError as failure:
            what = f"{name}: cannot read {path}: {failure.strerror}"
            yield error(what, "What uses it fails.", "Mount the file there, or correct the path.")
    for root in site.filer.file_roots if site.mode == "machine" else ():
        if not Path(root).is_dir():
            what = f"POIESIS_FILER__FILE_ROOTS: no such directory: {root}"
            yield warning(what, "Tasks with file:// URLs below it fail.", "Create it, or remove it from the setting.")
    if found or not named:
        yield ok(f"{found} files can be read" if found else "the settings name none")


def _files(site: Site) -> Iterator[tuple[str, str, Callable[[Path], object]]]:
    """Setting, path, and what reads the file. Raises of the latter: OSError, ConfigurationError."""
    api = site.settings.api
    if site.is_for("api") and api.credentials_file is not None:
        from poiesis.api.credentials import read_credentials

        yield "POIESIS_API__CREDENTIALS_FILE", api.credentials_file, read_credentials
    others = {"POIESIS_WEBHOOKS__CA_FILE": site.settings.webhooks.ca_file}
    if site.is_for("api", "monitor"):
        others["POIESIS_LOGS__CA_FILE"] = site.settings.logs.ca_file
    if site.mode == "machine":  # in a cluster they are in filer containers, see `inside`
        for field in ("ca_file", "netrc_file", "ssh_key_file", "known_hosts_file", "drs_token_file"):
            others[f"POIESIS_FILER__{field.upper()}"] = getattr(site.filer, field)
    for name, path in others.items():
        if path is not None:
            yield name, path, Path.read_bytes


def check_authentication(site: Site) -> Findings:
    from poiesis.api.auth import check_methods

    api = site.settings.api
    try:
        check_methods(api)
    except ConfigurationError as failure:
        repair = "Correct POIESIS_API__AUTH (api.auth.methods; docs/operators.md, and `poiesis hash-secret` for a credentials file)."
        yield error(str(failure), "The API does not start.", repair)
    else:
        yield ok(f"methods: {', '.join(api.auth) or 'none'}")
    needs = (
        ("OIDC_ISSUERS", api.oidc_issuers, ("oidc",)),
        ("CREDENTIALS_FILE", api.credentials_file, ("basic", "bearer")),
    )
    for name, value, methods in needs:
        if value and not set(methods) & set(api.auth):
            missing = " or ".join(methods)
            yield warning(
                f"POIESIS_API__{name} has no effect: POIESIS_API__AUTH does not include {missing}",
                "Its users cannot log in."
                if api.auth
                else "Everyone who can connect has full access, without a login.",
                f"Add {missing} to POIESIS_API__AUTH (api.auth.methods), or remove the setting.",
            )
