"""Testing a provider: a worker calls it, switched on or off, and says what works; what passed shows what is there."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from provisioners import provider_probe, registry, sweep
from provisioners.passes import Engine
from provisioners.sandbox import connection, control
from tenants import provider_kinds
from tenants.models import Event, GpuDevice, Host, Provider
from tenants.operations import inventory, providers
from tenants.states import PlatformRole
from tests import factories
from tests.conftest import NOW
from tests.drive import World, world

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def operator(db: None) -> Any:
    return factories.actor(factories.person(name="Ole", platform=(PlatformRole.OPERATOR,)))


@pytest.fixture
def here(db: None) -> World:
    return world(snapshots=True)


def draft(operator: Any, here: World) -> Provider:
    """Register a second provider in front of the same estate, switched off as while it is being connected."""
    config = {"url": "http://127.0.0.1:9", "estate": "second"}
    return providers.create(
        name="second", kind="sandbox", site="oslo", config=config, enabled=False, actor=operator, now=here.clock()
    )


def answer_of(provider: Provider) -> dict[str, Any]:
    provider.refresh_from_db()
    found: dict[str, Any] = provider.observed["test"]
    return found


def test_a_provider_that_is_switched_off_is_left_alone_until_a_test_is_asked_for(here: World, operator: Any) -> None:
    provider = draft(operator, here)
    here.sweep()
    assert Host.objects.filter(provider=provider).count() == 0

    providers.test(provider=provider, actor=operator, now=here.clock())
    here.sweep()

    found = answer_of(provider)
    assert (found["passed"], found["asked_by"]) == (True, "Ole")
    assert [(check["name"], check["passed"]) for check in found["checks"]] == [
        ("connect", True), ("inventory", True), ("feature:cluster", False), ("feature:console", False),
        ("feature:local-models", False), ("feature:move", False), ("feature:real-gateways", False),
    ]  # fmt: skip
    assert found["checks"][1]["seen"] == "3 hosts, 6 GPUs, 0 uses"
    assert "test_asked" not in provider.observed
    assert set(Host.objects.filter(provider=provider).values_list("state", "placeable")) == {("joining", False)}
    assert GpuDevice.objects.filter(provider=provider).count() == 6
    assert (provider.capabilities["simulated"], provider.enabled, provider.due_at) == (True, False, None)
    assert Event.objects.filter(object_id=provider.pk, kind="provider.tested").get().data == {"passed": True}


def test_what_does_not_work_is_named_and_nothing_is_taken_in(here: World, operator: Any) -> None:
    provider = draft(operator, here)
    control.add_fault(here.estate, "snapshot", "fail", error="rejected", times=-1)

    providers.test(provider=provider, actor=operator, now=here.clock())
    sweep.look_at(provider.pk, engine=here.engine)

    found = answer_of(provider)
    assert [(check["name"], check["passed"], check["needed"]) for check in found["checks"]] == [
        ("connect", True, True), ("inventory", False, True),
    ]  # fmt: skip
    assert found["passed"] is False
    assert Host.objects.filter(provider=provider).count() == 0


def test_a_missing_credential_is_named(here: World, operator: Any) -> None:
    provider = draft(operator, here)
    providers.test(provider=provider, actor=operator, now=here.clock())

    sweep.look_at(provider.pk, engine=Engine(clock=here.clock))

    assert [check["seen"] for check in answer_of(provider)["checks"]] == [
        "the provider's setting or credential 'token' is missing"
    ]


def test_a_test_that_waits_is_not_asked_for_twice_and_inventory_does_not_wipe_it(here: World, operator: Any) -> None:
    seen = here.estate.snapshot()
    row = Provider.objects.get(pk=here.provider.pk)
    providers.test(provider=row, actor=operator, now=here.clock())
    providers.test(provider=row, actor=operator, now=here.clock() + timedelta(seconds=5))

    from provisioners import inventory as inventory_pass

    work = inventory_pass.apply(row.pk, seen, here.clock())
    row.refresh_from_db()

    assert work.superseded is False
    assert row.observed["test_asked"]["at"] == NOW.isoformat()
    assert Event.objects.filter(object_id=row.pk, kind="provider.test-requested").count() == 1


def test_every_kind_that_people_can_connect_has_a_driver() -> None:
    assert {kind.slug for kind in provider_kinds.offered()} <= set(registry.kinds())
    assert provider_kinds.kind_of("sandbox") is connection.CONNECTION
    assert [connection.document(name) is not None for name in ("kubernetes", "vsphere", "", "elsewhere")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_a_probe_raises_nothing_where_no_driver_exists(here: World, operator: Any) -> None:
    provider = draft(operator, here)
    Provider.objects.filter(pk=provider.pk).update(kind="nothing")
    provider.refresh_from_db()

    from provisioners import connections

    found = provider_probe.run(provider, connections.driver_of)

    assert found.passed is False
    assert found.checks[0].seen.startswith("no driver for providers of kind 'nothing'")


def test_a_drain_begins_early_and_tells_its_tenants_again(here: World, operator: Any) -> None:
    host = Host.objects.filter(provider=here.provider).order_by("name").first()
    assert host is not None
    later = here.clock() + timedelta(days=2)
    plan = inventory.drain(host=host, reason="new firmware", starts_at=later, actor=operator, now=here.clock())

    begun = inventory.start_plan(plan=plan, actor=operator, now=here.clock())

    assert begun.starts_at == here.clock()
    assert begun.version == plan.version + 1
    here.drive(lambda: Host.objects.get(pk=host.pk).state == "maintenance")
    assert set(host.devices.values_list("free", flat=True)) == {0}


def test_a_plan_that_has_begun_cannot_be_begun_again(here: World, operator: Any) -> None:
    from tenants.errors import Conflict

    host = Host.objects.filter(provider=here.provider).order_by("name").first()
    assert host is not None
    plan = inventory.drain(host=host, reason="new firmware", actor=operator, now=here.clock())

    with pytest.raises(Conflict, match="does not wait for its start"):
        inventory.start_plan(plan=plan, actor=operator, now=here.clock())
