"""How an estate shows itself: capabilities, snapshot, one object, uses, truth. Reads the state only.

What a provider would not say yet is not said here either: late, partial and wrong device reports are
applied in `_reported`, the only place between the truth and what anybody sees.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Final
from uuid import UUID

from pydantic import TypeAdapter

from provisioners.driver import (
    Acceptance,
    Binding,
    BoundaryKind,
    Capabilities,
    DriverRejected,
    EngineReport,
    Kind,
    Observed,
    ObservedGpu,
    ObservedHost,
    ObservedObject,
    ObservedProvider,
    ObservedUnit,
    ObservedUse,
    Part,
    Power,
    Presence,
    Ref,
    intent_hash,
    layout_ref,
)
from provisioners.sandbox import effects, physics
from provisioners.sandbox.records import GatewayRecord, ObjectRecord, PartRecord, WorkloadRecord
from provisioners.sandbox.state import State
from provisioners.steps import in_order, indexed, split

VERSION: Final = "sandbox/1"
IMAGES: Final = frozenset({"debian-12", "ubuntu-22.04", "ubuntu-24.04"})
"""What a simulated machine can be made of."""
FEATURES: Final = ("isolate", "power", "layout-change", "logs", "evacuate", "acceptance", "faults", "canary", "zero")
PROVIDER: Final = TypeAdapter(ObservedProvider)
"""Snapshot ↔ JSON."""


@dataclass(frozen=True, slots=True)
class TrueUse:
    """One window that is really in use, whatever the estate reports."""

    host: str
    device: str
    start: int
    size: int
    profile: str
    unit: str
    """Uid of our unit, "" for foreign use."""
    name: str


# --- the whole estate -----------------------------------------------------------------------------


def capabilities(state: State) -> Capabilities:
    """Return what the estate can do, from the hosts it has."""
    kinds = {BoundaryKind(kind) for host in state.hosts.values() for kind in host.boundary_kinds}
    missing = {
        "cluster": "the sandbox simulates no clusters inside clusters; use a namespace or vm boundary",
        "console": "machines of the sandbox are simulated and have no screen",
    }
    if state.settings.models != "local":
        missing["local-models"] = 'model servers answer as stubs; set the estate\'s setting "models" to "local"'
    if state.settings.models == "local":
        missing["model-staging"] = "model servers of this estate read their files where they lie on this machine"
    if state.settings.gateways != "real":
        missing["real-gateways"] = 'set the estate\'s setting "gateways" to "real"'
    if not state.settings.names:
        missing["move"] = 'addresses of endpoints stay where they are; set the estate\'s setting "names" to true'
    return Capabilities(
        kind="sandbox",
        version=VERSION,
        boundary_kinds=frozenset(kinds),
        bindings=frozenset(Binding(host.binding) for host in state.hosts.values()),
        features={
            **dict.fromkeys(FEATURES, True),
            "cluster": False,
            "console": False,
            "real-gateways": "real-gateways" not in missing,
            "local-models": "local-models" not in missing,
            "move": "move" not in missing,
            "model-staging": "model-staging" not in missing,
        },
        missing=missing,
        simulated=True,
        images=IMAGES,
    )


def snapshot(state: State, now: float) -> ObservedProvider:
    """Return everything at once."""
    silent = _silent_hosts(state, now)
    return ObservedProvider(
        hosts=tuple(_host(state, host, silent=host in silent) for host in sorted(state.hosts)),
        uses=tuple(uses(state, now)),
        objects=tuple(_objects(state, now)),
        capabilities=capabilities(state),
        complete=True,
        version=f"{VERSION} at {now:.3f}",
    )


def provider_from_json(value: Any, *, complete: bool) -> ObservedProvider:
    """Return a captured snapshot, marked complete or not."""
    return replace(PROVIDER.validate_python(value), complete=complete)


def doubled(shown: ObservedProvider) -> ObservedProvider:
    """Return a snapshot whose lists hold everything twice."""
    return replace(shown, hosts=shown.hosts * 2, uses=shown.uses * 2, objects=shown.objects * 2)


def _silent_hosts(state: State, now: float) -> set[str]:
    """Return the hosts that choose devices themselves and have not told yet, or never tell, all they chose."""
    if state.settings.report_detail != "window":
        return {host.host for host in state.hosts.values() if host.binding == Binding.HOST}
    running = [workload for workload in state.workloads.values() if workload.running and workload.product]
    return {one.host for one in running if one.binding == Binding.HOST and now < one.report_at}


def _host(state: State, host: str, *, silent: bool) -> ObservedHost:
    record = state.hosts[host]
    return ObservedHost(
        host=record.host,
        name=record.name,
        binding=Binding(record.binding),
        vcpu=record.vcpu,
        memory_gib=record.memory_gib,
        gpus=tuple(_gpu(state, device, silent=silent) for device in state.gpus_of.get(host, ())),
        healthy=record.healthy,
        message=record.message,
        in_maintenance=record.in_maintenance,
        boundary_kinds=frozenset(BoundaryKind(kind) for kind in record.boundary_kinds),
    )


def _gpu(state: State, device: str, *, silent: bool) -> ObservedGpu:
    gpu = state.gpus[device]
    # What is carved for good is known; what comes and goes with workloads would give away their devices.
    told = gpu.layout_change != "dynamic" or not silent
    return ObservedGpu(
        device=device,
        product=gpu.product,
        index=gpu.index,
        mode=physics.mode_of(state, gpu) if told else "unknown",
        healthy=gpu.healthy,
        message=gpu.message,
        windows=tuple(physics.carved(state, gpu)) if told else (),
        layout_change=gpu.layout_change,
    )


def uses(state: State, now: float) -> Iterable[ObservedUse]:
    """Yield every use of room as the provider reports it, ours first."""
    for workload in state.workloads.values():
        if not workload.running:
            continue
        owner = state.objects[workload.owner]
        shown = _reported(state, workload, now) or [("", None, 0, "", True)]
        for position, (device, start, size, profile, _exact) in enumerate(shown):
            first = position == 0
            yield ObservedUse(
                host=workload.host,
                device=device,
                start=start,
                size=size,
                profile=profile,
                ref=_ref(owner),
                unit=UUID(workload.uid),
                name=workload.name,
                vcpu=workload.vcpu if first else 0,
                memory_gib=workload.memory_gib if first else 0,
            )
    for use in state.foreign_uses.values():
        for position, window in enumerate(use.windows or [["", None, 0, ""]]):
            device, start, size, profile = window
            first = position == 0
            yield ObservedUse(
                host=use.host,
                device=device,
                start=start,
                size=size,
                profile=profile,
                ref=None,
                unit=None,
                name=use.name,
                vcpu=use.vcpu if first else 0,
                memory_gib=use.memory_gib if first else 0,
            )


def _objects(state: State, now: float) -> Iterable[ObservedObject]:
    for owner in state.objects.values():
        if owner.kind == Kind.LAYOUT:
            continue
        own = state.workloads_of(owner.uid)
        seen = [
            [[part.step, part.presence, part.have, part.ready] for part in _parts(state, owner, own, now)],
            [[unit.uid, unit.host, unit.device, unit.start] for unit in _units(state, own, now, "")],
            owner.cut_off,
        ]
        yield ObservedObject(_ref(owner), intent_hash(seen))


# --- one object -----------------------------------------------------------------------------------


def observe(state: State, ref: Ref, now: float, url: str) -> Observed:
    """Return one object; not there, or there under another owner's marks, is `exists=False`."""
    if ref.kind == Kind.LAYOUT:
        return _layout(state, ref)
    owner = state.objects.get(str(ref.uid))
    if owner is None or owner.tenant != str(ref.tenant_uid) or owner.kind != ref.kind:
        return Observed(ref, exists=False, simulated=True)
    workloads = state.workloads_of(owner.uid)
    address = _address(state, owner, workloads, url)
    serving = next((workload.serving for workload in workloads if workload.serving), None)
    return Observed(
        ref=ref,
        exists=True,
        parts=tuple(_parts(state, owner, workloads, now)),
        units=tuple(_units(state, workloads, now, url)),
        address=address,
        reachable_from="lab" if address.startswith("http://127.") else "",
        model=str(serving["model"]) if serving else "",
        revision=int(serving["revision"]) if serving else None,
        power=_power(workloads),
        asleep=bool(workloads) and all(workload.asleep and workload.running for workload in workloads),
        blocked_by=effects.blocked_by(state, owner),
        simulated=True,
    )


def _layout(state: State, ref: Ref) -> Observed:
    gpu = next((gpu for gpu in state.gpus.values() if layout_ref(gpu.host, gpu.device) == ref), None)
    if gpu is None:
        return Observed(ref, exists=False, simulated=True)
    owner = state.objects.get(str(ref.uid))
    record = owner.parts.get("layout.apply") if owner else None
    changing = record is not None and record.changing
    part = Part(
        "layout.apply",
        Presence.CHANGING if changing else Presence.PRESENT,
        have=intent_hash({"windows": [list(window) for window in sorted(physics.carved(state, gpu))]}),
        handle=record.task if record is not None and changing else "",
        message=gpu.message,
        ready=gpu.healthy,
    )
    return Observed(ref, exists=True, parts=(part,), simulated=True)


def _parts(state: State, owner: ObjectRecord, workloads: list[WorkloadRecord], now: float) -> Iterable[Part]:
    by_index = {workload.index: workload for workload in workloads}
    for name in in_order(owner.parts):
        record = owner.parts[name]
        bare, index = split(name)
        workload = by_index.get(index or 0)
        waiting = _waiting_for(state, bare, record, workload, now)
        yield Part(
            step=name,
            presence=Presence.CHANGING if record.changing else Presence.PRESENT,
            have=record.have,
            handle=record.task,
            message=waiting or ("simulated" if record.gateway and _gateway(state, record).simulated else ""),
            ready=not waiting and not record.changing,
        )


def _gateway(state: State, part: PartRecord) -> GatewayRecord:
    return state.gateways.get(part.gateway) or GatewayRecord(part.gateway, "", "", "", simulated=False)


def _waiting_for(state: State, bare: str, part: PartRecord, workload: WorkloadRecord | None, now: float) -> str:
    """Return why a part does not work yet, or "". What is off because it should be is not waiting."""
    if workload is not None and bare in {"vm.power", "vm.gateway", "serving.replica"}:
        host = state.hosts[workload.host]
        if not host.healthy:
            return f"host {host.name} does not respond"
        bad = [window[0] for window in workload.windows if not state.gpus[window[0]].healthy]
        if bad:
            return f"GPU {bad[0]} is faulty: {state.gpus[bad[0]].message}"
        if not workload.running:
            return ""
        if bare == "vm.power" and now < workload.ready_at:
            return "booting"
        if bare == "serving.replica" and workload.serving:
            return _waiting_for_model(state, workload, now)
    if part.gateway:
        gateway = _gateway(state, part)
        if not gateway.enrolled:
            return gateway.message or "the gateway has not enrolled yet"
        if not gateway.running:
            return gateway.message or "the gateway is down"
    return ""


def _waiting_for_model(state: State, workload: WorkloadRecord, now: float) -> str:
    """Return why a replica's model server, a stub or a real one, does not answer yet, or ""."""
    if state.settings.models != "local":
        return "loading the model" if workload.serving and now < workload.serving["ready_at"] else ""
    record = state.models.get(workload.uid)
    if record is None or record.call != call_of(workload):
        return "vLLM is starting"
    return "" if record.ready else record.message


def call_of(workload: WorkloadRecord) -> str:
    """Return what a replica serves and how, as a digest: a model server of another call makes way."""
    serving = workload.serving or {}
    return intent_hash({name: serving.get(name) for name in ("revision_uid", "argv", "environment", "key_digest")})


def _backend(state: State, workload: WorkloadRecord, url: str) -> str:
    """Return where gateways reach a replica; of a real model server "" while it does not run or is cut off."""
    if not workload.serving or not workload.running:
        return ""
    if state.settings.models != "local":
        return f"{url}/replicas/{workload.uid}/v1"
    record = state.models.get(workload.uid)
    is_there = (
        record is not None and record.pid and record.call == call_of(workload) and not is_cut_off(state, workload)
    )
    return f"http://127.0.0.1:{record.port}/v1" if record is not None and is_there else ""


def is_cut_off(state: State, workload: WorkloadRecord) -> bool:
    """Whether a workload's network is taken away, by itself or with what it is in."""
    owner = state.objects[workload.owner]
    boundary = state.objects.get(owner.boundary)
    return workload.cut_off or owner.cut_off or (boundary is not None and boundary.cut_off)


def _engine(state: State, workload: WorkloadRecord) -> EngineReport | None:
    """Return what a replica's real model server said of itself; a stub says nothing."""
    record = state.models.get(workload.uid)
    if record is None or not record.ready or not record.told:
        return None
    known = {field.name for field in fields(EngineReport)}
    told = {name: value for name, value in record.told.items() if name in known}
    return EngineReport(**told, runs_on="this machine's CPU; its GPU is simulated")


def _gateway_in(state: State, workload: WorkloadRecord) -> str:
    """Return where the gateway in a VM answers others of its endpoint, "" where none does."""
    if not workload.is_vm or not workload.running or is_cut_off(state, workload):
        return ""
    part = state.objects[workload.owner].parts.get(indexed("vm.gateway", workload.index))
    gateway = None if part is None else state.gateways.get(part.gateway)
    if gateway is None or gateway.simulated or not gateway.running:
        return ""
    return f"http://127.0.0.1:{gateway.port}/v1"


def _units(state: State, workloads: list[WorkloadRecord], now: float, url: str) -> Iterable[ObservedUnit]:
    for workload in workloads:
        beside = _gateway_in(state, workload)
        backend, engine = _backend(state, workload, url), _engine(state, workload)
        revision = int(workload.serving["revision"]) if workload.serving else None
        shown = _reported(state, workload, now) if workload.running else []
        if not shown:
            yield ObservedUnit(
                UUID(workload.uid), workload.host, "", None, workload.profile, exact=False, backend=backend,
                revision=revision,
                engine=engine,
                gateway=beside,
            )  # fmt: skip
        for index, (device, start, _size, profile, exact) in enumerate(shown):
            yield ObservedUnit(
                UUID(workload.uid),
                workload.host,
                device,
                start,
                profile,
                exact,
                index,
                backend,
                revision,
                engine,
                beside,
            )


def _reported(state: State, workload: WorkloadRecord, now: float) -> list[tuple[str, int | None, int, str, bool]]:
    """Return (device, start, size, profile, exact) for each window as the provider tells it now."""
    windows = workload.reported or workload.windows
    if workload.binding != Binding.HOST:
        return [(device, start, size, profile, True) for device, start, size, profile in windows]
    detail = state.settings.report_detail
    if now < workload.report_at or detail == "never":
        return [("", None, size, profile, False) for _device, _start, size, profile in windows]
    exact_start = detail == "window"
    return [(device, start if exact_start else None, size, profile, True) for device, start, size, profile in windows]


def _address(state: State, owner: ObjectRecord, workloads: list[WorkloadRecord], url: str) -> str:
    if owner.kind == Kind.MACHINE:
        return f"{owner.name}.sandbox.invalid:22"
    carrier = owner
    if owner.kind == Kind.ENDPOINT:
        if not owner.published and owner.boundary_kind != "vm":
            return ""
        carrier = owner if owner.boundary_kind == "vm" else state.objects.get(owner.boundary, owner)
    gateway = next(iter(gateways_in_front(state, carrier, workloads)), None)
    if gateway is None:
        return ""
    if owner.kind == Kind.ENDPOINT and state.settings.names and owner.public_name:
        return _address_by_name(owner, url, gateway)
    return f"{url}/gateways/{gateway.uid}/v1" if gateway.simulated else f"{gateway.base_url}/v1"


def _address_by_name(owner: ObjectRecord, url: str, gateway: GatewayRecord) -> str:
    """Return the address that an endpoint is reached at by its name, "" while nobody listens for that yet."""
    if gateway.simulated:
        return f"{url.partition('/estates/')[0]}/names/{owner.public_name}/v1"
    return f"{'https' if gateway.tls else 'http'}://127.0.0.1:{owner.name_port}/v1" if owner.name_port else ""


def gateways_in_front(state: State, carrier: ObjectRecord, workloads: list[WorkloadRecord]) -> list[GatewayRecord]:
    """Return the gateways of a boundary or of an endpoint's VMs that run now, by step."""
    running = [workload.index for workload in workloads if workload.running]
    found = []
    for name in in_order(carrier.parts):
        gateway = state.gateways.get(carrier.parts[name].gateway)
        index = split(name)[1]
        if gateway is not None and gateway.running and (index is None or index in running):
            found.append(gateway)
    return found


def _power(workloads: list[WorkloadRecord]) -> Power | None:
    if not workloads:
        return None
    return Power.ON if any(workload.running for workload in workloads) else Power.OFF


def _ref(owner: ObjectRecord) -> Ref:
    return Ref(Kind(owner.kind), UUID(owner.uid), UUID(owner.tenant))


# --- for operators and tests ----------------------------------------------------------------------


def acceptance(state: State, host: str) -> Acceptance:
    """Return one simulated check per GPU and one for the host. Raises `DriverRejected` for an unknown host."""
    record = state.hosts.get(host)
    if record is None:
        msg = f"the provider has no host {host!r}"
        raise DriverRejected(msg)
    checks = [("host responds", record.healthy, record.message or "simulated: it does")]
    for device in state.gpus_of.get(host, ()):
        gpu = state.gpus[device]
        checks.append((f"workload on {device}", gpu.healthy, gpu.message or f"simulated: {gpu.product} answered"))
    return Acceptance(all(passed for _name, passed, _seen in checks), tuple(checks))


def truth(state: State) -> list[TrueUse]:
    """Return who really uses which window; what a ledger must equal in the end."""
    found = [
        TrueUse(workload.host, device, start, size, profile, workload.uid, workload.name)
        for workload in state.workloads.values()
        if workload.running
        for device, start, size, profile in workload.windows
    ]
    found += [
        TrueUse(use.host, device, start, size, profile, "", use.name)
        for use in state.foreign_uses.values()
        for device, start, size, profile in use.windows
    ]
    return sorted(found, key=lambda use: (use.host, use.device, use.start, use.name))


def leftovers(state: State) -> list[str]:
    """Return a line for everything of ours that still exists: objects, workloads, gateways, running tasks."""
    found = [f"{owner.kind} {owner.name}: {', '.join(in_order(owner.parts))}" for owner in state.objects.values()]
    found = [line for line in found if not line.startswith("layout ")]
    found += [f"workload {workload.name} on {workload.host}" for workload in state.workloads.values()]
    found += [f"gateway {gateway.uid}" for gateway in state.gateways.values()]
    found += [f"model server of {record.uid}" for record in state.models.values()]
    found += [f"task {task.step}" for task in state.tasks.values() if task.state == "running"]
    return sorted(found)
