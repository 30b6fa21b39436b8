"""Every spec kind on every driver: made, shown, changed, removed; each step and each undo repeated."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from provisioners.driver import (
    Done,
    EndpointSpec,
    MachineSize,
    Power,
    Presence,
    Ref,
    Spec,
    TransientDriverError,
    removal_of,
)
from provisioners.steps import definition, order_of
from tests.conformance.rigs import Rig
from tests.conformance.specs import (
    IN,
    boundary_in,
    complete,
    endpoint,
    finish,
    machine,
    namespace,
    namespace_boundary,
    needs,
    remove,
    started,
    unit,
    units_in,
    unmet,
    vm_boundary,
)

TENANT = UUID("11111111-1111-4111-8111-111111111111")


def scenario(name: str) -> list[Spec]:
    """Return the specs of a scenario in the order in which they are made."""
    in_namespace, in_vm = namespace_boundary(TENANT), vm_boundary(TENANT)
    made: dict[str, list[Spec]] = {
        "namespace boundary": [in_namespace],
        "vm boundary": [in_vm],
        "endpoint in a namespace": [in_namespace, endpoint(in_namespace, unit(0), unit(1, start=1))],
        "endpoint in VMs": [in_vm, endpoint(in_vm, unit(0, host="esx-a"), unit(1, host="esx-b"))],
        "machine": [in_vm, machine(in_vm, unit(host="esx-a"))],
        "namespace": [in_namespace, namespace(in_namespace)],
    }
    return made[name]


SCENARIOS = (
    "namespace boundary",
    "vm boundary",
    "endpoint in a namespace",
    "endpoint in VMs",
    "machine",
    "namespace",
)


ABSENT = Presence.ABSENT
IN_VMS = ("vm boundary", "endpoint in VMs", "machine")


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_made_is_shown_as_wanted_and_leaves_nothing_when_removed(rig: Rig, name: str) -> None:
    needs(rig, "vm" if name in IN_VMS else "namespace")
    specs = scenario(name)

    for spec in specs:
        seen = finish(rig, spec)

        assert seen.exists
        assert [part.step for part in seen.parts] == [step.name for step in rig.driver.steps(spec)]
        assert all(part.presence == Presence.PRESENT and part.ready for part in seen.parts)

    for spec in reversed(specs):
        remove(rig, spec)

        assert rig.driver.observe(spec.ref).parts == ()
    assert rig.leftovers() == []
    assert rig.truth() == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_step_started_twice_and_every_undo_twice_is_one_object(rig: Rig, name: str) -> None:
    needs(rig, "vm" if name in IN_VMS else "namespace")
    specs = scenario(name)

    for spec in specs:
        for step in rig.driver.steps(spec):
            first = rig.driver.start(step)
            again = rig.driver.start(step)
            assert first == again
            complete(rig, step)
            while (seen := rig.driver.observe(spec.ref)).part(step.name).ready is False:
                rig.clock.tick()
            assert rig.driver.start(step) == Done()
            assert len(rig.driver.snapshot().objects) == specs.index(spec) + 1
        assert unmet(rig, spec, seen) is None

    for spec in reversed(specs):
        for step in reversed(rig.driver.steps(spec)):
            undo = step.undoing()
            first = rig.driver.start(undo)
            is_left = rig.driver.observe(spec.ref).part(step.name).presence != ABSENT
            again = rig.driver.start(undo)
            # what takes a moment may have ended in it; what was one part of several is followed by the next
            assert again in {first, Done()} or ("whole-undos" in rig.lacks and is_left and first == Done())
            complete(rig, undo)
            assert rig.driver.start(undo) == Done()
            assert rig.driver.observe(spec.ref).part(step.name).presence == ABSENT
        assert not rig.driver.observe(spec.ref).exists
    assert rig.leftovers() == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_steps_are_pure_ordered_and_named_in_the_registry(rig: Rig, name: str) -> None:
    needs(rig, "vm" if name in IN_VMS else "namespace")
    for spec in scenario(name):
        steps = rig.driver.steps(spec)

        assert [step.name for step in steps] == sorted((step.name for step in steps), key=order_of)
        assert len({step.key for step in steps}) == len(steps)
        assert [step.key for step in steps] == [step.key for step in rig.driver.steps(spec)]
        for step in steps:
            assert spec.ref.kind in definition(step.name).kinds
            assert step.key == f"{spec.ref.uid}:{step.name}:{step.want}"
            assert step.limit_s == definition(step.name).limit_s


def test_an_observation_of_a_running_step_carries_its_handle(rig: Rig) -> None:
    needs(rig, "namespace")
    needs(rig, "tasks")
    spec = namespace_boundary(TENANT)
    step = rig.driver.steps(spec)[0]

    handle = rig.driver.start(step)

    part = rig.driver.observe(spec.ref).part(step.name)
    assert not isinstance(handle, Done)
    assert part.presence == Presence.CHANGING
    assert part.handle == handle.value
    assert rig.driver.poll(handle).state == "running"
    rig.clock.tick(1)
    assert rig.driver.poll(handle).state == "done"


@pytest.mark.parametrize("kind", IN)
def test_an_endpoint_shows_model_revision_backends_and_address(rig: Rig, kind: str) -> None:
    needs(rig, kind)
    boundary = boundary_in(kind, TENANT)
    spec = endpoint(boundary, *units_in(kind))
    finish(rig, boundary)

    seen = finish(rig, spec)

    assert (seen.model, seen.revision, seen.power, seen.simulated) == ("chat", 1, Power.ON, True)
    assert seen.address.startswith(rig.address)
    assert seen.reachable_from == rig.reachable_from
    assert rig.backend(spec.units[0]) in seen.units[0].backend


@pytest.mark.parametrize("kind", IN)
def test_a_new_revision_changes_the_replica_and_nothing_else(rig: Rig, kind: str) -> None:
    needs(rig, kind)
    boundary = boundary_in(kind, TENANT)
    spec = endpoint(boundary, *units_in(kind))
    finish(rig, boundary)
    finish(rig, spec)
    newer = replace(spec, serving=replace(spec.serving, revision=2, commit="1" * 40))

    step = unmet(rig, newer, rig.driver.observe(spec.ref))
    assert step is not None
    assert step.name == "serving.replica[0]"
    seen = finish(rig, newer)

    assert seen.revision == 2
    assert [use["unit"] for use in rig.truth()] == [str(spec.units[0].uid)]


def test_two_revisions_run_beside_each_other_and_either_may_stay(rig: Rig) -> None:
    needs(rig, "namespace")
    boundary = namespace_boundary(TENANT)
    old = endpoint(boundary, unit(0))
    surge = unit(1, start=1, role="surge")
    newer = replace(old.serving, revision=2, revision_uid=uuid4(), commit="1" * 40, secrets={})
    canary = replace(old, units=(*old.units, surge), beside=newer, on_beside=frozenset({surge.uid}))
    promoted = replace(canary, serving=newer, beside=old.serving, on_beside=frozenset({old.units[0].uid}))
    assert rig.driver.capabilities().features["canary"]
    finish(rig, boundary)
    before = finish(rig, old)

    both = finish(rig, canary)
    wanted = {(step.name, step.want) for step in rig.driver.steps(promoted) if "replica" in step.name}
    held = {(part.step, part.have) for part in both.parts}
    turned = finish(rig, promoted)
    alone = replace(old, serving=newer, units=(replace(surge, role="replica"),))
    complete(rig, removal_of(old.ref, "serving.replica[0]"))
    last = finish(rig, alone)

    assert [(one.uid, one.revision) for one in both.units] == [(old.units[0].uid, 1), (surge.uid, 2)]
    assert all(rig.backend(one) in seen.backend for one, seen in zip(canary.units, both.units, strict=True))
    assert both.part("serving.replica[0]") == before.part("serving.replica[0]")
    assert wanted <= held  # to promote makes no replica anew
    assert [one.revision for one in turned.units] == [1, 2]
    assert [(one.uid, one.revision) for one in last.units] == [(surge.uid, 2)]
    assert (last.revision, len(rig.truth())) == (2, 1)
    for spec in (alone, boundary):
        remove(rig, spec)
    assert rig.leftovers() == []


def test_at_zero_it_keeps_its_parts_and_wakes_at_another_revision(rig: Rig) -> None:
    needs(rig, "namespace")
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, unit(0))
    newer = replace(spec, serving=replace(spec.serving, revision=2, revision_uid=uuid4()))
    assert rig.driver.capabilities().features["zero"]
    finish(rig, boundary)
    finish(rig, spec)

    asleep = finish(rig, replace(spec, power=Power.OFF))
    used = rig.truth()
    still = finish(rig, replace(newer, power=Power.OFF))
    awake = finish(rig, newer)

    assert (asleep.power, used) == (Power.OFF, [])
    assert [one.backend for one in asleep.units] == [""]
    assert [part.step for part in asleep.parts] == [step.name for step in rig.driver.steps(spec)]
    assert (still.power, awake.power) == (Power.OFF, Power.ON)
    assert [(one.uid, one.revision) for one in awake.units] == [(spec.units[0].uid, 2)]


@pytest.mark.parametrize("kind", IN)
def test_fewer_replicas_leave_surplus_parts_that_are_removed_by_name_alone(rig: Rig, kind: str) -> None:
    needs(rig, kind)
    boundary = boundary_in(kind, TENANT)
    spec = endpoint(boundary, *units_in(kind, 2))
    finish(rig, boundary)
    finish(rig, spec)
    smaller = replace(spec, units=spec.units[:1], gateways=spec.gateways[:1])

    wanted = {step.name for step in rig.driver.steps(smaller)}
    surplus = [part.step for part in rig.driver.observe(spec.ref).parts if part.step not in wanted]
    for name in reversed(surplus):
        complete(rig, removal_of(spec.ref, name))

    assert surplus == [step.name for step in rig.driver.steps(spec) if step.name.endswith("[1]")]
    assert surplus[-1] == "serving.replica[1]"
    assert [one.uid for one in finish(rig, smaller).units] == [spec.units[0].uid]
    assert len(rig.truth()) == 1


@pytest.mark.parametrize("name", ["endpoint in a namespace", "endpoint in VMs"])
def test_powering_off_frees_the_windows_and_powering_on_takes_them_again(rig: Rig, name: str) -> None:
    needs(rig, "vm" if name in IN_VMS else "namespace")
    boundary, spec = scenario(name)
    assert isinstance(spec, EndpointSpec)
    finish(rig, boundary)
    finish(rig, spec)

    off = finish(rig, replace(spec, power=Power.OFF))
    used_while_off = rig.truth()
    on = finish(rig, spec)

    assert off.power == Power.OFF
    assert used_while_off == []
    assert on.power == Power.ON
    assert len(rig.truth()) == 2


def test_a_machine_that_is_off_moves_to_another_host_with_the_same_id(rig: Rig) -> None:
    needs(rig, "vm")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    finish(rig, boundary)
    finish(rig, spec)
    finish(rig, replace(spec, power=Power.OFF))

    moved = replace(spec, unit=replace(spec.unit, host="esx-b", devices=("esx-b-gpu-0",)))
    seen = finish(rig, moved)

    assert {one.host for one in seen.units} == {"esx-b"}
    assert [use["host"] for use in rig.truth()] == ["esx-b"]


def test_a_machine_that_is_off_gets_another_size_and_stays_the_same(rig: Rig) -> None:
    needs(rig, "vm")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    first = MachineSize(spec.unit.vcpu, spec.unit.memory_gib, spec.disk_gib)
    finish(rig, boundary)
    finish(rig, spec)
    before = finish(rig, replace(spec, power=Power.OFF))

    for vcpu, memory_gib in ((8, 32), (2, 8)):
        sized = replace(spec.unit, vcpu=vcpu, memory_gib=memory_gib)
        spec = replace(spec, unit=sized, disk_gib=120, made_with=first, power=Power.OFF)
        after = finish(rig, spec)
        assert after.power == Power.OFF
        assert after.part("vm.clone").have == before.part("vm.clone").have

    assert finish(rig, replace(spec, power=Power.ON)).power == Power.ON
    remove(rig, spec)


def test_a_machine_that_runs_is_not_made_another_size_meanwhile(rig: Rig) -> None:
    needs(rig, "vm")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    finish(rig, boundary)
    finish(rig, spec)
    first = MachineSize(spec.unit.vcpu, spec.unit.memory_gib, spec.disk_gib)
    larger = replace(spec, unit=replace(spec.unit, vcpu=8), made_with=first)
    step = next(one for one in rig.driver.steps(larger) if one.name == "vm.configure")

    assert started(rig, step) is TransientDriverError
    assert rig.driver.observe(spec.ref).power == Power.ON


@pytest.mark.parametrize("kind", IN)
def test_a_boundary_is_not_removed_under_an_endpoint_and_says_what_is_in_the_way(rig: Rig, kind: str) -> None:
    needs(rig, kind)
    boundary = boundary_in(kind, TENANT)
    spec = endpoint(boundary, *units_in(kind))
    finish(rig, boundary)
    finish(rig, spec)

    with pytest.raises(TransientDriverError, match=spec.ref.name):
        complete(rig, removal_of(boundary.ref, rig.driver.steps(boundary)[0].name))

    assert spec.ref.name in rig.driver.observe(boundary.ref).blocked_by
    assert rig.driver.observe(spec.ref).exists


@pytest.mark.parametrize(("kind", "name"), [("namespace", "namespace.policies"), ("vm", "network.create")])
def test_isolating_cuts_off_at_once_and_shows_as_a_part_that_is_not_as_wanted(rig: Rig, kind: str, name: str) -> None:
    needs(rig, kind)
    boundary = boundary_in(kind, TENANT)
    finish(rig, boundary)

    assert rig.driver.isolate(boundary.ref, cut_off=True) == Done()

    step = unmet(rig, boundary, rig.driver.observe(boundary.ref))
    assert step is not None
    assert step.name == name
    finish(rig, replace(boundary, cut_off=True))


def test_direct_power_stops_what_runs_and_the_spec_brings_it_back(rig: Rig) -> None:
    needs(rig, "vm")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    finish(rig, boundary)
    finish(rig, spec)

    rig.driver.power(spec.ref, want=Power.OFF)

    assert rig.driver.observe(spec.ref).power == Power.OFF
    assert rig.truth() == []
    assert finish(rig, spec).power == Power.ON


@pytest.mark.parametrize("kind", IN)
def test_another_tenant_sees_no_object_of_this_uid(rig: Rig, kind: str) -> None:
    needs(rig, kind)
    boundary = boundary_in(kind, TENANT)
    finish(rig, boundary)
    stranger = Ref(boundary.ref.kind, boundary.ref.uid, uuid4())

    assert not rig.driver.observe(stranger).exists
    assert rig.driver.start(removal_of(stranger, rig.driver.steps(boundary)[0].name)) == Done()

    assert rig.driver.observe(boundary.ref).exists


def test_logs_tell_what_happened_newest_last_and_no_more_than_asked_for(rig: Rig) -> None:
    needs(rig, "namespace")
    needs(rig, "step-log")
    boundary = namespace_boundary(TENANT)
    finish(rig, boundary)

    lines = list(rig.driver.logs(boundary.ref, since="", tail=2))

    assert [line.text for line in lines] == ["start:namespace.gateway begun", "namespace.gateway done"]
    assert list(rig.driver.logs(boundary.ref, since="2999-01-01T00:00:00Z", tail=2)) == []


def test_logs_of_a_machine_are_no_more_than_asked_for_and_newest_last(rig: Rig) -> None:
    needs(rig, "vm")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    finish(rig, boundary)
    finish(rig, spec)

    every = list(rig.driver.logs(spec.ref, since="", tail=1000))
    newest = list(rig.driver.logs(spec.ref, since="", tail=2))

    assert [line.at for line in every] == sorted(line.at for line in every)
    assert len(newest) == 2
    assert newest == every[-2:]
    assert list(rig.driver.logs(spec.ref, since="2999-01-01T00:00:00Z", tail=2)) == []
