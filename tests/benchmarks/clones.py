"""How close to its limits a vCenter is kept busy: many machines at once, each clone as long as the others.

python -m tests.benchmarks.clones [machines] [seconds]

The lab's vCenter, four hosts, 4 clones per host and 16 in all; each machine is walked by a thread with a driver of its
own, as by workers, from nothing to running. The best that limits allow is the number of rounds times a clone's time;
what is printed is how much longer it took until the last clone had ended, and until the last machine ran.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from controlplane.labs.vsphere import build, worlds
from controlplane.labs.vsphere.vcenter import VCenter
from controlplane.labs.vsphere.worlds import GpuHosts, Template, World
from provisioners import plan
from provisioners.driver import (
    Binding,
    Handle,
    Kind,
    MachineSpec,
    NoCapacity,
    Ref,
    Step,
    TransientDriverError,
    UnitSpec,
)
from provisioners.vsphere.driver import VSphereDriver
from tests.vsphere.ground import TENANT, boundary, settings_for, walk

MACHINES = 32
CLONE_S = 60.0
"""A real one of an image with a model server's libraries takes minutes; what is lost between two rounds (a place is
free, the next one hears of it at its next turn, a second or two) does not grow with it."""
HOSTS = 4
ALLOWED = 1.05
NOT_BUILT = "the vSphere lab is not built; mend: python -m controlplane.labs.vsphere build"


@contextmanager
def lab(hosts: int) -> Iterator[VCenter]:
    """A vCenter of this run's own, of so many hosts with two GPUs each and one template."""
    world = World(
        hosts=hosts,
        gpu_hosts=(GpuHosts(("DC0_C0_H*",), worlds.gpus("H100-80GB", 2, board="H100XM")),),
        templates=(Template("image", annotation="cloud-init with the VMware datasource"),),
    )
    folder = Path(tempfile.mkdtemp(prefix="tenantry-bench-"))
    vcenter = VCenter("bench", folder=folder / "bench", world=world)
    try:
        vcenter.start()
        yield vcenter
    finally:
        vcenter.delete()
        shutil.rmtree(folder, ignore_errors=True)


def machine(home: Ref, number: int) -> MachineSpec:
    """Return a machine on one of the hosts, by turns."""
    host = f"DC0_C0_H{number % HOSTS}"
    unit = UnitSpec(uuid4(), 0, host, "H100-80GB", "1g.10gb", 0, Binding.HOST, (), (), 4, 16, role="machine")
    return MachineSpec(Ref(Kind.MACHINE, uuid4(), TENANT), home, 1, unit, "image", 0, ())


class Walker:
    """Walks machines as passes do: looks, does one thing, comes again when it was told to."""

    def __init__(self, driver: VSphereDriver) -> None:
        self.driver = driver
        self.cloned_at = 0.0
        self.waits = 0

    def walk(self, spec: MachineSpec) -> None:
        """Return when the machine runs."""
        steps = tuple(self.driver.steps(spec))
        while True:
            try:
                pause = self.once(spec, steps)
            except NoCapacity:
                raise
            except TransientDriverError as busy:
                self.waits += 1
                pause = (busy.retry_after_s or 1.0) * random.uniform(0.8, 1.2)
            if pause is None:
                return
            time.sleep(pause)  # noqa: TID251 - time itself is what is measured here

    def once(self, spec: MachineSpec, steps: tuple[Step, ...]) -> float | None:
        """Do one thing; return when to come again, None when the machine runs."""
        action = plan.plan(steps, self.driver.observe(spec.ref), deleting=False)
        if isinstance(action, plan.Start):
            started = self.driver.start(action.step)
            if isinstance(started, Handle):
                self._await(started)
            if action.step.name == "vm.clone":
                self.cloned_at = time.monotonic()
            return 0.0
        if isinstance(action, plan.Poll):
            self._await(action.handle)
            return 0.0
        assert isinstance(action, plan.Nothing), action
        return None if action.ready else 0.05

    def _await(self, handle: Handle) -> None:
        while self.driver.poll(handle).state == "running":
            time.sleep(0.25)  # noqa: TID251 - as passes do at first


def measure(vcenter: VCenter, machines: int, clone_s: float) -> tuple[float, float, int]:
    """Return seconds until the last clone had ended, until the last machine ran, and how often one had to wait."""
    settings = settings_for(vcenter, templates={"image": "image"})
    first = VSphereDriver(settings)
    home = boundary()
    walk(first, home)
    specs = [machine(home.ref, number) for number in range(machines)]
    walkers = [Walker(VSphereDriver(settings)) for _ in specs]
    for walker in walkers:
        walker.driver.ground.estate()  # logged in, as workers are
    with vcenter.control() as control:
        control.slow_task("CloneVM_Task", round(clone_s * 1000))
        began = time.monotonic()
        with ThreadPoolExecutor(machines) as pool:
            list(pool.map(lambda pair: pair[0].walk(pair[1]), zip(walkers, specs, strict=True)))
        ended = time.monotonic()
    for walker in walkers:
        walker.driver.close()
    first.close()
    return max(one.cloned_at for one in walkers) - began, ended - began, sum(one.waits for one in walkers)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 where it took longer than is allowed, or nothing could be measured."""
    if not build.is_built():
        print(f"not measured: {build.why_not_here() or NOT_BUILT}")
        return 1
    machines = int(arguments[0]) if arguments else MACHINES
    clone_s = float(arguments[1]) if len(arguments) > 1 else CLONE_S
    at_once = min(16, 4 * HOSTS)
    best = -(-machines // at_once) * clone_s
    with lab(HOSTS) as vcenter:
        cloned, ran, waits = measure(vcenter, machines, clone_s)
    print(f"{machines} machines, clones of {clone_s:g} s, {at_once} at a time: at best {best:.1f} s")
    print(f"last clone after {cloned:.1f} s ({cloned / best:.2f}), all running after {ran:.1f} s, waited {waits} times")
    return 0 if cloned / best <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
