"""Several users of one installation, each with a bearer token of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from poiesis.api.credentials import hash_secret
from tests.e2e.conftest import OURS, Installation, Json

SECRET: Final = "users-of-tests"
VALUES: Final[Json] = {"auth": {"allowAnonymous": False, "methods": ["bearer"], "existingSecret": SECRET}}  # of `api`


def credentials(users: Sequence[str]) -> Callable[[Installation], None]:
    """Create the Secret that VALUES names; to be called before the installation."""

    def create(service: Installation) -> None:
        entries = [{"name": user, "token_hash": hash_secret(f"{user}-token", "bearer")} for user in users]
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "labels": OURS},
            "stringData": {"credentials.json": json.dumps(entries)},
        }
        service.kubectl("apply", "-f", "-", stdin=json.dumps(secret))

    return create


def call(service: Installation, user: str, method: str, path: str, body: Json | None = None) -> Any:
    answer = service._http.request(
        method,
        f"{service.url}/ga4gh/tes/v1{path}",
        body=None if body is None else json.dumps(body),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {user}-token"},
        timeout=30,
    )
    assert answer.status == 200, answer.data
    return json.loads(answer.data)
