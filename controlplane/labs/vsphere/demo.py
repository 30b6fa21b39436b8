"""`python -m controlplane.labs.vsphere.demo`: the golden path on a lab vCenter, for `make demo LAB=vsphere`.

Starts the vCenter with the players of its guests, connects it as an operator does, and walks the path twice: an
endpoint in a VM with a MIG-backed vGPU, and a machine that is reached by `tenantry ssh`. What the ledger says is
compared with what the lab's hosts really did, and the end with all that the vCenter had before. The API is a real one
(govmomi's simulator); hosts, GPUs and guests are simulated. `--stop` stops the vCenter.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from controlplane.cli.client import Client, Json
from controlplane.cli.walk import OPERATOR, Route, Timeline, Walk, WalkFailed, unit_of
from controlplane.labs import connecting, showing
from controlplane.labs.vsphere import guests, worlds
from controlplane.labs.vsphere.control import Control, Window
from controlplane.labs.vsphere.vcenter import VCenter
from controlplane.labs.vsphere.worlds import GpuHosts, OtherVm, Policy, Template, World

PROVIDER: Final = "vsphere-lab"
SITE: Final = "lund"
TEMPLATE: Final = "ubuntu-24.04-gpu"
IMAGE: Final = "ubuntu-24.04"
HOSTS: Final = frozenset({"DC0_C0_H0", "DC0_C0_H1", "DC0_C0_H2"})
"""Those with GPUs."""
CONFIG: Final[dict[str, Any]] = {
    "access": "lab",
    "templates": f"{IMAGE}={TEMPLATE}, endpoint={TEMPLATE}",
    "vlans": "1200-1299",
}
REPORTED_WITHIN_S: Final = 75.0
"""From Ready until the ledger has the GPU: two snapshots of the vCenter, and some."""
LEFT_WITHIN_S: Final = 60.0
"""From the last release until nothing of ours is left: folders of a datastore are looked at twice."""

Place = tuple[str, int, int]
"""Host, number of the GPU on it, size."""
ENDPOINT: Final = Route(
    "an endpoint in a VM with a MIG-backed vGPU, its place on the GPU chosen by the host (adversarially)",
    "hello-vgpu", PROVIDER, "H100-80GB/3g.40gb", kind="vm",
)  # fmt: skip
MACHINE: Final = Route(
    "a machine with a MIG-backed vGPU, reached by SSH with a certificate", "hello-box", PROVIDER, "A100-80GB/2g.20gb",
    kind="vm",
)  # fmt: skip


def world() -> World:
    """Return the demo's vCenter: two kinds of GPU hosts, one host without, a VM that is not ours."""
    return World(
        hosts=4,
        gpu_hosts=(
            GpuHosts(("DC0_C0_H0", "DC0_C0_H1"), worlds.gpus("H100-80GB", 2, board="H100XM")),
            GpuHosts(("DC0_C0_H2",), worlds.gpus("A100-80GB", 2, fixed_mode=worlds.MIG)),
        ),
        templates=(Template(TEMPLATE, annotation="cloud-init with the VMware datasource; vGPU guest driver"),),
        vms=(OtherVm("legacy-render", "DC0_C0_H1", ("nvidia_h100xm-1-10c",)),),
        policy=Policy.ADVERSARIAL,
    )


def vcenter_of() -> VCenter:
    """Return the demo's vCenter, started or not."""
    return VCenter("demo-vsphere", world=world())


def start(timeline: Timeline) -> VCenter:
    """Start the vCenter and the players of its guests. Raises `LabError`."""
    began = time.monotonic()
    vcenter = vcenter_of()
    vcenter.start(tell=timeline.plain)
    guests.start(vcenter)
    took = time.monotonic() - began
    timeline.say("lab", f"vCenter {vcenter.name} is up after {took:.1f} s: {vcenter.url}, simulated hosts and guests")
    return vcenter


def connect(vcenter: VCenter, ole: Client, timeline: Timeline) -> None:
    """Connect the vCenter, accept its hosts and open them, through the API. Raises `WalkFailed`, `CliError`."""
    config = {"url": vcenter.url, "user": vcenter.user, "ca_pem": vcenter.ca_pem, **CONFIG}
    connecting.store(
        ole, name=PROVIDER, kind="vsphere", site=SITE, config=config, secrets={"password": vcenter.password}
    )
    timeline.say("Ole", f"connects {PROVIDER}: its certificate is checked with the lab's CA")
    connecting.hand_over(ole, provider=PROVIDER, wanted=set(HOSTS), timeline=timeline)


# --- the walks ----------------------------------------------------------------------------------------


@dataclass
class VsphereWalk(Walk):
    """An endpoint's walk, with a look at the lab's truth beside the ledger."""

    vcenter: VCenter | None = None

    def _further_use(self, ready: Json, key: str) -> None:
        """Stream, then compare: a snapshot that names the GPU comes when it comes."""
        super()._further_use(ready, key)
        self._compare(ready)

    def _compare(self, ready: Json) -> None:
        """Compare what the ledger holds with what the hosts gave to our VMs. Raises `WalkFailed`."""
        assert self.vcenter is not None
        real: list[Place] = []
        ledger: list[Place] = []

        def is_equal() -> bool:
            story = self.mia.get(f"{self._address(ready)}/explain")
            self._tell(story)
            windows = [window for unit in story["placement"] for window in unit["windows"]]
            ledger[:] = sorted((window["host"], window["gpu"], window["size"]) for window in windows)
            return bool(ledger) and ledger == real

        with self.vcenter.control() as control:
            held = list(held_by(control, ready["id"]))
        real[:] = sorted((host, gpu, window.size) for host, gpu, window in held)
        try:  # a vCenter names the GPU and never the place on it
            connecting.until("the ledger has the GPU that the host chose", is_equal, within_s=REPORTED_WITHIN_S)
        except WalkFailed as error:
            raise WalkFailed(f"{error}; the ledger says {ledger}, the hosts gave {real}") from None
        for host, gpu, window in held:
            self.timeline.say(
                "host", f"{host} gave {window.type} on GPU {gpu}, slots [{window.start}, "
                f"{window.start + window.size}): the ledger's host and GPU", style="green",
            )  # fmt: skip


@dataclass
class MachineWalk(VsphereWalk):
    """A machine's walk: it is used by logging in."""

    noun: str = "machines"
    first_use: str = "the first login"

    def _what(self, path: Route) -> Json:
        return {"unit": unit_of(path), "image": IMAGE, "disk_gib": 40}

    def _first_use(self, ready: Json, key: str) -> None:
        """Log in with a certificate, and look at the GPU. Raises `WalkFailed`."""
        del key
        self.timeline.say("Mia", f"tenantry ssh {ready['name']} -- nvidia-smi -L")
        said = self._login(ready, "nvidia-smi", "-L")
        if "NVIDIA" not in said and "GRID" not in said:
            raise WalkFailed(f"the machine shows no GPU: {said[:200]}")
        self.timeline.say("machine", said.splitlines()[0], style="bold green")

    def _further_use(self, ready: Json, key: str) -> None:
        del key
        said = self._login(ready, "uname", "-a")
        if "simulated VM" not in said:
            raise WalkFailed(f"the machine does not say that it is simulated: {said[:200]}")
        self.timeline.say("machine", said.strip(), style="green")
        self._compare(ready)

    def _login(self, ready: Json, *command: str) -> str:
        """Log in with the real command line, as Mia would, and with the system's own ssh."""
        return connecting.command_line(self.mia, "ssh", ready["name"], "--", *command)


def held_by(control: Control, uid: str) -> Iterator[tuple[str, int, Window]]:
    """Yield (host, number of the GPU on it, window) that the lab's hosts gave to VMs of one object of ours."""
    ours = {vm.id for vm in control.guests() if uid.replace("-", "") in vm.name}
    numbers: dict[str, int] = {}
    for gpu in control.gpus():
        number = numbers[gpu.host] = numbers.get(gpu.host, -1) + 1
        for window in gpu.held:
            if window.vm in ours:
                yield gpu.host, number, window


# --- what is left -------------------------------------------------------------------------------------


def nothing_left(vcenter: VCenter, before: Json, timeline: Timeline) -> None:
    """See that the vCenter has what it had, its root folder of ours aside. Raises `WalkFailed`."""
    found: list[str] = []

    def is_clean() -> bool:
        with vcenter.control() as control:
            found[:] = differences(before, control.inventory())
            found.extend(
                f"{gpu.host} still gives {window.type} to {window.vm}"
                for gpu in control.gpus()
                for window in gpu.held
                if window.vm not in before["held"]
            )
        return not found

    try:
        connecting.until("nothing is left in the vCenter", is_clean, within_s=LEFT_WITHIN_S)
    except WalkFailed as error:
        raise WalkFailed(f"{error}: {'; '.join(found)}") from None
    timeline.say("lab", "the vCenter has what it had: no VM, folder, pool, port group or directory of ours; "
                 "its hosts gave everything back", style="green")  # fmt: skip


def inventory(vcenter: VCenter) -> Json:
    """Return all that a vCenter has by name, and which VMs hold GPUs."""
    with vcenter.control() as control:
        return {**control.inventory(), "held": sorted({one.vm for gpu in control.gpus() for one in gpu.held})}


def differences(before: Json, after: Json) -> list[str]:
    """Return what is there more than before, in words; pure. The root folder of ours may stay."""
    found = []
    for kind in ("vms", "folders", "pools", "portgroups"):
        rest = list(after[kind])
        for name in before[kind]:
            if name in rest:
                rest.remove(name)
        found += [f"{kind}: {name}" for name in rest if (kind, name) != ("folders", "tenantry")]
    for store, inside in after["datastores"].items():
        found += [
            f"datastore {store}: {name}" for name in sorted(set(inside) - set(before["datastores"].get(store, ())))
        ]
    return found


def walks(people: showing.People, timeline: Timeline) -> dict[str, float]:
    """Start, connect and walk everything; return what each path took. Raises `showing.FAILURES`."""
    timeline.title("One vCenter")
    vcenter = start(timeline)
    before = inventory(vcenter)
    connect(vcenter, people[OPERATOR], timeline)
    took = {}
    for number, (kind, path) in enumerate(((VsphereWalk, ENDPOINT), (MachineWalk, MACHINE)), start=1):
        timeline.title(f"{number}. {path.title[0].upper()}{path.title[1:]}")
        took[path.title] = kind(people, timeline, vcenter=vcenter).walk(path)
    nothing_left(vcenter, before, timeline)
    return took


def main(arguments: list[str]) -> int:
    """Walk, or stop the vCenter."""
    told = (
        "The golden path on a vCenter that speaks the protocol. Hosts, GPUs and guests are SIMULATED: "
        "the guests' programs run on this machine."
    )
    return showing.main(
        "controlplane.labs.vsphere.demo", __doc__, arguments, told=told, walks=walks, stop=vcenter_of().stop
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
