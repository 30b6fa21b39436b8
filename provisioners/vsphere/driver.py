"""The vSphere driver: VM boundaries, machines and endpoints in VMs of one vCenter.

Steps are pure; a step is one call that starts a task, or a few quick ones. Every part looks before it acts and is
found again by name and mark, so repeating any step finds what an earlier try left.

Invariants: nothing is written to an object that carries another's mark; a boundary goes only when nothing is in it;
what vCenter does not answer is never taken for absence.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from provisioners.driver import (
    Acceptance,
    BoundaryKind,
    BoundarySpec,
    Capabilities,
    Console,
    Done,
    Driver,
    EndpointSpec,
    Handle,
    Kind,
    LayoutChange,
    LogLine,
    MachineSpec,
    NamespaceSpec,
    NotSupported,
    Observed,
    ObservedProvider,
    ObservedUse,
    Poll,
    Power,
    Ref,
    RemarkKind,
    Secret,
    Spec,
    Step,
    TransientDriverError,
)
from provisioners.steps import split
from provisioners.vsphere import acceptance, capabilities, hosts, watching
from provisioners.vsphere.boundaries import Boundaries
from provisioners.vsphere.client import VCenterClient
from provisioners.vsphere.consoles import open_console
from provisioners.vsphere.failures import LookFirst
from provisioners.vsphere.ground import Ground
from provisioners.vsphere.inventory import Inventory
from provisioners.vsphere.libraries import Libraries
from provisioners.vsphere.machines import Machines
from provisioners.vsphere.means import Packages
from provisioners.vsphere.removal import poll_shutdown
from provisioners.vsphere.rest import RestClient
from provisioners.vsphere.serving import Serving
from provisioners.vsphere.settings import Settings, settings_of
from provisioners.vsphere.tags import Owned, Tagger, names_of
from provisioners.vsphere.tasks import poll_of

NO_NAMESPACES: Final = "a vCenter has no namespaces for people; use a machine, or a cluster"
NO_LAYOUTS: Final = "the host carves its GPUs by itself when a VM is powered on"
ABLE_FOR_S: Final = 60.0
"""How long an answer about capabilities is good enough for a snapshot."""
_MACHINE_STEPS: Final = frozenset({"vm.clone", "vm.configure", "vm.power"})
T = TypeVar("T")


class Family(Protocol):
    """What makes, looks at and removes the objects of one kind."""

    def observe(self, ref: Ref) -> Observed:
        """Read one object exactly."""
        ...

    def start(self, step: Step) -> Handle | Done:
        """Start one step or its undo."""
        ...

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Cut an object's network, keeping its memory, or restore it."""
        ...


class VSphereDriver:
    """One vCenter. Thread-safe; processes do not share it."""

    def __init__(self, settings: Settings, *, client: VCenterClient | None = None) -> None:
        """Drive the vCenter of `settings`; connects on first use."""
        self.settings = settings
        self.client = client or VCenterClient(settings)
        self.ground = Ground(settings, self.client)
        self._inventory = Inventory(self.ground)
        self._able: tuple[int, float, Capabilities | None] = (-1, 0.0, None)
        self._boundaries = Boundaries(self.ground)
        self._rest = RestClient(settings)
        self._packages = Packages(self.ground)
        self._tagger = Tagger(self._rest, names_of(settings.root_folder, settings.datacenter))
        self.libraries = Libraries(self.ground, self._rest)
        self._machines = Machines(self.ground, self.libraries)
        self._serving = Serving(self.ground, self._machines)

    def __repr__(self) -> str:
        """Show which vCenter, and no credential."""
        return f"VSphereDriver({self.settings.slug}, {self.settings.url})"

    # --- the whole vCenter ------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """Ask vCenter what it can do."""
        found = capabilities.read(self.ground, self.libraries, self._packages)
        self._able = (self.client.logins, time.monotonic(), found)
        return found

    def snapshot(self) -> ObservedProvider:
        """Read the whole vCenter; calls do not grow with its objects."""
        login, at, known = self._able
        if known is None or login != self.client.logins or time.monotonic() - at > ABLE_FOR_S:
            known = self.capabilities()
        found, ours = self._inventory.look(known)
        if self.settings.tags:
            found = self._tagged(found, ours)
        left = self._machines.tidy()
        if left is None:
            return found
        looked_for = found.looked_for | {RemarkKind.LEFT}
        return replace(found, remarks=(*found.remarks, *left), looked_for=looked_for)

    def _tagged(self, found: ObservedProvider, ours: Owned) -> ObservedProvider:
        """Bring tags in line with a complete snapshot; why they are not is a gap of the provider and stops nothing."""
        why = self._tagger.keep(ours) if found.complete else ""
        able = found.capabilities
        missing = {**able.missing, "tags": f"{why}, so what is ours carries no tags."} if why else able.missing
        features = {**able.features, "tags": not why}
        return replace(found, capabilities=replace(able, features=features, missing=missing))

    def remove_left(self, subject: str) -> bool:
        """Remove what was left of a machine by its remark's subject; whether it is gone now."""
        return self._looking(lambda: self._machines.remove_left(subject))

    def changes(self, stop: threading.Event) -> Iterator[Ref]:
        """Yield whose objects have changed, until `stop` is set; a vCenter that is away is waited for."""
        return watching.changes(self.settings, stop)

    # --- one object -------------------------------------------------------------------------------

    def observe(self, ref: Ref) -> Observed:
        """Read one object exactly."""
        if ref.kind in {Kind.NAMESPACE, Kind.LAYOUT}:
            return Observed(ref, exists=False, simulated=self.settings.is_lab)
        return self._looking(lambda: self._family(ref.kind).observe(ref))

    def steps(self, spec: Spec) -> Sequence[Step]:
        """Return the ordered steps of `spec`. Raises `NotSupported`, `DriverRejected`."""
        match spec:
            case BoundarySpec():
                if spec.kind is not BoundaryKind.VM:
                    raise NotSupported("a vCenter makes vm boundaries only")
                return self._boundaries.steps(spec)
            case EndpointSpec():
                return self._serving.steps(spec)
            case MachineSpec():
                return self._machines.steps(spec)
            case NamespaceSpec():
                raise NotSupported(NO_NAMESPACES)

    def start(self, step: Step) -> Handle | Done:
        """Start one step or its undo."""
        bare = split(step.name)[0]
        family = self._machines if bare in _MACHINE_STEPS else self._family(step.ref.kind)
        return self._looking(lambda: family.start(step))

    def poll(self, handle: Handle) -> Poll:
        """Look at a running task, or at a guest that was asked to shut down."""
        return poll_shutdown(self.client, handle, now=time.time()) or poll_of(self.client, handle)

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Cut the network of a boundary, or the cards of a machine or endpoint, or restore it; memory stays."""
        return self._looking(lambda: self._family(ref.kind).isolate(ref, cut_off=cut_off))

    def power(self, ref: Ref, *, want: Power) -> Handle | Done:
        """Switch a machine's or an endpoint's VMs."""
        if ref.kind not in {Kind.MACHINE, Kind.ENDPOINT}:
            raise NotSupported(f"a {ref.kind} has no power to switch")
        return self._looking(lambda: self._machines.power(ref, want=want))

    def console(self, machine: Ref) -> Console:
        """Return a way to the screen of a machine's VM. Raises `TransientDriverError` where it does not run."""
        vm = self._machines.find(machine, None)
        if vm is None:
            raise TransientDriverError("vCenter shows no such machine")
        return open_console(self.client, vm, simulated=self.ground.is_simulated)

    def _family(self, kind: Kind) -> Family:
        if kind is Kind.BOUNDARY:
            return self._boundaries
        if kind is Kind.MACHINE:
            return self._machines
        if kind is Kind.ENDPOINT:
            return self._serving
        raise NotSupported(NO_NAMESPACES)

    def _looking(self, work: Callable[[], T]) -> T:
        """Run something; where a thing was not where it had been, places are read anew before the next try."""
        try:
            return work()
        except LookFirst:
            self.ground.forget()
            raise

    # --- hosts ------------------------------------------------------------------------------------

    def evacuate(self, host: str) -> Sequence[ObservedUse]:
        """Place nothing more on a host; return what still uses its GPUs, foreign use included."""
        hosts.evacuate(self.ground, host)
        return [use for use in self.snapshot().uses if use.host == host]

    def restore(self, host: str) -> Done:
        """Undo `evacuate`."""
        hosts.restore(self.ground, host)
        return Done()

    def acceptance(self, host: str) -> Acceptance:
        """Boot a small GPU VM on a host and say what was seen."""
        return acceptance.run(self.ground, host, self.libraries)

    def layout_steps(self, change: LayoutChange) -> Sequence[Step]:  # noqa: ARG002
        """Refuse: layouts follow the VMs."""
        raise NotSupported(NO_LAYOUTS)

    # --- logs -------------------------------------------------------------------------------------

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterator[LogLine]:
        """Yield the newest `tail` lines of an object's log since an RFC 3339 time."""
        reader = getattr(self._family(ref.kind), "logs", None)
        if reader is not None:
            yield from reader(ref, since=since, tail=tail)

    def close(self) -> None:
        """Log out."""
        self._rest.close()
        self.client.close()


def make(config: Mapping[str, Any], secrets: Mapping[str, Secret]) -> Driver:
    """Return the driver of one provider row. Raises `KeyError` for what is missing, `BadSettings` for the unusable."""
    return VSphereDriver(settings_of(config, secrets))
