"""The console of a machine in the portal: a button where there is one, an address for who asked, plain words else."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.utils import timezone

from provisioners import opening_consoles
from provisioners.driver import Console, Secret
from tenants.models import Boundary, Machine, MachineConsole, Provider
from tests.portal.world import World, build

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]
PAGE = "/t/acme/machines/box"
ADDRESS = "wss://esxi-1.example:443/ticket/cst-1"


class Screens:
    def console(self, machine: object) -> Console:  # noqa: ARG002 - any machine
        return Console(Secret(ADDRESS), timezone.now() + timedelta(minutes=2), "aa:bb", simulated=True)


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def screens(world: World) -> None:
    """Make the machine one that is there, on a provider with consoles."""
    for row in Provider.objects.all():
        row.capabilities = {**row.capabilities, "features": {"console": True}}
        row.save(update_fields=["capabilities"])
    box = Machine.objects.get(name="box")
    boundary = box.boundary or Boundary.objects.filter(tenant=box.tenant).first()
    Machine.objects.filter(pk=box.pk).update(boundary=boundary, ready_at=timezone.now(), released_at=None)


def test_an_address_comes_to_who_asked_with_how_to_use_it(world, browse, screens):
    mia = browse(world.acme.member)
    assert ">Console<" in mia.get(PAGE).content.decode()

    asked = mia.post(f"{PAGE}/console")
    waiting = mia.get(asked["Location"]).content.decode()
    opening_consoles.answer(timezone.now, driver_of=lambda _provider: Screens())  # type: ignore[arg-type,return-value]
    shown = mia.get(asked["Location"], headers={"hx-request": "true"}).content.decode()
    other = browse(world.acme.owner).get(asked["Location"]).content.decode()

    assert 'hx-trigger="every 1s"' in waiting
    assert ADDRESS in shown
    assert "hx-trigger" not in shown
    assert re.search(r"Whoever has it is let in.*simulated: nothing answers", shown, re.DOTALL)
    assert ADDRESS not in other
    assert "There is no console here" in other


def test_after_its_minute_it_says_so_and_offers_another(world, browse, screens):
    mia = browse(world.acme.member)
    asked = mia.post(f"{PAGE}/console")
    MachineConsole.objects.all().delete()

    shown = mia.get(asked["Location"]).content.decode()

    assert "is gone now. Ask for another one." in shown
    assert "Ask again" in shown


def test_without_consoles_there_is_no_button_and_who_asks_reads_why(world, browse):
    mia = browse(world.acme.member)

    assert ">Console<" not in mia.get(PAGE).content.decode()
    mia.post(f"{PAGE}/console")

    assert re.search(r"not there yet|have no console", mia.get(PAGE).content.decode())
