"""The acceptance run of one host: a small VM with one GPU device that boots there and says what it sees.

It tries what no list of privileges and no readiness check can show: that a clone of the template can be fitted with
the host's own vGPU type, that the host really gives it a GPU at power-on, and that the guest's driver answers. The VM
has no network card and no secret; it lies in our root folder, carries a mark of its own, and is gone at the end.

Looked at again and again: each look does what is next. Invariants: the verdict is written on the VM before anything of
it is taken away, so a crash in between loses no verdict; what others use is not touched: a host on which nothing is
free cannot be accepted.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from pyVmomi import vim

from provisioners.driver import (
    MARK_DOMAIN,
    Acceptance,
    Done,
    DriverError,
    DriverRejected,
    Handle,
    NoCapacity,
    TransientDriverError,
)
from provisioners.vsphere import (
    cloud_init,
    datastore,
    fitting,
    gpu_types,
    hardware,
    pinning,
    reading_hosts,
    removal,
    vms,
)
from provisioners.vsphere.client import MoRef, managed, reference
from provisioners.vsphere.cloning import Clones
from provisioners.vsphere.ground import Ground, HostPlace
from provisioners.vsphere.hardware import Hardware
from provisioners.vsphere.libraries import Libraries, usable
from provisioners.vsphere.reading_hosts import Host
from provisioners.vsphere.tasks import finish
from provisioners.vsphere.vms import Vm

RECORD: Final = "tenantry.acceptance"
"""Key in the VM's configuration: what was tried, and the verdict once there is one."""
REPORT: Final = "guestinfo.tenantry.acceptance"
"""Where the guest says what its driver lists, in base64."""
VCPU: Final = 2
MEMORY_MIB: Final = 4096
BOOT_S: Final = 900.0
"""From power-on to the guest's report; drivers are loaded at the first boot."""
LOOK_AGAIN_S: Final = 5.0
POWER_ON_S: Final = 20.0
MOST_STARTS: Final = 5
_SCRIPT: Final = (
    "out=$(nvidia-smi -L 2>&1 | head -c 4000 | base64 -w 0); "
    f'vmware-rpctool "info-set {REPORT} $out" || vmtoolsd --cmd "info-set {REPORT} $out"'
)
_GPU_LINE: Final = re.compile(r"^GPU \d+: (?P<name>.+?) \(UUID: ", re.MULTILINE)

Check = tuple[str, bool, str]


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run needs to know each time it is looked at."""

    ground: Ground
    place: HostPlace
    host: Host
    name: str
    now: datetime

    @property
    def mark(self) -> str:
        return f"acceptance/{self.name}"


def run(
    ground: Ground,
    host: str,
    libraries: Libraries | None = None,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Acceptance:
    """Start, look at or end the run of a host.

    Raises `TransientDriverError` while it goes on, `DriverRejected` for a host that is not there, and whatever vCenter
    answers.
    """
    if host not in ground.estate().hosts:
        ground.forget()  # it may have come just now
        if host not in ground.estate().hosts:
            raise DriverRejected(f"vCenter shows no host {host} in the offered clusters")
    place = ground.host(host)
    found = ground.client.many([place.ref], *reading_hosts.PATHS, *reading_hosts.PCI_PATHS)[0]
    seen = reading_hosts.read(found, reading_hosts.pci_gpus(found.values))
    one = _Run(ground, place, seen, name_for(place, ground.client.about()["instance_uuid"]), clock())
    vm = _vm(one)
    if vm is not None and (verdict := _verdict(vm)) is not None:
        return _cleared(one, vm, verdict)
    refusal = _unready(one)
    if refusal is not None:
        return refusal if vm is None else _cleared(one, vm, refusal)
    if vm is None:
        return _begin(one, libraries)
    if vm.is_on:
        return _judge(one, vm)
    return _fit_and_start(one, vm)


def name_for(place: HostPlace, vcenter: str) -> str:
    """Return the name of a host's acceptance VM."""
    return f"tn-accept-{uuid5(NAMESPACE_URL, f'{MARK_DOMAIN}/acceptance/{vcenter}/{place.name}').hex}"


# --- before anything is made ----------------------------------------------------------------------


def _unready(one: _Run) -> Acceptance | None:
    """Return the verdict on a host that need not be tried, None for one that must."""
    host = one.host
    if not host.healthy:
        return _failed("host is ready", " ".join(host.problems) or "it is not connected")
    if host.in_maintenance:
        return _failed("host is ready", "it is in maintenance in vCenter; take it out first")
    if not host.gpus:
        return Acceptance(passed=True, checks=(("host is ready", True, "it is connected and has no GPU"),))
    faults = [problem for problem in host.problems if problem != reading_hosts.NO_MIG]
    if faults:
        return _failed("host is ready", " ".join(faults))
    return None


def candidates(host: Host) -> tuple[str, ...]:
    """Return the GPU devices to try on a host, in the words of `hardware`: the smallest first, one of each kind."""
    found: dict[tuple[int, str], str] = {}
    for gpu in host.gpus:
        if gpu.passthrough:
            continue
        for name in host.types:
            kind = gpu_types.read(name, product=gpu.product)
            if kind is not None and (kind.is_mig or kind.fills):
                found[kind.size + (0 if kind.is_mig else 1), kind.name] = hardware.vgpu(name)
    return tuple(found[key] for key in sorted(found))


def _devices(one: _Run) -> tuple[str, ...]:
    if shared := candidates(one.host):
        # one small and one that takes all: between them everything that may stand on a GPU leaves room for one
        return tuple(dict.fromkeys((shared[0], shared[-1])))
    told = one.ground.client.get(one.place.ref, *fitting.PATHS) or {}
    products = {gpu.product for gpu in one.host.gpus if gpu.passthrough}
    direct = (fitting.passthrough_of(product, told) for product in sorted(products))
    return tuple(device for device in direct if device is not None)


# --- making it ------------------------------------------------------------------------------------


def _begin(one: _Run, libraries: Libraries | None) -> Acceptance:
    ground, clones = one.ground, Clones(one.ground, libraries)
    if any(clone.name == one.name for clone in clones.running()):
        raise TransientDriverError("the acceptance machine is being cloned", retry_after_s=LOOK_AGAIN_S)
    if not _devices(one):
        return _failed("GPUs can be given", "it offers no vGPU type and no device for passthrough that we know")
    root = ground.root_folder()
    if root is None:
        folder, name = ground.estate().vm_folder, ground.settings.root_folder
        root = ground.client.changing(lambda si: reference(managed(folder, si).CreateFolder(name)))
    try:
        template = clones.template(_image(ground, libraries), one.place, with_gpu=True)
        store = datastore.choose(ground, one.place, 0)
    except TransientDriverError:
        raise
    except DriverError as error:
        return _failed("a machine can be made", error.detail)

    def clone(si: Any) -> Any:
        where = vim.vm.RelocateSpec(
            pool=managed(one.place.cluster.pool, si), datastore=managed(store, si), host=managed(one.place.ref, si)
        )
        spec = vim.vm.CloneSpec(location=where, powerOn=False, template=False)
        return managed(template, si).CloneVM_Task(folder=managed(root, si), name=one.name, spec=spec)

    finish(ground.client, ground.client.start(clone), within_s=1)
    raise TransientDriverError("the acceptance machine is being cloned", retry_after_s=LOOK_AGAIN_S)


def _image(ground: Ground, libraries: Libraries | None) -> str:
    """Return the image that is tried: that of endpoints, else the first template, else the first item that is one."""
    settings = ground.settings
    images = (settings.endpoint_image, *sorted(settings.templates))
    named = next((image for image in images if image in settings.templates), "")
    items = [] if named or libraries is None else [one.slug for one in usable(libraries.listed())]
    return named or (settings.endpoint_image if settings.endpoint_image in items else (*items, images[0])[0])


def _fit_and_start(one: _Run, vm: Vm) -> Acceptance:
    """Fit the VM with the next device to be tried, and switch it on; end with a verdict where none is left."""
    client, record = one.ground.client, _record(vm)
    tried: list[str] = list(record.get("tried", []))
    devices = _devices(one)
    if record.get("device") not in devices or not vm.have.gpus:
        left = [device for device in devices if device not in tried]
        if not left:
            words = record.get("refused") or "all its GPUs are in use by others, so none could be tried"
            return _ended(one, vm, _failed("a GPU machine starts", words))
        one.ground.set_attribute(vm.ref, one.mark)
        _settle(client.start(_fitting(one, vm, left[0], tried)), one)
        raise TransientDriverError("the acceptance machine is being fitted", retry_after_s=LOOK_AGAIN_S)
    starts = int(record.get("starts", 0)) + 1
    if starts > MOST_STARTS:
        return _ended(one, vm, _failed("a GPU machine starts", f"it was started {MOST_STARTS} times and is still off"))
    _settle_answer(pinning.pin(client, one.place.cluster.ref, vm.ref))
    # counted before: what a power-on that takes long ended with is not told to the next look
    _note(one, vm, {**record, "starts": starts, "since": one.now.timestamp()})
    try:
        power = client.start(lambda si: managed(vm.ref, si).PowerOnVM_Task(None))
        _settle_answer(finish(client, power, within_s=POWER_ON_S))
    except NoCapacity as error:
        tried.append(str(record["device"]))
        refused = f"the host gives it no GPU: {error.raw or error.detail}"
        again = {"tried": tried, "refused": refused if len(tried) > 1 else ""}
        _note(one, vm, again)
        raise TransientDriverError("another GPU device is tried", retry_after_s=LOOK_AGAIN_S) from error
    except TransientDriverError:
        raise
    except DriverError as error:
        return _ended(one, vm, _failed("a GPU machine starts", error.raw or error.detail))
    raise TransientDriverError("the acceptance machine boots", retry_after_s=LOOK_AGAIN_S)


def _fitting(one: _Run, vm: Vm, device: str, tried: Sequence[str]) -> Callable[[Any], Any]:
    product = next((gpu.product for gpu in one.host.gpus if gpu.is_known), "")
    identity = uuid5(NAMESPACE_URL, f"{MARK_DOMAIN}/{one.name}")
    want = Hardware(
        instance_uuid=str(identity),
        bios_uuid=str(identity),
        vcpu=VCPU,
        memory_mib=MEMORY_MIB,
        gpus=(device,),
        mmio_gib=fitting.mmio_gib(product, 1),
        networks=(),
        disk_gib=0,
        locked=True,
    )
    extra = {RECORD: json.dumps({"device": device, "tried": list(tried)}), **guestinfo(identity)}
    spec = hardware.config_spec(want, vm.devices, switch_uuid="", connected=False, extra=extra)
    return lambda si: managed(vm.ref, si).ReconfigVM_Task(spec)


def guestinfo(identity: UUID) -> dict[str, str]:
    """Return what the guest is told: no network to wait for, one command whose answer it leaves."""
    told = {
        "metadata": cloud_init.dumped(
            {
                "instance-id": str(identity),
                "local-hostname": "tenantry-acceptance",
                "wait-on-network": {"ipv4": False, "ipv6": False},
            }
        ),
        "userdata": f"#cloud-config\n{cloud_init.dumped({'ssh_pwauth': False, 'runcmd': [['sh', '-c', _SCRIPT]]})}\n",
    }
    found = {REPORT: ""}
    for key, text in told.items():
        found |= {f"guestinfo.{key}": cloud_init.packed(text), f"guestinfo.{key}.encoding": "gzip+base64"}
    return found


# --- what is seen ---------------------------------------------------------------------------------


def _judge(one: _Run, vm: Vm) -> Acceptance:
    """Look at a VM that runs. Raises `TransientDriverError` while it boots."""
    if vm.host != one.place.ref:
        return _ended(one, vm, _failed("a GPU machine starts", "vCenter started it on another host"))
    device = str(_record(vm).get("device", ""))
    on = [gpu.device for gpu in one.host.gpus if vm.ref in gpu.vms]
    checks: list[Check] = [
        ("host is ready", True, "it is connected, and its GPUs can be given to machines"),
        ("a GPU machine starts", True, f"with {device}" + (f", on {', '.join(on)}" if on else "")),
    ]
    is_late = one.now.timestamp() - float(_record(vm).get("since", 0)) > BOOT_S
    if one.ground.settings.is_lab:
        if not vm.has_tools and not is_late:
            raise TransientDriverError("the acceptance machine boots", retry_after_s=LOOK_AGAIN_S)
        words = "simulated: nothing runs in it" if vm.has_tools else "it has not booted"
        return _ended(one, vm, _verdict_of((*checks, ("its guest boots", vm.has_tools, words))))
    report = said(vm.extra.get(REPORT, ""))
    if not report and not is_late:
        raise TransientDriverError("the acceptance machine boots", retry_after_s=LOOK_AGAIN_S)
    checks.append(("its guest boots", bool(report), "cloud-init ran" if report else _silent(has_tools=vm.has_tools)))
    if report:
        names = [match["name"] for match in _GPU_LINE.finditer(report)]
        checks.append(("its driver answers", bool(names), ", ".join(names) or report[:300]))
    return _ended(one, vm, _verdict_of(tuple(checks)))


def said(text: str) -> str:
    """Return what a guest reported, `""` while there is nothing."""
    try:
        return base64.b64decode(text, validate=True).decode(errors="replace").strip() if text else ""
    except (binascii.Error, ValueError):
        return text[:300]


def _silent(*, has_tools: bool) -> str:
    if has_tools:
        return "its tools run and cloud-init said nothing: is it in the template, with the VMware datasource?"
    return "neither its tools nor cloud-init said anything"


# --- the end --------------------------------------------------------------------------------------


def _ended(one: _Run, vm: Vm, verdict: Acceptance) -> Acceptance:
    """Write the verdict on the VM, then take the VM away."""
    _note(one, vm, {"passed": verdict.passed, "checks": verdict.checks})
    return _cleared(one, vm, verdict)


def _cleared(one: _Run, vm: Vm, verdict: Acceptance) -> Acceptance:
    client = one.ground.client
    if not vm.is_off:
        _settle_answer(removal.pull_plug(client, vm))
    _settle(client.start(lambda si: managed(vm.ref, si).Destroy_Task()), one)
    return verdict


def _note(one: _Run, vm: Vm, value: Mapping[str, Any]) -> None:
    extra = hardware.options({RECORD: json.dumps(value)})
    spec = vim.vm.ConfigSpec(extraConfig=extra)
    _settle(one.ground.client.start(lambda si: managed(vm.ref, si).ReconfigVM_Task(spec)), one)


def _settle(task: str, one: _Run) -> None:
    _settle_answer(finish(one.ground.client, task))


def _settle_answer(answer: Handle | Done) -> None:
    """Raise `TransientDriverError` for a task that goes on: the next look finds what it did."""
    if isinstance(answer, Handle):
        raise TransientDriverError("vCenter is still at work on the acceptance machine", retry_after_s=LOOK_AGAIN_S)


def _vm(one: _Run) -> Vm | None:
    root = one.ground.root_folder()
    ref = None if root is None else one.ground.child(root, one.name)
    if ref is None:
        return None
    found = one.ground.client.many([MoRef("VirtualMachine", ref.id)], *vms.PATHS)[0]
    mark = one.ground.attribute(found.values)
    if mark not in {"", one.mark}:
        raise DriverRejected(f"a machine that is not ours is called {one.name}")
    return vms.vm_of(found, None, mark)


def _record(vm: Vm) -> dict[str, Any]:
    try:
        found = json.loads(vm.extra.get(RECORD, "") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _verdict(vm: Vm) -> Acceptance | None:
    record = _record(vm)
    if "passed" not in record:
        return None
    checks = tuple((str(name), bool(ok), str(text)) for name, ok, text in record.get("checks", []))
    return Acceptance(passed=bool(record["passed"]), checks=checks)


def _verdict_of(checks: tuple[Check, ...]) -> Acceptance:
    return Acceptance(passed=all(ok for _name, ok, _text in checks), checks=checks)


def _failed(name: str, words: str) -> Acceptance:
    return Acceptance(passed=False, checks=((name, False, words),))
