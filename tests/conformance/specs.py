"""Specs that conformance asks for, and the plainest possible walk along a driver's steps.

The walk is what the pure plan does, without its memory: look, take the first step whose part is not as
wanted, let time pass while one is at work or not ready.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from uuid import UUID, uuid4

import pytest

from provisioners.driver import (
    Binding,
    BoundaryKind,
    BoundarySpec,
    Done,
    DriverError,
    EndpointSpec,
    GatewaySpec,
    Kind,
    MachineSpec,
    NamespaceSpec,
    NotSupported,
    Observed,
    Presence,
    Ref,
    Secret,
    ServingSpec,
    Spec,
    Step,
    UnitSpec,
    removal_of,
)
from tests.conformance.rigs import Rig

TOKEN = "one-time-token-9f8e7d"
HF_TOKEN = "hf_secret_text_1a2b3c"
HOP_KEY = "hop_secret_text_4d5e6f"
PROFILE = "1g.10gb"
PRODUCT = "H100-80GB"


def gateway() -> GatewaySpec:
    return GatewaySpec(uuid4(), "http://127.0.0.1:9", Secret(TOKEN))


def namespace_boundary(tenant: UUID, **resources: int) -> BoundarySpec:
    return BoundarySpec(
        ref=Ref(Kind.BOUNDARY, uuid4(), tenant),
        kind=BoundaryKind.NAMESPACE,
        tier="shared",
        generation=1,
        gateway=gateway(),
        vcpu=16,
        memory_gib=64,
        storage_gib=100,
        gpu_resources=resources or {f"{PRODUCT}.{PROFILE}": 4, PRODUCT: 2, f"{PRODUCT}.3g.40gb": 2},
        access=(("p-1", "member"),),
    )


_vlans = itertools.cycle(range(2, 4095))


def vm_boundary(tenant: UUID) -> BoundarySpec:
    return replace(namespace_boundary(tenant), kind=BoundaryKind.VM, gateway=None, vlan=next(_vlans))


IN: Final = ("namespace", "vm")
"""Kinds of boundaries, as `needs` calls them."""
HOSTS_IN: Final[Mapping[str, tuple[str, str]]] = {"namespace": ("node-a", "node-a"), "vm": ("esx-a", "esx-b")}
"""Kind of boundary → hosts for two units in it."""


def boundary_in(kind: str, tenant: UUID) -> BoundarySpec:
    """Return a boundary of a kind."""
    return vm_boundary(tenant) if kind == "vm" else namespace_boundary(tenant)


def units_in(kind: str, count: int = 1) -> tuple[UnitSpec, ...]:
    """Return one or two small units that fit beside each other."""
    return tuple(unit(at, host=HOSTS_IN[kind][at], start=at) for at in range(count))


def unit(
    index: int = 0, *, host: str = "node-a", start: int = 0, profile: str = PROFILE, count: int = 0,
    role: str = "replica",
) -> UnitSpec:  # fmt: skip
    binding = {"node-a": Binding.DEVICE, "node-b": Binding.GPU}.get(host, Binding.HOST)
    gpus = max(count, 1)
    return UnitSpec(
        uid=uuid4(),
        index=index,
        host=host,
        product=PRODUCT,
        profile="" if count else profile,
        gpu_count=count,
        binding=binding,
        devices=tuple(f"{host}-gpu-{number}" for number in range(gpus)),
        starts=(start,) * gpus,
        vcpu=4,
        memory_gib=16,
        role=role,
    )


def endpoint(boundary: BoundarySpec, *units: UnitSpec) -> EndpointSpec:
    in_vm = boundary.kind == BoundaryKind.VM
    return EndpointSpec(
        ref=Ref(Kind.ENDPOINT, uuid4(), boundary.ref.tenant_uid),
        boundary=boundary.ref,
        boundary_kind=boundary.kind,
        generation=1,
        serving=ServingSpec(
            revision_uid=uuid4(),
            revision=1,
            model="chat",
            source="org/model",
            commit="0" * 40,
            runtime="vllm",
            argv=("serve", "org/model"),
            environment={"VLLM_LOGGING_LEVEL": "INFO"},
            secrets={"HF_TOKEN": Secret(HF_TOKEN), "VLLM_API_KEY": Secret(HOP_KEY)},
        ),
        units=units,
        gateways=tuple(replace(gateway(), uid=one.uid) for one in units) if in_vm else (),
    )


def machine(boundary: BoundarySpec, one: UnitSpec) -> MachineSpec:
    return MachineSpec(
        ref=Ref(Kind.MACHINE, uuid4(), boundary.ref.tenant_uid),
        boundary=boundary.ref,
        generation=1,
        unit=one,
        image="ubuntu-24.04",
        disk_gib=100,
        ssh_keys=(f"ssh-ed25519 {'A' * 68}",),
    )


def namespace(boundary: BoundarySpec) -> NamespaceSpec:
    return NamespaceSpec(
        ref=Ref(Kind.NAMESPACE, uuid4(), boundary.ref.tenant_uid),
        boundary=boundary.ref,
        generation=1,
        units=(),
        access=(("p-1", "member"),),
    )


def needs(rig: Rig, ability: str) -> None:
    """Skip where the driver under test lacks an ability, with the reason; a kind of boundary must be refused then."""
    why = rig.lacks.get(ability)
    if why is None:
        return
    refused = {"vm": vm_boundary, "namespace": namespace_boundary}.get(ability)
    if refused is not None:
        with pytest.raises(NotSupported):
            rig.driver.steps(refused(uuid4()))
    pytest.skip(why)


# --- walking --------------------------------------------------------------------------------------


def unmet(rig: Rig, spec: Spec, seen: Observed) -> Step | None:
    """Return the first step whose part is not as the spec wants it."""
    for step in rig.driver.steps(spec):
        part = seen.part(step.name)
        if step.dormant:
            continue  # as the plan does: it may wait until its unit is on
        if part.presence != Presence.PRESENT or part.have != step.want or not part.ready:
            return step
    return None


def finish(rig: Rig, spec: Spec, *, rounds: int = 120) -> Observed:
    """Walk until everything is as wanted; retry what is transient; fail on any other error."""
    for _ in range(rounds):
        seen = rig.driver.observe(spec.ref)
        step = unmet(rig, spec, seen)
        if step is None:
            return seen
        part = seen.part(step.name)
        if part.presence == Presence.CHANGING or (part.have == step.want and not part.ready):
            rig.clock.tick()
            continue
        if step.replaces and part.presence == Presence.PRESENT:
            step = step.undoing()
        complete(rig, step)
    msg = f"not as wanted after {rounds} rounds: {rig.driver.observe(spec.ref)}"
    raise AssertionError(msg)


def complete(rig: Rig, step: Step) -> None:
    """Start one step and wait for its end. Raises what the task failed with."""
    started = rig.driver.start(step)
    while not isinstance(started, Done):
        polled = rig.driver.poll(started)
        if polled.state == "done":
            return
        if polled.error is not None:
            raise polled.error
        if polled.state == "unknown":
            return
        rig.clock.tick()


def remove(rig: Rig, spec: Spec, *, rounds: int = 120) -> None:
    """Walk backwards until the exact read finds nothing."""
    for _ in range(rounds):
        seen = rig.driver.observe(spec.ref)
        if not seen.exists:
            return
        last = seen.parts[-1]
        if last.presence == Presence.CHANGING:
            rig.clock.tick()
            continue
        complete(rig, removal_of(spec.ref, last.step))
    msg = f"not gone after {rounds} rounds: {rig.driver.observe(spec.ref)}"
    raise AssertionError(msg)


def started(rig: Rig, step: Step) -> type[DriverError] | None:
    """Start a step; return the class of error it ended with, if any."""
    try:
        complete(rig, step)
    except DriverError as error:
        return type(error)
    return None
