"""What every part of the driver stands on: one vCenter, where its things are, and whose an object in it is.

Reads, and the marks that it sets; everything else is written by the parts. Places are remembered for a minute and
never beyond a login: after a restart of vCenter the same reference may be another object.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from provisioners.driver import Conflicting, DriverRejected, Ref, Step, TransientDriverError
from provisioners.vsphere import names
from provisioners.vsphere.client import Found, MoRef, VCenterClient, managed, reference
from provisioners.vsphere.failures import LookFirst
from provisioners.vsphere.names import MARK_FIELD, marker, parse_marker
from provisioners.vsphere.settings import Settings

REMEMBERED_S: Final = 60.0
_MOST_NAMES: Final = 3
SWITCHES: Final = ("DistributedVirtualSwitch", "VmwareDistributedVirtualSwitch")
"""A vCenter's own are of the second kind, which is one of the first."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClusterPlace:
    """One cluster whose hosts are offered."""

    ref: MoRef
    name: str
    pool: MoRef
    """Under which boundaries get their pools."""


@dataclass(frozen=True, slots=True)
class HostPlace:
    """One host of an offered cluster."""

    ref: MoRef
    name: str
    cluster: ClusterPlace


@dataclass(frozen=True, slots=True)
class Switch:
    """The distributed switch that gets the port groups of boundaries."""

    ref: MoRef
    uuid: str
    folder: MoRef
    """Where it lies, and its port groups with it."""


@dataclass(frozen=True, slots=True)
class Estate:
    """Where things are in one vCenter."""

    datacenter: MoRef
    vm_folder: MoRef
    clusters: tuple[ClusterPlace, ...]
    hosts: Mapping[str, HostPlace]
    """By the host's name in vCenter, which outlives references."""
    switch: Switch | None


@dataclass(frozen=True, slots=True)
class BoundaryPlace:
    """Where a VM of a boundary goes on one host."""

    folder: MoRef
    pool: MoRef
    host: HostPlace
    portgroup: MoRef
    portgroup_key: str
    switch_uuid: str


@dataclass(frozen=True, slots=True)
class OurVm:
    """One VM that carries a ref's name or mark."""

    ref: MoRef
    name: str
    index: int | None
    folder: MoRef | None
    mark: str
    """As it stands on the VM; `""` between clone and mark."""
    is_ours: bool
    """False for one with our name and somebody else's mark, or with our name alone outside our folders."""
    is_inside: bool
    """Whether it lies in our root folder or below."""


@dataclass(slots=True)
class _Remembered:
    login: int = -1
    at: float = 0.0
    estate: Estate | None = None
    keys: dict[str, int] = field(default_factory=dict)


class Ground:
    """One vCenter. Thread-safe."""

    def __init__(self, settings: Settings, client: VCenterClient) -> None:
        """Stand on `client`; nothing is asked yet."""
        self.settings = settings
        self.client = client
        self._known = _Remembered()
        self._knowing = threading.Lock()

    # --- where things are -------------------------------------------------------------------------

    def estate(self) -> Estate:
        """Return where things are. Raises `TransientDriverError` for what is configured and not there."""
        with self._knowing:
            known = self._known
            if known.login == self.client.logins and time.monotonic() - known.at < REMEMBERED_S and known.estate:
                return known.estate
        login, estate = self.client.logins, self._read_estate()
        if login and login != self.client.logins:  # half of it may be of another inventory
            login, estate = self.client.logins, self._read_estate()
        with self._knowing:
            self._known = _Remembered(login or self.client.logins, time.monotonic(), estate)
        return estate

    def forget(self) -> None:
        """Read everything anew next time: something was not where it had been."""
        with self._knowing:
            self._known = _Remembered()

    def _read_estate(self) -> Estate:
        settings = self.settings
        datacenters = self.client.rows({"Datacenter": ("name", "vmFolder")})["Datacenter"]
        datacenter = _one(datacenters, settings.datacenter, "datacenter")
        rows = self.client.rows(
            {
                "ClusterComputeResource": ("name", "resourcePool"),
                "HostSystem": ("name", "parent"),
                **dict.fromkeys(SWITCHES, ("name", "uuid", "parent")),
            },
            root=datacenter.ref,
        )
        clusters = tuple(
            ClusterPlace(one.ref, str(one.values["name"]), self._root_pool(one))
            for one in sorted(rows["ClusterComputeResource"], key=lambda one: str(one.values["name"]))
            if not settings.clusters or one.values["name"] in settings.clusters
        )
        if missing := set(settings.clusters) - {one.name for one in clusters}:
            raise TransientDriverError(f"vCenter shows no cluster {', '.join(sorted(missing))}")
        by_ref = {one.ref: one for one in clusters}
        hosts: dict[str, HostPlace] = {}
        for one in rows["HostSystem"]:
            cluster = by_ref.get(reference(one.values["parent"]))
            if cluster is not None:
                hosts[str(one.values["name"])] = HostPlace(one.ref, str(one.values["name"]), cluster)
        switches = [one for kind in SWITCHES for one in rows[kind]]
        switch = None
        if switches or settings.dvs:
            found = _one(switches, settings.dvs, "dvs")
            switch = Switch(found.ref, str(found.values["uuid"]), reference(found.values["parent"]))
        return Estate(datacenter.ref, reference(datacenter.values["vmFolder"]), clusters, hosts, switch)

    def _root_pool(self, cluster: Found) -> MoRef:
        pool = reference(cluster.values["resourcePool"])
        if not self.settings.root_pool:
            return pool
        named = self.child(pool, self.settings.root_pool)
        if named is None:
            raise TransientDriverError(f"cluster {cluster.values['name']} has no pool {self.settings.root_pool}")
        return named

    def host(self, name: str) -> HostPlace:
        """Return an offered host by its name. Raises `TransientDriverError` where vCenter shows none."""
        found = self.estate().hosts.get(name)
        if found is None:
            self.forget()
            raise TransientDriverError(f"vCenter shows no host {name} in the offered clusters")
        return found

    def switch(self) -> Switch:
        """Return the distributed switch. Raises `DriverRejected` where there is none."""
        switch = self.estate().switch
        if switch is None:
            raise DriverRejected("the datacenter has no distributed switch, and boundaries need one")
        return switch

    def child(self, parent: MoRef, name: str) -> MoRef | None:
        """Return the child of a folder or pool by its name; None only by an exact read."""

        def read(session: Any) -> MoRef | None:
            found = session.content.searchIndex.FindChild(managed(parent, session.si), name)
            return None if found is None else reference(found)

        return self.client.reading(read)

    # --- boundaries -------------------------------------------------------------------------------

    def root_folder(self) -> MoRef | None:
        """Return our VM folder, None before the first boundary made it."""
        return self.child(self.estate().vm_folder, self.settings.root_folder)

    def folder_of(self, boundary: Ref) -> MoRef | None:
        """Return the VM folder of a boundary, whoever's mark it carries."""
        root = self.root_folder()
        return None if root is None else self.child(root, boundary.name)

    def pool_of(self, boundary: Ref, cluster: ClusterPlace) -> MoRef | None:
        """Return the resource pool of a boundary in one cluster, whoever's mark it carries."""
        return self.child(cluster.pool, boundary.name)

    def portgroup_of(self, boundary: Ref) -> MoRef | None:
        """Return the port group of a boundary, whoever's mark it carries."""
        switch = self.estate().switch
        return None if switch is None else self.child(switch.folder, boundary.name)

    def place(self, boundary: Ref, host: str) -> BoundaryPlace:
        """Return where a VM of a boundary goes on one host.

        Raises `TransientDriverError` while the boundary is not there, `Conflicting` where it is somebody else's.
        """
        where, switch = self.host(host), self.switch()
        folder = self.owned(self.folder_of(boundary), boundary, "folder")
        pool = self.owned(self.pool_of(boundary, where.cluster), boundary, "resource pool")
        portgroup = self.owned(self.portgroup_of(boundary), boundary, "port group")
        told = self.client.get(portgroup, "key")
        if told is None:
            raise TransientDriverError(f"port group {boundary.name} has gone")
        return BoundaryPlace(folder, pool, where, portgroup, str(told["key"]), switch.uuid)

    def network_of(self, boundary: Ref) -> str:
        """Return the key of a boundary's port group; `""` while there is none with its mark."""
        found = self.portgroup_of(boundary)
        if found is None or self.mark_of(found) != marker(boundary):
            return ""
        return str((self.client.get(found, "key") or {}).get("key", ""))

    def owned(self, found: MoRef | None, ref: Ref, what: str) -> MoRef:
        """Return an object that is there with the mark of `ref`; see `place` for what is raised."""
        if found is None:
            raise TransientDriverError(f"{what} {ref.name} is not there yet")
        mark = self.mark_of(found)
        if mark is None:
            raise TransientDriverError(f"{what} {ref.name} has gone")
        if mark != marker(ref):
            raise Conflicting(f"{what} {ref.name} is there and is not ours")
        return found

    # --- marks ------------------------------------------------------------------------------------

    def field_key(self, name: str, *, make: bool = False) -> int | None:
        """Return the key of a custom attribute by its name (0 is a key); None where vCenter has none, unless made."""
        with self._knowing:
            if self._known.login == self.client.logins and name in self._known.keys:
                return self._known.keys[name]
        key = self._find_key(name)
        if key is None and make:
            try:
                key = self.client.changing(
                    lambda si: int(si.content.customFieldsManager.AddCustomFieldDef(name, None, None, None).key)
                )
            except LookFirst:
                key = self._find_key(name)  # another worker was faster
                if key is None:
                    raise
        if key is not None:
            with self._knowing:
                if self._known.login != self.client.logins:
                    self._known = _Remembered(self.client.logins)
                self._known.keys[name] = key
        return key

    def _find_key(self, name: str) -> int | None:
        def read(session: Any) -> int | None:
            fields = session.content.customFieldsManager.field
            return next((int(one.key) for one in fields or () if one.name == name), None)

        return self.client.reading(read)

    def attribute(self, values: Mapping[str, Any], name: str = MARK_FIELD) -> str:
        """Return a custom attribute from values read with the path `customValue`; `""` where it is not set."""
        told = values.get("customValue") or ()
        key = self.field_key(name) if told else None
        return next((str(one.value) for one in told if key is not None and one.key == key), "")

    def mark_of(self, ref: MoRef) -> str | None:
        """Return the mark of one object, `""` for one without, None for one that is not there."""
        values = self.client.get(ref, "customValue")
        return None if values is None else self.attribute(values)

    def set_attribute(self, ref: MoRef, value: str, name: str = MARK_FIELD) -> None:
        """Set a custom attribute of one object; safe to repeat."""
        key = self.field_key(name, make=True)
        self.client.changing(lambda si: si.content.customFieldsManager.SetField(managed(ref, si), key, value))

    def named(self, objects: Sequence[Any] | None) -> str:
        """Return the names of some managed objects for people, three at most; `""` for none."""
        refs = [reference(one) for one in objects or ()]
        told = (self.client.get(ref, "name") for ref in refs[:_MOST_NAMES])
        names_ = sorted(str(one["name"]) for one in told if one is not None)
        more = len(refs) - _MOST_NAMES
        return ", ".join(names_) + (f" and {more} more" if more > 0 else "")

    @property
    def is_simulated(self) -> bool:
        """Whether what this vCenter shows is a lab's: by its setting, or because it says so itself."""
        return self.settings.is_lab or "simulated" in self.client.about()["full_name"]

    # --- machines ---------------------------------------------------------------------------------

    def vms_of(self, ref: Ref) -> tuple[OurVm, ...]:
        """Return the VMs of a machine or endpoint wherever they lie, by index; also who else has one of their names.

        A VM is ours by its mark; before it has one, by its name in a folder of ours, where nobody else makes VMs.
        """
        root = self.root_folder()
        wanted = {"VirtualMachine": ("name", "customValue", "parent"), "Folder": ("parent",)}
        rows = self.client.rows(wanted)
        parents = {one.ref: reference(one.values["parent"]) for one in rows["Folder"] if "parent" in one.values}
        found: list[OurVm] = []
        for one in rows["VirtualMachine"]:
            name, mark = str(one.values.get("name", "")), self.attribute(one.values)
            whose = parse_marker(mark)
            if not mark or whose is None or whose[0] != ref:
                try:
                    index = names.index_in(ref, name)
                except LookupError:
                    continue
            else:
                index = whose[1]
            folder = reference(one.values["parent"]) if one.values.get("parent") is not None else None
            is_ours = whose is not None and whose[0] == ref
            is_inside = root is not None and folder is not None and _is_below(folder, root, parents)
            found.append(OurVm(one.ref, name, index, folder, mark, is_ours if mark else is_inside, is_inside))
        return tuple(sorted(found, key=lambda vm: (-1 if vm.index is None else vm.index, not vm.is_ours, vm.ref)))


def payload(step: Step, kind: type[T]) -> T:
    """Return a forward step's payload. Raises `DriverRejected` where it is another's."""
    if not isinstance(step.payload, kind):
        raise DriverRejected(f"step {step.name} came without its spec")
    return step.payload


def _one(found: Sequence[Found], name: str, field_name: str) -> Found:
    """Return the object that a setting names, or the only one. Raises `TransientDriverError` where that is none."""
    named = [one for one in found if not name or one.values["name"] == name]
    if len(named) == 1:
        return named[0]
    if name:
        raise TransientDriverError(f"{field_name}: vCenter shows no {name}, or several")
    raise TransientDriverError(f"{field_name}: vCenter shows {len(found)}; the setting must name one")


def _is_below(folder: MoRef, root: MoRef, parents: Mapping[MoRef, MoRef]) -> bool:
    at: MoRef | None = folder
    while at is not None and at != root:
        at = parents.get(at)
    return at == root
