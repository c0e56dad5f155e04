"""What a site configures for admission: caps on what is in flight, weights, and service classes (docs/adr/0014).

An `Amount` is what one task, or all tasks in flight together, hold. All of its dimensions are whole numbers, so that sums are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Final, NamedTuple

from poiesis.domain.errors import ConfigurationError

GIGABYTE: Final = 10**9
MILLI: Final = 1000
NO_SETTING: Final[Mapping[str, bool]] = {"setting": False}  # `bootstrap` sets what the adapters support


def whole_units(value: float, units: int) -> int:
    """`value` in units, of which 1 has so many, rounded up. 8.3 with 10^9 is 8,300,000,000: the number as it is written counts, while the
    product of floats is slightly more."""
    return math.ceil(Decimal(repr(value)) * units)


class Amount(NamedTuple):
    tasks: int = 0
    millicores: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    volumes: int = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Amount) -> Amount:
        return Amount(*(a - b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Claim:
    """What a task holds while it is in flight, and in whose quotas it counts. `user` is empty without authentication."""

    user: str
    amount: Amount
    service_class: str
    groups: tuple[str, ...] = ()


Caps = tuple[int | None, int | None, int | None, int | None, int | None]
"""Of each dimension of an `Amount`; None: no cap."""
NO_CAPS: Final[Caps] = (None, None, None, None, None)
DEFAULT_CLASS: Final = "default"


@dataclass(frozen=True)
class Quota:
    """Caps on tasks in flight: those that have been admitted and have not ended. None: no cap."""

    max_tasks: int | None = None
    """Number of tasks."""
    max_cpu_cores: float | None = None
    """Sum of their `cpu_cores`."""
    max_ram_gb: float | None = None
    """Sum of their `ram_gb`, in 10^9 bytes."""
    max_gpus: int | None = None
    """Sum of their GPUs."""
    max_volumes: int | None = None
    """Number of their volumes; a task has one or none."""
    weight: float | None = None
    """Share of a contended site, relative to others; None: 1, or that of the default."""

    def __post_init__(self) -> None:
        for name in ("max_tasks", "max_cpu_cores", "max_ram_gb", "max_gpus", "max_volumes", "weight"):
            value = getattr(self, name)
            whole = name in ("max_tasks", "max_gpus", "max_volumes")
            least = "above 0" if name == "weight" else "0 or more"
            valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if value is None or (
                valid and value >= 0 and (name != "weight" or value > 0) and (not whole or value == int(value))
            ):
                continue
            raise ConfigurationError(f"invalid {name} {value!r}: must be a {'whole ' if whole else ''}number, {least}")

    @property
    def caps(self) -> Caps:
        return (
            self.max_tasks,
            None if self.max_cpu_cores is None else whole_units(self.max_cpu_cores, MILLI),
            None if self.max_ram_gb is None else whole_units(self.max_ram_gb, GIGABYTE),
            self.max_gpus,
            self.max_volumes,
        )


@dataclass(frozen=True)
class ServiceClass(Quota):
    """A class of service that tasks may ask for; its quota is for all tasks of the class together."""

    users: tuple[str, ...] = ()
    """Users who may use it. Neither users nor groups: everyone."""
    groups: tuple[str, ...] = ()
    """Groups whose members may use it."""


@dataclass(frozen=True)
class AdmissionRules:
    """Without any cap, tasks are not held back: each starts when it is created."""

    site: Quota = field(default_factory=Quota)
    """Of all tasks together. `weight` is not used."""
    user: Quota = field(default_factory=Quota)
    """Of each user."""
    users: Mapping[str, Quota] = field(default_factory=dict)
    """Of single users, by name, as JSON: `{"ann": {"max_tasks": 50, "weight": 2}}`. What is left out is as in `user`."""
    group: Quota = field(default_factory=Quota)
    """Of each group: of all tasks of its members together. `weight` is that of each member."""
    groups: Mapping[str, Quota] = field(default_factory=dict)
    """Of single groups, by name, as JSON. What is left out is as in `group`."""
    classes: Mapping[str, ServiceClass] = field(default_factory=dict)
    """Service classes, by name, as JSON: `{"urgent": {"weight": 4, "max_tasks": 10, "groups": ["clinic"]}}`. A task asks for one with the
    backend parameter `service_class`."""
    default_class: str = DEFAULT_CLASS
    """Service class of tasks that do not ask for one."""
    half_life: timedelta = timedelta(hours=1)
    """How fast past usage is forgotten; 0: only what runs now counts."""
    aging: timedelta = timedelta(hours=1)
    """A queue that has not been served for this long counts as having twice its weight, and so on, so that none starves."""
    reserve_after: timedelta = timedelta(minutes=10)
    """How long smaller tasks may overtake one that does not fit; after that, what becomes free is kept for it."""

    other_classes: frozenset[str] = field(default=frozenset(), metadata=NO_SETTING)
    """Further service classes, without quotas, that only decide where a task runs."""
    default_cpu_cores: float = field(default=0.0, metadata=NO_SETTING)
    """Of tasks that request none."""
    default_ram_gb: float = field(default=0.0, metadata=NO_SETTING)
    clamp: bool = field(default=False, metadata=NO_SETTING)
    """Whether a task that asks for more than the site has counts as asking for all of it, instead of being refused."""

    def __post_init__(self) -> None:
        if self.classes and self.default_class != DEFAULT_CLASS and self.default_class not in self.classes:
            raise ConfigurationError(
                f"invalid default_class {self.default_class!r}: must be one of {', '.join(sorted(self.classes))}"
            )

    @property
    def is_enabled(self) -> bool:
        quotas: list[Quota] = [self.site, self.user, self.group]
        quotas += [*self.users.values(), *self.groups.values(), *self.classes.values()]
        return any(quota.caps != NO_CAPS for quota in quotas)

    @property
    def class_names(self) -> frozenset[str]:
        return frozenset({*self.classes, *self.other_classes, self.default_class, DEFAULT_CLASS})

    def clamped(self, amount: Amount) -> Amount:
        if not self.clamp:
            return amount
        caps = zip(amount, self.site.caps, strict=True)
        return Amount(*(value if cap is None else min(value, cap) for value, cap in caps))

    def user_caps(self, user: str) -> Caps:
        return _merged(self.users.get(user), self.user)

    def group_caps(self, group: str) -> Caps:
        return _merged(self.groups.get(group), self.group)

    def class_caps(self, name: str) -> Caps:
        return self.classes[name].caps if name in self.classes else NO_CAPS

    def groups_with_caps(self, groups: Iterable[str]) -> tuple[str, ...]:
        """Those that matter for admission."""
        return tuple(sorted(g for g in set(groups) if g in self.groups or self.group.caps != NO_CAPS))

    def weight(self, user: str, groups: Sequence[str]) -> float:
        """The user's own weight, else the largest of their groups, else the default."""
        own = self.users[user].weight if user in self.users else None
        of_groups = [w for g in groups if g in self.groups and (w := self.groups[g].weight) is not None]
        return own or max(of_groups, default=None) or self.user.weight or self.group.weight or 1.0

    def class_weight(self, name: str) -> float:
        return (self.classes[name].weight if name in self.classes else None) or 1.0

    def may_use(self, name: str, user: str | None, groups: Iterable[str]) -> bool:
        """Whether a user may ask for a service class."""
        found = self.classes.get(name)
        if found is None:
            return name in self.other_classes or name == self.default_class
        return not (found.users or found.groups) or user in found.users or not set(found.groups).isdisjoint(groups)


def _merged(own: Quota | None, default: Quota) -> Caps:
    if own is None:
        return default.caps
    a, b, c, d, e = (cap if cap is not None else other for cap, other in zip(own.caps, default.caps, strict=True))
    return (a, b, c, d, e)
