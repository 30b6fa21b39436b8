"""The screen of a machine: for who may, told once, gone after a minute, and never in the trail."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from provisioners import opening_consoles
from provisioners.driver import Console, Ref, Secret, TransientDriverError
from tenants.errors import Conflict, Forbidden, NotVisible
from tenants.models import Boundary, Event, Machine, MachineConsole, Membership
from tenants.operations import machine_consoles, machines, tenants
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk
from tenants.states import PlatformRole, Role, SuspensionDepth
from tenants.transactions import reading
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")
ADDRESS = "wss://esxi-1.example:443/ticket/cst-very-secret"


@dataclass
class Screens:
    """A driver with consoles."""

    error: Exception | None = None

    def console(self, machine: Ref) -> Console:  # noqa: ARG002 - any machine
        if self.error is not None:
            raise self.error
        return Console(Secret(ADDRESS), NOW + timedelta(minutes=2), "aa:bb", simulated=True)


@pytest.fixture
def acme():
    row = factories.tenant(name="acme")
    factories.generous(row)
    return row


@pytest.fixture
def mia(acme):
    return factories.member(acme)


@pytest.fixture
def box(acme, mia) -> Machine:
    provider = factories.provider(
        capabilities={"boundary_kinds": ["vm"], "bindings": ["device"], "features": {"console": True}}
    )
    factories.host(provider)
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 1, 1),))
    row = machines.create(
        tenant=acme, ask=MachineAsk("box", spec, "ubuntu-24.04", 20), actor=factories.actor(mia), now=NOW
    )
    boundary = Boundary.objects.get()
    Machine.objects.filter(pk=row.pk).update(boundary=boundary, ready_at=NOW)
    return Machine.objects.select_related("tenant", "boundary__provider").get(pk=row.pk)


def ask(box: Machine, who: Any, now=NOW) -> MachineConsole:
    return machine_consoles.ask(machine=box, actor=factories.actor(who), now=now)


def answer(driver: object, now=NOW) -> int:
    return opening_consoles.answer(lambda: now, driver_of=lambda _provider: driver)  # type: ignore[arg-type,return-value]


def read(box: Machine, row: MachineConsole, who: Any) -> Any:
    actor = factories.actor(who)
    with reading(actor):
        return machine_consoles.read(box, row.pk, actor=actor)


def test_who_asked_reads_the_address_and_the_trail_has_who_and_until_when_and_no_more(box, mia):
    row = ask(box, mia)
    assert read(box, row, mia)[1] is None

    assert answer(Screens()) == 1

    told = read(box, row, mia)[1]
    assert (told.address, told.fingerprint, told.simulated) == (ADDRESS, "aa:bb", True)
    event = Event.objects.get(kind="machine.console-opened")
    assert event.data["person"] == str(mia.pk)
    stored = MachineConsole.objects.get()
    for text in (str(event.data), repr(told), str(bytes(stored.sealed)), str(Console(Secret(ADDRESS), NOW))):
        assert "very-secret" not in text


def test_nobody_else_reads_it_and_it_is_gone_after_a_minute(box, mia, acme):
    row = ask(box, mia)
    answer(Screens())

    for other in (factories.member(acme), factories.member(acme, Role.OWNER)):
        with pytest.raises(NotVisible):
            read(box, row, other)
    answer(Screens(), NOW + timedelta(seconds=61))
    with pytest.raises(NotVisible):
        read(box, row, mia)
    assert MachineConsole.objects.count() == 0


def test_a_viewer_and_a_stranger_get_none(box, acme):
    for who in (factories.member(acme, Role.VIEWER), factories.person()):
        with pytest.raises((Forbidden, NotVisible)):
            ask(box, who)
    assert MachineConsole.objects.count() == 0


def test_who_lost_the_role_since_is_refused(box, mia):
    row = ask(box, mia)
    Membership.objects.filter(person=mia).update(role=Role.VIEWER)

    answer(Screens())

    stored = MachineConsole.objects.get(pk=row.pk)
    words = "You may not open consoles here any more: your role is gone, or the tenant is suspended."
    assert (stored.sealed, stored.error) == (None, words)


@pytest.mark.parametrize("depth", SuspensionDepth)
def test_nobody_sees_the_screens_of_a_suspended_tenant(box, mia, acme, depth):
    row = ask(box, mia)
    ole = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    tenants.suspend(tenant=acme, depth=depth, reason="unpaid", actor=ole, now=NOW)

    answer(Screens())

    assert MachineConsole.objects.get(pk=row.pk).sealed is None
    with pytest.raises(Conflict) as refusal:
        ask(box, mia)
    assert refusal.value.specific_code == "tenant-suspended"


def test_asked_twice_before_the_answer_it_is_one_asking(box, mia, acme):
    row = ask(box, mia)
    assert ask(box, mia).pk == row.pk
    assert ask(box, factories.member(acme)).pk != row.pk

    assert answer(Screens()) == 2
    assert ask(box, mia).pk != row.pk


def test_one_asking_that_fails_keeps_no_other_from_its_answer(box, mia, acme):
    """As when what the provider answers cannot be read at all."""
    for who in (mia, factories.member(acme)):
        ask(box, who)
    calls = iter([Screens(ValueError("nonsense")), Screens()])

    opening_consoles.answer(lambda: NOW, driver_of=lambda _provider: next(calls))  # type: ignore[arg-type,return-value]

    told = {(row.error[:23], row.sealed is not None) for row in MachineConsole.objects.all()}
    assert told == {("It could not be had. As", False), ("", True)}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"power": "off"}, "not-ready", "switched off; switch it on"),
        ({"ready_at": None}, "not-ready", "not there yet"),
        ({"deletion_requested_at": NOW}, "deleting", "being deleted"),
    ],
)
def test_a_machine_without_a_screen_now_says_why(box, mia, change, code, words):
    Machine.objects.filter(pk=box.pk).update(**change)

    with pytest.raises(Conflict, match=words) as refusal:
        ask(box, mia)

    assert refusal.value.specific_code == code


def test_a_provider_without_consoles_refuses_and_says_what_else_helps(box, mia):
    provider = box.boundary.provider
    provider.capabilities = {**provider.capabilities, "features": {"console": False}}
    provider.save(update_fields=["capabilities"])

    with pytest.raises(Conflict, match=r"have no console\. Log in with tenantry ssh box") as refusal:
        ask(box, mia)

    assert refusal.value.specific_code == "not-supported"


def test_what_the_provider_says_instead_is_told(box, mia):
    row = ask(box, mia)

    answer(Screens(TransientDriverError("vCenter shows no such machine")))

    assert MachineConsole.objects.get(pk=row.pk).error == "It could not be had: vCenter shows no such machine."
    row = ask(box, mia)
    answer(object())
    assert "have no console" in MachineConsole.objects.get(pk=row.pk).error


def test_a_key_that_nobody_asked_for_is_not_there(box, mia):
    with pytest.raises(NotVisible):
        read(box, MachineConsole(pk=uuid4()), mia)
