"""Whose tasks a user may see: their own, and those of their groups.

A task belongs to its owner and to all groups that the owner had when it was created. Stores compare by *reader tokens*, `u:NAME` and
`g:NAME`: a user may see a task if they share one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Access:
    """The tasks of `owner` and of `groups`; `owner` None: only those of groups. A parameter `Access | None` of None means all tasks."""

    owner: str | None
    groups: frozenset[str] = field(default_factory=frozenset)

    @property
    def tokens(self) -> list[str]:
        return reader_tokens(self.owner, self.groups)

    def allows(self, owner: str | None, groups: Collection[str]) -> bool:
        """Whether the user may see a task of this owner and these groups."""
        return self.owns(owner) or not self.groups.isdisjoint(groups)

    def owns(self, owner: str | None) -> bool:
        return owner is not None and owner == self.owner


def reader_tokens(owner: str | None, groups: Collection[str]) -> list[str]:
    """Sorted and unique."""
    return sorted({*(f"g:{group}" for group in groups), *(() if owner is None else (f"u:{owner}",))})
