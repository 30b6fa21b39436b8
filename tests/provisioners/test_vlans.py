"""VLANs of VM boundaries: one each, never two of one, waited for when all are taken, given back at the end."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import IntegrityError, transaction

from provisioners.boundary import PASS, VLAN_RETRY_S
from tenants import audit, vlans
from tenants.models import Boundary, Machine, Provider, Vlan
from tenants.operations import machines, write_offs
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk, Where
from tenants.states import BoundaryKind, condition_of
from tenants.transactions import acting
from tenants.vlan_ranges import vlan_ranges
from tests import factories
from tests.conftest import NOW
from tests.domain.test_races import RACERS, race
from tests.drive import World, fresh, is_gone, is_ready, world

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def here() -> World:
    return world()


def with_vlans(text: str) -> Provider:
    provider = Provider.objects.get()
    provider.config = {**provider.config, "vlans": text}
    provider.save(update_fields=["config"])
    return provider


def machine(here: World, tenant: Any = None) -> tuple[Machine, Any]:
    """Return a new machine of a new tenant, and who may remove it."""
    owner = tenant or factories.tenant()
    factories.generous(owner, "A100-80GB")
    actor = factories.actor(factories.member(owner))
    unit = UnitAsk(GpuAsk("A100-80GB", "1g.10gb"), vcpu=4, memory_gib=16)
    spec = AllocationSpec(units=(unit,), where=Where(kind=BoundaryKind.VM))
    made = machines.create(tenant=owner, ask=MachineAsk("box", spec, "ubuntu-24.04", 40), actor=actor, now=here.clock())
    return made, actor


def boundary(provider: Provider) -> Boundary:
    return Boundary.objects.create(tenant=factories.tenant(), provider=provider, kind="vm", created_at=NOW)


def taken() -> list[int]:
    return sorted(Vlan.objects.values_list("number", flat=True))


def test_a_boundary_has_a_vlan_from_before_it_is_made_until_it_is_gone(here: World) -> None:
    with_vlans("1200-1299")
    row, actor = machine(here)
    here.drive(is_ready(row))
    made = Boundary.objects.get()

    assert taken() == [1200]
    assert made.vlan.tenant_id == row.tenant_id
    machines.delete(machine=fresh(row), actor=actor, now=here.clock())
    here.drive(is_gone(row, made))
    assert taken() == []


def test_without_ranges_nothing_is_taken(here: World) -> None:
    row, _actor = machine(here)
    here.drive(is_ready(row))

    assert taken() == []


def test_eight_at_once_never_get_the_same() -> None:
    provider = factories.provider()
    rows = [boundary(provider) for _ in range(RACERS)]
    ranges = vlan_ranges("7, 100-106")

    def take(row: Boundary) -> int | None:
        with transaction.atomic():
            return vlans.take(row, ranges, now=NOW)

    got = race([lambda row=row: take(row) for row in rows])

    assert sorted(got) == [7, *range(100, 107)]
    assert race([lambda: take(rows[0])] * RACERS) == [got[0]] * RACERS
    late = boundary(provider)
    assert take(late) is None
    other = boundary(factories.provider())
    assert take(other) == 7


def test_the_database_refuses_a_second_one_whatever_the_code_says() -> None:
    provider = factories.provider()
    first, second = boundary(provider), boundary(provider)
    Vlan.objects.create(provider=provider, number=9, boundary=first, tenant=first.tenant, taken_at=NOW)

    with pytest.raises(IntegrityError, match="vlan_once"), transaction.atomic():
        Vlan.objects.create(provider=provider, number=9, boundary=second, tenant=second.tenant, taken_at=NOW)
    with pytest.raises(IntegrityError, match="vlan_number"), transaction.atomic():
        Vlan.objects.create(provider=provider, number=4095, boundary=second, tenant=second.tenant, taken_at=NOW)


def test_when_all_are_taken_it_waits_says_so_and_goes_on_as_soon_as_one_is_free(here: World) -> None:
    with_vlans("1200")
    first, actor = machine(here)
    here.drive(is_ready(first))
    second, _actor = machine(here)
    here.drive(lambda: Boundary.objects.filter(conditions__contains=[{"reason": "NoCapacity"}]).exists())

    waiting = Boundary.objects.get(tenant=second.tenant)
    told = condition_of(waiting.conditions, "Provisioned")  # type: ignore[arg-type]
    assert told is not None
    assert "All 1 VLANs" in told["message"]
    assert "setting vlans" in told["message"]
    machines.delete(machine=fresh(first), actor=actor, now=here.clock())
    assert here.drive(is_ready(second), step_s=0.1) * 0.1 < VLAN_RETRY_S / 2
    assert waiting.vlan.number == 1200


def test_a_worker_that_dies_between_leaves_it_to_the_next_one(here: World) -> None:
    provider = with_vlans("1200-1201")
    row, _actor = machine(here)
    here.drive(Boundary.objects.exists, step_s=0.01)
    Vlan.objects.all().delete()
    made = Boundary.objects.get()

    with transaction.atomic():  # before its commit: nothing was taken
        PASS.prepare(fresh(made), now=here.clock())
        transaction.set_rollback(True)
    assert taken() == []
    specs = []
    for _ in range(2):  # after it: the same one again
        with transaction.atomic():
            specs.append(PASS.prepare(fresh(made), now=here.clock()).spec)
    assert [spec.vlan for spec in specs] == [1200, 1200]
    assert specs[0].access == ((str(row.tenant_id), "member"),)  # people have a machine in it
    provider.config = {**provider.config, "vlans": "3000-3001"}
    provider.save(update_fields=["config"])
    with transaction.atomic():  # what is given stays, whatever the ranges say now
        again = PASS.prepare(fresh(made), now=here.clock()).spec
    assert again.vlan == 1200
    here.drive(is_ready(row))


def test_a_range_that_is_none_is_said_and_mended(here: World) -> None:
    with_vlans("many")
    row, _actor = machine(here)
    here.drive(lambda: Boundary.objects.filter(conditions__contains=[{"reason": "ProviderError"}]).exists())
    with_vlans("1200-1201")

    here.drive(is_ready(row), step_s=10.0)

    assert taken() == [1200]


def test_however_a_boundary_ends_its_vlan_is_free(here: World) -> None:
    provider = with_vlans("1200")
    row, actor = machine(here)
    here.drive(is_ready(row))
    Provider.objects.update(enabled=False)

    with acting(actor):
        write_offs.apply(fresh(row).allocation, actor=actor, now=here.clock())

    assert taken() == []
    with transaction.atomic():
        assert vlans.take(boundary(provider), vlan_ranges("1200"), now=NOW) == 1200


@pytest.mark.no_audit
def test_the_ledger_audit_finds_one_that_was_kept() -> None:
    row = boundary(factories.provider())
    Boundary.objects.update(released_at=NOW, deletion_requested_at=NOW)
    Vlan.objects.create(provider=row.provider, number=9, boundary=row, tenant=row.tenant, taken_at=NOW)

    [found] = audit.findings(("vlan",))
    assert "VLAN 9" in found.detail


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("1200-1299", ((1200, 1299),)),
        ("1400, 1200 - 1299\n7", ((7, 7), (1200, 1299), (1400, 1400))),
        (["12", "5-6"], ((5, 6), (12, 12))),
        ("", ()),
    ],
)
def test_ranges_are_read(text: object, ranges: object) -> None:
    assert vlan_ranges(text) == ranges


@pytest.mark.parametrize("text", ["0", "4095", "9-8", "1-5, 5", "a", "1-2-3", "١٢", "-1", {"a": 1}])
def test_what_is_no_range_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"VLAN|range"):
        vlan_ranges(text)
