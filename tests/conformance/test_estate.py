"""The estate as a driver shows it: bindings honoured, foreign use and reports told, hosts kept and carved."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from provisioners.driver import (
    Acceptance,
    Binding,
    BoundaryKind,
    Done,
    DriverRejected,
    LayoutChange,
    NoCapacity,
    NotSupported,
    Presence,
    TransientDriverError,
)
from tests.conformance.rigs import Rig
from tests.conformance.specs import (
    complete,
    endpoint,
    finish,
    machine,
    namespace_boundary,
    needs,
    remove,
    started,
    unit,
    vm_boundary,
)

TENANT = UUID("33333333-3333-4333-8333-333333333333")


def test_a_snapshot_is_complete_and_shows_hosts_gpus_and_what_may_run_there(rig: Rig) -> None:
    needs(rig, "document")
    shown = rig.driver.snapshot()

    assert shown.complete
    assert {host.host: host.binding for host in shown.hosts} == {
        "node-a": Binding.DEVICE,
        "node-b": Binding.GPU,
        "esx-a": Binding.HOST,
        "esx-b": Binding.HOST,
    }
    assert {host.host: len(host.gpus) for host in shown.hosts} == {"node-a": 4, "node-b": 2, "esx-a": 2, "esx-b": 1}
    esx = next(host for host in shown.hosts if host.host == "esx-a")
    assert esx.boundary_kinds == {BoundaryKind.VM}
    assert (esx.vcpu, esx.memory_gib) == (32, 256)
    fixed = next(gpu for host in shown.hosts for gpu in host.gpus if gpu.device == "node-a-gpu-3")
    assert (fixed.mode, fixed.windows, fixed.layout_change) == ("mig", ((0, 4, "3g.40gb"),), "fixed")


def test_capabilities_say_that_the_sandbox_is_simulated(rig: Rig) -> None:
    needs(rig, "document")
    found = rig.driver.capabilities()

    assert found.simulated
    assert found.boundary_kinds == {BoundaryKind.VM, BoundaryKind.NAMESPACE}
    assert found.bindings == set(Binding)
    assert set(found.missing) == {name for name, available in found.features.items() if not available}


def test_ours_and_foreign_use_are_told_apart(rig: Rig) -> None:
    needs(rig, "namespace")
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, unit(0, start=3))
    rig.foreign_use("render", "node-a", [("node-a-gpu-1", 4, "3g.40gb")])
    finish(rig, boundary)
    finish(rig, spec)

    uses = rig.driver.snapshot().uses

    ours = next(use for use in uses if use.ref == spec.ref)
    foreign = next(use for use in uses if use.ref is None)
    assert (ours.unit, ours.device, ours.start, ours.size, ours.profile) == (
        spec.units[0].uid,
        "node-a-gpu-0",
        3,
        1,
        "1g.10gb",
    )
    assert foreign.name.endswith("render")
    assert (foreign.unit, foreign.device, foreign.start, foreign.size) == (
        None,
        "node-a-gpu-1",
        4,
        4,
    )
    assert (ours.vcpu, ours.memory_gib) == (4, 16)


def test_ours_and_foreign_use_are_told_apart_on_a_host_that_chooses(rig: Rig) -> None:
    needs(rig, "vm")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    rig.foreign_use("render", "esx-a", [("esx-a-gpu-1", 4, "3g.40gb")])
    finish(rig, boundary)
    finish(rig, spec)
    rig.clock.tick(5)

    uses = rig.driver.snapshot().uses
    truth = {use["name"]: use for use in rig.truth()}

    ours = next(use for use in uses if use.ref == spec.ref)
    foreign = next(use for use in uses if use.ref is None)
    assert (ours.host, ours.unit, ours.size, ours.profile) == ("esx-a", spec.unit.uid, 1, "1g.10gb")
    assert (ours.vcpu, ours.memory_gib) == (4, 16)
    assert (foreign.host, foreign.unit, foreign.size) == ("esx-a", None, 4)
    assert foreign.name.endswith("render")
    assert {ours.device, foreign.device} == {use["device"] for use in truth.values()}
    assert len(uses) == len(truth) == 2


def test_binding_device_gets_exactly_the_window_asked_for(rig: Rig) -> None:
    needs(rig, "namespace")
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, replace(unit(0, start=2), devices=("node-a-gpu-1",)))
    finish(rig, boundary)

    seen = finish(rig, spec)

    assert [(one.device, one.start, one.exact) for one in seen.units] == [("node-a-gpu-1", 2, True)]
    assert [(use["device"], use["start"]) for use in rig.truth()] == [("node-a-gpu-1", 2)]


def test_binding_gpu_gets_the_gpu_asked_for_and_any_legal_start(rig: Rig) -> None:
    needs(rig, "namespace")
    boundary = namespace_boundary(TENANT)
    first = endpoint(boundary, replace(unit(0, host="node-b", start=6), devices=("node-b-gpu-1",)))
    second = endpoint(boundary, replace(unit(0, host="node-b", start=6), devices=("node-b-gpu-1",)))
    finish(rig, boundary)

    seen = [finish(rig, spec).units[0] for spec in (first, second)]

    assert [one.device for one in seen] == ["node-b-gpu-1", "node-b-gpu-1"]
    assert len({one.start for one in seen}) == 2


def test_a_report_that_moves_a_window_in_the_ledger_changes_no_step(rig: Rig) -> None:
    needs(rig, "namespace")
    boundary = namespace_boundary(TENANT)
    by_gpu, by_device = unit(0, host="node-b", start=0), unit(0, start=0)
    by_host = replace(unit(0, host="esx-b"), devices=("guess-1",), starts=(0,))
    guessed = {
        by_gpu: replace(by_gpu, starts=(5,)),
        by_host: replace(by_host, devices=("seen-2",), starts=(5,)),
    }

    for before, after in guessed.items():
        spec = endpoint(boundary, before)
        moved = replace(spec, units=(after,))
        assert [step.key for step in rig.driver.steps(spec)] == [step.key for step in rig.driver.steps(moved)]
    spec = endpoint(boundary, by_device)
    moved = replace(spec, units=(replace(by_device, starts=(5,)),))
    assert [step.key for step in rig.driver.steps(spec)] != [step.key for step in rig.driver.steps(moved)]


def test_binding_host_reports_the_device_late_and_then_exactly(rig: Rig) -> None:
    needs(rig, "vm")
    needs(rig, "late-reports")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    finish(rig, boundary)
    rig.settings(report_delay_s=10.0)

    early = finish(rig, spec).units[0]
    early_modes = [gpu.mode for host in rig.driver.snapshot().hosts for gpu in host.gpus if host.host == "esx-a"]
    rig.clock.tick(20)
    late = rig.driver.observe(spec.ref).units[0]
    late_modes = [gpu.mode for host in rig.driver.snapshot().hosts for gpu in host.gpus if host.host == "esx-a"]

    assert (early.device, early.start, early.exact) == ("", None, False)
    assert (early_modes, late_modes) == (["unknown", "unknown"], ["mig", "empty"])
    assert late.exact
    assert [(use["device"], use["start"]) for use in rig.truth()] == [(late.device, late.start)]


def test_a_wrong_report_names_another_window_than_the_true_one(rig: Rig) -> None:
    needs(rig, "vm")
    needs(rig, "late-reports")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    rig.fault("report:esx-a", "wrong-report")
    finish(rig, boundary)
    finish(rig, spec)
    rig.clock.tick(5)

    told = rig.driver.observe(spec.ref).units[0]

    assert told.device != rig.truth()[0]["device"]


def test_a_whole_gpu_unit_of_two_takes_both_and_shows_both(rig: Rig) -> None:
    needs(rig, "namespace")
    needs(rig, "recarve")
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, unit(0, count=2))
    finish(rig, boundary)

    seen = finish(rig, spec)

    assert [(one.index, one.device, one.start) for one in seen.units] == [
        (0, "node-a-gpu-0", 0),
        (1, "node-a-gpu-1", 0),
    ]
    modes = {gpu.device: gpu.mode for host in rig.driver.snapshot().hosts for gpu in host.gpus}
    assert (modes["node-a-gpu-0"], modes["node-b-gpu-0"]) == ("full", "empty")


def test_a_window_in_use_is_never_given_a_second_time(rig: Rig) -> None:
    needs(rig, "namespace")
    boundary = namespace_boundary(TENANT)
    rig.foreign_use("render", "node-a", [("node-a-gpu-0", 1, "1g.10gb")])
    finish(rig, boundary)

    errors = [started(rig, step) for step in rig.driver.steps(endpoint(boundary, unit(0, start=1)))[:2]]

    assert errors == [None, NoCapacity]
    assert [use["name"] for use in rig.truth()] == ["render"]


@pytest.mark.parametrize(
    "wrong",
    [
        replace(unit(0, profile="3g.40gb", start=2)),
        replace(unit(0), profile="9g.99gb"),
        replace(unit(0), product="A100-80GB"),
        replace(unit(0), devices=("node-b-gpu-0",)),
        replace(unit(0), devices=()),
        replace(unit(0), binding=Binding.HOST),
        replace(unit(0), host="nowhere"),
        replace(unit(0), host="esx-a", binding=Binding.HOST),
    ],
    ids=["start", "profile", "product", "device", "no device", "binding", "host", "boundary kind"],
)
def test_what_cannot_be_is_rejected_and_leaves_no_replica(rig: Rig, wrong: object) -> None:
    needs(rig, "namespace")
    rig.settings(enforce_limits=False)
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, wrong)  # type: ignore[arg-type]
    finish(rig, boundary)

    error = started(rig, rig.driver.steps(spec)[1])

    assert error is DriverRejected
    assert rig.truth() == []
    assert rig.driver.observe(spec.ref).part("serving.replica[0]").presence == Presence.ABSENT


def test_a_host_without_vcpu_left_has_no_capacity(rig: Rig) -> None:
    needs(rig, "vm")
    needs(rig, "admission")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, replace(unit(host="esx-a"), vcpu=33))
    finish(rig, boundary)

    errors = [started(rig, step) for step in rig.driver.steps(spec)]

    assert errors == [None, NoCapacity]


def test_a_namespace_holds_its_own_limits(rig: Rig) -> None:
    needs(rig, "namespace")
    boundary = namespace_boundary(TENANT, **{"H100-80GB.1g.10gb": 1})
    first, second = endpoint(boundary, unit(0)), endpoint(boundary, unit(0, start=1))
    finish(rig, boundary)
    finish(rig, first)

    error = started(rig, rig.driver.steps(second)[1])

    assert error is not None
    assert issubclass(error, TransientDriverError)
    finish(rig, replace(boundary, gpu_resources={"H100-80GB.1g.10gb": 2}))
    finish(rig, second)


def test_an_evacuated_host_takes_nothing_new_says_who_is_there_and_comes_back(rig: Rig) -> None:
    needs(rig, "vm")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    later = machine(boundary, unit(host="esx-a"))
    rig.foreign_use("legacy", "esx-a", [("esx-a-gpu-1", 0, "")])
    finish(rig, boundary)
    finish(rig, spec)

    left = rig.driver.evacuate("esx-a")
    errors = [started(rig, step) for step in rig.driver.steps(later)]

    assert {use.name for use in left} == {"legacy", spec.ref.name}
    assert next(error for error in errors if error is not None) is NoCapacity
    assert next(host for host in rig.driver.snapshot().hosts if host.host == "esx-a").in_maintenance
    assert rig.driver.restore("esx-a") == Done()
    finish(rig, later)


def accepted(rig: Rig, host: str, *, rounds: int = 200) -> Acceptance:
    """Ask for a verdict again and again until it has come: what is tried may take its time."""
    for _ in range(rounds):
        try:
            return rig.driver.acceptance(host)
        except TransientDriverError:
            rig.clock.tick()
    raise AssertionError(f"no verdict on {host}")


def test_acceptance_of_a_good_host_passes_leaves_nothing_and_an_unknown_one_is_refused(rig: Rig) -> None:
    needs(rig, "acceptance")
    host = next(host.host for host in rig.driver.snapshot().hosts if host.host in {"node-b", "esx-b"})

    verdict = accepted(rig, host)

    assert verdict.passed, verdict.checks
    assert verdict.checks != ()
    assert all(passed and seen for _name, passed, seen in verdict.checks)
    for _ in range(100):  # a claim goes once its controller has seen its pod go
        if not rig.leftovers():
            break
        rig.clock.tick()
    assert (rig.leftovers(), rig.truth()) == ([], [])
    with pytest.raises(DriverRejected):
        rig.driver.acceptance("nowhere")


def test_acceptance_names_each_gpu_and_fails_with_a_faulty_one(rig: Rig) -> None:
    needs(rig, "acceptance")
    needs(rig, "gpu-health")
    good = rig.driver.acceptance("node-b")
    rig.gpu_health("node-b-gpu-1", healthy=False)
    bad = rig.driver.acceptance("node-b")

    assert good.passed
    assert len(good.checks) == 3
    assert not bad.passed
    assert [name for name, passed, _seen in bad.checks if not passed] == ["workload on node-b-gpu-1"]


def test_a_layout_is_applied_to_an_idle_gpu_shown_and_usable(rig: Rig) -> None:
    needs(rig, "namespace")
    needs(rig, "recarve")
    rig.settings(enforce_limits=False)
    change = LayoutChange("node-a", "node-a-gpu-2", ((0, 4, "4g.40gb"), (4, 4, "3g.40gb")))
    (step,) = rig.driver.layout_steps(change)

    assert rig.driver.observe(step.ref).part("layout.apply").have != step.want
    complete(rig, step)

    assert rig.driver.observe(step.ref).part("layout.apply").have == step.want
    gpu = next(g for host in rig.driver.snapshot().hosts for g in host.gpus if g.device == "node-a-gpu-2")
    assert (gpu.mode, gpu.windows) == ("mig", ((0, 4, "4g.40gb"), (4, 4, "3g.40gb")))
    boundary = namespace_boundary(TENANT)
    finish(rig, boundary)
    carved = replace(unit(0, profile="3g.40gb", start=4), product="A100-80GB", devices=("node-a-gpu-2",))
    spec = endpoint(boundary, carved)
    finish(rig, spec)
    assert started(rig, rig.driver.layout_steps(LayoutChange("node-a", "node-a-gpu-2", ()))[0]) is TransientDriverError
    remove(rig, spec)
    complete(rig, step.undoing())
    assert (
        rig.driver.observe(step.ref).part("layout.apply").have
        == rig.driver.layout_steps(LayoutChange("node-a", "node-a-gpu-2", ()))[0].want
    )
    remove(rig, boundary)
    assert rig.leftovers() == []


def test_a_layout_that_overlaps_or_cannot_change_is_refused(rig: Rig) -> None:
    needs(rig, "recarve")
    overlapping = LayoutChange("node-a", "node-a-gpu-2", ((0, 4, "4g.40gb"), (2, 2, "2g.20gb")))
    fixed = LayoutChange("node-a", "node-a-gpu-3", ())

    assert started(rig, rig.driver.layout_steps(overlapping)[0]) is DriverRejected
    assert started(rig, rig.driver.layout_steps(fixed)[0]) is NotSupported


def test_under_the_adversarial_choice_no_window_is_used_twice(rig: Rig) -> None:
    needs(rig, "vm")
    rig.settings(policy="adversarial", delays_s={"": 0.0})
    boundary = vm_boundary(TENANT)
    finish(rig, boundary)
    profiles = ["1g.10gb", "2g.20gb", "1g.20gb", "3g.40gb", "1g.10gb", "1g.10gb", "4g.40gb", "2g.20gb", "1g.10gb"]

    for profile in profiles:
        spec = machine(boundary, replace(unit(host="esx-a", profile=profile), vcpu=1, memory_gib=1))
        *before, last = [started(rig, step) for step in rig.driver.steps(spec)]
        assert set(before) == {None}
        assert last in {None, NoCapacity}

    used = rig.truth()
    for device in {use["device"] for use in used}:
        slots = [
            slot for use in used if use["device"] == device for slot in range(use["start"], use["start"] + use["size"])
        ]
        assert len(slots) == len(set(slots))
    assert len(used) >= 5
