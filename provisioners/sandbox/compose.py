"""Spec → ordered steps for the sandbox. Pure: everything in a step derives from the spec alone.

A step's want holds what the provider would really look at. Devices and starts that the provider chooses
itself are left out, so a report that moves a window in the ledger changes no step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from provisioners.driver import (
    Binding,
    BoundaryKind,
    BoundarySpec,
    DriverRejected,
    EndpointSpec,
    GatewaySpec,
    LayoutChange,
    MachineSpec,
    NamespaceSpec,
    NotSupported,
    Power,
    ServingSpec,
    Spec,
    Step,
    UnitSpec,
    layout_ref,
)
from provisioners.sandbox.estate import KEY_FIELD, TOKEN_FIELD
from provisioners.sandbox.stub import KEY_DIGEST, KEY_VARIABLE
from provisioners.steps import in_order, indexed, make

CLUSTER_MISSING = "the sandbox makes no cluster boundaries; use a namespace or vm boundary"


def steps(spec: Spec) -> tuple[Step, ...]:
    """Return the steps that make `spec` true, in order. Raises `NotSupported`, `DriverRejected`."""
    match spec:
        case BoundarySpec():
            found = _boundary(spec)
        case EndpointSpec():
            found = _endpoint(spec)
        case MachineSpec():
            found = _machine(spec)
        case NamespaceSpec():
            found = _namespace(spec)
    by_name = {step.name: step for step in found}
    return tuple(by_name[name] for name in in_order(by_name))


def layout_steps(change: LayoutChange) -> tuple[Step, ...]:
    """Return a step for each GPU that a change carves; each is carved by itself."""
    found = []
    for device, wanted in ((change.device, change.windows), *change.beside):
        windows = sorted([start, size, profile] for start, size, profile in wanted)
        payload = {"host": change.host, "device": device, "windows": windows, "evict": change.evict}
        found.append(make(layout_ref(change.host, device), "layout.apply", {"windows": windows}, payload))
    return tuple(found)


def _boundary(spec: BoundarySpec) -> list[Step]:
    access = [list(pair) for pair in sorted(spec.access)]
    room = {"vcpu": spec.vcpu, "memory_gib": spec.memory_gib, "storage_gib": spec.storage_gib}
    if spec.kind == BoundaryKind.NAMESPACE:
        wants: dict[str, dict[str, Any]] = {
            "namespace.create": {"tier": spec.tier},
            "namespace.limits": {**room, "gpu_resources": dict(sorted(spec.gpu_resources.items()))},
            "namespace.policies": {"cut_off": spec.cut_off, "tier": spec.tier},
            "namespace.access": {"access": access},
        }
    elif spec.kind == BoundaryKind.VM:
        wants = {
            "folder.create": {"tier": spec.tier},
            "pool.create": room,
            "network.create": {"cut_off": spec.cut_off},
            "role.grant": {"access": access},
        }
    else:
        raise NotSupported(CLUSTER_MISSING)
    common = {"boundary_kind": str(spec.kind)}
    found = [make(spec.ref, name, want, common | want) for name, want in wants.items()]
    if spec.gateway is not None and spec.kind == BoundaryKind.NAMESPACE:
        found.append(_gateway(spec, "namespace.gateway", spec.gateway, common))
    return found


def _gateway(
    spec: BoundarySpec | EndpointSpec,
    name: str,
    gateway: GatewaySpec,
    common: Mapping[str, Any],
    *,
    dormant: bool = False,
) -> Step:
    want: dict[str, Any] = {"gateway": str(gateway.uid), "control_plane_url": gateway.control_plane_url}
    if gateway.tls:
        want["tls"] = True
    payload: dict[str, Any] = {**common, **want}
    if gateway.enrolment_token is not None:
        payload[TOKEN_FIELD] = gateway.enrolment_token
    return make(spec.ref, name, want, payload, dormant=dormant)


def _endpoint(spec: EndpointSpec) -> list[Step]:
    if spec.boundary_kind == BoundaryKind.CLUSTER:
        raise NotSupported(CLUSTER_MISSING)
    in_vm = spec.boundary_kind == BoundaryKind.VM
    common = {"boundary": str(spec.boundary.uid), "boundary_kind": str(spec.boundary_kind)}
    found: list[Step] = []
    if not in_vm:
        # No secret's text is needed but the key's, which a real model server starts with; a stub goes by its digest.
        secret = {"names": sorted(spec.serving.secrets), "revision": str(spec.serving.revision_uid)}
        if spec.beside is not None:
            secret["beside"] = str(spec.beside.revision_uid)
        found.append(make(spec.ref, "serving.secret", secret, common | secret))
    gateways = {gateway.uid: gateway for gateway in spec.gateways}
    for unit in spec.units:
        serving = _serving(spec, spec.serving_of(unit))
        key = spec.serving_of(unit).secrets.get(KEY_VARIABLE)
        told = serving if key is None else {**serving, KEY_DIGEST: hashlib.sha256(key.reveal().encode()).hexdigest()}
        if in_vm:
            found += _vm(spec, unit, common, spec.power, cut_off=spec.cut_off, index=unit.index)
            gateway = gateways.get(unit.uid)
            if gateway is None:
                msg = f"unit {unit.index} of a vm boundary has no gateway"
                raise DriverRejected(msg)
            # In a VM that is to be off nothing can be started; it waits for the VM to be switched on.
            dormant = spec.power is Power.OFF
            found.append(_gateway(spec, indexed("vm.gateway", unit.index), gateway, common, dormant=dormant))
            replica: dict[str, Any] = {"unit": str(unit.uid), "serving": serving}
            payload: dict[str, Any] = {**common, "serving": told, "unit": {"uid": str(unit.uid)}}
            if spec.asleep:
                replica = {"unit": str(unit.uid), "asleep": True}
                payload["asleep"] = True
        else:
            dormant = False
            replica = {"unit": _placed(unit), "serving": serving, "power": str(spec.power)}
            payload = {**common, "serving": told, "unit": _unit(unit), "power": str(spec.power)}
        if key is not None:
            payload[KEY_FIELD] = key
        found.append(make(spec.ref, indexed("serving.replica", unit.index), replica, payload, dormant=dormant))
    service: dict[str, Any] = {"model": spec.serving.model, "cut_off": spec.cut_off}
    if spec.name_uid is not None:
        service |= {"name": str(spec.name_uid), "named": spec.named}
    found.append(make(spec.ref, "serving.service", service, common | service))
    return found


def _machine(spec: MachineSpec) -> list[Step]:
    common: dict[str, Any] = {
        "boundary": str(spec.boundary.uid),
        "boundary_kind": str(BoundaryKind.VM),
        "image": spec.image,
        "disk_gib": spec.disk_gib,
        "ssh_keys": list(spec.ssh_keys),
    }
    if spec.build > 1:
        common["build"] = spec.build
    return _vm(spec, spec.unit, common, spec.power, cut_off=spec.cut_off, index=None)


def _vm(
    spec: EndpointSpec | MachineSpec,
    unit: UnitSpec,
    common: Mapping[str, Any],
    power: Power,
    *,
    cut_off: bool,
    index: int | None,
) -> list[Step]:
    clone, switch = (
        ("vm.clone", "vm.power") if index is None else (indexed("vm.clone", index), indexed("vm.power", index))
    )
    disk = {name: common[name] for name in ("image", "disk_gib", "ssh_keys", "build") if name in common}
    vm: dict[str, Any] = {**common, "unit": _unit(unit), "cut_off": cut_off}
    state = {"power": str(power), "cut_off": cut_off, "unit": str(unit.uid)}
    placed = _placed(unit)
    found = [make(spec.ref, switch, state, {**vm, "power": str(power)})]
    if isinstance(spec, MachineSpec) and (first := spec.made_with) is not None:
        # It is the same VM still, so it is wanted as it was made, and fitted beside that.
        placed |= {"vcpu": first.vcpu, "memory_gib": first.memory_gib}
        disk["disk_gib"] = first.disk_gib
        size = {"unit": str(unit.uid), "vcpu": unit.vcpu, "memory_gib": unit.memory_gib, "disk_gib": spec.disk_gib}
        found.insert(0, make(spec.ref, "vm.configure", size, vm))
    return [make(spec.ref, clone, {"unit": placed, **disk}, vm, replaces=True), *found]


def _namespace(spec: NamespaceSpec) -> list[Step]:
    want = {"access": [list(pair) for pair in sorted(spec.access)], "cut_off": spec.cut_off}
    common = {"boundary": str(spec.boundary.uid), "boundary_kind": str(BoundaryKind.NAMESPACE)}
    return [make(spec.ref, "access.accounts", want, common | want)]


def _serving(spec: EndpointSpec, serving: ServingSpec) -> dict[str, Any]:
    return {
        "endpoint": str(spec.name_uid or spec.ref.uid),
        "model": serving.model,
        "source": serving.source,
        "commit": serving.commit,
        **({"mirror": serving.mirror} if serving.mirror else {}),
        "runtime": serving.runtime,
        "revision": serving.revision,
        "revision_uid": str(serving.revision_uid),
        "argv": list(serving.argv),
        "environment": dict(sorted(serving.environment.items())),
        "tokens_s": serving.estimated_tokens_s,
    }


def _unit(unit: UnitSpec) -> dict[str, Any]:
    """Return all of a unit, as the payload carries it."""
    return {
        "uid": str(unit.uid),
        "host": unit.host,
        "product": unit.product,
        "profile": unit.profile,
        "gpu_count": unit.gpu_count,
        "binding": str(unit.binding),
        "devices": list(unit.devices),
        "starts": list(unit.starts),
        "vcpu": unit.vcpu,
        "memory_gib": unit.memory_gib,
    }


def _placed(unit: UnitSpec) -> dict[str, Any]:
    """Return what of a unit its provider is told and can be held to."""
    placed = _unit(unit)
    if unit.binding != Binding.DEVICE:
        placed["starts"] = []
    if unit.binding == Binding.HOST:
        placed["devices"] = []
    return placed
