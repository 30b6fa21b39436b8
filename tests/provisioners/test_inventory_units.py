"""Inventory and our own units: reports that move holds, strays, orphans, bad GPUs, with real passes in between."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from provisioners import inventory
from provisioners.driver import Kind as RefKind
from provisioners.driver import ObservedProvider, Ref
from provisioners.sandbox import control, files, views
from provisioners.sandbox.records import GpuRecord
from tenants import audit
from tenants.actor import SYSTEM
from tenants.models import Event, Finding, GpuDevice, Hold, Host, Machine, Unit
from tenants.operations import endpoints, machines
from tenants.operations import findings as operations
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, MachineAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind
from tests import factories
from tests.drive import World, fresh, is_gone, is_ready, world

pytestmark = pytest.mark.usefixtures("db")


def estate(*hosts: tuple[str, str, int], product: str = "A100-80GB") -> dict[str, Any]:
    """(name, binding, GPUs) → document."""
    return {
        "schema": files.SCHEMA,
        "hosts": [
            {
                "host": name, "name": name, "binding": binding,
                "boundary_kinds": ["vm"] if binding == "host" else ["namespace"],
                "vcpu": 128, "memory_gib": 1024, "gpus": [{"product": product, "count": count}],
            }
            for name, binding, count in hosts
        ],
    }  # fmt: skip


@pytest.fixture
def owner() -> Any:
    tenant = factories.tenant()
    factories.generous(tenant, "H100-80GB", "A100-80GB")
    return factories.actor(factories.member(tenant)), tenant


def look(here: World) -> inventory.Summary:
    here.clock.move(1)
    return inventory.run(here.provider.pk, here.engine.driver_of(here.provider), here.clock(), clock=here.clock)


def show(here: World, change: Any) -> inventory.Summary:
    here.clock.move(1)
    return inventory.apply(here.provider.pk, change(here.estate.snapshot()), here.clock(), clock=here.clock)


def machine(here: World, owner: Any, name: str, profile: str = "1g.10gb", product: str = "A100-80GB") -> Machine:
    actor, tenant = owner
    ask = MachineAsk(
        name, AllocationSpec(units=(UnitAsk(GpuAsk(product, profile), vcpu=4, memory_gib=16),)), "ubuntu-24.04", 20
    )
    return machines.create(tenant=tenant, ask=ask, actor=actor, now=here.clock())


def endpoint(here: World, owner: Any, name: str = "chat", profile: str = "1g.10gb", product: str = "A100-80GB") -> Any:
    actor, tenant = owner
    from tenants.models import ServedModel

    if not ServedModel.objects.exists():
        factories.served_model("llama-3-1-8b")
    spec = AllocationSpec(
        units=(UnitAsk(GpuAsk(product, profile), vcpu=4, memory_gib=16),), where=Where(kind=BoundaryKind.NAMESPACE)
    )
    ask = EndpointAsk(name, RevisionAsk("llama-3-1-8b"), spec)
    return endpoints.create(tenant=tenant, ask=ask, actor=actor, now=here.clock()).endpoint


def ledger_view() -> set[tuple[str, str, int, int]]:
    """Return (host, device, start, size) of every hold of a tenant or of somebody foreign."""
    rows = Hold.objects.filter(kind__in=["tenant", "foreign"]).select_related("device", "host")
    return {(row.host.provider_ref, row.device.provider_ref, row.start, row.size) for row in rows}


def truth(here: World) -> set[tuple[str, str, int, int]]:
    return {(use.host, use.device, use.start, use.size) for use in views.truth(here.estate.state)}


def open_findings() -> list[str]:
    return sorted(Finding.objects.filter(resolved_at__isnull=True).values_list("kind", flat=True))


def bound_host(here: World) -> Host:
    return Host.objects.get(provider=here.provider)


# --- reports ------------------------------------------------------------------------------------------


def test_a_report_settles_a_hold_where_it_really_lies(owner: Any) -> None:
    here = world(estate(("esxi", "host", 2)))
    control.change_settings(here.estate, {"policy": "spread", "report_delay_s": 30.0})
    row = machine(here, owner, "one")
    here.drive(is_ready(row))
    control.change_settings(here.estate, {"policy": "adversarial"})

    look(here)
    before = Hold.objects.get()
    here.clock.move(60)
    look(here)

    after = Hold.objects.get()
    assert (before.settled, after.settled) == (False, True)
    assert bound_host(here).unsettled == 0
    assert ledger_view() == truth(here)


def test_two_holds_swap_in_one_transaction_when_the_reports_say_so(owner: Any) -> None:
    here = world(estate(("esxi", "host", 2)))
    rows = [machine(here, owner, name, profile="") for name in ("one", "two")]
    units = {row.name: Unit.objects.get(allocation=row.allocation) for row in rows}
    for row in rows:
        here.drive(is_ready(row))
    guessed = {hold.unit_id: hold.device.provider_ref for hold in Hold.objects.select_related("device")}
    assert set(guessed.values()) == {"esxi-gpu-0", "esxi-gpu-1"}

    def swapped(seen: ObservedProvider) -> ObservedProvider:
        other = {units["one"].pk: guessed[units["two"].pk], units["two"].pk: guessed[units["one"].pk]}
        return replace(seen, uses=tuple(replace(use, device=other[use.unit]) for use in seen.uses))

    show(here, swapped)

    now_at = {hold.unit_id: hold.device.provider_ref for hold in Hold.objects.select_related("device")}
    assert now_at == {units["one"].pk: guessed[units["two"].pk], units["two"].pk: guessed[units["one"].pk]}
    assert Hold.objects.filter(settled=False).count() == 0
    assert open_findings() == []


def switched(here: World, owner: Any, row: Machine, want: str) -> None:
    actor, _ = owner
    machines.power(machine=row, want=want, actor=actor, now=here.clock())
    here.drive(lambda: fresh(row).observed.get("power") == want)
    look(here)


def test_a_machine_that_is_off_holds_room_but_no_place(owner: Any) -> None:
    here = world(estate(("esxi", "host", 2)))
    control.change_settings(here.estate, {"policy": "first"})
    one = machine(here, owner, "one", profile="")
    here.drive(is_ready(one))
    look(here)
    assert Hold.objects.get().settled

    switched(here, owner, one, "off")
    off = Hold.objects.get()
    two = machine(here, owner, "two", profile="")  # the host puts it where the first one was
    here.drive(is_ready(two))
    look(here)

    assert (off.settled, off.device.provider_ref) == (False, "esxi-gpu-0")
    assert {use.device for use in views.truth(here.estate.state)} == {"esxi-gpu-0"}
    assert {hold.unit.allocation_id: hold.device.provider_ref for hold in Hold.objects.all() if hold.unit} == {
        one.allocation_id: "esxi-gpu-1",
        two.allocation_id: "esxi-gpu-0",
    }
    assert open_findings() == []
    switched(here, owner, one, "on")
    here.drive(is_ready(one))
    look(here)
    assert ledger_view() == truth(here)
    assert bound_host(here).unsettled == 0


def test_nothing_is_let_in_that_could_take_the_last_place_of_a_machine_that_is_off(owner: Any) -> None:
    here = world(estate(("esxi", "host", 1)))
    one = machine(here, owner, "one", profile="4g.40gb")
    here.drive(is_ready(one))
    look(here)
    switched(here, owner, one, "off")

    two = machine(here, owner, "two", profile="2g.20gb")  # the host might put it below 4, and then it is too late
    here.drive(lambda: fresh(two).phase == "Waiting")
    switched(here, owner, one, "on")
    here.drive(is_ready(one))
    look(here)
    here.drive(is_ready(two))

    assert open_findings() == []


def test_a_report_that_no_packing_explains_blocks_the_host_and_evicts_nobody(owner: Any) -> None:
    here = world(estate(("esxi", "host", 2)))
    rows = [machine(here, owner, name, profile="3g.40gb") for name in ("one", "two")]
    for row in rows:
        here.drive(is_ready(row))
    look(here)
    before = sorted(Hold.objects.values_list("pk", "device_id", "start"))

    def both_on_one(seen: ObservedProvider) -> ObservedProvider:
        first = seen.uses[0]
        return replace(seen, uses=tuple(replace(use, device=first.device, start=first.start) for use in seen.uses))

    show(here, both_on_one)

    assert sorted(Hold.objects.values_list("pk", "device_id", "start")) == before
    assert open_findings() == ["unexplained-report"]
    assert bound_host(here).placeable is False
    look(here)
    assert open_findings() == []
    assert bound_host(here).placeable is True


def test_a_wrong_report_is_believed_only_until_a_better_one_comes(owner: Any) -> None:
    here = world(estate(("esxi", "host", 2)))
    control.add_fault(here.estate, "report:esxi", "wrong-report")
    row = machine(here, owner, "one")
    here.drive(is_ready(row))
    look(here)
    assert ledger_view() != truth(here)

    here.estate.state.workloads[str(Unit.objects.get().pk)].reported = None
    look(here)

    assert ledger_view() == truth(here)
    assert open_findings() == []


def test_a_guess_gives_way_to_a_foreigner_who_is_really_seen_there(owner: Any) -> None:
    here = world(estate(("esxi", "host", 2)))
    control.change_settings(here.estate, {"report_delay_s": 1000.0})
    row = machine(here, owner, "one", profile="")
    here.drive(is_ready(row))
    guess = Hold.objects.get()
    assert not guess.settled
    real = here.estate.state.workloads[str(guess.unit_id)].windows[0][0]
    other = next(d for d in ("esxi-gpu-0", "esxi-gpu-1") if d != real)
    control.add_foreign_use(here.estate, "squatter", "esxi", [[other, 0, ""]])
    if guess.device.provider_ref == real:  # the guess was right: let the foreigner be reported on it
        show(here, lambda seen: replace(seen, uses=tuple(
            replace(use, device=real) if use.ref is None else use for use in seen.uses)))  # fmt: skip
        assert Hold.objects.get(kind="tenant").device.provider_ref == other
        assert Hold.objects.get(kind="foreign").device.provider_ref == real
    else:
        look(here)
        assert ledger_view() == truth(here)
    assert open_findings() == []


def test_a_device_bound_unit_elsewhere_than_told_is_a_finding_and_its_window_is_protected(owner: Any) -> None:
    here = world(estate(("node", "device", 2)))
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    hold = Hold.objects.get()
    other = GpuDevice.objects.exclude(pk=hold.device_id).get()

    show(here, lambda seen: replace(seen, uses=tuple(replace(use, device=other.provider_ref) for use in seen.uses)))

    assert Hold.objects.get(kind="tenant").device_id == hold.device_id
    stray = Hold.objects.get(kind="foreign")
    assert (stray.device_id, stray.start, stray.size) == (other.pk, hold.start, hold.size)
    assert open_findings() == ["wrong-device"]
    other.refresh_from_db()
    assert other.placeable is False


def test_under_the_adversarial_choice_nothing_is_used_twice_and_the_ledger_is_the_truth(owner: Any) -> None:
    here = world(estate(("esxi-1", "host", 2), ("esxi-2", "host", 2)), snapshots=True)
    control.change_settings(here.estate, {"policy": "adversarial", "report_delay_s": 3.0})
    control.add_foreign_use(here.estate, "squatter", "esxi-1", [["esxi-1-gpu-0", 0, "2g.20gb"]])
    look(here)
    profiles = ["3g.40gb", "1g.10gb", "2g.20gb", "1g.10gb", "3g.40gb", "2g.20gb", "1g.10gb+me", "1g.20gb", "1g.10gb"]

    rows = []
    for number, profile in enumerate(profiles):
        rows.append(machine(here, owner, f"m{number}", profile=profile))
        here.sweep()
        here.clock.move(1)
    here.drive(lambda: all(fresh(row).phase in {"Ready", "Waiting"} for row in rows), most=120)
    here.clock.move(10)
    look(here)
    look(here)

    ready = [row for row in rows if fresh(row).phase == "Ready"]
    assert len(ready) >= 6
    assert ledger_view() == truth(here)
    assert audit.findings() == []
    assert open_findings() == []

    for row in ready[::2]:
        machines.delete(machine=fresh(row), actor=owner[0], now=here.clock())
    here.drive(is_gone(*ready[::2]), most=120)
    here.clock.move(10)
    look(here)
    look(here)
    assert ledger_view() == truth(here)
    assert audit.findings() == []


def test_a_provider_that_never_tells_devices_leaves_holds_unsettled_and_nothing_else(owner: Any) -> None:
    here = world(estate(("esxi", "host", 2)))
    control.change_settings(here.estate, {"report_detail": "never"})
    row = machine(here, owner, "one")
    here.drive(is_ready(row))

    look(here)
    summary = look(here)

    assert (Hold.objects.get().settled, Hold.objects.count(), open_findings(), summary.idle) == (False, 1, [], True)


# --- hardware -----------------------------------------------------------------------------------------


def test_a_gpu_dies_under_a_tenant_and_its_replacement_takes_the_hold_over(owner: Any) -> None:
    here = world(estate(("node", "device", 1)), snapshots=True)
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    hold = Hold.objects.get()
    control.set_gpu_health(here.estate, "node-gpu-0", healthy=False, message="Xid 79")

    look(here)
    here.sweep()

    sick = fresh(row)
    assert sick.phase == "Degraded"
    assert [c["status"] for c in sick.conditions if c["type"] == "Healthy"] == ["False"]
    assert Hold.objects.get(kind="tenant").pk == hold.pk
    assert Hold.objects.filter(kind="fault").exists()
    assert Event.objects.filter(kind="endpoint.unhealthy", object_id=row.pk).exists()

    # The technician pulls the card, workloads on it are gone, and puts another one in its place.
    state = here.estate.state
    old = state.gpus["node-gpu-0"]
    for workload in list(state.workloads.values()):
        state.vacate(f"unit:{workload.uid}", workload.host, workload.windows, workload.vcpu, workload.memory_gib)
        state.drop("workloads", workload.uid)
    for owned in state.objects.values():
        for name in [name for name in owned.parts if name.startswith("serving.replica")]:
            del owned.parts[name]
    state.drop("gpus", "node-gpu-0")
    state.put("gpus", "spare", GpuRecord("spare", old.host, old.product, old.index))
    state.index()
    look(here)

    moved = Hold.objects.get(kind="tenant")
    assert (moved.pk, moved.device.provider_ref, moved.start) == (hold.pk, "spare", hold.start)
    assert Hold.objects.filter(kind="fault").count() == 0
    here.drive(is_ready(row))
    look(here)
    look(here)
    assert ledger_view() == truth(here)
    assert open_findings() == []


# --- objects ------------------------------------------------------------------------------------------


def test_an_object_removed_behind_our_back_is_made_again(owner: Any) -> None:
    here = world(estate(("node", "device", 1)), snapshots=True)
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    look(here)
    assert fresh(row).fingerprint != ""
    control.remove_object(here.estate, str(row.pk))

    look(here)

    assert fresh(row).due_at is not None
    here.drive(lambda: str(row.pk) in here.estate.state.objects and fresh(row).phase == "Ready")
    look(here)
    look(here)
    assert ledger_view() == truth(here)


def test_ready_objects_cost_no_pass_while_nothing_changes(owner: Any) -> None:
    here = world(estate(("node", "device", 1)))
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    here.drive(lambda: fresh(row.boundary).due_at is None and fresh(row).due_at is None)
    look(here)
    here.sweep()

    summary = look(here)

    assert summary.idle
    assert fresh(row).due_at is None


def test_an_orphan_is_reported_after_two_looks_and_deleted_on_an_operators_word(owner: Any) -> None:
    here = world(estate(("node", "device", 2)))
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    stranger = here.estate.state.objects[str(row.pk)]
    ref = Ref(RefKind.ENDPOINT, factories.uuid4(), row.tenant_id)
    from provisioners.sandbox.records import ObjectRecord, PartRecord

    here.estate.state.put(
        "objects",
        str(ref.uid),
        ObjectRecord(
            str(ref.uid), "endpoint", stranger.tenant, ref.name, here.clock.timestamp(),
            parts={"serving.secret": PartRecord("x"), "serving.service": PartRecord("y")},
        ),
    )  # fmt: skip

    look(here)
    first = open_findings()
    look(here)

    assert (first, open_findings()) == ([], ["orphan"])
    look(here)
    assert str(ref.uid) in here.estate.state.objects

    finding = Finding.objects.get(kind="orphan")
    operator = factories.actor(factories.person(platform=(factories.PlatformRole.OPERATOR,)))
    operations.resolve(finding=finding, action="delete", reason="left by a test", actor=operator, now=here.clock())
    look(here)
    look(here)

    assert str(ref.uid) not in here.estate.state.objects
    assert str(row.pk) in here.estate.state.objects
    finding.refresh_from_db()
    assert finding.resolution == "deleted at the provider"


@pytest.mark.parametrize(("later", "stays"), [(timedelta(minutes=1), False), (timedelta(hours=2), True)])
def test_what_a_late_call_makes_after_its_rows_end_goes_by_itself_and_what_is_brought_back_waits_for_people(
    owner: Any, later: timedelta, stays: bool
) -> None:
    here = world(estate(("node", "device", 2)))
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    record = copy.deepcopy(here.estate.state.objects[str(row.pk)])
    endpoints.delete(endpoint=fresh(row), actor=owner[0], now=here.clock())
    here.drive(is_gone(row, row.allocation))
    here.clock.move(later.total_seconds())
    here.estate.state.put("objects", str(row.pk), record)

    for _ in range(4):
        look(here)

    assert (str(row.pk) in here.estate.state.objects) is stays
    assert open_findings() == (["orphan"] if stays else [])
    assert Finding.objects.get(kind="orphan").resolution == ("" if stays else "deleted at the provider")


def test_a_unit_that_runs_without_room_is_kept_safe_and_can_be_adopted(owner: Any) -> None:
    from tenants import ledger
    from tenants.transactions import acting

    here = world(estate(("node", "device", 2)))
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    unit = Unit.objects.get()
    with acting(SYSTEM):  # as if an operator had written it off too early
        ledger.release(unit, now=here.clock())
    here.clock.move(5)

    look(here)

    assert open_findings() == ["stray-use"]
    stray = Hold.objects.get()
    assert (stray.kind, stray.note) == ("foreign", f"stray {unit.pk}")
    assert ledger_view() == truth(here)

    operator = factories.actor(factories.person(platform=(factories.PlatformRole.OPERATOR,)))
    operations.resolve(
        finding=Finding.objects.get(), action="adopt", reason="it is ours", actor=operator, now=here.clock()
    )

    hold = Hold.objects.get()
    assert (hold.kind, hold.unit_id, hold.device_id, hold.start) == ("tenant", unit.pk, stray.device_id, stray.start)
    assert look(here).holds_changed == 0
    assert open_findings() == []


def test_what_left_after_the_snapshot_was_read_is_not_taken_for_a_stray(owner: Any) -> None:
    here = world(estate(("node", "device", 1)))
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    here.clock.move(1)
    read_at, seen = here.clock(), here.estate.snapshot()
    here.clock.move(1)
    endpoints.delete(endpoint=fresh(row), actor=owner[0], now=here.clock())
    here.drive(is_gone(row, row.allocation))

    inventory.apply(here.provider.pk, seen, read_at, clock=here.clock)

    assert Hold.objects.count() == 0
    assert open_findings() == []
