"""Endpoints in VMs: what is told to a guest after its boot, and what is believed of its answers.

A VM gets a one-time token (`vm.gateway`), then a pointer to what it is to run (`serving.replica`); both by guestinfo,
and no secret of value in either: the token is good in this VM only, and what the pointer means is asked of the control
plane by the guest itself. What a step made true stands in a record that no guest can write (`vms.RECORD`). Guestinfo
that a guest wrote is a report: it may hold up its own endpoint and nothing else. Proofs are the core's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from provisioners.driver import (
    BoundaryKind,
    Done,
    DriverRejected,
    EndpointSpec,
    GatewaySpec,
    Handle,
    LogLine,
    NotSupported,
    Observed,
    ObservedUnit,
    Part,
    Power,
    Presence,
    Ref,
    Secret,
    Step,
    TransientDriverError,
    UnitSpec,
    machine_uuid,
)
from provisioners.serving import replica, vllm
from provisioners.steps import indexed, make, order_of, split
from provisioners.vsphere import units, vms
from provisioners.vsphere.cloud_init import Seed
from provisioners.vsphere.ground import Ground, payload
from provisioners.vsphere.guest_agent import CLEARED, ENROLMENT, GATEWAY_REPORT, REPLICA_REPORT, SERVING, STOPPED
from provisioners.vsphere.machines import Machines
from provisioners.vsphere.names import vm_name
from provisioners.vsphere.plans import VmPlan, vm_steps
from provisioners.vsphere.settings import Settings
from provisioners.vsphere.vms import Vm

GATEWAY: Final = "vm.gateway"
REPLICA: Final = "serving.replica"
SERVICE: Final = "serving.service"
LONGEST_MESSAGE: Final = 200
_LOOPBACK: Final = re.compile(r"http://127\.0\.0\.1:[1-9][0-9]{1,4}/v1")
"""The only addresses that a lab's guest may report."""


@dataclass(frozen=True, slots=True)
class GatewayPart:
    """Payload of `vm.gateway`."""

    gateway: GatewaySpec


@dataclass(frozen=True, slots=True)
class ReplicaPart:
    """Payload of `serving.replica`."""

    revision_uid: str
    revision: int
    model: str
    asleep: bool = False
    """At zero: its guest is to run none, and its machine stays."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a guest says of one thing; every field is a text of somebody whom nobody trusts."""

    of: str = ""
    """Which delivery or want it speaks of."""
    state: str = ""
    message: str = ""
    licence: str = ""
    at: str = ""
    """Address."""


class Serving:
    """The endpoints of one vCenter. Thread-safe."""

    def __init__(self, ground: Ground, machines: Machines) -> None:
        """Serve in the VMs that `machines` makes."""
        self._ground = ground
        self._machines = machines

    # --- steps ------------------------------------------------------------------------------------

    def steps(self, spec: EndpointSpec) -> Sequence[Step]:
        """Return the ordered steps of an endpoint; pure. Raises `NotSupported`, `DriverRejected`."""
        return steps(spec, self._ground.settings)

    def start(self, step: Step) -> Handle | Done:
        """Start one step or its undo."""
        bare, index = split(step.name)
        if bare == SERVICE:
            return self._service(step)
        vm = self._machines.find(step.ref, index)
        if step.undo:
            return self._undo(bare, vm)
        if vm is None or not vm.is_on:
            raise TransientDriverError(f"{vm_name(step.ref, index)} does not run")
        values = _enrolment(step, self._ground.settings) if bare == GATEWAY else _pointer(step)
        return self._machines.tell(vm, values)

    def _undo(self, bare: str, vm: Vm | None) -> Handle | Done:
        keys = (ENROLMENT, GATEWAY_REPORT) if bare == GATEWAY else (SERVING, REPLICA_REPORT)
        told = {key: "" for key in (*keys, vms.key_of(bare)) if vm is not None and vm.extra.get(key)}
        return self._machines.tell(vm, told) if vm is not None and told else Done()

    def _service(self, step: Step) -> Handle | Done:
        """Record on the first VM that the address is published: guests have it by themselves."""
        found = self._machines.all_of(step.ref)
        if step.undo:
            ours = [vm for vm in found if vm.record(SERVICE)]
            return self._machines.tell(ours[0], {vms.key_of(SERVICE): ""}) if ours else Done()
        if not found:
            raise TransientDriverError("there is no machine yet whose address could be published")
        return self._machines.tell(found[0], {vms.key_of(SERVICE): vms.record_text(step.want)})

    # --- looking ----------------------------------------------------------------------------------

    def observe(self, ref: Ref) -> Observed:
        """Read one endpoint exactly."""
        look = self._machines.look(ref)
        settings = self._ground.settings
        parts = [*look.parts, *_parts(look.vms, settings)]
        serving = next((vm.record(REPLICA) for vm in look.vms if vm.record(REPLICA)), {})
        found = (address_of(vm, settings) for vm in look.vms)
        address = next((one for one in found if one), "")
        return Observed(
            ref,
            exists=bool(parts),
            parts=tuple(sorted(parts, key=lambda part: order_of(part.step))),
            units=tuple(_with_backends(look.units, look.vms, settings)),
            address=address,
            reachable_from=("lab" if settings.is_lab else "tenant") if address else "",
            model=str(serving.get("model", "")),
            revision=_number(serving.get("revision")),
            power=look.power,
            asleep=bool(look.vms) and all(_is_asleep(vm) for vm in look.vms),
            simulated=settings.is_lab,
        )

    # --- at once ----------------------------------------------------------------------------------

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Cut the cards of its VMs, or restore them; memory stays."""
        return self._machines.isolate(ref, cut_off=cut_off)

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterable[LogLine]:
        """Return what vCenter tells of its VMs."""
        return self._machines.logs(ref, since=since, tail=tail)


# --- what is wanted -------------------------------------------------------------------------------


def steps(spec: EndpointSpec, settings: Settings) -> tuple[Step, ...]:
    """Return the ordered steps of an endpoint. Raises `NotSupported`, `DriverRejected`."""
    if spec.boundary_kind is not BoundaryKind.VM:
        raise NotSupported("a vCenter serves in vm boundaries only")
    if any(one.mirror.startswith("nfs://") for one in spec.servings):
        raise NotSupported("machines mount no mirror of models on NFS: serve it in a namespace, or from the hub or S3")
    gateways = {gateway.uid: gateway for gateway in spec.gateways}
    found: list[Step] = []
    for unit in spec.units:
        found += vm_steps(spec.ref, _vm_plan(spec, unit, settings))
        if unit.uid not in gateways:
            raise DriverRejected(f"unit {unit.index} came without its gateway")
        found += _inside(spec, unit, gateways[unit.uid])
    found.append(make(spec.ref, SERVICE, {"model": spec.serving.model}, None))
    return tuple(sorted(found, key=lambda step: order_of(step.name)))


def _vm_plan(spec: EndpointSpec, unit: UnitSpec, settings: Settings) -> VmPlan:
    seed = Seed(
        instance_id=machine_uuid(unit.uid),
        hostname=vm_name(spec.ref, unit.index),
        files=units.endpoint_files(),
        commands=units.endpoint_commands(),
    )
    return VmPlan(spec.boundary, unit.index, unit, settings.endpoint_image, 0, spec.power, spec.cut_off, seed)


def _inside(spec: EndpointSpec, unit: UnitSpec, gateway: GatewaySpec) -> tuple[Step, Step]:
    """Return the two steps that talk to a guest; they wait while it is to be off."""
    dormant = spec.power is Power.OFF
    want = {"gateway": str(gateway.uid), "control_plane_url": gateway.control_plane_url}
    serving = spec.serving_of(unit)
    part = ReplicaPart(str(serving.revision_uid), serving.revision, serving.model, spec.asleep)
    runs = {"unit": str(unit.uid), "asleep": True} if spec.asleep else replica.want_of(serving, unit.uid)
    return (
        make(spec.ref, indexed(GATEWAY, unit.index), want, GatewayPart(gateway), dormant=dormant),
        make(spec.ref, indexed(REPLICA, unit.index), runs, part, dormant=dormant),
    )


def delivery_of(token: Secret) -> str:
    """Return what stands for a token where people may read it; it gives nothing of it away."""
    return hashlib.sha256(b"tenantry-delivery\0" + token.reveal().encode()).hexdigest()[:16]


def _enrolment(step: Step, settings: Settings) -> dict[str, str]:
    gateway = payload(step, GatewayPart).gateway
    if gateway.enrolment_token is None:
        raise DriverRejected("the gateway is not there and comes up only with a fresh token")
    delivery = delivery_of(gateway.enrolment_token)
    told = {
        "gateway_uid": str(gateway.uid),
        "token": gateway.enrolment_token.reveal(),
        "control_plane_url": gateway.control_plane_url,
        "ca_pem": settings.control_plane_ca_pem,
        "delivery": delivery,
    }
    return {
        ENROLMENT: json.dumps(told, sort_keys=True),
        vms.key_of(GATEWAY): vms.record_text(step.want, delivery=delivery),
    }


def _pointer(step: Step) -> dict[str, str]:
    part = payload(step, ReplicaPart)
    if part.asleep:  # a guest without a pointer stops what it runs, and says so
        return {ENROLMENT: "", SERVING: "", vms.key_of(REPLICA): vms.record_text(step.want, asleep=True)}
    told = {"revision_uid": part.revision_uid, "revision": part.revision, "want": step.want}
    return {
        ENROLMENT: "",  # its gateway has enrolled, or this would not be started: the token has done its work
        SERVING: json.dumps(told, sort_keys=True),
        vms.key_of(REPLICA): vms.record_text(step.want, revision=part.revision, model=part.model),
    }


# --- what is shown --------------------------------------------------------------------------------


def _parts(found: Sequence[Vm], settings: Settings) -> list[Part]:
    parts = [part for vm in found for part in (gateway_part(vm), replica_part(vm)) if part is not None]
    record = next((vm.record(SERVICE) for vm in found if vm.record(SERVICE)), None)
    if record is not None:
        ready = any(address_of(vm, settings) for vm in found) or not any(vm.is_on for vm in found)
        message = "" if ready else "no machine has an address yet"
        parts.append(Part(SERVICE, Presence.PRESENT, have=str(record.get("want", "")), message=message, ready=ready))
    return parts


def gateway_part(vm: Vm) -> Part | None:
    """Return the gateway of a VM; None where none was told to start, or where only a fresh token helps."""
    name, record = vm.named(GATEWAY), vm.record(GATEWAY)
    if not record:
        return None
    have, report = str(record.get("want", "")), report_of(vm, GATEWAY_REPORT, "delivery")
    if not vm.is_on:
        return Part(name, Presence.PRESENT, have, message="its machine does not run", ready=False)
    if report.of != record.get("delivery"):
        message = "its guest has not taken its token yet" if vm.has_tools else "its machine is booting"
        return Part(name, Presence.PRESENT, have, message=message, ready=False)
    if report.state == "refused":
        return None
    ready = report.state == "enrolled"
    return Part(name, Presence.PRESENT, have, message="" if ready else report.message or "starting", ready=ready)


def replica_part(vm: Vm) -> Part | None:
    """Return the model server of a VM; None where none was told to start."""
    name, record = vm.named(REPLICA), vm.record(REPLICA)
    if not record:
        return None
    have, report = str(record.get("want", "")), report_of(vm, REPLICA_REPORT, "want")
    if not vm.is_on:
        return Part(name, Presence.PRESENT, have, message="its machine does not run", ready=False)
    if record.get("asleep"):
        stopped = _is_asleep(vm)
        return Part(name, Presence.PRESENT, have, message="" if stopped else "stopping", ready=stopped)
    if report.of != have:
        message = report.message or "its guest is taking what it is to run"
        return Part(name, Presence.PRESENT, have, message=message, ready=False)
    if report.state == "ready":
        message = f"vGPU licence: {report.licence}" if report.licence else ""
        return Part(name, Presence.PRESENT, have, message=message)
    return Part(name, Presence.PRESENT, have, message=report.message or "loading the model", ready=False)


def _is_asleep(vm: Vm) -> bool:
    """Whether a machine that runs is to run no model server, and its guest says that it does not."""
    record = vm.record(REPLICA)
    return vm.is_on and bool(record.get("asleep")) and report_of(vm, REPLICA_REPORT, "want").state == STOPPED


def report_of(vm: Vm, key: str, of: str) -> Report:
    """Return what a guest says, each field a short printable text; an empty report for nonsense."""
    text = vm.extra.get(key, "")
    if not text or text == CLEARED:
        return Report()
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return Report()
    if not isinstance(told, dict):
        return Report()
    at = told.get("address") or told.get("backend")
    return Report(
        _text(told.get(of)), _text(told.get("state")), _text(told.get("message")), _text(told.get("licence")), _text(at)
    )


def address_of(vm: Vm, settings: Settings) -> str:
    """Return where a VM's gateway answers, `""` while it is not known."""
    if not vm.is_on or not vm.record(GATEWAY):
        return ""
    if settings.is_lab:
        return _on_loopback(report_of(vm, GATEWAY_REPORT, "delivery").at)
    found = vms.address(vm)
    return f"https://{found}/v1" if found else ""


def backend_of(vm: Vm, settings: Settings) -> str:
    """Return where a VM's own gateway reaches the model server beside it, `""` while none is to run."""
    if not vm.is_on or not vm.record(REPLICA) or vm.record(REPLICA).get("asleep"):
        return ""
    if settings.is_lab:
        return _on_loopback(report_of(vm, REPLICA_REPORT, "want").at)
    return f"http://127.0.0.1:{vllm.PORT}/v1"


def _with_backends(seen: Iterable[ObservedUnit], found: Iterable[Vm], settings: Settings) -> Iterable[ObservedUnit]:
    by_unit = {vms.unit_uid(vm): vm for vm in found}
    for unit in seen:
        vm = by_unit.get(unit.uid)
        if vm is None:
            yield unit
            continue
        revision = _number(vm.record(REPLICA).get("revision"))
        backend = backend_of(vm, settings)
        yield replace(unit, backend=backend, gateway=address_of(vm, settings), revision=revision)


def _on_loopback(url: str) -> str:
    return url if _LOOPBACK.fullmatch(url) else ""


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(character for character in value[:LONGEST_MESSAGE] if character.isprintable())


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None
