"""References of container images, by the OCI grammar (distribution/reference): `[registry[:port]/]name[:tag][@digest]`.

What this grammar refuses no cluster can pull. Every expression here is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import Final

MAX_NAME: Final = 255  # characters of registry and name together
MAX_REFERENCE: Final = MAX_NAME + 1 + 128 + 1 + 256

_LABEL: Final = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*")
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9A-Fa-f]{32,}")
_IMAGE_ID: Final = re.compile(r"[0-9a-f]{64}")


def image_problem(image: str) -> str | None:
    """What is wrong with the reference and what is allowed; None for a valid one."""
    if not image:
        return "missing image: give a reference such as alpine:3.20 or quay.io/org/name:tag"
    if image.startswith("docker://"):
        return f"invalid image {image[:100]!r}: remove docker://; write registry and name only, such as quay.io/org/name:tag"
    reason = "too long" if len(image) > MAX_REFERENCE else _wrong_part(image)
    if reason is None:
        return None
    return f"invalid image {image[:100]!r}: {reason}; use [registry[:port]/]name[:tag][@digest], such as quay.io/org/name:tag"


def _wrong_part(image: str) -> str | None:
    rest, at, digest = image.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        return "the digest must be an algorithm and its hexadecimal value, such as sha256:<64 digits>"
    slash, colon = rest.rfind("/"), rest.rfind(":")
    name, tag = (rest[:colon], rest[colon + 1 :]) if colon > slash else (rest, None)
    if tag is not None and not _TAG.fullmatch(tag):
        return "the tag must be 1 to 128 letters, digits, '_', '.' and '-', and not begin with '.' or '-'"
    if len(name) > MAX_NAME:
        return f"registry and name are longer than {MAX_NAME} characters"
    first, *others = name.split("/")
    if others and (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        if not _REGISTRY.fullmatch(first):
            return "the registry must be a host name or address with an optional port"
    else:
        others = [first, *others]
    if not all(_COMPONENT.fullmatch(component) for component in others) or _IMAGE_ID.fullmatch(name):
        return "each part of the name must be lower-case letters and digits, separated by '.', '_', '__' or '-'"
    return None
