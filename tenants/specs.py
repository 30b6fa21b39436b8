"""Frozen, versioned shapes of what can be asked for. Pure.

Interfaces build these from input; operations take nothing else. `as_json`/`from_json` are what a row
stores, so an old row keeps its meaning when a field is added with a default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Self

from tenants.states import BoundaryKind, OnShortage, Priority, RolloutStrategy, ServiceClass, Tier

SPEC_VERSION: Final = 1
MOST_VCPU: Final = 1024
MOST_MEMORY_GIB: Final = 16_384
"""Of one unit."""


@dataclass(frozen=True, slots=True)
class GpuAsk:
    """GPU part of one unit: a MIG window (`profile`) or whole GPUs (`count`)."""

    product: str
    profile: str = ""
    count: int = 1
    """Whole GPUs on one host; 1 with a profile."""


@dataclass(frozen=True, slots=True)
class UnitAsk:
    """One unit: what one replica, machine or share needs on one host."""

    gpu: GpuAsk | None
    vcpu: int
    memory_gib: int
    spread_group: str = ""
    """Units of the same non-empty group go to different hosts."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where it may run; empty means anywhere the tenant's policy allows."""

    provider: str = ""
    site: str = ""
    kind: BoundaryKind | None = None
    tier: Tier = Tier.SHARED
    image: str = ""
    """Only where machines can be made of this image; empty for what is no machine."""


@dataclass(frozen=True, slots=True)
class Term:
    """How long: counted from the first Ready, never past `not_after`."""

    duration_s: int = 30 * 86400
    not_after: datetime | None = None
    service_class: ServiceClass = ServiceClass.STANDARD
    priority: Priority = Priority.STANDARD

    def ends_at(self, start: datetime) -> datetime:
        """Return the end if the first Ready were at `start`."""
        end = start + timedelta(seconds=self.duration_s)
        return min(end, self.not_after) if self.not_after else end


@dataclass(frozen=True, slots=True)
class AllocationSpec:
    """GPU capacity: units, where, how long, and what to do when quota is short."""

    units: tuple[UnitAsk, ...]
    where: Where = field(default_factory=Where)
    term: Term = field(default_factory=Term)
    on_shortage: OnShortage = OnShortage.FAIL
    storage_gib: int = 0
    gang: bool = True
    """All units or none."""

    def demand(self, slices_of: Mapping[tuple[str, str], int]) -> dict[str, int]:
        """Return dimension → amount. `slices_of` maps (product, profile) to memory slices per GPU or window.

        A whole H100 is 8 slices of `gpu.H100-80GB.slices`; a profile counts its slices there too, and 1 in
        `gpu.<product>.<profile>`.
        """
        amounts: Counter[str] = Counter()
        for unit in self.units:
            amounts["vcpu"] += unit.vcpu
            amounts["memory_gib"] += unit.memory_gib
            if unit.gpu is not None:
                slices = slices_of[unit.gpu.product, unit.gpu.profile]
                amounts[f"gpu.{unit.gpu.product}.slices"] += slices * unit.gpu.count
                if unit.gpu.profile:
                    amounts[f"gpu.{unit.gpu.product}.{unit.gpu.profile}"] += 1
        if self.storage_gib:
            amounts["storage_gib"] += self.storage_gib
        return {dimension: amount for dimension, amount in sorted(amounts.items()) if amount}

    def as_json(self) -> dict[str, Any]:
        """Return the stored shape."""
        body = asdict(self)
        body["term"]["not_after"] = self.term.not_after.isoformat() if self.term.not_after else None
        return {"version": SPEC_VERSION, **body}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Rebuild from the stored shape."""
        where, term = body["where"], body["term"]
        return cls(
            units=tuple(
                UnitAsk(
                    gpu=GpuAsk(**unit["gpu"]) if unit["gpu"] else None,
                    vcpu=unit["vcpu"],
                    memory_gib=unit["memory_gib"],
                    spread_group=unit.get("spread_group", ""),
                )
                for unit in body["units"]
            ),
            where=Where(
                provider=where["provider"],
                site=where["site"],
                kind=BoundaryKind(where["kind"]) if where["kind"] else None,
                tier=Tier(where["tier"]),
                image=where.get("image", ""),
            ),
            term=Term(
                duration_s=term["duration_s"],
                not_after=datetime.fromisoformat(term["not_after"]) if term["not_after"] else None,
                service_class=ServiceClass(term["service_class"]),
                priority=Priority(term["priority"]),
            ),
            on_shortage=OnShortage(body["on_shortage"]),
            storage_gib=body.get("storage_gib", 0),
            gang=body.get("gang", True),
        )


@dataclass(frozen=True, slots=True)
class RevisionAsk:
    """What an endpoint serves: model, arguments from the typed allow-list, runtime."""

    model: str
    """Name of a served model of the catalogue."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = "vllm"


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """One step of a canary."""

    weight: int
    """Percent of the requests that the new revision gets."""
    seconds: int | None
    """How long, at least 1; None: until somebody promotes."""


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """What a new revision may cost its callers before its rollout ends by itself; None: not looked at."""

    error_rate: float | None = 0.05
    """Share of its requests that may fail, from 0 to 1."""
    latency_ms: int | None = None
    """What 95 of 100 of its answers (of streams: first events) must keep to."""
    min_requests: int = 20
    """So many requests of a step are looked at before anything is concluded."""


@dataclass(frozen=True, slots=True)
class RolloutAsk:
    """How another revision is to take over."""

    strategy: RolloutStrategy = RolloutStrategy.RECREATE
    steps: tuple[RolloutStep, ...] = ()
    """Of a canary; none: it takes over as soon as it is ready."""
    limits: RolloutLimits = RolloutLimits()
    must_have_room: bool = False
    """Whether a canary without room for a unit of its own is refused, instead of becoming a recreate."""


@dataclass(frozen=True, slots=True)
class MoveAsk:
    """Where an endpoint is to go, and how."""

    kind: BoundaryKind
    provider: str = ""
    """Empty: any that has room and may be used."""
    site: str = ""
    gpu: GpuAsk | None = None
    """Of each replica there; None: the same as now."""
    by_hand: bool = False
    """Whether somebody says when the address goes over, instead of as soon as it works there."""
    watch_s: int = 300
    """How long both places stay after that, so that it can be undone at once."""


@dataclass(frozen=True, slots=True)
class EndpointAsk:
    """An endpoint: a name, what it serves, and the allocation it owns."""

    name: str
    revision: RevisionAsk
    allocation: AllocationSpec
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True, slots=True)
class MachineAsk:
    """A GPU VM with SSH."""

    name: str
    allocation: AllocationSpec
    image: str
    disk_gib: int
    ssh_keys: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True, slots=True)
class NamespaceAsk:
    """A namespace boundary handed to people."""

    name: str
    allocation: AllocationSpec
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True, slots=True)
class BareAsk:
    """Capacity of a namespace boundary without a product."""

    name: str
    allocation: AllocationSpec
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
