"""The log store that the settings name."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from poiesis.config import LogSettings
from poiesis.filer.settings import FilerSettings
from poiesis.ports.logs import LogStore


def open_store(settings: LogSettings) -> LogStore | None:
    """None: no whole logs are kept. Raises: ConfigurationError."""
    if settings.url is None:
        return None
    if settings.url.startswith("file:"):
        from poiesis.logstore.directory import DirectoryLogStore

        return DirectoryLogStore(Path(unquote(urlsplit(settings.url).path)))
    from poiesis.logstore.s3 import S3LogStore

    return S3LogStore(settings.url, _filer_settings(settings))


def sends_unencrypted(settings: LogSettings) -> bool:
    """Whether requests to the store, with its credentials, are readable in the pod's network. Raises: ConfigurationError."""
    from poiesis.filer.s3_urls import s3_endpoints

    is_s3 = settings.url is not None and settings.url.startswith("s3:")
    return is_s3 and urlsplit(s3_endpoints(_filer_settings(settings))[0].url).scheme != "https"


def _filer_settings(settings: LogSettings) -> FilerSettings:
    """Short time-outs: what is not stored now is tried again soon."""
    fields = {
        "url": settings.endpoint,
        "region": settings.region,
        "ca_file": settings.ca_file,
        "access_key": settings.access_key,
        "secret_key": settings.secret_key,
        "virtual_style": settings.virtual_style or None,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    if given and settings.endpoint is None:
        given["url"] = _default_url()
    return FilerSettings(
        s3={"/": given} if given else {},  # an alias that no bucket has
        connect_timeout=timedelta(seconds=3),
        stall_timeout=timedelta(seconds=10),
        parallel=16,
        buffer_bytes=64 * 1024,
    )


def _default_url() -> str:
    from poiesis.filer.s3_urls import s3_endpoints

    return s3_endpoints(FilerSettings())[0].url
