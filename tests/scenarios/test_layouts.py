"""The layout of a host's GPUs is changed under its tenants: made, failed, stuck, lost half-way, held up, called off."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from provisioners.sandbox import control
from tenants import audit
from tenants.errors import Conflict, InvalidSpec
from tenants.models import Event, GpuDevice, Hold, HostPlan, Intent, MigDevice, Notice
from tenants.operations import inventory, layouts, namespaces
from tests.drive import fresh, is_ready
from tests.scenarios.story import Customer, Deaths, Story, customer, endpoint, host, namespace, node, story
from tests.scenarios.test_hardware import holds_on, in_maintenance, where

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

SEVEN = [[start, 1, "1g.10gb"] for start in range(7)]
HALVES = ["3g.40gb", "3g.40gb"]


def carved(name: str, *, gpus: int = 1) -> dict[str, Any]:
    """Return a host whose GPUs are cut in seven and may be cut anew while they are empty."""
    group = {"product": "H100-80GB", "count": gpus, "layout_change": "on-idle", "layout": SEVEN}
    return {**node(name), "gpus": [group]}


def empty(*, gpus: int = 1) -> Story:
    """Begin a story in which nobody has anything."""
    told = story(carved("node-1", gpus=gpus), carved("node-2"))
    told.sweep()
    return told


def told_of(*, deaths: Deaths | None = None, spare: bool = True, gpus: int = 1) -> tuple[Story, Customer, Any]:
    """Begin a story: one endpoint on the first of two hosts."""
    told = story(carved("node-1", gpus=gpus), carved("node-2"), deaths=deaths)
    while not told.sweep():
        pass
    inventory.cordon(host=host("node-2"), actor=told.operator, now=told.now)
    acme = customer("acme")
    chat = endpoint(acme, told.now)
    told.drive(is_ready(chat))
    if spare:
        inventory.uncordon(host=host("node-2"), actor=told.operator, now=told.now)
    assert where(chat) == "node-1"
    return told, acme, chat


def changed(told: Story, wanted: Any = None, **more: Any) -> HostPlan:
    """Ask for another layout of the first host."""
    asked = wanted if wanted is not None else {"0": HALVES}
    return layouts.change_layout(
        host=host("node-1"), layouts=asked, reason="larger parts", actor=told.operator, now=told.now, **more
    )


def shown(index: int = 0) -> list[tuple[int, str]]:
    """Return what our rows say a GPU of the first host is carved into."""
    rows = MigDevice.objects.filter(device__host__name="node-1", device__index=index).order_by("start")
    return list(rows.values_list("start", "profile"))


def ended(plan: HostPlan, state: str) -> Any:
    """Return a condition: the plan came to its end, the right one."""

    def over() -> bool:
        row = fresh(plan)
        assert row.state in {"running", state}, row.observed
        return bool(row.state == state)

    return over


def at_rest(told: Story, plan: HostPlan) -> None:
    """Assert what holds after every end: the ledger is right, nothing is under way, nothing is held for the plan."""
    told.settle(looks=2)
    assert audit.findings() == []
    assert Intent.objects.filter(settled_at__isnull=True).count() == 0
    assert Hold.objects.filter(note=f"plan {plan.pk}").count() == 0
    told.accounted()


@pytest.mark.slow
def test_a_layout_is_changed_under_a_tenant_that_moves_and_one_that_lets_go(deaths: Deaths | None) -> None:
    told, acme, chat = told_of(deaths=deaths, spare=False)
    globex = customer("globex")
    play = namespace(globex, told.now)
    told.drive(is_ready(play))
    inventory.uncordon(host=host("node-2"), actor=told.operator, now=told.now)

    # The preview says who is concerned and changes nothing.
    seen = layouts.preview_layout(host=host("node-1"), layouts={"0": HALVES}, actor=told.operator, now=told.now)
    assert {(one["name"], one["action"], one["to"]) for one in seen["touched"]} == {
        ("chat", "move", "node-2"), ("play", "stop", ""),
    }  # fmt: skip
    assert (seen["move"], seen["no_room"], seen["wait"], seen["foreign"]) == (1, 0, 1, [])
    assert [(gpu["before"][0], gpu["after"]) for gpu in seen["gpus"]] == [
        ([0, 1, "1g.10gb"], [[0, 4, "3g.40gb"], [4, 4, "3g.40gb"]])
    ]
    assert (host("node-1").state, HostPlan.objects.count()) == ("open", 0)

    # With notice: both are told, nobody is touched before.
    starts_at = told.now + timedelta(hours=1)
    plan = changed(told, starts_at=starts_at)
    assert sorted(Notice.objects.filter(kind="host-layout").values_list("tenant__name", flat=True)) == [
        "acme",
        "globex",
    ]
    told.settle()
    assert (where(chat), where(play), host("node-1").state) == ("node-1", "node-1", "draining")
    assert fresh(chat).phase == "Ready"

    # The start: one moves, the other is waited for, and the plan says for whom.
    told.here.clock.now = starts_at
    told.drive(lambda: where(chat) == "node-2" and is_ready(chat)(), most=200, step_s=5)
    told.settle()
    assert fresh(plan).observed["waits_for"] == ["globex/play is held until its tenant gives it back"]
    assert (fresh(plan).state, shown()[0]) == ("running", (0, "1g.10gb"))
    assert (holds_on("node-1", "tenant"), holds_on("node-1", "maintenance")) == (1, 7)
    assert in_maintenance(told, "node-1") is True

    namespaces.delete(namespace=fresh(play), actor=globex.actor, now=told.now)
    told.drive(ended(plan, "done"), most=200, step_s=5)

    assert shown() == [(0, "3g.40gb"), (4, "3g.40gb")]
    assert (host("node-1").state, in_maintenance(told, "node-1")) == ("open", False)
    assert holds_on("node-1", "maintenance") == 0
    large = endpoint(acme, told.now, "large", profile="3g.40gb")
    told.drive(is_ready(large), most=200, step_s=5)
    account = told.at_rest()
    assert where(large) == "node-1"
    assert account.mismatches == []
    kinds = list(Event.objects.filter(object_id=plan.pk).order_by("seq").values_list("kind", flat=True))
    assert kinds == [f"host-plan.{word}" for word in ("created", "started", "carve", "compare", "done")]
    assert Event.objects.filter(kind="host.layout-changed").count() == 1


def test_what_fails_is_said_and_the_host_is_as_it_was() -> None:
    told = empty(gpus=2)
    control.add_fault(
        told.here.estate,
        "start:layout.apply",
        "task-fail",
        error="rejected",
        detail="it said no",
        skip=1,
        times=1,
    )

    plan = changed(told, {"all": HALVES})
    told.drive(ended(plan, "failed"), most=200, step_s=5)

    # The first GPU had been carved: it was carved back.
    at_rest(told, plan)
    assert fresh(plan).observed["why"] == "it said no"
    assert shown(0) == shown(1) == [(start, "1g.10gb") for start in range(7)]
    assert (host("node-1").state, in_maintenance(told, "node-1"), host("node-1").placeable) == ("open", False, True)
    assert Event.objects.filter(kind="host-plan.failed").count() == 1


def test_what_never_ends_is_given_up_and_the_host_stays_cordoned() -> None:
    told = empty()
    control.add_fault(told.here.estate, "start:layout.apply", "delay", seconds=10**7, times=1)

    plan = changed(told)
    told.drive(lambda: fresh(plan).observed.get("stage") == "carve", most=100, step_s=5)
    told.drive(lambda: fresh(plan).observed.get("stage") == "restore", most=20, step_s=3000)
    told.drive(ended(plan, "failed"), most=40, step_s=3000)

    at_rest(told, plan)
    assert "The provider has not finished within 90 minutes." in fresh(plan).observed["why"]
    assert "stays cordoned" in fresh(plan).observed["why"]
    assert (host("node-1").state, in_maintenance(told, "node-1")) == ("cordoned", True)
    assert shown()[0] == (0, "1g.10gb")


def test_nobody_is_moved_for_what_the_provider_cannot_make() -> None:
    told, _, chat = told_of()
    told.here.estate.state.gpus["node-1-gpu-0"].layout_change = "fixed"

    plan = changed(told, starts_at=told.now + timedelta(hours=1))
    told.drive(ended(plan, "failed"), most=20)

    at_rest(told, plan)
    assert fresh(plan).observed["why"] == "the layout of node-1-gpu-0 cannot be set"
    assert "started" not in fresh(plan).observed
    assert (where(chat), host("node-1").state) == ("node-1", "open")


def test_a_provider_that_does_not_answer_is_asked_again_after_a_pause() -> None:
    told = empty()
    control.add_fault(told.here.estate, "start:layout.apply", "fail", error="transient", detail="not now", times=1)
    plan = changed(told)
    told.drive(lambda: fresh(plan).observed.get("trouble", "") != "", most=40)

    row = fresh(plan)
    assert (row.observed["trouble"], row.failures) == ("ProviderUnavailable: not now", 1)
    assert row.lease_expires_at is None
    assert row.due_at > told.now
    told.drive(ended(plan, "done"), most=40)
    at_rest(told, plan)


def test_a_host_that_is_lost_half_way_keeps_its_layout_and_takes_nothing() -> None:
    told = empty()
    control.change_settings(told.here.estate, {"delays_s": {"": 0.0, "layout.apply": 30.0}})
    plan = changed(told)
    told.drive(lambda: Intent.objects.filter(object_id=plan.pk, handle__gt="").exists(), most=100, step_s=5)

    control.set_host_health(told.here.estate, "node-1", healthy=False, message="no heartbeat")
    told.drive(ended(plan, "failed"), most=200, step_s=5)

    told.settle()
    assert fresh(plan).observed["why"] == "host node-1 does not respond"
    assert (host("node-1").state, host("node-1").healthy, host("node-1").placeable) == ("open", False, False)
    control.set_host_health(told.here.estate, "node-1", healthy=True)
    at_rest(told, plan)
    assert host("node-1").placeable is True
    assert shown()[0] == (0, "1g.10gb")


def test_of_two_plans_the_second_is_refused_and_nothing_else_opens_the_host() -> None:
    told = empty()
    plan = changed(told, starts_at=told.now + timedelta(hours=1))

    for attempt in (
        lambda: changed(told, {"0": ["7g.80gb"]}),
        lambda: inventory.drain(host=host("node-1"), reason="again", actor=told.operator, now=told.now),
        lambda: inventory.uncordon(host=host("node-1"), actor=told.operator, now=told.now),
    ):
        with pytest.raises(Conflict) as refused:
            attempt()
        assert refused.value.specific_code in {"plan-running", "host-state"}
    with pytest.raises(Conflict, match=f"A layout change of node-1 is running \\({plan.short_id}\\)"):
        changed(told)

    assert HostPlan.objects.count() == 1
    # Its notice can be ended early, and it can be called off before it began.
    inventory.start_plan(plan=plan, actor=told.operator, now=told.now)
    told.drive(ended(plan, "done"), most=200, step_s=5)
    at_rest(told, plan)
    again = changed(told, {"0": []}, starts_at=told.now + timedelta(hours=1))
    inventory.cancel_plan(plan=again, actor=told.operator, now=told.now)
    assert (fresh(again).state, host("node-1").state, holds_on("node-1", "maintenance")) == ("cancelled", "open", 0)


def test_a_change_that_waits_for_room_is_called_off() -> None:
    told, _, chat = told_of(spare=False)
    plan = changed(told)
    told.settle(looks=2)
    assert fresh(plan).observed["waits_for"] == ["acme/chat waits for room elsewhere"]

    inventory.cancel_plan(plan=fresh(plan), actor=told.operator, now=told.now)
    told.drive(ended(plan, "cancelled"), most=20)

    at_rest(told, plan)
    assert (where(chat), fresh(chat).phase) == ("node-1", "Ready")
    assert (host("node-1").state, in_maintenance(told, "node-1")) == ("open", False)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["carve", "compare"])
def test_a_change_that_is_called_off_while_it_is_made_is_made_undone(stage: str) -> None:
    told = empty()
    control.change_settings(told.here.estate, {"delays_s": {"": 0.0, "layout.apply": 4.0}})
    plan = changed(told)
    told.drive(lambda: fresh(plan).observed.get("stage") == stage, most=40)

    inventory.cancel_plan(plan=fresh(plan), actor=told.operator, now=told.now)
    told.drive(ended(plan, "cancelled"), most=40)

    at_rest(told, plan)
    assert shown() == [(start, "1g.10gb") for start in range(7)]
    assert (host("node-1").state, in_maintenance(told, "node-1")) == ("open", False)


def test_only_what_the_report_shows_empty_is_carved() -> None:
    told = empty()
    control.add_foreign_use(told.here.estate, "legacy", "node-1", [["node-1-gpu-0", 5, "1g.10gb"]])
    told.settle()

    seen = layouts.preview_layout(host=host("node-1"), layouts={"0": HALVES}, actor=told.operator, now=told.now)
    assert seen["foreign"] == ["legacy"]
    plan = changed(told, evict=True)
    told.settle(looks=3)
    assert fresh(plan).observed["waits_for"] == ["legacy uses it and is not ours"]
    assert shown()[0] == (0, "1g.10gb")

    control.remove_foreign_use(told.here.estate, "legacy")
    told.drive(ended(plan, "done"), most=200, step_s=5)
    at_rest(told, plan)
    assert shown() == [(0, "3g.40gb"), (4, "3g.40gb")]


@pytest.mark.slow
@pytest.mark.parametrize("evict", [False, True])
def test_a_unit_that_does_not_leave_is_waited_for_or_evicted(evict: bool) -> None:
    told, _, chat = told_of()
    control.add_fault(
        told.here.estate, "start:serving.replica*", "fail", error="transient", detail="it hangs", times=-1
    )
    plan = changed(told, evict=evict)

    if not evict:
        told.settle(looks=3)
        assert fresh(plan).state == "running"
        assert fresh(plan).observed["waits_for"] == ["acme/chat has not left it yet"]
        control.clear_faults(told.here.estate)
    told.drive(ended(plan, "done"), most=200, step_s=5)
    control.clear_faults(told.here.estate)
    told.drive(is_ready(chat), most=200, step_s=5)

    at_rest(told, plan)
    assert where(chat) == "node-2"
    assert shown() == [(0, "3g.40gb"), (4, "3g.40gb")]


@pytest.mark.slow
def test_only_the_gpu_that_differs_is_emptied() -> None:
    told, _, chat = told_of(gpus=2)
    on = GpuDevice.objects.get(host__name="node-1", free__lt=0xFF).index

    plan = changed(told, {"0": HALVES if on else SEVEN_NAMES, "1": SEVEN_NAMES if on else HALVES})
    assert plan.touched == []
    told.drive(ended(plan, "done"), most=200, step_s=5)

    at_rest(told, plan)
    assert where(chat) == "node-1"
    assert (shown(1 - on), shown(on)[0]) == ([(0, "3g.40gb"), (4, "3g.40gb")], (0, "1g.10gb"))


SEVEN_NAMES = ["1g.10gb"] * 7


def test_what_cannot_be_is_refused_and_nothing_is_changed() -> None:
    told = story(carved("node-1"), node("node-2"))
    told.sweep()

    for wanted, code in (
        ({}, "invalid"),
        ({"3": HALVES}, "layout-impossible"),
        ({"0": ["9g.90gb"]}, "layout-impossible"),
        ({"0": ["4g.40gb", "4g.40gb"]}, "layout-impossible"),
        ({"0": HALVES, GpuDevice.objects.get(host__name="node-1").short_id: HALVES}, "layout-impossible"),
    ):
        with pytest.raises(InvalidSpec) as wrong:
            changed(told, wanted)
        assert (wrong.value.specific_code, wrong.value.field) == (code, "layouts")
    with pytest.raises(Conflict) as there:
        changed(told, {"0": SEVEN_NAMES})
    assert there.value.specific_code == "layout-present"
    with pytest.raises(Conflict, match="is carved when something is placed on it") as dynamic:
        layouts.change_layout(
            host=host("node-2"), layouts={"0": HALVES}, reason="larger", actor=told.operator, now=told.now
        )
    assert dynamic.value.specific_code == "not-supported"
    control.set_gpu_health(told.here.estate, "node-1-gpu-0", healthy=False, message="Xid 79")
    told.settle(looks=1)
    with pytest.raises(Conflict) as faulty:
        changed(told)
    assert faulty.value.specific_code == "device-faulty"
    control.set_host_health(told.here.estate, "node-1", healthy=False, message="no heartbeat")
    told.settle(looks=1)
    with pytest.raises(Conflict, match="is not available: no heartbeat"):
        changed(told)

    assert HostPlan.objects.count() == 0
    assert {row.state for row in (host("node-1"), host("node-2"))} == {"open"}
