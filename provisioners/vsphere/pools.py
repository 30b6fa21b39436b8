"""The resource pools of a boundary, one in each offered cluster: the most that its VMs may take together.

Limits come from the spec. Nothing is reserved for the pool itself, but its reservation may grow into its parent's
(`expandableReservation`): a VM with a GPU locks all of its memory, and without room to reserve it would not start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import vim

from provisioners.driver import (
    BoundarySpec,
    Conflicting,
    Done,
    Handle,
    Part,
    Presence,
    Ref,
    Remark,
    RemarkKind,
    TransientDriverError,
    intent_hash,
)
from provisioners.vsphere.client import MoRef, managed, reference
from provisioners.vsphere.failures import LookFirst
from provisioners.vsphere.ground import ClusterPlace, Ground
from provisioners.vsphere.names import WANTS_FIELD, marker, parse_wants, wants
from provisioners.vsphere.tasks import finish

STEP: Final = "pool.create"
HEADROOM: Final = 1.1
"""The host's own memory for a VM counts against the limit too; so do its helpers on the processor."""
BASE_MIB: Final = 2048
"""What one VM with a GPU costs its host beside its memory, at most; a small boundary has no ten per cent of that."""
UNLIMITED: Final = -1
_PATHS: Final = ("customValue", "config.cpuAllocation", "config.memoryAllocation", "vm", "resourcePool")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a pool allows."""

    cpu_mhz: int
    memory_mib: int
    expandable: bool = True

    @property
    def seen(self) -> str:
        """The hash by which they are known again."""
        return intent_hash([self.cpu_mhz, self.memory_mib, self.expandable])


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool as read."""

    ref: MoRef
    cluster: ClusterPlace
    values: Mapping[str, Any]


class Pools:
    """Pools of boundaries in one vCenter."""

    def __init__(self, ground: Ground) -> None:
        """Stand on `ground`."""
        self._ground = ground

    def read(self, ref: Ref) -> list[Pool]:
        """Return a boundary's own pools; an empty list by an exact read."""
        return [pool for cluster in self._ground.estate().clusters if (pool := self._read(ref, cluster)) is not None]

    def _read(self, ref: Ref, cluster: ClusterPlace, *, foreign: bool = False) -> Pool | None:
        found = self._ground.pool_of(ref, cluster)
        values = None if found is None else self._ground.client.get(found, *_PATHS)
        if found is None or values is None:
            return None
        mark = self._ground.attribute(values)
        is_ours = mark == marker(ref) or (not mark and not _contents(values))
        if not is_ours and foreign:
            raise Conflicting(f"resource pool {ref.name} in {cluster.name} is there and is not ours")
        return Pool(found, cluster, values) if is_ours else None

    def part(self, ref: Ref, pools: list[Pool]) -> Part:
        """Return what is there of the step, given at least one pool."""
        wanted = {self._true_want(ref, pool) for pool in pools}
        whole = len(pools) == len(self._ground.estate().clusters) and len(wanted) == 1
        remarks = tuple(one for pool in pools for one in self._remarks(pool))
        return Part(STEP, Presence.PRESENT, have=wanted.pop() if whole else "", remarks=remarks)

    def _remarks(self, pool: Pool) -> tuple[Remark, ...]:
        _want, seen = parse_wants(self._ground.attribute(pool.values, WANTS_FIELD)).get(STEP, ("", ""))
        if not seen or seen == _limits_of(pool.values).seen:
            return ()
        text = f"the limits of its resource pool in {pool.cluster.name} were changed by others"
        return (Remark(RemarkKind.CHANGED, text, pool.cluster.name),)

    def _true_want(self, ref: Ref, pool: Pool) -> str:
        want, seen = parse_wants(self._ground.attribute(pool.values, WANTS_FIELD)).get(STEP, ("", ""))
        is_marked = self._ground.attribute(pool.values) == marker(ref)
        return want if is_marked and seen == _limits_of(pool.values).seen else ""

    def make(self, spec: BoundarySpec, want: str) -> Done:
        """Make the pools, or set their limits anew. Raises `Conflicting` for one that is somebody else's."""
        for cluster in self._ground.estate().clusters:
            self._make(spec, want, cluster)
        return Done()

    def _make(self, spec: BoundarySpec, want: str, cluster: ClusterPlace) -> None:
        limits, ref = limits_of(spec, self._fastest_mhz(cluster)), spec.ref
        client = self._ground.client
        pool = self._read(ref, cluster, foreign=True)
        if pool is None:
            self._create(ref.name, cluster, limits)
            pool = self._read(ref, cluster, foreign=True)
        if pool is None:
            raise TransientDriverError(f"resource pool {ref.name} has gone again")
        if self._ground.attribute(pool.values) != marker(ref):
            self._ground.set_attribute(pool.ref, marker(ref))
        if _limits_of(pool.values) != limits:
            client.changing(lambda si: managed(pool.ref, si).UpdateConfig(None, config_spec(limits)))
        record = wants({STEP: (want, limits.seen)})
        if self._ground.attribute(pool.values, WANTS_FIELD) != record:
            self._ground.set_attribute(pool.ref, record, WANTS_FIELD)

    def _create(self, name: str, cluster: ClusterPlace, limits: Limits) -> None:
        try:
            self._ground.client.changing(
                lambda si: managed(cluster.pool, si).CreateResourcePool(name, config_spec(limits))
            )
        except LookFirst:
            if self._ground.child(cluster.pool, name) is None:
                raise

    def _fastest_mhz(self, cluster: ClusterPlace) -> int:
        rows = self._ground.client.rows({"HostSystem": ("summary.hardware.cpuMhz", "parent")})["HostSystem"]
        return max(
            (int(one.values.get("summary.hardware.cpuMhz", 0)) for one in rows if _is_in(one.values, cluster)),
            default=0,
        )

    def remove(self, ref: Ref) -> Handle | Done:
        """Remove the pools, only while nothing is in them."""
        for pool in self.read(ref):
            if inside := self.contents([pool]):
                raise TransientDriverError(f"resource pool {ref.name} is not empty: {inside}")
            ended = self._destroy(pool.ref)
            if isinstance(ended, Handle):
                return ended  # the others follow when the step is started again
        return Done()

    def _destroy(self, pool: MoRef) -> Handle | Done:
        client = self._ground.client
        return finish(client, client.start(lambda si: managed(pool, si).Destroy_Task()))

    def contents(self, pools: list[Pool]) -> str:
        """Return the names of what is in pools, for people; `""` for empty ones."""
        return self._ground.named([child for pool in pools for child in _contents(pool.values)])


def limits_of(spec: BoundarySpec, mhz: int) -> Limits:
    """Return the limits of a boundary on hosts whose cores have `mhz`; of a boundary without anything, the least."""
    cpu = UNLIMITED if mhz <= 0 else round(spec.vcpu * mhz * HEADROOM)
    return Limits(cpu, round(spec.memory_gib * 1024 * HEADROOM) + BASE_MIB)


def config_spec(limits: Limits) -> Any:
    """Return what vCenter is told."""

    def share(limit: int) -> Any:
        shares = vim.SharesInfo(level="normal", shares=0)
        return vim.ResourceAllocationInfo(
            reservation=0, limit=limit, expandableReservation=limits.expandable, shares=shares
        )

    return vim.ResourceConfigSpec(cpuAllocation=share(limits.cpu_mhz), memoryAllocation=share(limits.memory_mib))


def _limits_of(values: Mapping[str, Any]) -> Limits:
    cpu, memory = values["config.cpuAllocation"], values["config.memoryAllocation"]
    return Limits(int(cpu.limit), int(memory.limit), bool(cpu.expandableReservation and memory.expandableReservation))


def _contents(values: Mapping[str, Any]) -> list[Any]:
    return [one for path in ("vm", "resourcePool") for one in values.get(path) or ()]


def _is_in(values: Mapping[str, Any], cluster: ClusterPlace) -> bool:
    return "parent" in values and reference(values["parent"]) == cluster.ref
