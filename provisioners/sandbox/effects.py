"""What each step does to the estate: `begin` checks and reserves, `finish` makes it so, `abort` gives back.

One entry per step name of the registry, in `_BEGIN` and `_FINISH`; a name without an entry only records
that it was done. All of it is repeatable on what an earlier, half-done try left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from provisioners.driver import DriverRejected, NotSupported, TransientDriverError
from provisioners.sandbox import choosing, faults, physics
from provisioners.sandbox.records import GatewayRecord, GpuRecord, ObjectRecord, Window, WorkloadRecord
from provisioners.sandbox.state import State
from provisioners.steps import indexed, split

NEVER_S: Final = 1e15
"""A time that does not come (JSON has no infinity)."""


@dataclass(frozen=True, slots=True)
class Work:
    """One step at work on one object."""

    state: State
    owner: ObjectRecord
    step: str
    """Name with index."""
    payload: Mapping[str, Any]
    now: float
    ends_at: float
    draw: choosing.Draw

    @property
    def bare(self) -> str:
        """Name without index."""
        return split(self.step)[0]

    @property
    def index(self) -> int:
        """Number of the unit; 0 for steps without one."""
        return split(self.step)[1] or 0

    @property
    def suffix(self) -> str:
        """`[2]` or nothing, to name the sibling steps of the same unit."""
        return self.step.removeprefix(self.bare)

    def workload(self) -> WorkloadRecord | None:
        """Return the VM or pod of this unit, if there is one."""
        found = self.state.workloads_of(self.owner.uid)
        return next((workload for workload in found if workload.index == self.index), None)

    def machine(self) -> WorkloadRecord:
        """Return the unit's VM. Raises `TransientDriverError` if there is none yet."""
        found = self.workload()
        if found is None:
            msg = f"{workload_name(self)} does not exist yet"
            raise TransientDriverError(msg)
        return found


def workload_name(work: Work) -> str:
    """Return the provider's name of a unit's VM or pod."""
    return work.owner.name if work.owner.kind == "machine" else f"{work.owner.name}-{work.index}"


# --- windows, vCPU and memory ---------------------------------------------------------------------


def _occupy(work: Work, workload: WorkloadRecord) -> None:
    """Give a workload its windows and its room on the host, from now on. Raises what physics raises."""
    state = work.state
    host = physics.check_host(state, workload)
    workload.windows = physics.windows_for(state, workload, work.draw)
    workload.running = True
    workload.report_at = work.ends_at + state.settings.report_delay_s if host.binding == "host" else work.ends_at
    workload.reported = None
    fault = faults.strike(state, f"report:{host.host}", "wrong-report", "no-report")
    if fault is not None and fault.effect == "no-report":
        workload.report_at = NEVER_S
    elif fault is not None:
        workload.reported = [_elsewhere(state, workload, window) for window in workload.windows]
    state.occupy(f"unit:{workload.uid}", host.host, workload.windows, workload.vcpu, workload.memory_gib)
    state.put("workloads", workload.uid, workload)


def _elsewhere(state: State, workload: WorkloadRecord, window: Window) -> Window:
    device, start, size, profile = window
    others = [
        other
        for other in state.gpus_of[workload.host]
        if other != device and state.gpus[other].product == workload.product
    ]
    if others:
        return [others[0], start, size, profile]
    starts = physics.profile_of(workload.product, profile).starts
    return [device, next((other for other in starts if other != start), start), size, profile]


def _vacate(state: State, workload: WorkloadRecord) -> None:
    """Stop a workload: its windows and its room are free at once."""
    if not workload.running:
        return
    state.vacate(f"unit:{workload.uid}", workload.host, workload.windows, workload.vcpu, workload.memory_gib)
    workload.running = False
    workload.windows = []
    workload.reported = None
    state.touch("workloads", workload.uid)


def _remove(state: State, workload: WorkloadRecord) -> None:
    _vacate(state, workload)
    state.drop("workloads", workload.uid)


def stop(state: State, workload: WorkloadRecord) -> None:
    """Power a workload off from outside of any step."""
    _vacate(state, workload)


def lose_replica(state: State, workload: WorkloadRecord) -> None:
    """Take a replica away that cannot go on: a pod with its room, in a VM only what was served."""
    if workload.is_vm:
        workload.serving = None
        state.touch("workloads", workload.uid)
    else:
        _remove(state, workload)


def resume(work: Work, workload: WorkloadRecord) -> None:
    """Power a workload on from outside of any step. Raises what physics raises."""
    if not workload.running:
        _occupy(work, workload)
        _warm_up(work, workload)


def _warm_up(work: Work, workload: WorkloadRecord) -> None:
    settings = work.state.settings
    workload.ready_at = work.ends_at + (settings.boot_s if workload.is_vm else 0.0)
    if workload.serving is not None:
        workload.serving["ready_at"] = workload.ready_at + settings.load_s


def _built(work: Work, *, is_vm: bool) -> WorkloadRecord:
    unit = work.payload["unit"]
    return WorkloadRecord(
        uid=unit["uid"],
        owner=work.owner.uid,
        index=work.index,
        name=workload_name(work),
        is_vm=is_vm,
        host=unit["host"],
        product=unit["product"],
        profile=unit["profile"],
        gpu_count=unit["gpu_count"],
        binding=unit["binding"],
        devices=list(unit["devices"]),
        starts=list(unit["starts"]),
        vcpu=unit["vcpu"],
        memory_gib=unit["memory_gib"],
        cut_off=bool(work.payload.get("cut_off")),
    )


# --- begin ----------------------------------------------------------------------------------------


def _boundary_of(work: Work) -> ObjectRecord:
    uid = str(work.payload["boundary"])
    boundary = work.state.objects.get(uid)
    first = "folder.create" if work.owner.boundary_kind == "vm" else "namespace.create"
    part = None if boundary is None else boundary.parts.get(first)
    if boundary is None or part is None or part.changing:
        msg = "the boundary is not there yet"
        raise TransientDriverError(msg)
    if boundary.tenant != work.owner.tenant:
        msg = "the boundary belongs to another tenant"
        raise DriverRejected(msg)
    return boundary


def _begin_clone(work: Work) -> None:
    _boundary_of(work)
    host = physics.host_of(work.state, work.payload["unit"]["host"])
    if "vm" not in host.boundary_kinds:
        msg = f"host {host.name} runs no VMs"
        raise DriverRejected(msg)
    old = work.workload()
    if old is not None and old.running:
        msg = f"{old.name} is powered on; it can be cloned anew only when it is off"
        raise TransientDriverError(msg)
    if old is not None:
        _remove(work.state, old)
    _claim_uid(work, work.payload["unit"]["uid"])
    built = _built(work, is_vm=True)
    work.state.put("workloads", built.uid, built)


def _claim_uid(work: Work, uid: str) -> None:
    other = work.state.workloads.get(uid)
    if other is not None and (other.owner, other.index) != (work.owner.uid, work.index):
        msg = f"{other.name} already carries this unit's id"
        raise TransientDriverError(msg)


def _begin_configure(work: Work) -> None:
    if work.machine().running:
        msg = f"{workload_name(work)} is powered on; it gets another size only when it is off"
        raise TransientDriverError(msg)


def _begin_power(work: Work) -> None:
    workload = work.machine()
    if work.payload["power"] == "on" and not workload.running:
        # What counts is the unit as it is now: its window may have been chosen anew since the clone.
        unit = work.payload["unit"]
        workload.devices, workload.starts = list(unit["devices"]), list(unit["starts"])
        _occupy(work, workload)
        _warm_up(work, workload)


def _begin_replica(work: Work) -> None:
    if work.owner.boundary_kind == "vm":
        _running(work)
        return
    boundary = _boundary_of(work)
    old = work.workload()
    was_running = old is not None and old.running
    if old is not None:
        windows = old.windows
        _vacate(work.state, old)
    built = _built(work, is_vm=False)
    try:
        _claim_uid(work, built.uid)
        if work.payload["power"] == "on":
            _check_limits(work, boundary, built)
            _occupy(work, built)
    except Exception:
        if old is not None and was_running:  # what ran goes on: a refused change stops nothing
            old.windows, old.running = windows, True
            work.state.occupy(f"unit:{old.uid}", old.host, windows, old.vcpu, old.memory_gib)
        raise
    if old is not None and old.uid != built.uid:
        work.state.drop("workloads", old.uid)
    built.serving = dict(work.payload["serving"])
    _warm_up(work, built)
    work.state.put("workloads", built.uid, built)


def _check_limits(work: Work, boundary: ObjectRecord, built: WorkloadRecord) -> None:
    """A namespace's own quota, as Kubernetes enforces it. Raises `TransientDriverError`: limits may follow."""
    if not work.state.settings.enforce_limits or not built.product:
        return
    resource = f"{built.product}.{built.profile}" if built.profile else built.product
    asked = 1 if built.profile else built.gpu_count
    used = sum(
        len(workload.windows)
        for inside in work.state.objects_in(boundary.uid)
        for workload in work.state.workloads_of(inside.uid)
        if workload.running and (workload.product, workload.profile) == (built.product, built.profile)
    )
    limit = boundary.limits.get(resource, 0)
    if used + asked > limit:
        msg = f"the namespace grants {limit} of {resource}, {used} in use, {asked} asked for"
        raise TransientDriverError(msg)


def _running(work: Work) -> WorkloadRecord:
    workload = work.machine()
    if not workload.running or work.now < workload.ready_at:
        msg = f"{workload.name} is not up yet"
        raise TransientDriverError(msg)
    return workload


def _begin_gateway(work: Work) -> None:
    if work.bare == "vm.gateway":
        _running(work)
    old = work.state.gateways.get(str(work.payload["gateway"]))
    if old is not None and not old.wanted:
        # A fresh record now would lose sight of the old process.
        msg = "this gateway's former process has not ended yet"
        raise TransientDriverError(msg)


def _begin_service(work: Work) -> None:
    _boundary_of(work)


def _begin_layout(work: Work) -> None:
    gpu = work.state.gpus.get(str(work.payload["device"]))
    if gpu is None or gpu.host != work.payload["host"]:
        msg = "the provider has no such GPU"
        raise DriverRejected(msg)
    if gpu.layout_change != "on-idle":
        msg = f"the layout of {gpu.device} is {gpu.layout_change} and cannot be set"
        raise NotSupported(msg)
    _check_responds(work.state, gpu)
    physics.check_layout(gpu.product, [(start, size, name) for start, size, name in work.payload["windows"]])
    if work.payload.get("evict"):
        _evict(work.state, gpu.device)
    if physics.taken(work.state, gpu.device):
        msg = f"{gpu.device} is in use; its layout can change only when it is idle"
        raise TransientDriverError(msg)


def _check_responds(state: State, gpu: GpuRecord) -> None:
    host = physics.host_of(state, gpu.host)
    if not host.healthy:
        msg = f"host {host.name} does not respond"
        raise TransientDriverError(msg)


def _evict(state: State, device: str) -> None:
    """Stop what of ours uses a GPU; what is not ours stays."""
    for workload in [workload for workload in state.workloads.values() if workload.running]:
        if any(window[0] == device for window in workload.windows):
            stop(state, workload)


_BEGIN: Final[Mapping[str, Callable[[Work], object]]] = {
    "vm.clone": _begin_clone,
    "vm.configure": _begin_configure,
    "vm.power": _begin_power,
    "vm.gateway": _begin_gateway,
    "namespace.gateway": _begin_gateway,
    "serving.replica": _begin_replica,
    "serving.service": _begin_service,
    "access.accounts": _boundary_of,
    "layout.apply": _begin_layout,
}


def begin(work: Work) -> bool:
    """Check that a step can be done and reserve what it takes; tell whether it took any room or made a VM.

    Raises `DriverError`s, leaving all as it was.
    """
    act = _BEGIN.get(work.bare)
    before = work.workload() if work.bare == "vm.power" else None
    was_running = before is not None and before.running
    if act is not None:
        act(work)
    if work.bare == "vm.power":
        return work.machine().running and not was_running
    return work.bare == "vm.clone" or (work.bare == "serving.replica" and work.owner.boundary_kind != "vm")


def begin_undo(work: Work) -> None:
    """Check that a step can be undone. Raises `TransientDriverError` while something stands in the way."""
    if work.bare in ("namespace.create", "folder.create"):
        blocked = blocked_by(work.state, work.owner)
        if blocked:
            raise TransientDriverError(blocked)
    workload = work.workload() if work.bare in ("vm.clone", "vm.power", "serving.replica") else None
    if workload is not None and not work.state.hosts[workload.host].healthy:
        msg = f"host {workload.host} does not respond"
        raise TransientDriverError(msg)


def blocked_by(state: State, boundary: ObjectRecord) -> str:
    """Return what stands in the way of removing a boundary, in words, or ""."""
    inside = [other.name for other in state.objects_in(boundary.uid)] if boundary.kind == "boundary" else []
    if not inside:
        return ""
    more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
    return f"{boundary.name} still holds {', '.join(inside[:3])}{more}"


# --- finish ---------------------------------------------------------------------------------------


def _finish_limits(work: Work) -> None:
    work.owner.limits = {name: int(count) for name, count in work.payload["gpu_resources"].items()}


def _finish_network(work: Work) -> None:
    work.owner.cut_off = bool(work.payload["cut_off"])


def _finish_configure(work: Work) -> None:
    _begin_configure(work)  # somebody may have switched it on meanwhile
    workload, unit = work.machine(), work.payload["unit"]
    workload.vcpu, workload.memory_gib = int(unit["vcpu"]), int(unit["memory_gib"])
    work.state.touch("workloads", workload.uid)


def _finish_power(work: Work) -> None:
    workload = work.machine()
    workload.cut_off = bool(work.payload["cut_off"])
    work.state.touch("workloads", workload.uid)
    if work.payload["power"] == "off":
        _vacate(work.state, workload)


def _finish_replica(work: Work) -> None:
    if work.owner.boundary_kind != "vm":
        return
    workload = work.machine()
    workload.asleep = bool(work.payload.get("asleep"))
    if workload.asleep:
        workload.serving = None
        work.state.touch("workloads", workload.uid)
        return
    workload.serving = dict(work.payload["serving"])
    workload.serving["ready_at"] = work.ends_at + work.state.settings.load_s
    work.state.touch("workloads", workload.uid)


def _finish_service(work: Work) -> None:
    work.owner.published = True
    work.owner.model = str(work.payload["model"])
    work.owner.public_name = str(work.payload.get("name", ""))
    if not work.payload.get("named", True):
        work.owner.named_at = 0.0
    elif work.owner.named_at == 0.0:
        work.owner.named_at = work.ends_at
    work.owner.cut_off = bool(work.payload["cut_off"])


def _finish_gateway(work: Work) -> None:
    state, uid = work.state, str(work.payload["gateway"])
    old = state.gateways.get(uid)
    part = work.owner.parts[work.step]
    if part.gateway and part.gateway != uid:
        _unwant(state, part.gateway)
    part.gateway = uid
    simulated = state.settings.gateways != "real"
    if old is not None and old.wanted:
        old.control_plane_url = str(work.payload["control_plane_url"])
        old.tls = bool(work.payload.get("tls")) and not simulated
        state.touch("gateways", uid)
        return
    workload = work.workload() if work.bare == "vm.gateway" else None
    record = GatewayRecord(
        uid=uid,
        owner=work.owner.uid,
        unit="" if workload is None else workload.uid,
        control_plane_url=str(work.payload["control_plane_url"]),
        simulated=simulated,
        running=simulated,
        enrolled=simulated,
        message="simulated" if simulated else "starting",
        tls=bool(work.payload.get("tls")) and not simulated,
    )
    state.put("gateways", uid, record)


def _finish_layout(work: Work) -> None:
    gpu = work.state.gpus[str(work.payload["device"])]
    _check_responds(work.state, gpu)  # a host that is lost half-way leaves what was there
    gpu.layout = [[start, size, name] for start, size, name in work.payload["windows"]]
    gpu.mode = "mig" if gpu.layout else "empty"
    work.state.touch("gpus", gpu.device)


_FINISH: Final[Mapping[str, Callable[[Work], None]]] = {
    "namespace.limits": _finish_limits,
    "namespace.policies": _finish_network,
    "namespace.gateway": _finish_gateway,
    "network.create": _finish_network,
    "vm.configure": _finish_configure,
    "vm.power": _finish_power,
    "vm.gateway": _finish_gateway,
    "serving.replica": _finish_replica,
    "serving.service": _finish_service,
    "access.accounts": _finish_network,
    "layout.apply": _finish_layout,
}


def finish(work: Work) -> None:
    """Make a step's effect true at the end of its task."""
    act = _FINISH.get(work.bare)
    if act is not None:
        act(work)


def abort(work: Work) -> None:
    """Give back what `begin` reserved, after a task that failed."""
    workload = work.workload()
    if workload is None:
        return
    if work.bare == "vm.clone" or (work.bare == "serving.replica" and not workload.is_vm):
        _remove(work.state, workload)
    elif work.bare == "vm.power":
        _vacate(work.state, workload)


# --- undo -----------------------------------------------------------------------------------------


def undo_can_finish(work: Work) -> bool:
    """Tell whether what an undo removes is really gone: a gateway's process ends in its own time."""
    workload = work.workload() if work.bare in {"serving.replica", "vm.power", "vm.clone"} else None
    model = None if workload is None else work.state.models.get(workload.uid)
    if model is not None:
        if model.wanted:
            model.wanted = False
            work.state.touch("models", model.uid)
        return False
    part = work.owner.parts.get(work.step)
    if part is None or not part.gateway:
        return True
    _unwant(work.state, part.gateway)
    return part.gateway not in work.state.gateways


def _unwant(state: State, uid: str) -> None:
    gateway = state.gateways.get(uid)
    if gateway is None:
        return
    if gateway.simulated:
        state.drop("gateways", uid)
    elif gateway.wanted:
        gateway.wanted = False
        state.touch("gateways", uid)


def finish_undo(work: Work) -> None:
    """Remove what a step made, and what cannot stand without it."""
    state, owner = work.state, work.owner
    workload = work.workload()
    match work.bare:
        case "namespace.limits":
            owner.limits = {}
        case "serving.service":
            owner.published, owner.named_at = False, 0.0
        case "vm.power" if workload is not None:
            _vacate(state, workload)
        case "serving.replica" if workload is not None and workload.is_vm:
            workload.serving = None
            state.touch("workloads", workload.uid)
        case "serving.replica" if workload is not None:
            _remove(state, workload)
        case "vm.clone":
            _destroy(work, workload)
        case "layout.apply":
            gpu = next(gpu for gpu in state.gpus.values() if f"{gpu.host}/{gpu.device}" == owner.model)
            gpu.layout, gpu.mode = [], "empty"
            state.touch("gpus", gpu.device)
        case _:
            pass


def _destroy(work: Work, workload: WorkloadRecord | None) -> None:
    """Remove a VM with all that stands on it."""
    if workload is not None:
        _remove(work.state, workload)
    for bare in ("vm.configure", "vm.power", "vm.gateway", "serving.replica"):
        gone = work.owner.parts.pop(indexed(bare, work.index) if work.suffix else bare, None)
        if gone is not None and gone.gateway:
            _unwant(work.state, gone.gateway)
