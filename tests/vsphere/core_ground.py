"""The control plane's own passes on a vCenter of the lab: rows, ledger and inventory in this process, all else real.

The passes' clock is moved by hand; the vCenter's time is the real one, so its tasks are awaited before the clock moves.
Who has which GPU is what the lab's hosts say: the product is never told, and nothing of it is asked.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners import sweep
from provisioners.driver import Done, Driver, DriverError, Handle, NoCapacity, Poll, Step
from provisioners.kinds import PASSES
from provisioners.passes import Engine
from provisioners.vsphere.client import MoRef, reference
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.failures import LookFirst
from provisioners.vsphere.inventory import unit_in
from tenants import audit
from tenants.host_plans import GUESS, MOVING, STRAY
from tenants.models import Finding, Hold, Host, Intent, Machine, Provider
from tests import factories
from tests.drive import FakeClock
from tests.vsphere.ground import Hand, settings_for

Shares = Counter[tuple[str, str]]
"""(GPU as `<host>/<pciId>`, whose) → memory slices; whose is a unit's id, or `""` for everybody else."""


class Meddled:
    """A driver with somebody beside it: `before` is called with each step that is about to start."""

    def __init__(self, driver: Driver, before: Callable[[Step], None]) -> None:
        self._driver = driver
        self._before = before
        self._powering: set[str] = set()
        self.full: list[str] = []
        """What vCenter said to VMs that its host had no GPU for, at power-on."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def start(self, step: Step) -> Handle | Done:
        """Start a step, after whatever others do just before."""
        self._before(step)
        try:
            answer = self._driver.start(step)
        except DriverError as error:
            self._note(step.name, error)
            raise
        if isinstance(answer, Handle) and step.name.startswith("vm.power"):
            self._powering.add(answer.value)
        return answer

    def poll(self, handle: Handle) -> Poll:
        """Look at what was started."""
        answer = self._driver.poll(handle)
        if handle.value in self._powering:
            self._note("vm.power", answer.error)
        return answer

    def _note(self, step: str, error: DriverError | None) -> None:
        if isinstance(error, NoCapacity) and step.startswith("vm.power"):
            self.full.append(error.detail)


@dataclass(slots=True)
class CoreOnVCenter:
    """One vCenter, connected as a provider, with all of its hosts open."""

    vcenter: VCenter
    control: Control
    hand: Hand
    """Somebody who looks into the vCenter beside the product."""
    driver: Meddled
    provider: Provider
    clock: FakeClock = field(default_factory=FakeClock)

    @property
    def engine(self) -> Engine:
        """Return what passes run with."""
        return Engine(clock=self.clock, driver_of=lambda _provider: self.driver, base_s=0.5, jitter=lambda: 1.0)

    # --- sweeps -----------------------------------------------------------------------------------

    def sweep(self, *, hurried: bool = False) -> int:
        """Run what is due now; `hurried` without waiting for the vCenter's tasks before."""
        if not hurried:
            self.await_rest()
        return sweep.sweep(self.engine)

    def await_rest(self) -> None:
        """Wait until no task runs; a guest that was asked to shut down does so as a task of nobody's."""
        end = time.monotonic() + PATIENCE_S
        while (found := self._tasks()) or found is None:
            assert time.monotonic() < end, found
            _pause(0.05)

    def _tasks(self) -> list[str] | None:
        """Return what runs; None where a task was forgotten while it was looked at."""
        client = self.hand.client
        recent = client.reading(lambda session: [reference(one) for one in session.content.taskManager.recentTask])
        try:
            told = client.many(recent, "info.state", "info.descriptionId", "info.entityName")
        except LookFirst:
            return None
        running = [one.values for one in told if str(one.values["info.state"]) in {"queued", "running"}]
        return [f"{one.get('info.descriptionId')} of {one.get('info.entityName')}" for one in running]

    def look(self) -> None:
        """Take a snapshot now, and let passes do what it made due."""
        self.clock.move(1.0)
        Provider.objects.filter(pk=self.provider.pk).update(due_at=self.clock())
        self.sweep()

    def drive(self, until: Callable[[], bool], *, most: int = 80) -> None:
        """Sweep until a condition holds."""
        for _ in range(most):
            self.sweep()
            if until():
                return
            self.clock.move(1.0)
        raise AssertionError(f"not reached after {most} sweeps:\n{self.explain()}")

    def explain(self) -> str:
        """Return what stands where, for failing tests."""
        lines = []
        for word, kind in PASSES.items():
            for row in kind.model._base_manager.filter(released_at__isnull=True):
                said = [f"{c['type']}={c['status']} {c['reason']} {c['message']}" for c in row.conditions]
                lines.append(f"{word} {row.pk} {row.phase} due={row.due_at} failures={row.failures} {said}")
        lines += [f"finding {row.kind}: {row.detail}" for row in Finding.objects.filter(resolved_at=None)]
        lines += [f"open intent {row.step} undo={row.undo}" for row in Intent.objects.filter(settled_at=None)]
        lines += [f"held {what}: {slots}" for what, slots in sorted(held("tenant", "foreign").items())]
        return "\n".join([*lines, *(f"used {what}: {slots}" for what, slots in sorted(self.used().items()))])

    # --- the truth --------------------------------------------------------------------------------

    def used(self) -> Shares:
        """Return who really has how much of which GPU; one that is shared in time is all of theirs who do that."""
        gpus = self.control.gpus()
        vms = sorted({window.vm for gpu in gpus for window in gpu.held})
        told = self.hand.client.many([MoRef("VirtualMachine", one) for one in vms], "config.extraConfig")
        units = {one.ref.id: str(unit_in(one.values.get("config.extraConfig") or ()) or "") for one in told}
        found: Shares = Counter()
        for gpu in gpus:
            device = f"{gpu.host}/{gpu.pci_id}"
            for window in gpu.held:
                if window.start < 0:
                    found[device, units[window.vm]] = SLOTS
                else:
                    found[device, units[window.vm]] += window.size
        return found

    def assert_no_double_use(self) -> None:
        """See that no window is used twice, and that each unit of ours that runs holds room on its host."""
        taken: dict[tuple[str, int], str] = {}
        for gpu in self.control.gpus():
            device = f"{gpu.host}/{gpu.pci_id}"
            shared = {window.type for window in gpu.held if window.start < 0}
            assert not shared or len({window.type for window in gpu.held}) == 1, f"{device} carries {gpu.held}"
            for window in gpu.held:
                for slot in range(window.start, window.start + window.size) if window.start >= 0 else ():
                    other = taken.setdefault((device, slot), window.vm)
                    assert other == window.vm, f"slot {slot} of {device} is used by {other} and {window.vm}"
        rooms = {
            (hold.host.provider_ref, str(hold.unit_id or _unit_in(hold.note)))
            for hold in Hold.objects.filter(kind__in=["tenant", "foreign"]).select_related("host")
        }
        for device, unit in self.used():
            assert not unit or (device.split("/")[0], unit) in rooms, f"{unit} runs on {device} and holds nothing there"
        assert audit.findings(audit.LEDGER) == []

    def close(self) -> None:
        """Log out."""
        self.driver.close()
        self.hand.close()
        self.control.close()


def _unit_in(note: str) -> str:
    """Return the unit of ours in the note of a hold that keeps the room which it really has."""
    return note.removesuffix(GUESS).removeprefix(MOVING).removeprefix(STRAY)


PATIENCE_S = 60.0
_pause = threading.Event().wait
SLOTS = 8
"""Memory slices of every GPU in these worlds."""


def held(*kinds: str) -> Shares:
    """Return who holds how much of which GPU."""
    found: Shares = Counter()
    for hold in Hold.objects.filter(kind__in=kinds).select_related("device"):
        found[hold.device.provider_ref, str(hold.unit_id or "")] += hold.size
    return found


def phase_of(row: Machine) -> str:
    """Return its phase as it is stored now."""
    return str(Machine.objects.get(pk=row.pk).phase)


def connected(vcenter: VCenter, before: Callable[[Step], None] = lambda _step: None) -> CoreOnVCenter:
    """Connect a vCenter and open its hosts."""
    settings = settings_for(vcenter, templates={"ubuntu-24.04": "ubuntu-24.04-gpu"})
    driver = Meddled(VSphereDriver(settings), before)
    found = driver.capabilities()
    provider = factories.provider(
        kind="vsphere",
        config={"vlans": "1000-3999"},
        capabilities={
            "boundary_kinds": sorted(str(kind) for kind in found.boundary_kinds),
            "bindings": sorted(str(binding) for binding in found.bindings),
        },
        due_at=None,
    )
    made = CoreOnVCenter(vcenter, vcenter.control(), Hand(settings), driver, provider)
    made.look()
    Host.objects.update(state="open")
    made.look()
    assert Host.objects.filter(placeable=True).exists(), made.explain()
    return made
