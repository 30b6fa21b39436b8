"""Renewing many at once: what is chosen, the preview from the operation itself, one result per object."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.utils import timezone

from tenants import usage
from tenants.actor import SYSTEM
from tenants.models import Allocation, Event, Quota
from tenants.operations import machines
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk
from tenants.transactions import acting
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
RENEW = "/t/acme/renew"
GPU = "gpu.H100-80GB.slices"


@pytest.fixture
def world(db: None) -> World:
    """Endpoint and machine of acme are ready and end in 10 days, its namespace is not ready yet."""
    found = build()
    with acting(SYSTEM):
        for row in (found.acme.endpoint, found.acme.machine, found.foreign.machine):
            usage.first_ready(row.allocation, now=timezone.now() - timedelta(days=20))
    return found


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def pick(row) -> str:
    return f"{type(row).__name__.lower()}:{row.short_id}"


def ends(row):
    return Allocation.objects.get(pk=row.allocation_id).expires_at


def test_the_preview_says_new_ends_cost_and_verdict_and_changes_nothing(world, browse):
    before = [ends(world.acme.endpoint), ends(world.acme.machine), Event.objects.count()]
    query = {"pick": [pick(world.acme.endpoint), pick(world.acme.machine)], "days": "30"}

    said = text(browse(world.acme.member).get(RENEW, query))

    assert said.count("Fits within every limit to its new end") == 2
    assert "Renew 2" in said
    assert "tenantry renew endpoint/chat --for 30d --tenant acme" in said
    assert f"/allocations/{world.acme.machine.allocation.short_id}/renew" in said
    # 20 further days of 0.3 × 2 + 0.02 × 4 + 0.003 × 16 an hour, twice
    assert "€349.44" in said
    assert "All together: €698.88 for the added time." in said
    assert [ends(world.acme.endpoint), ends(world.acme.machine), Event.objects.count()] == before


def test_confirming_renews_each_by_its_own_operation_and_tells_what_came_of_it(world, browse):
    browser = browse(world.acme.member)

    answer = browser.post(RENEW, {"pick": [pick(world.acme.endpoint), pick(world.acme.machine)], "days": "90"})

    assert answer.status_code == 302
    said = text(browser.get(answer["Location"]))
    assert "2 renewed." in said
    now = timezone.now()
    for row in (world.acme.endpoint, world.acme.machine):
        assert abs(ends(row) - now - timedelta(days=90)) < timedelta(minutes=1)
        assert row.name in said
    assert Event.objects.filter(kind="allocation.renewed").count() == 2


def test_one_that_is_refused_does_not_stop_the_others(world, browse):
    extra = machines.create(
        tenant=world.acme.tenant,
        ask=MachineAsk(
            "late", AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 1, 1),)), "ubuntu-24.04", 10
        ),
        actor=factories.actor(world.acme.member),
        now=timezone.now(),
    )
    with acting(SYSTEM):
        usage.first_ready(extra.allocation, now=timezone.now())
    Allocation.objects.filter(pk=extra.allocation_id).update(expires_at=timezone.now() + timedelta(days=300))
    browser = browse(world.acme.member)
    chosen = {"pick": [pick(extra), pick(world.acme.endpoint)], "days": "30"}

    preview = text(browser.get(RENEW, chosen))
    said = text(browser.get(browser.post(RENEW, chosen)["Location"]))

    assert "Not so It ends later than that already; choose a longer term." in preview
    assert "Renew 1" in preview
    assert "1 renewed. 1 was refused and is as it was" in said
    assert "late Refused A renewal may not shorten the term" in said
    assert ends(extra) > timezone.now() + timedelta(days=299)


def test_a_limit_that_ends_before_refuses_the_renewal_and_is_named(world, browse):
    Quota.objects.filter(tenant=world.acme.tenant, dimension=GPU).update(until=timezone.now() + timedelta(days=15))

    said = text(browse(world.acme.member).get(RENEW, {"pick": pick(world.acme.endpoint), "days": "30"}))

    assert "Not so" in said
    assert "H100-80GB" in said
    assert "Renew 1" not in said


def test_what_is_not_ready_yet_has_nothing_to_renew(world, browse):
    said = text(browse(world.acme.member).get(RENEW, {"pick": pick(world.acme.namespace)}))

    assert "Not so Its term begins when it is ready; nothing to renew before." in said
    assert "Renew 1" not in said


def test_without_a_choice_it_is_what_ends_within_14_days(world, browse):
    said = text(browse(world.acme.member).get(RENEW))

    assert "All that end within 14 days" in said
    assert "chat" in said
    assert "box" in said
    assert "space" not in said.partition("What would be renewed")[2].partition("Renew 2")[0]


def test_nothing_that_ends_says_so(world, browse):
    Allocation.objects.filter(tenant=world.acme.tenant).update(expires_at=timezone.now() + timedelta(days=90))

    said = text(browse(world.acme.member).get(RENEW))

    assert "Nothing ends within 14 days" in said


def test_foreign_things_cannot_be_chosen_and_results_of_others_not_read(world, browse):
    browser = browse(world.acme.member)
    before = ends(world.foreign.machine)

    shown = text(browser.get(RENEW, {"pick": pick(world.foreign.machine)}))
    sent = browser.post(RENEW, {"pick": pick(world.foreign.machine), "days": "90"})
    mine = browser.post(RENEW, {"pick": pick(world.acme.machine), "days": "90"})["Location"]
    theirs = browse(world.foreign.owner).get(mine.replace("/t/acme/", f"/t/{world.foreign.tenant.name}/"))

    assert "Nothing of it can be renewed" in shown
    assert "Nothing was chosen" in text(browser.get(sent["Location"]))
    assert ends(world.foreign.machine) == before
    assert theirs.status_code == 404
    assert browser.get(f"{RENEW}/done?done=forged").status_code == 404


def test_a_viewer_neither_chooses_nor_renews(world, browse):
    browser = browse(world.acme.viewer)
    before = ends(world.acme.machine)

    listed = browser.get("/t/acme/machines").content.decode()

    assert 'name="pick"' not in listed
    assert browser.get(RENEW).status_code == 403
    assert browser.post(RENEW, {"pick": pick(world.acme.machine), "days": "90"}).status_code == 403
    assert ends(world.acme.machine) == before


def test_lists_offer_the_choice_and_home_leads_to_it(world, browse):
    browser = browse(world.acme.member)

    for noun, row in (("endpoints", world.acme.endpoint), ("machines", world.acme.machine)):
        body = browser.get(f"/t/acme/{noun}").content.decode()
        assert f'value="{pick(row)}"' in body
        assert f'<form method="get" action="{RENEW}">' in body
    assert f'href="{RENEW}"' in browser.get("/t/acme").content.decode()
