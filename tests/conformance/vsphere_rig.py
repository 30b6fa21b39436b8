"""The vSphere driver on a vCenter of the lab, for conformance: its hosts, its faults, its truth, its guests.

Guests do at once what they are told (`tests/vsphere/easy_guests.py`): conformance asks for objects, not for answers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import pytest
from pyVmomi import vim

from controlplane.labs.vsphere import worlds
from controlplane.labs.vsphere.vcenter import VCenter
from controlplane.labs.vsphere.worlds import GpuHosts, Policy, Template, World
from provisioners.driver import (
    Done,
    DriverError,
    Handle,
    Kind,
    Observed,
    ObservedProvider,
    Poll,
    Ref,
    Step,
)
from provisioners.sandbox.faults import ERRORS
from provisioners.vsphere import gpu_types
from provisioners.vsphere.client import MoRef, VCenterClient, managed, reference
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.failures import TRANSPORT, error_of
from provisioners.vsphere.inventory import unit_in
from provisioners.vsphere.settings import Settings
from provisioners.vsphere.tasks import finish
from tests.vsphere.easy_guests import EasyGuests
from tests.vsphere.ground import settings_for

PRODUCT: Final = "H100-80GB"
BOARD: Final = "nvidia_h100xm"
OURS: Final = "tn-"
ROOT: Final = "tenantry"
SLOW_MS: Final = 1300
"""Longer than a step of a machine waits for its task."""
KINDS: Final = ("VirtualMachine", "Folder", "ResourcePool", "DistributedVirtualPortgroup")
FAULTS: Final = {
    "transient": "HostCommunication",
    "no-capacity": "InsufficientGraphicsResourcesFault",
    "rejected": "InvalidArgument",
}
LACKS: Mapping[str, str] = {
    "namespace": "a vCenter has no namespaces: its driver answers NotSupported, as was just asserted",
    "whole-undos": "a machine is switched off in parts: what is wanted is written, the guest asked, the plug pulled",
    "document": "the estate of the sandbox's document; a vCenter's own is in tests/vsphere",
    "stale-lists": "properties are read from vCenter, never from a cache of lists",
    "gpu-health": "vCenter tells nothing about the health of a GPU beyond the host's readiness",
    "recarve": "a host carves its GPUs by itself when a VM is powered on",
    "step-log": "a boundary has no log in a vCenter; machines have events, which are asked for too",
    "late-reports": "a host tells at once which VM is on which GPU, and never where on it",
    "admission": "a vCenter lets vCPU be overcommitted, and the lab's enforces no reservation",
    "host-away": "machines of the lab's vCenter do not notice that their host is away",
}
WORLD: Final = World(
    hosts=2,
    host_names=("esx-a", "esx-b"),
    gpu_hosts=(
        GpuHosts(("esx-a",), worlds.gpus(PRODUCT, 2, board="H100XM")),
        GpuHosts(("esx-b",), worlds.gpus(PRODUCT, 1, board="H100XM")),
    ),
    templates=(Template("image", annotation="cloud-init with the VMware datasource"),),
)


def ready_vcenter(request: pytest.FixtureRequest) -> VCenter:
    """Return the vCenter of conformance, one per run."""
    vcenter: VCenter = request.getfixturevalue("vcenters")("conformance", world=WORLD)
    return vcenter


# --- faults ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Fault:
    """One fault: the call of the driver that it strikes, and how."""

    match: str
    effect: str
    times: int = 1
    error: str = "transient"
    detail: str = "told to fail"


class HurtClient(VCenterClient):
    """The client, some of whose changes do not get through or lose their answer."""

    next_change = ""
    """What happens to the next change: `""` nothing, `cut` before vCenter, `lost` after it, else a task's fault."""
    fail_next_task: Any = None

    def changing(self, change: Any) -> Any:
        """Run a change under what is to happen to it."""
        what, self.next_change = self.next_change, ""
        if what not in {"", "lost"}:
            raise error_of(TRANSPORT, "cut")
        answer = super().changing(change)
        if what == "lost":
            raise error_of(TRANSPORT, "the answer was lost")
        return answer

    def start(self, change: Any) -> str:
        """Start a task; one that is to fail is made to by the lab itself."""
        if self.next_change in FAULTS.values():
            fault, self.next_change = self.next_change, ""
            self.fail_next_task(fault)
        return super().start(change)


class HurtDriver(VSphereDriver):
    """The driver with faults on its calls."""

    def __init__(self, settings: Settings) -> None:
        """Drive the vCenter of `settings`."""
        self.hurt = HurtClient(settings)
        self.faults: list[Fault] = []
        self.forgotten: set[str] = set()
        self.slow_next_task: Callable[[], object] = lambda: None
        super().__init__(settings, client=self.hurt)

    def start(self, step: Step) -> Handle | Done:
        """Start a step under its fault, if it has one; a task that is to be forgotten takes long enough for that."""
        with self._under(f"{'undo' if step.undo else 'start'}:{step.name}") as fault:
            if fault is not None and fault.effect == "forget" and step.ref.kind is not Kind.BOUNDARY:
                self.slow_next_task()
            answer = super().start(step)
        if fault is not None and fault.effect == "forget" and isinstance(answer, Handle):
            self.forgotten.add(answer.value)
        return answer

    def observe(self, ref: Ref) -> Observed:
        """Read under a fault."""
        with self._under("observe"):
            return super().observe(ref)

    def snapshot(self) -> ObservedProvider:
        """Read all under a fault."""
        with self._under("snapshot"):
            return super().snapshot()

    def poll(self, handle: Handle) -> Poll:
        """Poll under a fault; a forgotten task is unknown for ever."""
        with self._under("poll"):
            return Poll("unknown") if handle.value in self.forgotten else super().poll(handle)

    @contextmanager
    def _under(self, call: str) -> Iterator[Fault | None]:
        fault = next((one for one in self.faults if one.times and _matches(one.match, call)), None)
        if fault is not None:
            fault.times -= 1
            if fault.effect == "fail":
                raise ERRORS[fault.error](fault.detail)
            effects = {"lost-answer": "lost", "hang": "lost", "task-fail": FAULTS[fault.error]}
            self.hurt.next_change = effects.get(fault.effect, "")
        try:
            yield fault
        finally:
            self.hurt.next_change = ""


def _matches(pattern: str, call: str) -> bool:
    return fnmatchcase(call.replace("[", "<"), pattern.replace("[", "<"))


# --- the rig --------------------------------------------------------------------------------------


class RealClock:
    """Time that passes by itself, in which guests do what they were told."""

    def __init__(self, guests: EasyGuests) -> None:
        self._guests = guests

    def tick(self, seconds: float = 0.5) -> None:
        """Let a little of it pass, whatever was asked for."""
        self._guests.round()
        threading.Event().wait(min(seconds, 0.05))


class VSphereRig:
    """The driver on a vCenter of the lab."""

    lacks = LACKS
    address = "http://127.0.0.1:"
    reachable_from = "lab"

    def __init__(self, vcenter: VCenter) -> None:
        """Use a vCenter that runs."""
        self.control = vcenter.control()
        self.clock = RealClock(EasyGuests(self.control))
        settings = settings_for(vcenter, templates={"ubuntu-24.04": "image", "endpoint": "image"})
        self.driver = HurtDriver(settings)
        self.driver.hurt.fail_next_task = lambda fault: self.control.fail_task("*", fault)
        self.driver.slow_next_task = lambda: self.control.slow_task("*", SLOW_MS, count=1)
        self.client = VCenterClient(settings)
        """An administrator's, without faults."""
        self._foreign: list[str] = []
        self._not_ours: set[str] = set()

    def backend(self, unit: Any) -> str:
        """Return how a replica's address begins: its machine's own."""
        del unit
        return "http://127.0.0.1:3"

    def fault(self, match: str, effect: str, **options: Any) -> None:
        """Have one."""
        known = {name: value for name, value in options.items() if name in {"times", "error", "detail"}}
        self.driver.faults.append(Fault(match, effect, **known))

    def mend(self) -> None:
        """Have none."""
        self.driver.faults.clear()
        self.control.clear()

    def settings(self, **changes: Any) -> None:
        """Change how hosts choose; a vCenter has no other of the sandbox's."""
        if "policy" in changes:
            self.control.set_policy(changes["policy"])

    def foreign_object(self, name: str) -> None:
        """Make a folder or VM of this name that is not ours where ours would lie."""
        self._not_ours.add(name)
        if name.startswith(f"{OURS}bd-"):
            root = self.driver.ground.root_folder() or self._folder(self.driver.ground.estate().vm_folder, ROOT)
            made: MoRef | None = self._folder(root, name)
        else:
            made = self._foreign_vm(name)
        assert made is not None
        self.driver.ground.set_attribute(made, "somebody else's")

    def _folder(self, parent: MoRef, name: str) -> MoRef:
        return self.client.changing(lambda si: reference(managed(parent, si).CreateFolder(name)))

    def _foreign_vm(self, name: str) -> MoRef | None:
        rows = self.client.rows({"Folder": ("name",), "ResourcePool": ("name",)})
        folder = next(one.ref for one in rows["Folder"] if str(one.values["name"]).startswith(f"{OURS}bd-"))
        pool = next(one.ref for one in rows["ResourcePool"] if one.values["name"] == "Resources")
        spec = vim.vm.ConfigSpec(
            name=name, guestId="otherLinux64Guest", numCPUs=1, memoryMB=1024,
            files=vim.vm.FileInfo(vmPathName="[LocalDS_0]"),
        )  # fmt: skip
        self._settle(lambda si: managed(folder, si).CreateVM_Task(spec, managed(pool, si), None))
        return self.driver.ground.child(folder, name)

    def foreign_use(self, name: str, host: str, windows: list[tuple[str, int, str]]) -> None:
        """Let somebody else's VM run with these; where on the GPU is the host's choice."""
        gib = {"": "80c", "1g.10gb": "1-10c", "2g.20gb": "2-20c", "3g.40gb": "3-40c"}
        self.control.add_vm(name, host, *(f"{BOARD}-{gib[profile]}" for _device, _start, profile in windows))
        self._foreign.append(name)

    def host_health(self, host: str, *, healthy: bool) -> None:
        """Not of a vCenter of the lab."""
        raise NotImplementedError

    def gpu_health(self, device: str, *, healthy: bool) -> None:
        """Not of a vCenter."""
        raise NotImplementedError

    def leftovers(self) -> list[str]:
        """Return everything that has a name of ours."""
        rows = self.client.rows(dict.fromkeys(KINDS, ("name",)))
        return sorted(
            f"{kind} {one.values['name']}"
            for kind in KINDS
            for one in rows[kind]
            if str(one.values["name"]).startswith(OURS) and one.values["name"] not in self._not_ours
        )

    def truth(self) -> list[dict[str, Any]]:
        """Return who really has which window, by what the hosts chose."""
        vms = {
            one.ref.id: one
            for one in self.client.rows({"VirtualMachine": ("name", "config.extraConfig")})["VirtualMachine"]
        }
        found = []
        for gpu in self.control.gpus():
            for window in gpu.held:
                kind = gpu_types.read(window.type, product=PRODUCT)
                values = vms[window.vm].values
                found.append(
                    {
                        "host": gpu.host,
                        "device": f"{gpu.host}/{gpu.pci_id}",
                        "start": max(window.start, 0),
                        "size": kind.size if kind is not None else window.size,
                        "profile": kind.profile if kind is not None else "",
                        "unit": str(unit_in(values.get("config.extraConfig") or ()) or ""),
                        "name": str(values["name"]),
                    }
                )
        return sorted(found, key=lambda use: (use["host"], use["device"], use["start"]))

    def stored(self) -> str:
        """Return everything that vCenter keeps of what is ours."""
        rows = self.client.rows({"VirtualMachine": ("name", "config.extraConfig", "customValue")})
        return "".join(str(sorted(map(str, one.values.items()))) for one in rows["VirtualMachine"])

    def close(self) -> None:
        """Take everything away: the next test has the same hosts."""
        self.mend()
        self.control.set_policy(Policy.FIRST)
        for host in ("esx-a", "esx-b"):
            with contextlib.suppress(DriverError):
                self.driver.restore(host)
        for name in self._foreign:
            self.control.remove_vm(name)
        for kind in KINDS:
            for one in self.client.rows({kind: ("name",)})[kind]:
                if str(one.values["name"]).startswith(OURS):
                    self._remove(one.ref)
        self.driver.close()
        self.client.close()
        self.control.close()

    def _remove(self, ref: MoRef) -> None:
        told = self.client.get(ref, "runtime.powerState") if ref.kind == "VirtualMachine" else None
        if told is not None and told["runtime.powerState"] != "poweredOff":
            self._settle(lambda si: managed(ref, si).PowerOffVM_Task())
        self._settle(lambda si: managed(ref, si).Destroy_Task())

    def _settle(self, change: Any) -> None:
        assert finish(self.client, self.client.start(change), within_s=20) == Done()
