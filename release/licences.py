"""The licence of every package in the image and the wheel, as an SPDX expression.

A package states its licence as an expression, in a field of free text, or by classifiers. LEGACY translates the words that occur; what
it does not know is reported, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from typing import Final

from license_expression import ExpressionError, get_spdx_licensing

# Free licences that are compatible with distributing an image under Apache-2.0 as an aggregate, with the texts included.
ALLOWED: Final = frozenset(
    "0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause CC0-1.0 ISC LGPL-2.1-only LGPL-2.1-or-later MIT MIT-0 MPL-2.0 PSF-2.0 Unlicense".split()  # noqa: SIM905
)
LEGACY: Final = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "isc license (iscl)": "ISC",
    "lgpl-2.1": "LGPL-2.1-only",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "new bsd": "BSD-3-Clause",
    "python software foundation license": "PSF-2.0",
}
# Packages whose metadata is not precise: their licence by their own licence file.
REVIEWED: Final = {
    "amqp": "BSD-3-Clause",
    "billiard": "BSD-3-Clause",
    "flower": "BSD-3-Clause",
    "itsdangerous": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "prompt-toolkit": "BSD-3-Clause",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "uvloop": "MIT OR Apache-2.0",
    "vine": "BSD-3-Clause",
}
# In the lock file for other platforms and versions of Python: their licence where they are not installed.
OTHER_PLATFORMS: Final = {"async-timeout": "Apache-2.0", "colorama": "BSD-3-Clause", "tzdata": "Apache-2.0"}
# Files for the browser (poiesis/api/ui/static/vendor), by their licence files.
NPM: Final = {"ansi_up": "MIT", "htmx.org": "0BSD", "htmx-ext-sse": "0BSD", "uplot": "MIT"}

_SPDX = get_spdx_licensing()


def licence_of(metadata: Message) -> str | None:
    """The SPDX expression of a Python package; None: it is not known."""
    name = str(metadata.get("Name", "")).lower().replace("_", "-")
    if name in REVIEWED:
        return REVIEWED[name]
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier") or []
        if text.startswith("License :: OSI Approved :: ")
    ]
    words = [metadata.get("License-Expression"), metadata.get("License"), " AND ".join(classifiers)]
    for text in filter(None, words):
        found = LEGACY.get(text.strip().lower(), text.strip())
        if "\n" not in found and is_expression(found):
            return found
    return None


def is_expression(text: str) -> bool:
    try:
        return not _SPDX.validate(text, strict=True).errors
    except ExpressionError:
        return False


def problems(licences: dict[str, str | None]) -> Iterator[str]:
    """Packages whose licence is not known, or whose every choice has one that is not in ALLOWED."""
    for name, expression in sorted(licences.items()):
        if expression is None:
            yield f"{name}: unknown licence: read its licence file and add it to REVIEWED in release/licences.py"
        elif not is_free(expression):
            yield f"{name}: {expression} is not in ALLOWED in release/licences.py"


def is_free(expression: str) -> bool:
    """Whether one of the alternatives of an expression has allowed licences only."""
    parsed = _SPDX.parse(expression, validate=True)
    alternatives = parsed.args if type(parsed).__name__ == "OR" else [parsed]
    return any(set(_SPDX.license_keys(alternative)) <= ALLOWED for alternative in alternatives)
