"""What it costs to look at a vCenter with many machines of ours on which nothing changes.

    python -m tests.benchmarks.refresh [machines]

The lab's vCenter, forty hosts with GPUs. Machines are made by the driver alone, step after step. Then the whole vCenter
is read several times (one refresh), and every machine is looked at exactly, as a sweep does to which all of them are
due: nothing may be changed, and the calls of a refresh may not grow with the machines. Single readings.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from controlplane.labs.vsphere import build
from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners import plan
from provisioners.driver import Binding, BoundarySpec, Handle, Kind, MachineSpec, Ref, UnitSpec
from provisioners.vsphere.driver import VSphereDriver
from tests.benchmarks.clones import NOT_BUILT, lab
from tests.vsphere.ground import TENANT, boundary, settings_for, walk

MACHINES = 500
HOSTS = 40
WITH_GPU = 4
"""Of five machines."""
THREADS = 4
REFRESHES = 5
ALLOWED_S = 0.5
"""For the fastest of the refreshes of 500 machines; as much more as there are more."""
MOST_CALLS = 2
READS = frozenset(
    {
        "RetrievePropertiesEx", "ContinueRetrievePropertiesEx", "FindAllByUuid", "FindChild", "RetrieveServiceContent",
        "CreateContainerView", "QueryEvents", "Fetch", "/sdk/vimServiceVersions.xml", "Login", "Logout",
        "RetrieveEntityPermissions",
    }
)  # fmt: skip
"""All else is counted as a change."""


def machine(home: Ref, number: int) -> MachineSpec:
    """Return a machine on one of the hosts, by turns; one of five has no GPU."""
    host, has_gpu = f"DC0_C0_H{number % HOSTS}", number % (WITH_GPU + 1) < WITH_GPU
    product, profile = ("H100-80GB", "1g.10gb") if has_gpu else ("", "")
    unit = UnitSpec(uuid4(), 0, host, product, profile, 0, Binding.HOST, (), (), 4, 16, role="machine")
    return MachineSpec(Ref(Kind.MACHINE, uuid4(), TENANT), home, 1, unit, "image", 0, ())


def make(driver: VSphereDriver, spec: MachineSpec) -> None:
    """Walk a machine until it runs, as passes do."""
    steps = tuple(driver.steps(spec))
    while True:
        action = plan.plan(steps, driver.observe(spec.ref), deleting=False)
        if isinstance(action, plan.Nothing) and action.ready:
            return
        answer = driver.start(action.step) if isinstance(action, plan.Start) else None
        while isinstance(answer, Handle) and driver.poll(answer).state == "running":
            time.sleep(0.05)  # noqa: TID251 - time itself is what is measured here


def refreshes(driver: VSphereDriver, control: Control) -> tuple[list[float], list[Mapping[str, int]], bool]:
    """Return how long each refresh took, its calls, and whether all showed the same."""
    shown, took_s, calls = {}, [], []
    driver.snapshot()
    same = True
    for _ in range(REFRESHES):
        control.forget_calls()
        began = time.perf_counter()
        seen = driver.snapshot()
        took_s.append(time.perf_counter() - began)
        calls.append(control.calls())
        told = {one.ref: one.fingerprint for one in seen.objects}
        same = same and shown in ({}, told)
        shown = told
    return took_s, calls, same


def measure(vcenter: VCenter, machines: int) -> int:
    """Make, look and print; 1 where looking costs more than it may, or changes anything."""
    settings = settings_for(vcenter, templates={"image": "image"}, clones=THREADS)
    driver = VSphereDriver(settings)
    home = boundary(vcpu=8 * machines, memory_gib=32 * machines)
    walk(driver, home)
    few = [machine(home.ref, number) for number in range(min(10, machines))]
    specs = few + [machine(home.ref, number) for number in range(len(few), machines)]
    with vcenter.control() as control, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda spec: make(driver, spec), few))
        _, few_calls, _ = refreshes(driver, control)
        began = time.perf_counter()
        list(pool.map(lambda spec: make(driver, spec), specs[len(few) :]))
        print(f"{machines} machines made in {time.perf_counter() - began:.0f} s by {THREADS} threads")

        took_s, calls, same = refreshes(driver, control)
        told = ", ".join(f"{one:.2f}" for one in took_s)
        print(f"a refresh: {told} s; calls {calls[-1]}, with {len(few)} machines {few_calls[-1]}")

        control.forget_calls()
        began = time.perf_counter()
        unlike = converged(driver, home, specs)
        swept_s = time.perf_counter() - began
        counts = control.calls()
    changing = {method: count for method, count in counts.items() if method not in READS}
    print(f"a converged sweep of all: {swept_s:.1f} s, {sum(counts.values()) / machines:.1f} calls per machine")
    print(f"changing calls: {changing or 'none'}; not as wanted: {unlike}; refreshes show the same: {same}")
    driver.close()
    too_slow = min(took_s) > ALLOWED_S * max(1.0, machines / MACHINES)
    too_many = any(sum(one.values()) > MOST_CALLS for one in calls) or calls[-1] != few_calls[-1]
    return int(too_slow or too_many or bool(changing) or unlike > 0 or not same)


def converged(driver: VSphereDriver, home: BoundarySpec, specs: Sequence[MachineSpec]) -> int:
    """Look at everything as passes do and do what they would; return how many were not as wanted."""
    driver.snapshot()
    unlike = 0
    for spec in (home, *specs):
        seen = driver.observe(spec.ref)
        action = plan.plan(tuple(driver.steps(spec)), seen, deleting=False)
        if isinstance(action, plan.Start):
            driver.start(action.step)
        unlike += action != plan.Nothing(ready=True, complete=True)
    return unlike


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 where it costs more than is allowed, or nothing could be measured."""
    if not build.is_built():
        print(f"not measured: {build.why_not_here() or NOT_BUILT}")
        return 1
    with lab(HOSTS) as vcenter:
        return measure(vcenter, int(arguments[0]) if arguments else MACHINES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
