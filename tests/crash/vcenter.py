"""A vCenter of the lab as the provider of crash points: it speaks the protocol, its hosts choose GPUs as they like.

Its time is real and the point's is not, so whatever it does by itself (tasks, a guest that shuts down) is awaited
before the point's clock moves; then its guests do what they were told. Who has which GPU is what the lab's hosts say,
never what our driver does.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from django.db.models import F

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from controlplane.labs.vsphere.worlds import GpuHosts, Policy, Template, World, gpus
from provisioners.driver import Kind, Ref, Secret
from provisioners.vsphere.client import Found, MoRef, VCenterClient, managed, reference
from provisioners.vsphere.datastore import stray_directories
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.failures import LookFirst
from provisioners.vsphere.ground import Ground
from provisioners.vsphere.names import parse_marker
from provisioners.vsphere.settings import Settings, settings_of
from provisioners.vsphere.tasks import finish
from tenants.models import GatewayReplica
from tests.crash import exact
from tests.crash.clock import Clock
from tests.crash.guests import Guests
from tests.crash.wire import Heard, Wire
from tests.crash.world import Site

PATIENCE_S: Final = 60.0
LOOK_S: Final = 0.05
WHOLE_SLOTS: Final = 8
"""Placement positions of a whole A100."""
HOSTS: Final = ("DC0_C0_H0", "DC0_C0_H1")
WORLD: Final = World(
    hosts=len(HOSTS),
    gpu_hosts=(GpuHosts(HOSTS, gpus("A100-80GB", 2)),),
    templates=(Template("ubuntu-24.04-gpu", annotation="cloud-init with the VMware datasource"),),
    policy=Policy.ADVERSARIAL,
)
RECORD: Final = "tenantry.want.configure"
GATEWAY_RECORD: Final = "tenantry.want.gateway"
OURS: Final = "tn-"
"""How every name of ours begins."""
_KINDS: Final = ("Folder", "ResourcePool", "DistributedVirtualPortgroup")
_PLACES: Final = ("name", "config.instanceUuid", "config.uuid", "config.template", "parent", "resourcePool", "network",
                  "runtime.host", "customValue")  # fmt: skip
_pause = threading.Event().wait


def config_of(vcenter: VCenter) -> dict[str, Any]:
    """Return a provider's settings for a lab's vCenter."""
    return {
        "url": vcenter.url,
        "user": vcenter.user,
        "ca_pem": vcenter.ca_pem,
        "vlans": "1200-1299",
        "templates": {"ubuntu-24.04": "ubuntu-24.04-gpu", "endpoint": "ubuntu-24.04-gpu"},
        "access": "lab",
    }


@dataclass(frozen=True, slots=True)
class _Vm:
    """One VM below our root folder."""

    found: Found
    of: Ref | None
    """Whose it is by its mark."""
    unit: str
    """Of what it was fitted for."""
    gateway: str
    """Of the gateway that it was told to start; that of a unit has the unit's id."""

    @property
    def name(self) -> str:
        """Return its name."""
        return str(self.found.values["name"])

    @property
    def power(self) -> str:
        """Return its power state."""
        return str(self.found.values["runtime.powerState"])


@dataclass(slots=True)
class VCenterAccess:
    """One vCenter, as a point looks at it. Make one per process: it keeps sessions."""

    vcenter: VCenter
    clock: Clock
    settings: Settings = field(init=False)
    wire: Wire = field(init=False)
    """The driver's way to vCenter."""
    _client: VCenterClient = field(init=False)
    _told: Heard | None = None
    _control: Control | None = None
    _guests: Guests | None = None
    _lets_go: bool = False
    _over: set[MoRef] = field(default_factory=set)
    """Tasks that have ended."""

    def __post_init__(self) -> None:
        """Connect lazily."""
        self.settings = settings_of(config_of(self.vcenter), {"password": Secret(self.vcenter.password)})
        self._client = VCenterClient(self.settings)
        self.wire = Wire(self.control)

    def driver(self, *, deadline_s: float) -> Heard:
        """Return the product's driver, as a process that has just begun has it: it knows nothing yet."""
        del deadline_s  # a busy machine is no point of these
        self._told = Heard(VSphereDriver(self.settings), self.wire)
        return self._told

    def control(self) -> Control:
        """Return the lab's control address."""
        if self._control is None:
            self._control = self.vcenter.control()
        return self._control

    def close(self) -> None:
        """Log out; no harm stays."""
        if self._told is not None:
            self._told.close()
        self._client.close()
        if self._control is not None:
            self._control.clear()
            self._control.close()

    @property
    def _ground(self) -> Ground:
        return Ground(self.settings, self._client)

    # --- the vCenter's own time -------------------------------------------------------------------

    def is_waited_for(self) -> bool:
        """Whether the driver said in the sweep that just ended that something takes its time, or a guest is behind.

        A gateway takes its next configuration between two sweeps: the core waits for that as for a task of vCenter's.
        """
        assert self._told is not None
        waiting, self._told.waiting = self._told.waiting, set()
        behind = GatewayReplica.objects.filter(
            removed_at=None, enrolled_at__isnull=False, reported_version__lt=F("config_version")
        )
        return bool(waiting) or behind.exists()

    def let_go(self) -> None:
        """Let a task that is held up go on, once somebody has looked at it."""
        self._lets_go = True

    def await_rest(self) -> None:
        """Wait until no task runs; a guest that was asked to shut down does so as a task of nobody's."""
        if self._lets_go:
            self.control().clear()
            self._lets_go = False
        _await(lambda: not self._tasks(), "vCenter is at rest", self._tasks)
        if self._guests is None:
            self._guests = Guests(self.control(), self.vcenter.folder / "disks.json", self.clock)
        self._guests.round()

    def _tasks(self) -> list[str]:
        def recent(session: Any) -> list[MoRef]:
            return [reference(task) for task in session.content.taskManager.recentTask or ()]

        paths = ("info.state", "info.descriptionId", "info.entityName")
        while True:
            with contextlib.suppress(LookFirst):  # one of them was forgotten meanwhile
                asked = [ref for ref in self._client.reading(recent) if ref not in self._over]
                found = self._client.many(asked, *paths)
                running = [one for one in found if str(one.values.get(paths[0])) in {"queued", "running"}]
                self._over |= set(asked) - {one.ref for one in running}
                return [f"{one.values.get(paths[1])} of {one.values.get(paths[2])}" for one in running]

    # --- what is there ----------------------------------------------------------------------------

    def _marked(self) -> list[tuple[Found, Ref]]:
        """Return everything with our mark but VMs, with whose it is."""
        ground, found = self._ground, []
        rows = self._client.rows(dict.fromkeys(_KINDS, ("name", "customValue")))
        for one in (one for kind in _KINDS for one in rows[kind]):
            whose = parse_marker(ground.attribute(one.values))
            if whose is not None:
                found.append((one, whose[0]))
        return found

    def _vms(self) -> list[_Vm]:
        """Return the VMs that lie below our root folder."""
        ground = self._ground
        root = ground.root_folder()
        if root is None:
            return []
        paths = ("name", "customValue", "runtime.powerState", "config.extraConfig", "config.hardware.device")
        found = []
        for one in self._client.rows({"VirtualMachine": paths}, root=root)["VirtualMachine"]:
            whose = parse_marker(ground.attribute(one.values))
            extra = {str(pair.key): str(pair.value) for pair in one.values.get("config.extraConfig") or ()}
            unit = str(json.loads(extra.get(RECORD) or "{}").get("unit", ""))
            gateway = unit if extra.get(GATEWAY_RECORD) else ""
            found.append(_Vm(one, None if whose is None else whose[0], unit, gateway))
        return found

    def everything(self) -> dict[str, list[str]]:
        """Return ids by word. A boundary counts by its folders, a product by its VMs, marked or not."""
        vms = self._vms()
        folders = [ref for one, ref in self._marked() if one.ref.kind == "Folder" and ref.kind is Kind.BOUNDARY]
        names = [vm.name if vm.of is None else str(vm.of.uid) for vm in vms]
        return {
            "begun": [],
            "objects": sorted([*(str(ref.uid) for ref in folders), *names]),
            "gateways": sorted(vm.gateway for vm in vms if vm.gateway),
            "running": sorted(vm.unit for vm in vms if vm.power == "poweredOn"),
            "tasks": self._tasks(),
        }

    def truth(self) -> list[dict[str, Any]]:
        """Return who has which GPU by the hosts' own words; a whole one is all of its positions."""
        units = {vm.found.ref.id: vm.unit for vm in self._vms()}
        return [
            {
                "unit": units.get(window.vm, ""),
                "name": window.vm,
                "device": f"{gpu.host}/{gpu.pci_id}",
                "start": max(0, window.start),
                "size": window.size or WHOLE_SLOTS,
            }
            for gpu in self.control().gpus()
            for window in gpu.held
        ]

    def leftovers(self) -> list[str]:
        """Return whatever of ours still exists by mark or by name, also on the datastores; our root folder stays."""
        found = [f"{one.ref.kind} {one.values['name']}" for one, _ref in self._marked()]
        found += [f"VM {vm.name}" for vm in self._vms()]
        found += [f"directory {one}" for one in stray_directories(self._ground)]
        for word, told in self.control().inventory().items():  # what the lab itself says
            stores = told if isinstance(told, dict) else {"": told}
            found += [f"{word} {store} {name}".replace("  ", " ") for store, names in stores.items()
                      for name in names if name.startswith(OURS)]  # fmt: skip
        root = self._ground.root_folder()
        inside = None if root is None else self._client.get(root, "childEntity")
        found += ["something in our root folder"] if inside and inside.get("childEntity") and not found else []
        return sorted(found)

    def shape(self) -> Counter[str]:
        """Return how many objects of each kind there are; VMs by power, and with how many devices."""
        counted = Counter(one.ref.kind for one, _ref in self._marked())
        for vm in self._vms():
            devices = Counter(type(device).__name__ for device in vm.found.values.get("config.hardware.device") or ())
            told = ", ".join(f"{count} {name}" for name, count in sorted(devices.items()))
            counted[f"VM {vm.power} with {told}"] += 1
        return counted

    def wrong(self) -> list[str]:
        """Return where vCenter does not hold exactly what the rows want."""
        assert self._told is not None
        specs = exact.specs_of_rows(self.clock)
        found = exact.misplaced(specs, self._machines(), self._places())
        return [*found, *exact.undone(self._told, specs), *exact.vlans(specs)]

    def _places(self) -> list[exact.Place]:
        groups = [one.ref for one, _ref in self._marked() if one.ref.kind == "DistributedVirtualPortgroup"]
        vlans = {
            one.ref: int(one.values["config.defaultPortConfig"].vlan.vlanId)
            for one in self._client.many(groups, "config.defaultPortConfig")
        }
        return [exact.Place(one.ref.kind, ref, vlans.get(one.ref)) for one, ref in self._marked()]

    def _machines(self) -> list[exact.Machine]:
        """Return every VM of the whole vCenter but templates."""
        whose = {one.ref: ref for one, ref in self._marked()}
        hosts = {one.ref: str(one.values["name"]) for one in self._client.rows({"HostSystem": ("name",)})["HostSystem"]}

        def at(told: Any) -> Ref | None:
            return None if told is None else whose.get(reference(told))

        found = []
        for one in self._client.rows({"VirtualMachine": _PLACES})["VirtualMachine"]:
            told = one.values
            mark = parse_marker(self._ground.attribute(told))
            if not told.get("config.template"):
                found.append(
                    exact.Machine(
                        str(told["name"]),
                        str(told["config.instanceUuid"]).lower(),
                        str(told["config.uuid"]).lower(),
                        hosts[reference(told["runtime.host"])],
                        at(told.get("parent")),
                        at(told.get("resourcePool")),
                        tuple(at(network) for network in told.get("network") or ()),
                        None if mark is None else mark[0],
                    )
                )
        return found

    def changes(self) -> list[tuple[str, str]]:
        """Return what the driver changed: (step, method), in order."""
        return self.wire.met

    def wipe(self) -> None:
        """Take away by force what a point has left, so that the next one begins with nothing."""
        for vm in self._vms():
            if vm.power != "poweredOff":
                self._end(vm.found.ref, "PowerOffVM_Task")
            self._end(vm.found.ref, "Destroy_Task")
        for one, _ref in sorted(self._marked(), key=lambda marked: marked[0].ref.kind == "Folder"):
            self._end(one.ref, "Destroy_Task")

    def _end(self, ref: MoRef, method: str) -> None:
        with contextlib.suppress(LookFirst):
            finish(self._client, self._client.start(lambda si: getattr(managed(ref, si), method)()))


@dataclass(frozen=True, slots=True)
class VCenterSite(Site):
    """A point on a vCenter: `provider_url` is its address, `estate` its name."""

    vcenter: VCenter = field(kw_only=True)

    def access(self) -> VCenterAccess:
        """Return the vCenter."""
        return VCenterAccess(self.vcenter, self.clock)


def site(vcenter: VCenter, database: str, clock: Clock) -> VCenterSite:
    """Return where a point on a vCenter happens."""
    return VCenterSite(database, vcenter.url, vcenter.name, clock, vcenter=vcenter)


def _await(is_so: Callable[[], bool], what: str, why: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() >= end:
            raise AssertionError(f"not within {PATIENCE_S:.0f} s: {what}: {why()}")
        _pause(LOOK_S)
