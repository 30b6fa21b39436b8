"""Home's money: what was spent, the budget's pace, what is idle and what that costs, what ends soon; none and many."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from frontend.views import home
from tenants import usage
from tenants.actor import SYSTEM
from tenants.models import Allocation, Budget, Endpoint, EndpointUsage, Tenant
from tenants.operations import endpoints
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import Phase, Role
from tenants.transactions import acting
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
DAY = timedelta(days=1)


@pytest.fixture
def world(db: None) -> World:
    return build()


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def made_ready(row: Endpoint, *, days: int) -> None:
    """Make an endpoint one that has been ready for so many days, and ends in as many less than 20."""
    now = timezone.now()
    with acting(SYSTEM):
        usage.first_ready(row.allocation, now=now - days * DAY)
    Allocation.objects.filter(pk=row.allocation_id).update(expires_at=now + (20 - days) * DAY)
    Endpoint.objects.filter(pk=row.pk).update(phase=Phase.READY.value, ready_at=now - days * DAY)


def more(world: World, number: int) -> Endpoint:
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 1, 1),))
    return endpoints.create(
        tenant=world.acme.tenant, ask=EndpointAsk(f"more-{number}", RevisionAsk("llama-3-1-8b"), spec),
        actor=factories.actor(world.acme.member), now=timezone.now(),
    ).endpoint  # fmt: skip


def test_an_idle_endpoint_stands_with_its_price_and_its_last_call(world, browse):
    made_ready(world.acme.endpoint, days=12)
    browser = browse(world.acme.member)

    never = text(browser.get("/t/acme"))
    EndpointUsage.objects.create(
        tenant=world.acme.tenant, endpoint_id=world.acme.endpoint.pk, key_id="k",
        hour=timezone.now() - 9 * DAY, requests=3, errors=0, prompt_tokens=1, completion_tokens=1,
    )  # fmt: skip
    before = text(browser.get("/t/acme"))
    EndpointUsage.objects.update(hour=timezone.now() - 6 * DAY)
    used = text(browser.get("/t/acme"))

    assert "chat H100-80GB 2g.20gb never called €17.47 a day" in never
    assert "Of it idle, a day €17.47" in never
    assert "chat H100-80GB 2g.20gb last called 9 days ago €17.47 a day" in before
    assert "last called" not in used
    assert "Of it idle, a day €0.00" in used


def test_the_cost_of_what_is_idle_is_not_told_when_only_a_part_was_looked_at(world, browse, monkeypatch):
    made_ready(world.acme.endpoint, days=12)
    made_ready(more(world, 1), days=11)
    browser = browse(world.acme.member)

    whole = text(browser.get("/t/acme"))
    monkeypatch.setattr(home, "MOST", 1)
    part = text(browser.get("/t/acme"))

    assert "Of it idle, a day €" in whole
    assert "Of it idle, a day --" in part


def test_what_ends_soon_leads_to_renewing_it_for_who_may(world, browse):
    made_ready(world.acme.endpoint, days=12)

    member, viewer = browse(world.acme.member).get("/t/acme"), browse(world.acme.viewer).get("/t/acme")

    assert "Ends within 14 days" in text(member)
    assert 'href="/t/acme/renew"' in member.content.decode()
    assert "Ends within 14 days" in text(viewer)
    assert 'href="/t/acme/renew"' not in viewer.content.decode()


def test_the_budget_is_offered_to_owners_and_its_pace_shown_to_all(world, browse):
    owner, viewer = browse(world.acme.owner), browse(world.acme.viewer)
    without = (text(owner.get("/t/acme")), text(viewer.get("/t/acme")))
    Budget.objects.create(tenant=world.acme.tenant, amount=1000, currency="EUR", created_at=timezone.now())

    with_one = text(viewer.get("/t/acme"))

    assert ["Set budget alert" in said for said in without] == [True, False]
    assert "€0.00 of €1,000.00: 0 %" in with_one
    assert "of the month is over. If what runs goes on, the month ends at" in with_one


def test_an_empty_tenant_says_what_to_do_and_shows_no_empty_card(db, browse):
    tenant = factories.tenant(name="empty")
    person = factories.member(tenant, Role.OWNER)

    said = text(browse(person).get("/t/empty"))

    assert Tenant.objects.count() == 1
    assert "Nothing runs here yet" in said
    for title in ("Idle", "Ends within 14 days", "Budget of this month", "Spent this month"):
        assert title not in said


def test_many_rows_are_counted_and_cost_no_further_queries(world, browse):
    made_ready(world.acme.endpoint, days=12)
    browser = browse(world.acme.member)
    browser.get("/t/acme")
    with CaptureQueriesContext(connection) as few:
        browser.get("/t/acme")
    for number in range(12):
        made_ready(more(world, number), days=12)

    with CaptureQueriesContext(connection) as many:
        said = text(browser.get("/t/acme"))

    assert len(many) == len(few)
    assert said.count("never called") == 6
    assert said.count("and 7 more") == 2
