"""Endpoints in machines on every driver that makes them: two revisions beside each other, and zero."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from provisioners.driver import (
    BoundarySpec,
    EndpointSpec,
    Observed,
    Power,
    Presence,
    TransientDriverError,
    UnitSpec,
    removal_of,
)
from tests.conformance.rigs import Rig
from tests.conformance.specs import complete, endpoint, finish, gateway, needs, remove, unit, vm_boundary

TENANT = UUID("11111111-1111-4111-8111-111111111111")
LOST = ("", "lost-answer")


@pytest.fixture
def home(rig: Rig) -> BoundarySpec:
    needs(rig, "vm")
    made = vm_boundary(TENANT)
    finish(rig, made)
    return made


def with_units(spec: EndpointSpec, *units: UnitSpec) -> EndpointSpec:
    return replace(spec, units=units, gateways=tuple(replace(gateway(), uid=one.uid) for one in units))


def runs(rig: Rig, spec: EndpointSpec) -> dict[UUID, int | None]:
    """Return unit → revision of the replica that gateways can reach there."""
    return {one.uid: one.revision for one in rig.driver.observe(spec.ref).units if one.backend}


def made(rig: Rig, spec: EndpointSpec) -> Observed:
    """Walk until everything is as wanted, again where an answer was lost."""
    for _ in range(3):
        with suppress(TransientDriverError):
            return finish(rig, spec)
    return finish(rig, spec)


def where(rig: Rig) -> set[tuple[str, str]]:
    return {(use["unit"], use["device"]) for use in rig.truth()}


@pytest.mark.parametrize("lost", LOST)
def test_a_revision_runs_beside_another_takes_over_in_place_and_the_machine_beside_goes(
    rig: Rig, home: BoundarySpec, lost: str
) -> None:
    own, beside = unit(0, host="esx-a"), unit(1, host="esx-b")
    spec = endpoint(home, own)
    finish(rig, spec)
    before = where(rig)
    new = replace(spec.serving, revision_uid=uuid4(), revision=2, argv=("serve", "org/model", "--max-model-len=99"))

    def hurt(step: str) -> None:
        if lost:
            rig.fault(step, lost)

    hurt("start:serving.replica[1]")
    both = replace(with_units(spec, own, beside), beside=new, on_beside=frozenset({beside.uid}))
    seen = made(rig, both)
    assert runs(rig, both) == {own.uid: 1, beside.uid: 2}
    assert seen.part("serving.service").ready

    hurt("start:serving.replica[0]")
    promoted = replace(with_units(spec, own, beside), serving=new)
    made(rig, promoted)
    assert runs(rig, promoted) == {own.uid: 2, beside.uid: 2}

    alone = replace(with_units(spec, own), serving=new)
    for step in reversed(rig.driver.steps(promoted)):
        if step.name.endswith("[1]"):
            hurt(f"undo:{step.name}")
            _until_gone(rig, spec, step.name)
    rig.mend()
    seen = finish(rig, alone)

    assert [part.step for part in seen.parts] == [step.name for step in rig.driver.steps(alone)]
    assert (runs(rig, alone), where(rig)) == ({own.uid: 2}, before)
    remove(rig, alone)
    assert rig.truth() == []


def _until_gone(rig: Rig, spec: EndpointSpec, name: str) -> None:
    """Undo one part as the plan does, again where the answer was lost."""
    for _ in range(120):
        part = rig.driver.observe(spec.ref).part(name)
        if part.presence is Presence.ABSENT:
            return
        if part.presence is Presence.CHANGING:
            rig.clock.tick()
            continue
        with suppress(TransientDriverError):
            complete(rig, removal_of(spec.ref, name))
    raise AssertionError(name)


@pytest.mark.parametrize("lost", LOST)
def test_at_zero_no_replica_runs_and_the_machines_stay_until_it_is_woken(
    rig: Rig, home: BoundarySpec, lost: str
) -> None:
    units = (unit(0, host="esx-a"), unit(1, host="esx-b"))
    spec = endpoint(home, *units)
    finish(rig, spec)
    before = where(rig)
    assert not rig.driver.observe(spec.ref).asleep

    if lost:
        rig.fault("start:serving.replica[0]", lost)
    at_zero = replace(spec, asleep=True)
    asleep = made(rig, at_zero)
    for step in rig.driver.steps(at_zero):
        rig.driver.start(step)
    again = rig.driver.observe(spec.ref)

    assert (asleep.asleep, asleep.power, again.asleep) == (True, Power.ON, True)
    assert (runs(rig, spec), where(rig)) == ({}, before)
    assert asleep.part("vm.gateway[0]").ready

    off = replace(at_zero, power=Power.OFF)
    assert finish(rig, off).power is Power.OFF
    assert not rig.driver.observe(spec.ref).asleep
    if lost:
        rig.fault("start:serving.replica[1]", lost)
    woken = made(rig, spec)

    assert (woken.asleep, runs(rig, spec)) == (False, dict.fromkeys([one.uid for one in units], 1))
    remove(rig, spec)
    assert rig.truth() == []
