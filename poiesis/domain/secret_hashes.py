"""Hashes of secrets in the credentials file.

Users choose passwords, so these are hashed slowly (scrypt); tokens and keys are random, so one SHA-256 is enough for them.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Final

_SCRYPT: Final = {"n": 2**14, "r": 8, "p": 1}  # 16 MB and about 50 ms: what RFC 7914 suggests for interactive logins


def hash_secret(secret: str, method: str) -> str:
    """Return the hash for the credentials file, under `password_hash` (method `basic`), `token_hash` or `api_key_hash`."""
    if method != "basic":
        return "sha256$" + hashlib.sha256(secret.encode()).hexdigest()
    salt = secrets.token_bytes(16)
    return f"scrypt${base64.b64encode(salt).decode()}${base64.b64encode(scrypt(secret, salt)).decode()}"


def scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, dklen=32, maxmem=64 * 1024 * 1024, **_SCRYPT)
