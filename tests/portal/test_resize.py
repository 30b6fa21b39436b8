"""Another size for a machine on its page: only while it is off, what is refused in words with its field."""

from __future__ import annotations

import pytest
from django.test import Client

from tenants import ledger
from tenants.actor import SYSTEM
from tenants.models import Host, Machine, Unit
from tenants.states import ConditionType, Reason, set_condition
from tenants.transactions import acting
from tests.conftest import NOW
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
PAGE = "/t/acme/machines/box"


@pytest.fixture
def world(db: None) -> World:
    return build()


def box() -> Machine:
    return Machine.objects.select_related("allocation").get(name="box", tenant__name="acme")


def switched_off() -> None:
    """Have it be as a pass leaves a machine that its owner switched off."""
    row = box()
    row.power, row.observed_generation = "off", row.generation
    row.observed = {**row.observed, "power": "off"}
    row.conditions = set_condition(
        row.conditions, ConditionType.READY, "False", Reason.BY_OWNER, "It is switched off.", now=NOW,
        generation=row.generation,
    )  # fmt: skip
    row.save()


def asked(browser: Client, **given: str) -> str:
    return browser.post(f"{PAGE}/resize", given, follow=True).content.decode()


def size() -> tuple[int, int, int]:
    row, unit = box(), Unit.objects.get(allocation__name="box", tenant__name="acme")
    return unit.vcpu, unit.memory_gib, row.disk_gib


def test_of_one_that_runs_the_page_says_what_to_do_first(world, browse):
    page = browse(world.acme.member).get(PAGE).content.decode()

    assert "Switch it off first" in page
    assert f'action="{PAGE}/resize"' not in page
    assert 'name="memory_gib"' not in page


def test_of_one_that_is_off_it_asks_with_what_there_is(world, browse):
    switched_off()
    vcpu, memory, disk = size()
    page = browse(world.acme.member).get(PAGE).content.decode()

    for name, value in (("vcpu", vcpu), ("memory_gib", memory), ("disk_gib", disk)):
        assert f'name="{name}" id="resize-' in page
        assert f'value="{value}"' in page
    assert f"{vcpu} vCPU" in page
    assert f"{memory} GiB memory, {disk} GiB disk" in page


def test_it_gets_another_size(world, browse):
    switched_off()
    vcpu, memory, disk = size()
    page = asked(browse(world.acme.member), vcpu=str(vcpu + 1), memory_gib=str(memory + 2), disk_gib=str(disk + 3))

    assert size() == (vcpu + 1, memory + 2, disk + 3)
    assert f"{vcpu + 1} vCPU" in page
    assert f"{memory + 2} GiB memory, {disk + 3} GiB disk" in page
    assert "Resized" in page


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"vcpu": "many"}, "vCPUs: give a whole number"),
        ({"vcpu": "-1"}, "vCPUs: give a whole number"),
        ({"memory_gib": "0"}, "Memory: A machine has 1 to 16384 GiB of memory."),
        ({"disk_gib": "10"}, "Disk: A disk can only grow"),
    ],
)
def test_a_size_that_cannot_be_is_told_with_its_field(world, browse, given, words):
    switched_off()
    before = size()

    assert words in asked(browse(world.acme.member), **given)
    assert size() == before


def test_what_is_in_the_way_is_told_and_nothing_changed(world, browse):
    before = size()
    assert "switch it off first" in asked(browse(world.acme.member), vcpu="9")

    switched_off()
    with acting(SYSTEM):
        ledger.recount(Host.objects.get(units__allocation__name="box").pk, now=NOW)
    assert "has no room for this" in asked(browse(world.acme.member), vcpu="1000")
    assert size() == before
