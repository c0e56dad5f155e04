"""Which credentials a task uses: a site may bind users and groups to separate credentials, in place of its shared ones.

A binding is found when it is needed, by the task's owner and groups, so no task holds a secret or the name of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

EVERYONE: Final = "*"
GROUP: Final = "group:"
T = TypeVar("T")


def keys_of(user: str | None, groups: Iterable[str]) -> frozenset[str]:
    """The keys that stand for a user where something is set by user, `group:NAME`, or `*` for everyone."""
    own = {user} if user is not None and _is_plain(user) else set()
    return frozenset({EVERYONE, *own, *(GROUP + group for group in groups)})


def binding_of(bindings: Mapping[str, T], user: str | None, groups: Iterable[str]) -> T | None:
    """The user's own binding, else the first one of a group that the user is in, else that of `*`; None: the shared credentials.

    `bindings`: by user, `group:NAME`, or `*` for all others; the order decides between groups.
    """
    if user is not None and _is_plain(user) and user in bindings:
        return bindings[user]
    of_groups = keys_of(None, groups) - {EVERYONE}
    return next((bindings[key] for key in bindings if key in of_groups), bindings.get(EVERYONE))


def _is_plain(user: str) -> bool:
    """Whether a user's name, which a provider of identities chose, cannot be taken for another kind of key."""
    return user != EVERYONE and not user.startswith(GROUP)
