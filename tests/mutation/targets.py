"""Mutated request targets, as bytes: queries with repeated, huge, unknown and wrongly encoded parameters, and paths with such ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote_from_bytes

UNKNOWN: Final = ("x", "", "view[]", "VIEW", "page_size ", "tag_key[0]", "__proto__", "é", "a" * 500, "limit", "offset")
VALUES: Final = (
    b"", b" ", b"0", b"1", b"-1", b"5", b"2047", b"2048", b"2147483647", b"2147483648", b"9" * 18, b"9" * 19, b"9" * 400, b"1.0",
    b"1e3", b"+7", b" 7 ",
    b"1_0", b"0x10", b"\xd9\xa3", b"NaN", b"true", b"MINIMAL", b"full", b"Basic", b"SOME", b"FULL,BASIC", b"RUNNING", b"UNKNOWN",
    b"running",
    b"PREEMPTED", b"STOPPED", b"null", b"[]", b"{}", b"a,b", b"a;b", b"a|b", b"*", b"%", b"$ne", b"^.*", b"(a+)+$", b"' OR 1=1 --",
    b"\\", b"\x00",
    b"a\x00b", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", "😀".encode(), "\u202e".encode(), b"\r\nX: y", b"k", b"v", b"p", b"project",
    b"a" * 3000,
    b"../..", b"<script>", b"2020-01-01T00:00:00Z", b"2020-13-45", b"-9223372036854775809",
)  # fmt: skip
BROKEN: Final = (
    b"%",
    b"%zz",
    b"%2",
    b"%u0041",
    b"%00",
    b"%ff",
    b"%ED%A0%80",
    b"%25%30",
    b"+",
    b"%20%0a",
    b"\xe9",
    b"\xff",
    b"\\",
    b"|",
    b'"',
    b"`",
    b"^",
    b"{}",
)
IDS: Final = (
    b"x", b"0", b"-1", b"", b".", b"..", b"%2e%2e", b"..%2f..", b"%2F", b"%00", b"%", b"%zz", b"%ff", b"a" * 300, b"a" * 20_000, b"*",
    b"null", b"x:cancel",
    b":", b"x:", b"x:nothing", b"x:cancel:cancel", b";a=b", b"x;v=1", b"\xc3\xa9", b"%F0%9F%98%80", b"service-info", b"x/y", b"x/",
    b"/x", b"$ne", b"'",
    b"01234567-89ab-cdef-0123-456789abcdef", b"0" * 32, b"f" * 36, b"ffffffffffff-f",
)  # fmt: skip
SAFE: Final = "/:@!$&'()*,;=-._~"


def _encoded(chance: random.Random, value: bytes) -> bytes:
    """Percent-encoded in one of the ways that clients do, and sometimes broken."""
    way = chance.random()
    if way < 0.6:
        text = quote_from_bytes(value, safe=chance.choice(("", SAFE)))
        return (text.replace("%20", "+") if chance.random() < 0.3 else text).encode()
    if way < 0.75:
        return b"".join(b"%%%02x" % byte for byte in value[:1000])
    at = chance.randint(0, len(value))
    kept = bytes(byte for byte in value if byte > 32 and byte != 127 and byte != 35)
    return kept[:at] + chance.choice(BROKEN) + kept[at:]


def mutated_query(chance: random.Random, names: Sequence[str], tokens: Sequence[str] = ()) -> bytes:
    """A query of up to 40 parameters, mostly from `names`; `tokens`: valid page tokens, to be changed."""
    pairs: list[bytes] = []
    for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 5, 40))):
        name = chance.choice(names) if names and chance.random() < 0.85 else chance.choice(UNKNOWN)
        value = chance.choice(VALUES)
        if name == "page_token" and tokens and chance.random() < 0.7:
            value = _changed(chance, chance.choice(tokens).encode())
        pair = _encoded(chance, name.encode()) if chance.random() < 0.1 else name.encode().replace(b" ", b"+")
        pairs.append(pair + chance.choice((b"=", b"=", b"=", b"=", b"==", b"")) + _encoded(chance, value))
    if pairs and chance.random() < 0.1:
        pairs *= chance.choice((2, 30))
    if chance.random() < 0.02:
        pairs = [b"tag_key=k"] * chance.choice((99, 100, 101, 1500))
    return chance.choice((b"&", b"&", b"&", b"&", b"&&", b";")).join(pairs)[:60_000]


def _changed(chance: random.Random, value: bytes) -> bytes:
    at = chance.randint(0, len(value))
    return chance.choice(
        (value, value[:at], value[:at] + b"A" + value[at + 1 :], value + b"=", value * 2, value.swapcase())
    )


def mutated_id(chance: random.Random, valid: Sequence[str]) -> bytes:
    if valid and chance.random() < 0.4:
        return _changed(chance, chance.choice(valid).encode())
    return chance.choice(IDS)
