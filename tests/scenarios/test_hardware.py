"""A host is drained under three tenants and comes back; a GPU dies under one and is replaced."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

import pytest

from provisioners.sandbox import control
from tenants.models import Event, GpuDevice, Hold, HostPlan, Notice, Unit
from tenants.operations import inventory, namespaces
from tenants.pricing import Use
from tests.drive import fresh, is_gone, is_ready
from tests.scenarios.story import Deaths, Story, customer, endpoint, host, machine, namespace, node, story

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]


def holds_on(name: str, kind: str) -> int:
    """Return how many slots are held on a host by one kind."""
    return sum(Hold.objects.filter(host__name=name, kind=kind).values_list("size", flat=True))


def in_maintenance(told: Story, name: str) -> bool:
    """Return whether the provider itself keeps a host empty."""
    return told.here.estate.state.hosts[name].in_maintenance


def where(row: object) -> str:
    """Return the host of an object's unit."""
    unit = Unit.objects.select_related("host").get(allocation=row.allocation)  # type: ignore[attr-defined]
    return unit.host.name if unit.host else ""


def test_a_host_with_three_tenants_is_drained_and_returned(deaths: Deaths | None) -> None:
    told = story(node("node-1"), node("node-2"), deaths=deaths)
    inventory.cordon(host=host("node-2"), actor=told.operator, now=told.now)
    acme, globex, initech = customer("acme"), customer("globex"), customer("initech")
    chat = endpoint(acme, told.now)
    box = machine(globex, told.now, profile="2g.20gb")
    play = namespace(initech, told.now)
    told.drive(lambda: all(is_ready(row)() for row in (chat, box, play)))
    assert {where(row) for row in (chat, box, play)} == {"node-1"}
    inventory.uncordon(host=host("node-2"), actor=told.operator, now=told.now)

    starts_at = told.now + timedelta(hours=2)
    plan = inventory.drain(
        host=host("node-1"), reason="new firmware", starts_at=starts_at, actor=told.operator, now=told.now
    )

    # Notice: each tenant once, about its own objects only; until the start nobody is touched.
    notices = {row.tenant.name: row.text for row in Notice.objects.filter(kind="host-drain").select_related("tenant")}
    assert sorted(notices) == ["acme", "globex", "initech"]
    assert "We move chat" in notices["acme"]
    assert "We move box" in notices["globex"]
    assert "We cannot move play" in notices["initech"]
    assert not any("node-1" in text for text in notices.values())
    told.at_rest()
    assert [fresh(row).phase for row in (chat, box, play)] == ["Ready"] * 3
    assert {where(row) for row in (chat, box, play)} == {"node-1"}
    assert (holds_on("node-1", "tenant"), holds_on("node-1", "maintenance")) == (4, 4)

    # The start: what can move moves, its windows are held; what cannot is waited for.
    told.here.clock.now = starts_at
    told.drive(lambda: where(chat) == where(box) == "node-2" and is_ready(chat)() and is_ready(box)(), most=200)
    told.settle()
    assert where(play) == "node-1"
    assert (fresh(plan).state, host("node-1").state) == ("running", "draining")
    assert {entry["name"]: entry["state"] for entry in fresh(plan).touched} == {
        "chat": "moved", "box": "moved", "play": "waiting for tenant",
    }  # fmt: skip
    assert (holds_on("node-1", "tenant"), holds_on("node-1", "maintenance")) == (1, 7)
    assert in_maintenance(told, "node-1") is True

    # Its last tenant lets go: the whole window is held, and nobody new gets in.
    namespaces.delete(namespace=fresh(play), actor=initech.actor, now=told.now)
    told.drive(lambda: is_gone(play, play.allocation)() and host("node-1").state == "maintenance", most=200)
    newcomer = endpoint(initech, told.now, "late", profile="7g.80gb")
    told.at_rest()
    assert fresh(plan).state == "done"
    assert (holds_on("node-1", "tenant"), holds_on("node-1", "maintenance")) == (0, 8)
    assert fresh(newcomer).phase == "Waiting"

    # Returned: its windows are free, and who waited is taken up first.
    back = inventory.return_host(host=host("node-1"), reason="done", actor=told.operator, now=told.now)
    told.drive(lambda: fresh(back).state == "done" and is_ready(newcomer)(), most=200)
    account = told.at_rest()
    assert (host("node-1").state, where(newcomer)) == ("open", "node-1")
    assert in_maintenance(told, "node-1") is False
    assert holds_on("node-1", "maintenance") == 0
    assert account.slot_hours(Use.MAINTENANCE) > 0
    assert account.slot_hours(Use.FAULT) == account.slot_hours(Use.RESERVED) == 0
    assert Notice.objects.filter(kind="host-drain").count() == 3
    assert Event.objects.filter(kind="host.maintenance").count() == Event.objects.filter(kind="host.returned").count()
    assert Event.objects.filter(kind="host.returned").count() == 1


@pytest.mark.slow
def test_a_gpu_dies_and_is_replaced(deaths: Deaths | None) -> None:
    told = story(node("node-1"), node("node-2"), deaths=deaths)
    inventory.cordon(host=host("node-2"), actor=told.operator, now=told.now)
    acme = customer("acme")
    chat = endpoint(acme, told.now, profile="3g.40gb")
    box = machine(acme, told.now)
    told.drive(lambda: is_ready(chat)() and is_ready(box)())
    inventory.uncordon(host=host("node-2"), actor=told.operator, now=told.now)
    told.at_rest()
    slots = 5

    control.set_gpu_health(told.here.estate, "node-1-gpu-0", healthy=False, message="Xid 79")
    told.settle()

    # Dead: said at once, its free room kept from others, nobody evicted.
    assert [fresh(row).phase for row in (chat, box)] == ["Degraded"] * 2
    assert (holds_on("node-1", "tenant"), holds_on("node-1", "fault")) == (slots, 8 - slots)
    bad = GpuDevice.objects.get(provider_ref="node-1-gpu-0")
    assert (bad.healthy, bad.placeable, bad.message) == (False, False, "Xid 79")

    # Repair: both move to the other GPU; all of the dead one is kept by fault holds.
    plan = inventory.repair_gpu(device=bad, reason="Xid 79", actor=told.operator, now=told.now)
    told.drive(lambda: is_ready(chat)() and is_ready(box)() and fresh(plan).state == "done", most=200)
    told.at_rest()
    assert {where(chat), where(box)} == {"node-2"}
    assert (holds_on("node-1", "tenant"), holds_on("node-1", "fault")) == (0, 8)

    # Another card in its place: a new GPU of ours, free; the old one counts no longer, and its time adds up.
    state = told.here.estate.state
    old = state.gpus["node-1-gpu-0"]
    state.drop("gpus", "node-1-gpu-0")
    state.put("gpus", "spare", type(old)("spare", old.host, old.product, old.index))
    state.index()
    told.settle()
    account = told.at_rest()
    heir = GpuDevice.objects.get(provider_ref="spare")
    assert (heir.index, heir.healthy, heir.placeable, heir.free) == (0, True, True, 0xFF)
    assert fresh(bad).removed_at is not None
    assert holds_on("node-1", "fault") == 0
    assert account.slot_hours(Use.FAULT) > Fraction(0)
    assert HostPlan.objects.count() == 1
