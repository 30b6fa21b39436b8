"""VM boundaries: a folder, pools, a port group and a permission that only one tenant's VMs have.

Each part is found by its name from our ids and carries our mark; what a step made true is recorded on it beside a hash
of what was seen then, so that a look tells without any spec whether it is still true. What is not is made true again by
the same step. Parts go in reverse, each only while it is empty; what is in the way is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from provisioners.driver import (
    BoundarySpec,
    Done,
    Handle,
    NotSupported,
    Observed,
    Part,
    Presence,
    Ref,
    Step,
    TransientDriverError,
)
from provisioners.steps import make
from provisioners.vsphere import folders, network, pools, roles
from provisioners.vsphere.ground import Ground, payload

LONGEST_BLOCK: Final = 300


class Boundaries:
    """Boundaries of one vCenter."""

    def __init__(self, ground: Ground) -> None:
        """Stand on `ground`."""
        self._ground = ground
        self._folders = folders.Folders(ground)
        self._pools = pools.Pools(ground)
        self._networks = network.Networks(ground)
        self._roles = roles.Roles(ground)

    def steps(self, spec: BoundarySpec) -> Sequence[Step]:
        """Return the steps of a boundary, in order; pure. Raises `TransientDriverError` without a VLAN."""
        ref, wiring = spec.ref, network.wiring_for(spec)
        return (
            make(ref, folders.STEP, {"tier": spec.tier}, spec),
            make(ref, pools.STEP, {"vcpu": spec.vcpu, "memory_gib": spec.memory_gib}, spec),
            make(ref, network.STEP, {"vlan": wiring.vlan, "cut_off": wiring.blocked}, spec),
            make(ref, roles.STEP, {"group": self._group(spec)}, spec),
        )

    def _group(self, spec: BoundarySpec) -> str:
        """Return the group that is let in: none unless somebody has direct access."""
        return self._ground.settings.group_of(str(spec.ref.tenant_uid)) if spec.access else ""

    def observe(self, ref: Ref) -> Observed:
        """Read one boundary exactly."""
        parts: list[Part] = []
        blocks: list[str] = []
        folder = self._folders.read(ref)
        if folder is not None:
            parts.append(self._folders.part(ref, folder[1]))
            blocks.append(_inside(f"folder {ref.name}", self._folders.contents(folder[1])))
        found = self._pools.read(ref)
        if found:
            parts.append(self._pools.part(ref, found))
            blocks.append(_inside(f"resource pool {ref.name}", self._pools.contents(found)))
        group = self._networks.read(ref)
        if group is not None:
            parts.append(self._networks.part(ref, group[1]))
            blocks.append(_inside(f"port group {ref.name}", self._ground.named(group[1].get("vm"))))
        if folder is not None and (entry := self._folders.records(folder[1]).get(roles.STEP)) is not None:
            want, seen = entry
            granted = self._roles.read(folder[0])
            true_still = roles.seen_of(granted) == seen
            remarks = () if true_still else (roles.remark(granted),)
            parts.append(Part(roles.STEP, Presence.PRESENT, have=want if true_still else "", remarks=remarks))
        blocked = "; ".join(block for block in blocks if block)
        return Observed(
            ref,
            exists=bool(parts),
            parts=tuple(parts),
            blocked_by=blocked[:LONGEST_BLOCK],
            simulated=self._ground.is_simulated,
        )

    def start(self, step: Step) -> Handle | Done:
        """Make one part, or take it away."""
        if step.undo:
            return self._undo(step)
        spec = payload(step, BoundarySpec)
        match step.name:
            case folders.STEP:
                return self._folders.make(step.ref, step.want)
            case pools.STEP:
                return self._pools.make(spec, step.want)
            case network.STEP:
                return self._networks.make(spec, step.want)
            case roles.STEP:
                return self._grant(step, spec)
        raise NotSupported(f"a vCenter does not know the step {step.name}")

    def _grant(self, step: Step, spec: BoundarySpec) -> Done:
        found = self._folders.read(step.ref)
        if found is None:
            raise TransientDriverError(f"folder {step.ref.name} is not there yet")
        wanted = self._roles.wanted(self._group(spec))
        self._roles.make(found[0], wanted)
        self._folders.record(*found, roles.STEP, (step.want, roles.seen_of(wanted)))
        return Done()

    def _undo(self, step: Step) -> Handle | Done:
        match step.name:
            case folders.STEP:
                return self._folders.remove(step.ref)
            case pools.STEP:
                return self._pools.remove(step.ref)
            case network.STEP:
                return self._networks.remove(step.ref)
            case roles.STEP:
                return self._withdraw(step.ref)
        return Done()

    def _withdraw(self, ref: Ref) -> Done:
        found = self._folders.read(ref)
        if found is not None:
            self._roles.make(found[0], ())
            self._folders.record(*found, roles.STEP, None)
        return Done()

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Block every port of the boundary's port group, or open them; VMs keep their memory."""
        return self._networks.isolate(ref, cut_off=cut_off)


def _inside(what: str, names: str) -> str:
    return f"{what} holds {names}" if names else ""
