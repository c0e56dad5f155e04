"""The credentials of a task whose user or group is bound to some of its own: all of them are files of one directory, the keys of a
mounted Secret.

| File | For |
|---|---|
| `credentials` | S3, in the format of ~/.aws/credentials: the section named like the endpoint, else `default` |
| `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` | S3, where `credentials` has no section |
| `sse_key` | S3 endpoints that encrypt with a key of the site (SSE-C) |
| `netrc` | http, ftp and sftp |
| `ssh_key` | sftp |
| `drs_token` | DRS |
| `GOOGLE_SERVICE_ACCOUNT_KEY` | gs, as JSON |
| `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY` or `AZURE_STORAGE_SAS_TOKEN` | az |

What has no file is used without credentials. Nothing else is a source: no variables, none of the site's files, no identity of the node or
the service account. Otherwise a missing key of a user would be replaced by the shared ones, with which he could read what is not his.
"""

from __future__ import annotations

import configparser
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from poiesis.domain.errors import ConfigurationError
from poiesis.filer.s3_urls import s3_endpoints
from poiesis.filer.settings import FilerSettings, S3Endpoint

AMBIENT: Final = re.compile(r"(AZURE|GOOGLE|MSI|IDENTITY)_")
"""Of variables from which obstore takes credentials beside those it is given; a filer container of a bound task drops them."""
MAX_BYTES: Final = 1024 * 1024  # of a file: Kubernetes' limit for a Secret
_OF_SITE: Final = frozenset({"name", "access_key", "secret_key", "session_token", "credentials_file", "profile"})


def with_bound_credentials(settings: FilerSettings) -> FilerSettings:
    """The settings of a task that is bound to `settings.credentials_dir`, or without a name for it to no credentials at all.

    Raises: ConfigurationError.
    """
    directory = Path(str(settings.credentials_dir))
    try:
        names = {name for name in os.listdir(directory) if not name.startswith("..")}
    except OSError:
        names = set()
    if not names and settings.credentials_name:
        raise ConfigurationError(
            f"{settings.credentials_name} is missing or empty: it should have the credentials of this task's user, so ask the operator"
        )

    def file(name: str) -> str | None:
        return str(directory / name) if name in names else None

    return dataclasses.replace(
        settings,
        s3={name: options for name, options in _s3(settings, directory)},
        cloud=_cloud(settings, directory),
        netrc_file=file("netrc"),
        ssh_key_file=file("ssh_key"),
        drs_token_file=file("drs_token"),
    )


def _s3(settings: FilerSettings, directory: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    sections = _sections(directory / "credentials")
    keys = {
        name: _text(directory / f"AWS_{name.upper()}")
        for name in ("access_key_id", "secret_access_key", "session_token")
    }
    for endpoint in s3_endpoints(settings):
        options = {k: v for k, v in vars(endpoint).items() if k not in _OF_SITE}
        if endpoint.sse_key_file is not None:
            options["sse_key_file"] = str(directory / "sse_key")
        yield endpoint.name, {**options, **_keys(endpoint, sections, keys, directory)}


def _keys(
    endpoint: S3Endpoint, sections: frozenset[str], keys: Mapping[str, str | None], directory: Path
) -> dict[str, str | bool | None]:
    section = endpoint.name if endpoint.name in sections else "default"
    if endpoint.anonymous:
        return {"anonymous": True}
    if section in sections:
        return {"credentials_file": str(directory / "credentials"), "profile": section}
    if keys["access_key_id"] and keys["secret_access_key"]:
        return {
            "access_key": keys["access_key_id"],
            "secret_key": keys["secret_access_key"],
            "session_token": keys["session_token"],
        }
    return {"anonymous": True}


def _sections(path: Path) -> frozenset[str]:
    """Raises: ConfigurationError, without the file's content."""
    text = _text(path)
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text or "")
    except configparser.Error:
        raise ConfigurationError(
            "filer: invalid credentials file: must have the format of ~/.aws/credentials"
        ) from None
    return frozenset(parser.sections())


def _cloud(settings: FilerSettings, directory: Path) -> dict[str, Mapping[str, Any]]:
    """Each store with the values of its files, else anonymous."""
    found: dict[str, Mapping[str, Any]] = {}
    for scheme, options in settings.cloud.items():
        if scheme == "gs":
            values = {"service_account_key": _text(directory / "GOOGLE_SERVICE_ACCOUNT_KEY")}
        else:
            values = {
                "account_key": _text(directory / "AZURE_STORAGE_ACCOUNT_KEY"),
                "sas_key": _text(directory / "AZURE_STORAGE_SAS_TOKEN"),
            }
        given = {name: value for name, value in values.items() if value}
        account = _text(directory / "AZURE_STORAGE_ACCOUNT_NAME") if scheme == "az" else None
        found[scheme] = {
            **options,
            **({"account": account} if account else {}),
            "credentials": given,
            "anonymous": not given or bool(options.get("anonymous")),
        }
    return found


def _text(path: Path) -> str | None:
    """None: there is no such file. Raises: ConfigurationError."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeError):
        raise ConfigurationError(f"filer: cannot read the file {path.name} of the bound credentials") from None
