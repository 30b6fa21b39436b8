"""Providers that fail, hang, forget, lie and lose answers: what a driver may raise and what must still be true."""

from __future__ import annotations

import logging
from dataclasses import replace
from uuid import UUID

import pytest

from provisioners.driver import (
    BoundaryKind,
    Conflicting,
    Done,
    DriverError,
    DriverRejected,
    NoCapacity,
    NotSupported,
    Presence,
    TransientDriverError,
)
from tests.conformance.rigs import Rig
from tests.conformance.specs import (
    HF_TOKEN,
    HOP_KEY,
    IN,
    TOKEN,
    boundary_in,
    complete,
    endpoint,
    finish,
    machine,
    namespace_boundary,
    needs,
    remove,
    started,
    unit,
    units_in,
    vm_boundary,
)

TENANT = UUID("22222222-2222-4222-8222-222222222222")
CLASSES = {
    "transient": TransientDriverError,
    "no-capacity": NoCapacity,
    "rejected": DriverRejected,
    "not-supported": NotSupported,
}
NAMESPACE_STEPS = (
    "namespace.create",
    "namespace.limits",
    "namespace.policies",
    "namespace.access",
    "namespace.gateway",
    "serving.secret",
    "serving.replica[0]",
    "serving.service",
)
VM_STEPS = (
    "folder.create",
    "pool.create",
    "network.create",
    "role.grant",
    "vm.clone[0]",
    "vm.configure[0]",
    "vm.power[0]",
    "vm.gateway[0]",
    "serving.replica[0]",
    "serving.service",
)
"""A driver that has not one of them is not struck there."""
STEPS = [("namespace", step) for step in NAMESPACE_STEPS] + [("vm", step) for step in VM_STEPS]


def build(rig: Rig, kind: str, *, tries: int = 6) -> tuple[object, ...]:
    """Make a boundary with an endpoint, again and again from what is there, until it is as wanted."""
    boundary = namespace_boundary(TENANT) if kind == "namespace" else vm_boundary(TENANT)
    spec = endpoint(boundary, unit(0, host="node-a" if kind == "namespace" else "esx-a"))
    for wanted in (boundary, spec):
        for _ in range(tries):
            try:
                finish(rig, wanted)
            except DriverError:
                rig.clock.tick()
                continue
            break
        else:
            msg = f"{wanted.ref.name} did not converge"
            raise AssertionError(msg)
    return boundary, spec


def tear_down(rig: Rig, specs: tuple[object, ...], *, tries: int = 6) -> None:
    for spec in reversed(specs):
        for _ in range(tries):
            try:
                remove(rig, spec)  # type: ignore[arg-type]
            except DriverError:
                rig.clock.tick()
                continue
            break
        else:
            msg = "was not removed"
            raise AssertionError(msg)


@pytest.mark.parametrize(("kind", "step"), STEPS)
@pytest.mark.parametrize("effect", ["lost-answer", "fail", "task-fail", "forget"])
def test_every_step_failed_or_its_answer_lost_converges_to_one_object_and_leaves_nothing(
    rig: Rig, kind: str, step: str, effect: str
) -> None:
    needs(rig, kind)
    if effect == "forget":
        needs(rig, "tasks")
    rig.fault(f"start:{step}", effect)
    rig.fault(f"undo:{step}", effect)

    specs = build(rig, kind)
    assert len(rig.truth()) == 1
    assert len(rig.driver.snapshot().objects) == 2
    tear_down(rig, specs)

    assert rig.leftovers() == []
    assert rig.truth() == []


@pytest.mark.parametrize(("word", "kind"), CLASSES.items())
def test_an_error_keeps_its_class_from_the_call_and_from_the_task(rig: Rig, word: str, kind: type[DriverError]) -> None:
    needs(rig, "namespace")
    needs(rig, "tasks")
    spec = namespace_boundary(TENANT)
    first = rig.driver.steps(spec)[0]
    rig.fault("start:namespace.create", "fail", error=word, detail="words for people")
    rig.fault("start:namespace.create", "task-fail", error=word)

    with pytest.raises(kind) as raised:
        rig.driver.start(first)
    with pytest.raises(kind):
        complete(rig, first)

    assert type(raised.value) is kind
    assert raised.value.detail == "words for people"
    assert not rig.driver.observe(spec.ref).exists


def test_a_lost_answer_is_settled_by_looking(rig: Rig) -> None:
    needs(rig, "namespace")
    needs(rig, "tasks")
    spec = namespace_boundary(TENANT)
    first = rig.driver.steps(spec)[0]
    rig.fault("start:namespace.create", "lost-answer")

    with pytest.raises(TransientDriverError):
        rig.driver.start(first)

    part = rig.driver.observe(spec.ref).part(first.name)
    assert part.presence == Presence.CHANGING
    assert part.handle
    rig.clock.tick(1)
    assert rig.driver.observe(spec.ref).part(first.name).have == first.want


@pytest.mark.parametrize("kind", IN)
def test_a_read_that_fails_is_an_error_and_never_absence(rig: Rig, kind: str) -> None:
    needs(rig, kind)
    spec = boundary_in(kind, TENANT)
    finish(rig, spec)
    rig.fault("observe", "fail")
    rig.fault("snapshot", "fail")
    rig.fault("poll", "fail")

    with pytest.raises(TransientDriverError):
        rig.driver.observe(spec.ref)
    with pytest.raises(TransientDriverError):
        rig.driver.snapshot()

    assert rig.driver.observe(spec.ref).exists


def test_a_call_that_hangs_ends_with_a_transient_error(rig: Rig) -> None:
    needs(rig, "namespace")
    spec = namespace_boundary(TENANT)
    rig.fault("start:namespace.create", "hang", seconds=0.05, after_effect=True)

    with pytest.raises(TransientDriverError):
        rig.driver.start(rig.driver.steps(spec)[0])

    finish(rig, spec)
    assert len(rig.driver.snapshot().objects) == 1


def test_a_forgotten_task_polls_as_unknown_and_its_work_goes_on(rig: Rig) -> None:
    needs(rig, "namespace")
    needs(rig, "tasks")
    spec = namespace_boundary(TENANT)
    first = rig.driver.steps(spec)[0]
    rig.fault("start:namespace.create", "forget")

    handle = rig.driver.start(first)

    assert not isinstance(handle, Done)
    assert rig.driver.poll(handle).state == "unknown"
    assert rig.driver.observe(spec.ref).part(first.name).handle == ""
    rig.clock.tick(1)
    assert rig.driver.observe(spec.ref).part(first.name).have == first.want


def test_a_forgotten_task_without_effect_leaves_nothing(rig: Rig) -> None:
    needs(rig, "namespace")
    needs(rig, "tasks")
    spec = namespace_boundary(TENANT)
    rig.fault("start:namespace.create", "forget", lying=True)

    rig.driver.start(rig.driver.steps(spec)[0])
    rig.clock.tick(1)

    assert not rig.driver.observe(spec.ref).exists


def test_refusal_at_power_on_is_no_capacity_and_keeps_the_machine_off(rig: Rig) -> None:
    needs(rig, "vm")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-b"))
    rig.foreign_use("other", "esx-b", [("esx-b-gpu-0", 0, "")])
    finish(rig, boundary)
    *before, power = rig.driver.steps(spec)
    for step in before:
        complete(rig, step)

    with pytest.raises(NoCapacity):
        complete(rig, power)

    seen = rig.driver.observe(spec.ref)
    assert seen.part("vm.clone").presence == Presence.PRESENT
    assert seen.part("vm.power").presence == Presence.ABSENT
    assert [use["name"] for use in rig.truth()] == ["other"]


@pytest.mark.parametrize("kind", ["namespace", "vm"])
def test_a_start_that_failed_in_its_task_gives_its_window_back(rig: Rig, kind: str) -> None:
    needs(rig, kind)
    needs(rig, "failed-starts")
    boundary = namespace_boundary(TENANT) if kind == "namespace" else vm_boundary(TENANT)
    spec = endpoint(boundary, unit(0, host="node-a" if kind == "namespace" else "esx-a"))
    finish(rig, boundary)
    at = "serving.replica[0]" if kind == "namespace" else "vm.power[0]"
    rig.fault(f"start:{at}", "task-fail", error="no-capacity")

    steps = rig.driver.steps(spec)
    *before, last = [started(rig, step) for step in steps[: [step.name for step in steps].index(at) + 1]]

    assert (set(before), last) == ({None}, NoCapacity)
    assert rig.truth() == []
    assert rig.driver.snapshot().uses == ()
    assert rig.driver.observe(spec.ref).part(at).presence == Presence.ABSENT


@pytest.mark.parametrize("kind", IN)
def test_something_that_is_not_ours_under_our_name_is_a_conflict_and_stays_untouched(rig: Rig, kind: str) -> None:
    needs(rig, kind)
    boundary = boundary_in(kind, TENANT)
    rig.foreign_object(boundary.ref.name)

    with pytest.raises(Conflicting):
        rig.driver.start(rig.driver.steps(boundary)[0])

    assert not rig.driver.observe(boundary.ref).exists
    assert rig.leftovers() == []
    with pytest.raises(Conflicting):
        rig.driver.start(rig.driver.steps(boundary)[0])


def test_a_foreign_machine_under_the_name_of_a_replica_is_a_conflict(rig: Rig) -> None:
    needs(rig, "vm")
    boundary = vm_boundary(TENANT)
    spec = endpoint(boundary, unit(0, host="esx-a"))
    finish(rig, boundary)
    rig.foreign_object(f"{spec.ref.name}-0")

    assert started(rig, rig.driver.steps(spec)[0]) is Conflicting


@pytest.mark.parametrize("lying", [False, True])
def test_a_stale_list_says_so_unless_it_lies_and_an_exact_read_is_right_anyway(rig: Rig, *, lying: bool) -> None:
    needs(rig, "namespace")
    needs(rig, "stale-lists")
    rig.fault("snapshot", "stale", times=-1, lying=lying)
    spec = namespace_boundary(TENANT)
    finish(rig, spec)

    shown = rig.driver.snapshot()

    assert shown.objects == ()
    assert shown.complete is lying
    assert rig.driver.observe(spec.ref).exists
    rig.mend()
    assert [found.ref for found in rig.driver.snapshot().objects] == [spec.ref]


def test_duplicates_in_a_list_are_the_same_object_twice(rig: Rig) -> None:
    needs(rig, "namespace")
    needs(rig, "stale-lists")
    spec = namespace_boundary(TENANT)
    finish(rig, spec)
    rig.fault("snapshot", "duplicates")

    doubled, plain = rig.driver.snapshot(), rig.driver.snapshot()

    assert len(doubled.objects) == 2
    assert set(doubled.objects) == set(plain.objects)


def test_a_host_that_does_not_respond_is_no_proof_that_its_workloads_are_gone(rig: Rig) -> None:
    needs(rig, "vm")
    needs(rig, "host-away")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    finish(rig, boundary)
    finish(rig, spec)
    rig.host_health("esx-a", healthy=False)

    seen = rig.driver.observe(spec.ref)
    error = started(rig, rig.driver.steps(spec)[-1].undoing())

    assert seen.part("vm.power").presence == Presence.PRESENT
    assert not seen.part("vm.power").ready
    assert error is TransientDriverError
    rig.host_health("esx-a", healthy=True)
    remove(rig, spec)


def test_a_faulty_gpu_shows_on_the_gpu_and_on_what_runs_there(rig: Rig) -> None:
    needs(rig, "namespace")
    needs(rig, "gpu-health")
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, unit(0))
    finish(rig, boundary)
    finish(rig, spec)

    rig.gpu_health("node-a-gpu-0", healthy=False)

    part = rig.driver.observe(spec.ref).part("serving.replica[0]")
    bad = [gpu.device for host in rig.driver.snapshot().hosts for gpu in host.gpus if not gpu.healthy]
    assert (part.presence, part.ready) == (Presence.PRESENT, False)
    assert bad == ["node-a-gpu-0"]
    rig.gpu_health("node-a-gpu-0", healthy=True)
    assert rig.driver.observe(spec.ref).part("serving.replica[0]").ready


@pytest.mark.parametrize("kind", IN)
def test_a_cluster_boundary_is_not_supported_and_says_what_is(rig: Rig, kind: str) -> None:
    needs(rig, kind)
    with pytest.raises(NotSupported, match=kind):
        rig.driver.steps(replace(boundary_in(kind, TENANT), kind=BoundaryKind.CLUSTER))

    assert rig.driver.capabilities().features["cluster"] is False


@pytest.mark.parametrize(("kind", "at"), [("namespace", "namespace.gateway"), ("vm", "network.create")])
def test_secrets_show_up_nowhere(rig: Rig, caplog: pytest.LogCaptureFixture, kind: str, at: str) -> None:
    needs(rig, kind)
    caplog.set_level(logging.DEBUG)
    boundary = boundary_in(kind, TENANT)
    spec = endpoint(boundary, *units_in(kind))
    rig.fault(f"start:{at}", "task-fail")

    errors = [started(rig, step) for step in rig.driver.steps(boundary)]
    finish(rig, boundary)
    finish(rig, spec)

    shown = "".join(
        [
            repr(rig.driver),
            repr(rig.driver.steps(boundary)),
            repr(rig.driver.steps(spec)),
            repr(rig.driver.observe(boundary.ref)),
            repr(rig.driver.observe(spec.ref)),
            repr(rig.driver.snapshot()),
            repr([*rig.driver.logs(boundary.ref, since="", tail=100), *rig.driver.logs(spec.ref, since="", tail=100)]),
            caplog.text,
            rig.stored(),
        ]
    )
    assert TransientDriverError in errors
    assert boundary.ref.name in shown
    assert TOKEN not in shown
    assert HF_TOKEN not in shown
    assert HOP_KEY not in shown
