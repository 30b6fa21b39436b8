"""A whole vCenter at once: hosts, GPUs, who uses them, what carries our mark.

One read of the datacenter's objects with leaf paths. Hardware of VMs is what such a read costs, so it is read only of
VMs that run on a host with GPUs and have changed since it was last read; PCI buses are read once in a while. The
number of calls does not grow with the objects.

Invariants: what could not be read makes the snapshot incomplete, never empty; nobody is taken for absent because a
device's place is not told.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from provisioners.driver import (
    Binding,
    BoundaryKind,
    Capabilities,
    ObservedGpu,
    ObservedHost,
    ObservedProvider,
    ObservedUse,
    Ref,
    Remark,
    RemarkKind,
)
from provisioners.vsphere import reading_hosts, reading_uses
from provisioners.vsphere.client import Found, MoRef
from provisioners.vsphere.failures import LookFirst
from provisioners.vsphere.ground import Estate, Ground
from provisioners.vsphere.names import EVACUATED_FIELD, MARK_FIELD
from provisioners.vsphere.ownership import Attribute, Owners, objects_of, ref_at
from provisioners.vsphere.reading_hosts import MIG_MODE, Gpu, Host, PciGpu
from provisioners.vsphere.reading_uses import Device, Vm
from provisioners.vsphere.tags import Owned
from provisioners.vsphere.vms import CONFIGURE, key_of
from tenants.gpu_catalogue import WHOLE

PATHS: Final[Mapping[str, tuple[str, ...]]] = {
    "HostSystem": reading_hosts.PATHS,
    "VirtualMachine": (
        "name", "parent", "customValue", "runtime.host", "runtime.powerState", "runtime.connectionState",
        "config.template", "config.changeVersion", "config.hardware.numCPU", "config.hardware.memoryMB",
        "config.instanceUuid", "resourcePool", "guest.toolsRunningStatus", "guest.ipAddress", "rootSnapshot",
    ),
    "Folder": ("name", "parent", "customValue", "permission"),
    "ResourcePool": ("name", "parent", "customValue", "config.cpuAllocation", "config.memoryAllocation"),
    "DistributedVirtualPortgroup": ("name", "customValue", "config.defaultPortConfig", "config.policy"),
}  # fmt: skip
PCI_FOR_S: Final = 600.0
"""How long a host's PCI bus is taken as read; it changes at a boot."""
_TRIES: Final = 3
_RUNS: Final = "poweredOn"
_HARDWARE: Final = "config.hardware.device"
_EXTRA: Final = "config.extraConfig"
RECORD: Final = key_of(CONFIGURE)


class Inventory:
    """Reads one vCenter again and again. Thread-safe."""

    def __init__(self, ground: Ground, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read through `ground`; `clock` tells when a PCI bus is read anew."""
        self._ground = ground
        self._clock = clock
        self._lock = threading.Lock()
        self._login = -1
        self._pci: dict[MoRef, tuple[float, tuple[PciGpu, ...]]] = {}
        self._inside: dict[MoRef, Inside] = {}

    def snapshot(self, capabilities: Capabilities) -> ObservedProvider:
        """Read the whole vCenter. Raises `DriverError`."""
        return self.look(capabilities)[0]

    def look(self, capabilities: Capabilities) -> tuple[ObservedProvider, Owned]:
        """Read the whole vCenter; return with it which objects are ours, and whose. Raises `DriverError`."""
        for last in range(_TRIES - 1, -1, -1):
            try:
                listed = self.read()
                return provider(listed, capabilities), owned(listed)
            except LookFirst:
                # something that was just listed has gone
                self._ground.forget()
                if not last:
                    raise
        raise AssertionError  # the last try returns or raises

    def read(self) -> Listed:
        """Read everything that a snapshot needs. Raises `DriverError`: `LookFirst` where something has just gone."""
        ground = self._ground
        estate, attribute = ground.estate(), _attributes(ground)
        rows = ground.client.rows(PATHS, root=estate.datacenter)
        offered = {place.ref for place in estate.hosts.values()}
        of_hosts = [one for one in rows["HostSystem"] if one.ref in offered]
        buses = self._buses(one.ref for one in of_hosts)
        hosts = tuple(reading_hosts.read(one, buses.get(one.ref, ())) for one in of_hosts)
        with_gpus = {host.ref for host in hosts if host.gpus}
        running = [one for one in rows["VirtualMachine"] if one.values.get("runtime.powerState") == _RUNS]
        marked = [one for one in running if attribute(one.values, MARK_FIELD)]
        beside = [one for one in running if ref_at(one, "runtime.host") in with_gpus]
        inside = self._look_inside(marked, beside)
        blind = [str(one.values.get("name", one.ref.id)) for one in beside if one.ref not in inside]
        return Listed(
            estate=estate,
            root=ground.settings.root_folder,
            hosts=hosts,
            vms=rows["VirtualMachine"],
            inside=inside,
            folders=rows["Folder"],
            pools=rows["ResourcePool"],
            portgroups=rows["DistributedVirtualPortgroup"],
            evacuated=frozenset(one.ref for one in of_hosts if attribute(one.values, EVACUATED_FIELD)),
            attribute=attribute,
            unread=(*_unread(rows), *(f"hardware of {name}" for name in sorted(blind))),
            simulated=ground.settings.is_lab,
        )

    def _fresh(self) -> None:
        """Forget what another login read: the same references may be other objects."""
        if self._login != self._ground.client.logins:
            self._login = self._ground.client.logins
            self._pci.clear()
            self._inside.clear()

    def _buses(self, hosts: Iterable[MoRef]) -> dict[MoRef, tuple[PciGpu, ...]]:
        wanted, now = tuple(hosts), self._clock()
        with self._lock:
            self._fresh()
            known = {ref: self._pci[ref] for ref in wanted if ref in self._pci and now - self._pci[ref][0] < PCI_FOR_S}
        missing = [ref for ref in wanted if ref not in known]
        for one in self._ground.client.many(missing, *reading_hosts.PCI_PATHS):
            known[one.ref] = (now, reading_hosts.pci_gpus(one.values))
        with self._lock:
            self._pci = known
        return {ref: gpus for ref, (_at, gpus) in known.items()}

    def _look_inside(self, marked: Iterable[Found], beside: Iterable[Found]) -> dict[MoRef, Inside]:
        """Return what is in VMs, read anew where the configuration has changed; of marked ones with their record."""
        ours = {one.ref: _version(one) for one in marked}
        versions = {one.ref: _version(one) for one in beside} | ours
        with self._lock:
            self._fresh()
            known = {ref: one for ref, one in self._inside.items() if one.version and one.version == versions.get(ref)}
        missing = [ref for ref in versions if ref not in known]
        many = self._ground.client.many
        for found in (
            *many([ref for ref in missing if ref not in ours], _HARDWARE),
            *many([ref for ref in missing if ref in ours], _HARDWARE, _EXTRA),
        ):
            devices = reading_uses.devices_of(found.values.get(_HARDWARE) or ())
            if _HARDWARE not in found.values:
                continue  # orphaned or out of reach: what it has is not known, and is read again next time
            record = record_in(found.values.get(_EXTRA) or ())
            known[found.ref] = Inside(versions[found.ref], devices, _unit(record), record.get("profile") == WHOLE)
        with self._lock:
            self._inside = dict(known)
        return known


@dataclass(frozen=True, slots=True)
class Inside:
    """What is in a VM that runs."""

    version: str
    """Of its configuration."""
    devices: tuple[Device, ...] = ()
    unit: UUID | None = None
    """For which `vm.configure` fitted it."""
    is_whole: bool = False
    """Whether that unit has whole GPUs."""


_NOTHING: Final = Inside("")


@dataclass(frozen=True, slots=True)
class Listed:
    """Everything that a snapshot reads of a vCenter."""

    estate: Estate
    root: str
    """Name of our VM folder."""
    hosts: tuple[Host, ...]
    vms: tuple[Found, ...]
    inside: Mapping[MoRef, Inside]
    """VM that runs and has a mark or a host with GPUs → what is in it."""
    folders: tuple[Found, ...]
    pools: tuple[Found, ...]
    portgroups: tuple[Found, ...]
    evacuated: frozenset[MoRef]
    attribute: Attribute
    unread: tuple[str, ...] = ()
    """What could not be read, in words for people."""
    simulated: bool = False


def _attributes(ground: Ground) -> Attribute:
    """Return a reader of custom attributes that asks for each one's key once: not every vCenter has them all."""
    keys: dict[str, int | None] = {}

    def read(values: Mapping[str, Any], name: str) -> str:
        told = values.get("customValue") or ()
        if told and name not in keys:
            keys[name] = ground.field_key(name)
        return next((str(one.value) for one in told if one.key == keys[name]), "")

    return read


def owned(listed: Listed) -> Owned:
    """Return the objects of ours in the lists of a vCenter, and whose each is; pure."""
    owners = Owners(listed.folders, listed.root, listed.estate.vm_folder, listed.attribute)
    boundaries = set(owners.boundaries.values())
    beside = ((one.ref, owners.of_mark(one)) for one in (*listed.pools, *listed.portgroups))
    vms = ((one.ref, owners.of_vm(one)) for one in listed.vms)
    return (
        *sorted(owners.boundaries.items()),
        *((ref, whose) for ref, whose in beside if whose is not None and whose in boundaries),
        *((ref, whose) for ref, whose in vms if whose is not None),
    )


def provider(listed: Listed, capabilities: Capabilities) -> ObservedProvider:
    """Return the snapshot that the lists of a vCenter show; pure."""
    owners = Owners(listed.folders, listed.root, listed.estate.vm_folder, listed.attribute)
    on: dict[MoRef, list[Vm]] = defaultdict(list)
    for one in listed.vms:
        where = ref_at(one, "runtime.host")
        if where is not None and one.values.get("runtime.powerState") == _RUNS:
            on[where].append(_vm(one, listed, owners))
    visible = frozenset(one.ref for one in listed.vms)
    hosts: list[ObservedHost] = []
    uses: list[ObservedUse] = []
    for host in sorted(listed.hosts, key=lambda one: one.name):
        seen, contradictions = reading_uses.uses_of(host, on[host.ref], visible)
        uses += seen
        hosts.append(_host(host, seen, contradictions, evacuated=host.ref in listed.evacuated))
    return ObservedProvider(
        hosts=tuple(hosts),
        uses=tuple(uses),
        objects=objects_of(owners, (*listed.pools, *listed.portgroups), listed.vms),
        capabilities=capabilities,
        complete=not listed.unread,
        version=capabilities.version + (f"; not read: {'; '.join(listed.unread)}" if listed.unread else ""),
        remarks=tuple(_stranger(vm, boundary) for vm, boundary in owners.strangers(listed.vms)),
        looked_for=frozenset({RemarkKind.FOREIGN}),
    )


def _stranger(vm: Found, boundary: Ref) -> Remark:
    name = str(vm.values.get("name", vm.ref.id))[:200]
    text = f"VM {name} ({vm.ref.id}) lies in folder {boundary.name} and is not ours; it is left alone"
    return Remark(RemarkKind.FOREIGN, text, f"{vm.ref.id} in {boundary.name}", boundary.uid)


# --- hosts ----------------------------------------------------------------------------------------


def _host(host: Host, uses: Iterable[ObservedUse], contradictions: tuple[str, ...], *, evacuated: bool) -> ObservedHost:
    seen = tuple(uses)
    return ObservedHost(
        host=host.name,
        name=host.name,
        binding=Binding.HOST,
        vcpu=host.vcpu,
        memory_gib=host.memory_gib,
        gpus=tuple(_gpu(host, gpu, index, seen) for index, gpu in enumerate(host.gpus)),
        healthy=host.healthy,
        message=" ".join(host.problems),
        in_maintenance=host.in_maintenance or evacuated,
        boundary_kinds=frozenset({BoundaryKind.VM}),
        contradictions=contradictions,
    )


def _gpu(host: Host, gpu: Gpu, index: int, uses: Iterable[ObservedUse]) -> ObservedGpu:
    mine = [use for use in uses if use.device == gpu.device]
    if mine:
        mode = "mig" if any(use.profile for use in mine) else "full"
    elif gpu.vms:
        mode = "unknown"
    else:
        mode = "mig" if gpu.mode == MIG_MODE else "empty"
    return ObservedGpu(
        device=gpu.device,
        product=gpu.product,
        index=index,
        mode=mode,
        healthy=not gpu.message and (not gpu.is_known or reading_hosts.can_be_used(host, gpu)),
        message=gpu.message,
        windows=tuple(
            sorted((use.start, use.size, use.profile) for use in mine if use.profile and use.start is not None)
        ),
        # the host carves at power-on what the VM asks for; without MIG-backed types there is nothing to be carved
        layout_change="dynamic" if gpu.has_mig and not gpu.passthrough else "fixed",
    )


def _vm(one: Found, listed: Listed, owners: Owners) -> Vm:
    whose = owners.of_vm(one)
    inside = listed.inside.get(one.ref, _NOTHING)
    unit = inside.unit if whose is not None else None
    return Vm(
        ref=one.ref,
        name=str(one.values.get("name", one.ref.id)),
        vcpu=int(one.values.get("config.hardware.numCPU") or 0),
        memory_mib=int(one.values.get("config.hardware.memoryMB") or 0),
        devices=inside.devices,
        # without a unit it was not fitted by us, and whoever powered it on uses the host as anybody else does
        owner=whose if unit is not None else None,
        unit=unit,
        is_whole=unit is not None and inside.is_whole,
    )


# --- reading values -------------------------------------------------------------------------------


def _version(vm: Found) -> str:
    return str(vm.values.get("config.changeVersion") or "")


def unit_in(extra: Iterable[Any]) -> UUID | None:
    """Return the unit in the record of `vm.configure`."""
    return _unit(record_in(extra))


def record_in(extra: Iterable[Any]) -> Mapping[str, Any]:
    """Return the record of `vm.configure`, which no guest can write; empty where there is none."""
    text = next((str(one.value) for one in extra if one.key == RECORD), "")
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _unit(record: Mapping[str, Any]) -> UUID | None:
    try:
        return UUID(str(record["unit"]))
    except (ValueError, KeyError):
        return None


def _unread(rows: Mapping[str, Iterable[Found]]) -> Iterator[str]:
    """Name what vCenter would not tell; what it does not have is not in the answer at all."""
    gaps: dict[tuple[str, str, str], int] = defaultdict(int)
    for kind, found in rows.items():
        for one in found:
            for path, fault in one.unread.items():
                gaps[kind, path, fault] += 1
    for (kind, path, fault), count in sorted(gaps.items()):
        yield f"{path} of {count} {kind} ({fault})"
