"""URLs as text: redacting, joining and splitting. URLs are logged and reported only through `shown` and `without_secrets`."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from poiesis.domain.errors import UnsupportedUrl

# schemes of URLs with names as they are; in others names are percent-encoded
LITERAL: Final = frozenset({"s3", "gs", "az", ""})
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_USERINFO: Final = re.compile(r"(?<=://)[^/?#]*@")
_SIGNATURE: Final = re.compile(
    r"([?&](?:x-(?:amz|goog)-[a-z-]+|awsaccesskeyid|signature|sig|token)=)[^&]+", re.IGNORECASE
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
MAX_SHOWN: Final = 500
_WITHOUT_QUERY: Final = ("/", "s3:", "gs:", "az:", "file:")  # a question mark in these is part of a name


def scheme_of(url: str) -> str:
    """Lower case; empty for a plain absolute path. Raises: UnsupportedUrl."""
    if url.startswith("/"):
        return ""
    match = _SCHEME.match(url)
    if not match:
        raise UnsupportedUrl(f"invalid URL {shown(url)}: missing scheme")
    return match[1].lower()


def shown(url: str) -> str:
    """The URL for messages: without user, password and query, which may contain a signature."""
    text = _USERINFO.sub("", url)
    if text.startswith(_WITHOUT_QUERY):
        text = _SIGNATURE.sub(r"\1…", text)
    else:
        head, mark, _ = text.partition("?")
        text = head.partition("#")[0] + ("?…" if mark else "")
    text = _CONTROL.sub("?", text)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def without_secrets(url: str) -> str:
    """The URL for the output log: complete except for user, password, and a query that may contain a signature."""
    text = _USERINFO.sub("", url)
    return text if text.startswith(_WITHOUT_QUERY) else text.partition("?")[0].partition("#")[0]


def join(url: str, name: str) -> str:
    """`name` (relative, with `/` between parts) below the directory `url`; a query stays at the end."""
    scheme = scheme_of(url)
    if scheme in LITERAL:
        return url.rstrip("/") + "/" + name
    text = quote(name, safe="/~!$&'()*+,;=:@", errors="surrogateescape")
    if scheme == "file":
        return url.rstrip("/") + "/" + text
    parts = _split(url)
    return parts._replace(path=parts.path.rstrip("/") + "/" + text).geturl()


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise UnsupportedUrl(f"{shown(url)}: invalid URL: {error}") from error


def ends_with_slash(url: str) -> bool:
    return (url if scheme_of(url) in LITERAL | {"file"} else _split(url).path).endswith("/")


def without_slash(url: str) -> str:
    if scheme_of(url) in LITERAL | {"file"}:
        return url.rstrip("/")
    parts = _split(url)
    return parts._replace(path=parts.path.rstrip("/")).geturl()


def without_suffix(url: str, suffix: str) -> str | None:
    """The URL without the relative path `suffix` at its end, plain or percent-encoded; None: it does not end with it."""
    for written in (suffix, quote(suffix), quote(suffix, safe="/*?[]{},!")):
        if url.endswith("/" + written):
            return url[: -len(written)]
    if unquote(url).endswith("/" + suffix):
        return "/".join(url.split("/")[: -(suffix.count("/") + 1)]) + "/"
    return None


def name_problem(name: str) -> str | None:
    """Why a name from a listing cannot be the path of a file below a directory; None: it can."""
    if "\0" in name:
        return "contains a NUL character"
    parts = name.split("/")
    if "" in parts:
        return 'has an empty part ("//")'
    dots = next((part for part in parts if part in (".", "..")), None)
    return f'has the part "{dots}"' if dots else None
