"""Users of the API keys of the store, for the event loop: a look-up with every request, so that a revocation counts at once everywhere.

Look-ups have separate threads, so that invented keys delay no other request, and those that find nothing are limited for each
address. A user's rights are never more than what is known of the user: by the credentials file, or by the last token of a provider.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

from poiesis.api.attempts import Attempts, Rate
from poiesis.api.credentials import Credentials
from poiesis.api.threads import Threads
from poiesis.api.users import User
from poiesis.domain.errors import PoiesisError
from poiesis.domain.keys import ApiKey
from poiesis.services.keys import KeyService

log = logging.getLogger(__name__)

THREADS: Final = 4
UNKNOWN_KEYS: Final = Rate(burst=100, refill_s=0.5)
MAX_NOTED: Final = 10_000


class KeyLookup:
    """Used in the event loop only."""

    def __init__(self, keys: KeyService, attempts: Attempts) -> None:
        self._keys = keys
        self._attempts = attempts
        self._threads = Threads(THREADS, "keys")
        self._noted: OrderedDict[str, tuple[tuple[str, ...], bool]] = OrderedDict()
        self._updates: set[asyncio.Task[None]] = set()

    async def user(self, secret: bytes, credentials: Credentials, address: str) -> User | None:
        """The user of a key, None for one that does not exist or has expired. Raises: Refused, RepositoryUnavailable."""
        return await self._user(partial(self._keys.find, secret), credentials, address)

    async def user_of_digest(self, digest: str, credentials: Credentials, address: str) -> User | None:
        """Return the user of a key by its digest, as `user` does."""
        return await self._user(partial(self._keys.find_digest, digest), credentials, address)

    async def _user(self, find: Callable[[], ApiKey | None], credentials: Credentials, address: str) -> User | None:
        key = await self._attempts.look_up("key", address, UNKNOWN_KEYS, partial(self._threads.call, find))
        return None if key is None else _user_of(key, credentials)

    def note_rights(self, user: User) -> None:
        """A provider has said what this user may do: in the background, that becomes what the user's keys may do."""
        assert user.name is not None
        rights = (user.groups, user.admin)
        if self._noted.get(user.name) != rights:
            self._noted[user.name] = rights
            update = asyncio.create_task(self._update(user.name, *rights))
            self._updates.add(update)
            update.add_done_callback(self._updates.discard)
        self._noted.move_to_end(user.name)
        if len(self._noted) > MAX_NOTED:
            self._noted.popitem(last=False)

    async def _update(self, name: str, groups: tuple[str, ...], admin: bool) -> None:
        try:
            await self._threads.call(self._keys.set_rights, name, groups, admin=admin)
        except PoiesisError as error:  # the next token tries again
            self._noted.pop(name, None)
            log.warning("rights_not_updated", extra={"error": str(error)})

    def close(self) -> None:
        self._threads.abandon()


def _user_of(key: ApiKey, credentials: Credentials) -> User | None:
    owner = credentials.users.get(key.user)
    if owner is None and key.in_file:
        return None
    admin, groups = (owner.admin, owner.groups) if owner else (key.admin, key.groups)
    is_admin = admin and "admin" in key.rights
    return User(key.user, is_admin, groups, key.rights, method="api_key", in_file=owner is not None)
