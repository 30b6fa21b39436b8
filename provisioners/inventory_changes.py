"""The words of `inventory_uses`: windows in use that nobody holds, facts of units, and what to do to a host's holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from provisioners.driver import ObservedUse
from tenants import geometry
from tenants.findings import Seen
from tenants.host_plans import MOVING, STRAY
from tenants.models import GpuDevice
from tenants.states import HoldKind


@dataclass(frozen=True, slots=True)
class Put:
    """One hold to put on room that nobody has."""

    kind: HoldKind
    device: UUID
    start: int
    size: int
    note: str
    vcpu: int = 0
    memory_gib: int = 0


@dataclass(frozen=True, slots=True)
class UnitFact:
    """What our rows say of a unit that runs on a host where it holds nothing."""

    live: bool
    """Not released."""
    holds_on: str = ""
    """Name of the host it holds a window of, `""` without one."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do to one host's holds, in the order drops, moves, puts."""

    drops: tuple[UUID, ...] = ()
    moves: tuple[dict[str, Any], ...] = ()
    """Entries of `ledger.rebind`."""
    puts: tuple[Put, ...] = ()
    absent: frozenset[UUID] = frozenset()
    """Foreign holds whose use was not seen this time."""
    findings: tuple[Seen, ...] = ()

    @property
    def any(self) -> bool:
        """Whether the ledger would change."""
        return bool(self.drops or self.moves or self.puts)


@dataclass(slots=True)
class LooseUse:
    """One window in use that nobody holds."""

    use: ObservedUse
    device: GpuDevice | None
    duplicate: bool = False

    @property
    def exact(self) -> bool:
        """Whether it is known which slots are used."""
        return self.device is not None and (self.use.start is not None or self.use.size == self.device.slots)

    @property
    def start(self) -> int:
        """First slot, 0 where the provider does not say."""
        return self.use.start or 0

    @property
    def mask(self) -> int:
        """Its slots as bits."""
        return geometry.window_mask(self.start, self.use.size)

    @property
    def note(self) -> str:
        """What a hold that stands for it is marked with."""
        return f"{STRAY}{self.use.unit}" if self.use.unit is not None else self.use.name[:280]

    @property
    def notes(self) -> frozenset[str]:
        """Notes of holds that stand for this use."""
        return (
            frozenset({self.note, f"{MOVING}{self.use.unit}"}) if self.use.unit is not None else frozenset({self.note})
        )
