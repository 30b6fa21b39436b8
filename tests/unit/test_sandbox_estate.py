"""The core under random use: no window twice, counters equal to records, rows give the same estate back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioners.driver import DriverError, MachineSize, MachineSpec, Power, TransientDriverError, removal_of
from provisioners.sandbox import choosing, compose, control, files, physics, views
from provisioners.sandbox.control import BadControl
from provisioners.sandbox.driver import InProcessSandbox
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.records import as_row
from provisioners.sandbox.state import State, state_from_rows
from provisioners.sandbox.store import Store
from tests.conformance.rigs import DOCUMENT, Clock, InProcessRig
from tests.conformance.specs import endpoint, finish, machine, namespace_boundary, unit, vm_boundary

TENANT = UUID("66666666-6666-4666-8666-666666666666")
PROFILES = ("1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "")
TABLES = ("hosts", "gpus", "objects", "workloads", "gateways", "tasks", "foreign_uses", "foreign_objects", "faults")


def rows_of(state: State) -> dict[str, Any]:
    """Return everything that a state holds, without its indexes."""
    found: dict[str, Any] = {name: {key: as_row(row) for key, row in getattr(state, name).items()} for name in TABLES}
    return {**found, "settings": as_row(state.settings), "counters": state.counters, "captured": state.captured}


def indexes_of(state: State) -> dict[str, Any]:
    """Return what is in use, without entries for what is not."""
    return {
        "occupied": {
            device: {holder: sorted(windows) for holder, windows in holders.items()}
            for device, holders in state.occupied.items()
            if holders
        },
        "loads": {
            host: (load.vcpu, load.memory_gib) for host, load in state.loads.items() if load.vcpu or load.memory_gib
        },
        "gpus_of": dict(state.gpus_of),
        "owned": {key: uids for key, uids in state.owned.items() if uids},
    }


def check(state: State) -> None:
    """Fail if two windows overlap, a start is illegal, media engines are shared, or a host is over its room."""
    slots: dict[str, set[int]] = {}
    media: dict[str, int] = {}
    for use in views.truth(state):
        product = state.gpus[use.device].product
        profile = physics.profile_of(product, use.profile)
        assert use.start in profile.starts
        assert use.size == profile.size
        mine = set(range(use.start, use.start + use.size))
        assert not mine & slots.setdefault(use.device, set()), use
        slots[use.device] |= mine
        media[use.device] = media.get(use.device, 0) + profile.media
    assert all(count <= 1 for count in media.values())
    for host, load in state.loads.items():
        assert 0 <= load.vcpu <= state.hosts[host].vcpu
        assert 0 <= load.memory_gib <= state.hosts[host].memory_gib


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), policy=st.sampled_from(sorted(choosing.POLICIES)), delay=st.sampled_from([0.0, 0.5]))
def test_random_use_never_breaks_physics_and_rows_give_the_same_estate_back(  # noqa: C901  one arm per kind of use
    data: st.DataObject, policy: str, delay: float
) -> None:
    clock = Clock()
    estate = Estate(files.build(DOCUMENT), clock=clock, url="http://127.0.0.1:1")
    control.change_settings(estate, {"policy": policy, "enforce_limits": False, "delays_s": {"": delay}})
    store = Store(None)
    driver = InProcessSandbox(estate)
    boundary = vm_boundary(TENANT)
    for step in driver.steps(boundary):
        driver.start(step)
        clock.tick(1)
    specs: list[MachineSpec] = []

    for number in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(["new", "new", "new", "off", "on", "delete", "foreign", "tick", "fault"])):
            case "new":
                profile = data.draw(st.sampled_from(PROFILES))
                host = data.draw(st.sampled_from(["esx-a", "esx-b"]))
                spec = machine(boundary, replace(unit(host=host, profile=profile), gpu_count=0 if profile else 1))
                specs.append(replace(spec, unit=replace(spec.unit, vcpu=data.draw(st.integers(1, 12)))))
                targets, wanted = [specs[-1]], Power.ON
            case ("off" | "on") as word:
                targets, wanted = specs[-1:], Power(word)
            case "delete" if specs:
                spec = data.draw(st.sampled_from(specs))
                for part in ("vm.power", "vm.clone"):
                    attempt(driver, removal_of(spec.ref, part))
                continue
            case "foreign":
                windows = [
                    (f"esx-a-gpu-{number % 2}", data.draw(st.integers(0, 7)), data.draw(st.sampled_from(PROFILES)))
                ]
                try:
                    control.add_foreign_use(estate, f"f{number}", "esx-a", windows, vcpu=1)
                except BadControl:
                    continue
                continue
            case "fault":
                effect = data.draw(st.sampled_from(["fail", "lost-answer", "task-fail", "forget", "wrong-report"]))
                control.add_fault(estate, "*", effect, error=data.draw(st.sampled_from(["transient", "no-capacity"])))
                continue
            case _:
                clock.tick(1)
                continue
        for spec in targets:
            for step in driver.steps(replace(spec, power=wanted)):
                attempt(driver, step)
                clock.tick(data.draw(st.sampled_from([0.0, 1.0])))
        check(estate.state)
        store.save("e", estate.state.take_changes())

    estate.advance()
    store.save("e", estate.state.take_changes())
    check(estate.state)
    again = state_from_rows(store.rows("e")) if store.estates() else State()
    assert rows_of(again).items() >= {name: rows for name, rows in rows_of(estate.state).items() if rows}.items()
    assert indexes_of(again) == indexes_of(estate.state)
    for spec in specs:
        for _ in range(8):
            for part in ("vm.power", "vm.clone"):
                attempt(driver, removal_of(spec.ref, part))
            clock.tick(1)
    assert [line for line in views.leftovers(estate.state) if "machine" in line or "workload" in line] == []
    store.close()


def attempt(driver: InProcessSandbox, step: Any) -> None:
    try:
        driver.start(step)
    except DriverError:
        return


def test_the_same_seed_draws_the_same_after_a_restart() -> None:
    clock = Clock()
    first = Estate(files.build(DOCUMENT), clock=clock, url="")
    first.draw()
    store = Store(None)
    store.save("e", first.state.take_changes())

    second = Estate(state_from_rows(store.rows("e")), clock=clock, url="")

    assert first.draw().random() == second.draw().random()
    store.close()


def test_each_policy_chooses_as_it_says() -> None:
    candidates = [
        choosing.Candidate("a", 0, 4, used=4, lost=4),
        choosing.Candidate("a", 0, 5, used=4, lost=2),
        choosing.Candidate("b", 1, 0, used=0, lost=20),
        choosing.Candidate("b", 1, 6, used=0, lost=12),
    ]
    estate = Estate(files.build(DOCUMENT), clock=Clock(), url="")
    chosen = {policy: choosing.choose(policy, candidates, estate.draw) for policy in choosing.POLICIES}

    assert (chosen["first"].device, chosen["first"].start) == ("a", 4)
    assert (chosen["spread"].device, chosen["spread"].start) == ("b", 0)
    assert (chosen["adversarial"].device, chosen["adversarial"].start) == ("b", 0)
    assert chosen["random"] in candidates


def test_a_running_task_ends_on_time_after_a_restart(tmp_path: Path) -> None:
    clock, store = Clock(), Store(tmp_path / "s.sqlite3")
    estate = Estate(files.build(DOCUMENT), clock=clock, url="")
    boundary = namespace_boundary(TENANT)
    step = InProcessSandbox(estate).steps(boundary)[0]
    handle = InProcessSandbox(estate).start(step)
    store.save("e", estate.state.take_changes())
    store.close()

    clock.tick(1)
    reopened = Store(tmp_path / "s.sqlite3")
    driver = InProcessSandbox(Estate(state_from_rows(reopened.rows("e")), clock=clock, url=""))

    assert driver.poll(handle).state == "done"  # type: ignore[arg-type]
    assert driver.observe(boundary.ref).part(step.name).have == step.want
    reopened.close()


def test_an_ended_task_is_forgotten_in_the_end() -> None:
    rig = InProcessRig()
    rig.settings(task_memory_s=100.0)
    handle = rig.driver.start(rig.driver.steps(namespace_boundary(TENANT))[0])
    rig.clock.tick(1)
    assert rig.driver.poll(handle).state == "done"  # type: ignore[arg-type]

    rig.clock.tick(200)

    assert rig.driver.poll(handle).state == "unknown"  # type: ignore[arg-type]


def test_a_refused_change_of_a_replica_leaves_the_old_one_running() -> None:
    rig = InProcessRig()
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, unit(0))
    rig.foreign_use("render", "node-a", [("node-a-gpu-1", 0, "")])
    finish(rig, boundary)
    finish(rig, spec)
    before = rig.truth()
    moved = replace(spec, units=(replace(spec.units[0], devices=("node-a-gpu-1",)),))
    step = rig.driver.steps(moved)[1]

    handle = rig.driver.start(step)
    rig.clock.tick(1)

    polled = rig.driver.poll(handle)  # type: ignore[arg-type]
    assert polled.error is not None
    assert polled.error.reason == "NoCapacity"
    assert rig.truth() == before
    assert finish(rig, spec).part("serving.replica[0]").ready


def test_a_busy_part_refuses_another_step_until_its_task_ends() -> None:
    rig = InProcessRig()
    boundary = namespace_boundary(TENANT)
    first = rig.driver.steps(boundary)[0]
    rig.driver.start(first)

    with pytest.raises(TransientDriverError) as busy:
        rig.driver.start(first.undoing())

    assert busy.value.retry_after_s == 0.5
    rig.clock.tick(1)
    rig.driver.start(first.undoing())
    rig.clock.tick(1)
    assert not rig.driver.observe(boundary.ref).exists


def test_an_object_removed_behind_our_back_is_gone_with_all_that_ran_in_it() -> None:
    rig = InProcessRig()
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    finish(rig, boundary)
    finish(rig, spec)

    control.remove_object(rig.estate, str(spec.ref.uid))

    assert not rig.driver.observe(spec.ref).exists
    assert rig.truth() == []
    assert finish(rig, spec).exists


def test_a_host_that_names_no_devices_shows_no_windows_either() -> None:
    rig = InProcessRig()
    rig.settings(report_detail="device")
    boundary = vm_boundary(TENANT)
    spec = machine(boundary, unit(host="esx-a"))
    finish(rig, boundary)
    finish(rig, spec)
    rig.clock.tick(5)

    seen = rig.driver.observe(spec.ref).units[0]
    gpu = next(gpu for host in rig.driver.snapshot().hosts for gpu in host.gpus if gpu.device == seen.device)

    assert (seen.start, seen.exact) == (None, True)
    assert (gpu.mode, gpu.windows) == ("unknown", ())


def test_what_was_never_resized_is_wanted_with_the_hashes_of_before() -> None:
    """Another hash of its clone would have every machine that runs made anew, with an empty disk."""
    boundary = vm_boundary(TENANT)
    boundary = replace(boundary, ref=replace(boundary.ref, uid=UUID(int=1)))
    one = replace(unit(host="esx-a"), uid=UUID(int=2))
    spec = replace(machine(boundary, one), boundary=boundary.ref)
    spec = replace(spec, ref=replace(spec.ref, uid=UUID(int=3)))
    larger = replace(
        spec, unit=replace(one, vcpu=8), disk_gib=200, made_with=MachineSize(one.vcpu, one.memory_gib, spec.disk_gib)
    )

    before = [(step.name, step.want) for step in compose.steps(spec)]
    after = [(step.name, step.want) for step in compose.steps(larger)]

    assert before == [("vm.clone", "1470404f6f8309dd"), ("vm.power", "d0f1ab50977207a8")]
    assert [name for name, _want in after] == ["vm.clone", "vm.configure", "vm.power"]
    assert (after[0], after[2]) == (before[0], before[1])
