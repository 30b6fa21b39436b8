"""What becomes of findings: each kind's actions, what they change, and what they never free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provisioners import inventory, overdue, remarks
from provisioners.sandbox import control
from tenants import audit, finding_actions, ledger
from tenants.actor import SYSTEM
from tenants.errors import Conflict
from tenants.models import Endpoint, Finding, GpuDevice, Hold, Host
from tenants.operations import findings as operations
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW
from tests.drive import fresh
from tests.provisioners.test_inventory import Site, host_document, open_findings
from tests.provisioners.test_inventory_units import endpoint, estate, is_ready, look, show, world
from tests.provisioners.test_inventory_units import owner as owner  # noqa: PLC0414  a fixture

pytestmark = pytest.mark.usefixtures("db")


def resolve(action: str, now: Any, row: Finding | None = None) -> Finding:
    operator = factories.actor(factories.person(platform=(factories.PlatformRole.OPERATOR,)))
    row = row or Finding.objects.get(resolved_at=None)
    return operations.resolve(finding=row, action=action, reason="a test", actor=operator, now=now)


def a_finding(kind: str = "orphan", **values: Any) -> Finding:
    known = {
        "provider": factories.provider(),
        "subject": "it",
        "detail": "It.",
        "first_seen_at": NOW,
        "last_seen_at": NOW,
    }
    return Finding.objects.create(kind=kind, **{**known, **values})


def bound_to(binding: str) -> dict[str, Any]:
    return host_document(binding=binding)


def test_every_kind_either_has_an_action_or_says_why_not():
    kinds = inventory.KINDS | remarks.KINDS | {overdue.KIND}
    tables = finding_actions

    assert tables.ADOPTED.keys() | tables.NOT_ADOPTED.keys() == kinds
    assert tables.DELETED.keys() | tables.NOT_DELETED.keys() == kinds
    assert not tables.ADOPTED.keys() & tables.NOT_ADOPTED.keys()
    assert not tables.DELETED.keys() & tables.NOT_DELETED.keys()
    assert {one.action for one in tables.choices(Finding(kind="of-tomorrow"))} == set(tables.ACTIONS)
    assert [one.action for one in tables.choices(Finding(kind="of-tomorrow")) if one.is_offered] == ["repair", "ignore"]


def test_a_unit_on_another_gpu_than_named_may_keep_it(owner: Any):
    here = world(estate(("node", "device", 2)))
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    other = GpuDevice.objects.exclude(pk=Hold.objects.get().device_id).get()
    show(here, lambda seen: replace(seen, uses=tuple(replace(use, device=other.provider_ref) for use in seen.uses)))

    found = resolve("adopt", here.clock())

    hold = Hold.objects.get()
    other.refresh_from_db()
    assert (hold.kind, hold.device_id, hold.settled, other.placeable) == ("tenant", other.pk, True, True)
    assert found.resolution == "adopted: a test"
    assert fresh(row).due_at == here.clock()
    assert audit.findings() == []


def test_what_is_not_kept_for_it_any_more_is_not_adopted(owner: Any):
    here = world(estate(("node", "device", 2)))
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    other = GpuDevice.objects.exclude(pk=Hold.objects.get().device_id).get()
    show(here, lambda seen: replace(seen, uses=tuple(replace(use, device=other.provider_ref) for use in seen.uses)))
    with acting(SYSTEM):
        ledger.drop(Hold.objects.get(kind="foreign").pk, now=here.clock())

    with pytest.raises(Conflict) as refused:
        resolve("adopt", here.clock())

    assert refused.value.specific_code == "not-free"
    assert Hold.objects.get(kind="tenant").device_id != other.pk


def test_a_host_that_is_gone_is_taken_out_unless_tenants_have_room_there(owner: Any):
    here = world(estate(("node", "device", 2)))
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    show(here, lambda seen: replace(seen, hosts=(), uses=(), objects=()))

    with pytest.raises(Conflict) as refused:
        resolve("delete", here.clock(), Finding.objects.get(kind="host-missing"))

    assert refused.value.specific_code == "in-use"
    assert (Host.objects.get().state, Hold.objects.filter(kind="tenant").count()) == ("open", 1)


def test_an_empty_host_that_is_gone_is_taken_out():
    site = Site()
    site.open_all()
    site.show(lambda seen: replace(seen, hosts=()))

    found = resolve("delete", site.clock())

    assert (Host.objects.get().state, GpuDevice.objects.filter(removed_at=None).count()) == ("removed", 0)
    assert found.resolution == "taken out: a test"
    site.show(lambda seen: replace(seen, hosts=()))
    assert open_findings() == {}
    assert audit.findings() == []


def test_a_gpu_that_is_gone_is_taken_out_and_comes_back_as_a_new_one():
    site = Site()
    site.open_all()
    gpus = GpuDevice.objects.order_by("index")
    first = gpus[0]
    record = site.estate.state.gpus.pop(first.provider_ref)
    site.estate.state.index()
    site.look()

    resolve("delete", site.clock())
    site.look()

    assert list(gpus.filter(removed_at=None).values_list("provider_ref", flat=True)) == [gpus[1].provider_ref]
    assert (open_findings(), Hold.objects.count(), audit.findings()) == ({}, 0, [])
    site.estate.state.put("gpus", record.device, record)
    site.estate.state.index()
    site.look()
    back = GpuDevice.objects.get(provider_ref=first.provider_ref, removed_at=None)
    assert (back.pk != first.pk, back.placeable, back.free) == (True, True, 0xFF)


def test_a_swapped_card_is_taken_as_what_it_is():
    site = Site()
    site.open_all()
    swapped = GpuDevice.objects.order_by("index").first()
    record = site.estate.state.gpus[swapped.provider_ref]
    site.estate.state.put("gpus", record.device, replace(record, product="A100-80GB"))
    site.estate.state.index()
    site.look()
    kinds = open_findings()

    resolve("adopt", site.clock())
    site.look()

    assert kinds == {"gpu-product-changed": 1}
    now = GpuDevice.objects.get(provider_ref=swapped.provider_ref, removed_at=None)
    assert (now.product, now.placeable, open_findings(), audit.findings()) == ("A100-80GB", True, {}, [])


def test_who_chooses_gpus_is_gone_by_once_no_tenant_has_room():
    site = Site(bound_to("device"))
    site.open_all()
    control.add_foreign_use(site.estate, "squatter", "node-1", [["node-1-gpu-0", 0, ""]])
    site.look()
    site.show(lambda seen: replace(seen, hosts=tuple(replace(host, binding="gpu") for host in seen.hosts)))
    kinds, before = open_findings(), Host.objects.get().placeable

    resolve("adopt", site.clock())

    host = Host.objects.get()
    assert (kinds, before) == ({"host-binding-changed": 1}, False)
    assert (host.binding, host.placeable, open_findings()) == ("gpu", True, {})


def test_looking_again_makes_an_ignored_finding_count_and_ignoring_calls_a_deletion_off(owner: Any):
    row = a_finding(data={"kind": "endpoint", "uid": "x", "tenant": "y"})

    asked = resolve("delete", NOW, row).data["action"]
    ignored = resolve("ignore", NOW, row).data
    again = resolve("repair", NOW, row).data

    assert asked == "delete"
    assert ("action" in ignored, ignored["ignored"]["reason"]) == (False, "a test")
    assert ("ignored" in again, "action" in again) == (False, False)


def test_repair_has_the_object_looked_at_that_a_finding_names(owner: Any):
    here = world(estate(("node", "device", 2)))
    row = endpoint(here, owner)
    here.drive(is_ready(row))
    here.drive(lambda: fresh(row).due_at is None)
    Endpoint.objects.filter(pk=row.pk).update(due_at=None)
    named = {"object": "endpoint", "uid": str(row.pk), "name": row.name, "step": "serving.replica"}
    found = a_finding("changed-by-others", provider=here.provider, data=named)

    resolve("repair", here.clock(), found)

    assert fresh(row).due_at == here.clock()
    assert look(here).holds_changed == 0
