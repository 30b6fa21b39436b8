"""Whether vCenter holds exactly what the rows want: one VM per unit, itself, where it belongs, every step done.

Names, UUIDs and places are compared with what the rows lead to; the driver's own word is asked for steps only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from provisioners.driver import (
    BoundarySpec,
    Driver,
    EndpointSpec,
    MachineSpec,
    Presence,
    Ref,
    Spec,
    UnitSpec,
    machine_uuid,
)
from provisioners.kinds import PASSES
from provisioners.vsphere.names import instance_uuid, vm_name
from tenants.actor import SYSTEM
from tenants.models import Vlan
from tenants.transactions import acting
from tests.crash.clock import Clock


@dataclass(frozen=True, slots=True)
class Machine:
    """One VM: what it is and where it lies. Places by whose mark they carry, None for a place of nobody."""

    name: str
    instance_uuid: str
    machine_uuid: str
    host: str
    folder: Ref | None
    pool: Ref | None
    networks: tuple[Ref | None, ...]
    mark: Ref | None


@dataclass(frozen=True, slots=True)
class Place:
    """Something of a boundary: its folder, pool or port group; `vlan` of a port group only."""

    kind: str
    of: Ref
    vlan: int | None = None


def wanted(spec: EndpointSpec | MachineSpec) -> list[Machine]:
    """Return the VMs that a spec leads to."""
    units: list[tuple[int | None, UnitSpec]] = (
        [(None, spec.unit)] if isinstance(spec, MachineSpec) else [(unit.index, unit) for unit in spec.units]
    )
    home = spec.boundary
    return [
        Machine(
            vm_name(spec.ref, index),
            instance_uuid(spec.ref, index),
            str(machine_uuid(unit.uid)),
            unit.host,
            home,
            home,
            (home,),
            spec.ref,
        )
        for index, unit in units
    ]


def misplaced(specs: Iterable[Spec], machines: Sequence[Machine], places: Sequence[Place]) -> list[str]:
    """Return where VMs and the places of boundaries are not exactly what specs lead to."""
    found: list[str] = []
    there = Counter(machines)
    known: list[Machine] = []
    for spec in specs:
        if isinstance(spec, BoundarySpec):
            found += _boundary(spec, places)
        elif isinstance(spec, EndpointSpec | MachineSpec):
            known += wanted(spec)
    found += [f"not there as wanted: {one}" for one in (Counter(known) - there).elements()]
    return found + [f"there and not wanted: {one}" for one in (there - Counter(known)).elements()]


def _boundary(spec: BoundarySpec, places: Sequence[Place]) -> list[str]:
    mine = Counter(one.kind for one in places if one.of == spec.ref)
    vlans = {one.vlan for one in places if one.of == spec.ref and one.vlan is not None}
    found = []
    if mine["Folder"] != 1 or mine["DistributedVirtualPortgroup"] != 1 or mine["ResourcePool"] < 1:
        found.append(f"{spec.ref.name} has {dict(mine)}")
    if vlans != {spec.vlan}:
        found.append(f"{spec.ref.name} is in VLANs {vlans}, not {spec.vlan}")
    return found


def undone(driver: Driver, specs: Iterable[Spec]) -> list[str]:
    """Return the steps of specs that are not done by the exact look; one that waits for its unit to be on may be."""
    found = []
    for spec in specs:
        seen = driver.observe(spec.ref)
        steps = driver.steps(spec)
        for step in steps:
            part = seen.part(step.name)
            is_done = part.presence is Presence.PRESENT and part.have == step.want and part.ready
            if not is_done and not step.dormant:
                found.append(f"{spec.ref.name}: {step.name} is not done: {part}")
        more = {part.step for part in seen.parts} - {step.name for step in steps}
        found += [f"{spec.ref.name}: nobody wants {name}" for name in sorted(more)]
    return found


def specs_of_rows(clock: Clock) -> list[Spec]:
    """Return what every live row wants, as passes read it; nothing that reading makes is kept."""
    found: list[Any] = []
    for word, kind in PASSES.items():
        with acting(SYSTEM):
            rows = kind.model._base_manager.filter(released_at__isnull=True, deletion_requested_at__isnull=True)
            if word != "allocation":
                found += [kind.prepare(row, now=clock()).spec for row in rows]
            transaction.set_rollback(True)
    return [spec for spec in found if spec is not None]


def vlans(boundaries: Iterable[Spec]) -> list[str]:
    """Return VLANs that are taken and belong to no boundary that is wanted."""
    mine = {spec.ref.uid for spec in boundaries if isinstance(spec, BoundarySpec)}
    return [f"VLAN {row.number} is left" for row in Vlan.objects.exclude(boundary_id__in=mine)]
