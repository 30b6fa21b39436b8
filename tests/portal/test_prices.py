"""Prices, policies and notices of the platform through Django's client: what holds, what a new list would change."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tenants import billed, costs
from tenants.models import Price, PriceList, Tenant, UsageRecord
from tenants.states import PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
GPU = "gpu.H100-80GB.slices"
PAGE = "/ops/prices"


@pytest.fixture
def world(db: None) -> World:
    made = build()
    PriceList.objects.update(valid_from=timezone.now() - timedelta(days=80))
    return made


@pytest.fixture
def ole():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def a_list(name, prices, *, days, **where):
    row = PriceList.objects.create(
        name=name, valid_from=timezone.now() + timedelta(days=days), created_at=timezone.now(), **where
    )
    Price.objects.bulk_create(
        Price(price_list=row, item=item, amount=Decimal(amount)) for item, amount in prices.items()
    )
    return row


def used_last_month() -> Decimal:
    """Let everything have run all of last month; return what that cost."""
    now = timezone.now()
    start, end = billed.last_month(now)
    UsageRecord.objects.exclude(allocation_id=None).update(
        held_from=start - timedelta(hours=1), billable_from=start, held_to=None
    )
    return sum((costs.spend(tenant, start, end, now=now).total for tenant in Tenant.objects.all()), Decimal(0))


def test_prices_in_force_stand_by_place_with_the_list_they_come_from(world, browse, ole):
    a_list("raised", {GPU: "0.45"}, days=-10)
    a_list("dear site", {GPU: "0.9"}, days=-5, site="berlin")
    a_list("next year", {GPU: "0.6"}, days=20)

    shown = text(browse(ole).get(PAGE))

    assert re.search(r"In force everywhere .*H100-80GB, one slot €0\.4500 an hour €324\.00 .* raised", shown)
    assert re.search(r"One virtual CPU €0\.0200 an hour €14\.40 .* first", shown)
    assert re.search(r"In force site berlin .*H100-80GB, one slot €0\.9000", shown)
    assert re.search(r"next year everywhere · H100-80GB, one slot \+33 %", shown)
    assert "raised H100-80GB, one slot +50 % everywhere" in shown


def test_a_list_that_nothing_holds_by_any_more_is_past(world, browse, ole):
    a_list("second", {GPU: "0.4", "vcpu": "0.02", "memory_gib": "0.003"}, days=-1)

    shown = text(browse(ole).get(PAGE))

    assert re.search(r"second .* In force 3", shown)
    assert re.search(r"first everywhere .* Past 3", shown)


def test_a_new_list_shows_the_difference_and_what_last_month_would_have_cost(world, browse, ole):
    total = used_last_month()
    day = (timezone.localdate() + timedelta(days=3)).isoformat()
    wish = {"name": "raise", "start": day, "place": "", f"price:{GPU}": "0.6", "price:vcpu": "0.02",
            "price:memory_gib": "0.0015"}  # fmt: skip

    preview = text(browse(ole).get(f"{PAGE}/new", wish, headers={"hx-request": "true"}))

    assert "H100-80GB, one slot an hour €0.3000 €0.6000 +100 %" in preview
    assert "One virtual CPU an hour €0.0200 €0.0200 same" in preview
    assert "One GiB of main memory an hour €0.0030 €0.0015 −50 %" in preview
    assert f"Last month at present prices €{total:,.2f}" in preview
    assert not PriceList.objects.filter(name="raise").exists()


def test_publishing_holds_from_the_first_minute_of_the_day_and_leaves_the_past_alone(world, browse, ole):
    day = timezone.localdate() + timedelta(days=3)
    browser = browse(ole)

    answer = browser.post(
        f"{PAGE}/new", {"name": "raise", "start": day.isoformat(), f"price:{GPU}": "0.6", "price:token": "0.25"}
    )

    row = PriceList.objects.get(name="raise")
    assert (answer.status_code, answer["Location"]) == (302, f"{PAGE}/{row.pk}")
    assert timezone.localtime(row.valid_from).date() == day
    assert timezone.localtime(row.valid_from).hour == 0
    assert dict(row.prices.values_list("item", "amount")) == {GPU: Decimal("0.6"), "token": Decimal("0.00000025")}
    assert "Comes" in text(browser.get(answer["Location"]))
    assert Price.objects.get(price_list__name="first", item=GPU).amount == Decimal("0.3")


def test_prices_of_one_provider_leave_the_others_as_they_are(world, browse, ole):
    used_last_month()
    other = factories.provider(name="elsewhere")
    day = (timezone.localdate() + timedelta(days=1)).isoformat()
    wish = {"name": "x", "start": day, "place": f"provider:{other.name}", f"price:{GPU}": "9"}

    preview = text(browse(ole).get(f"{PAGE}/new", wish, headers={"hx-request": "true"}))
    browse(ole).post(f"{PAGE}/new", wish)

    found = re.search(r"Last month at present prices (\S+) .*Last month at these prices (\S+) same", preview)
    assert found[1] == found[2]
    assert PriceList.objects.get(name="x").provider_id == other.pk


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({f"price:{GPU}": "much"}, f"price:{GPU}"),
        ({f"price:{GPU}": "-1"}, f"price:{GPU}"),
        ({f"price:{GPU}": "0.0000000001"}, f"price:{GPU}"),
        ({"start": "2020-01-01"}, "start"),
        ({"start": "soon"}, "start"),
        ({"name": ""}, "name"),
        ({"name": "first"}, "name"),
    ],
)
def test_what_is_wrong_with_prices_stands_at_its_field(world, browse, ole, given, field):
    day = (timezone.localdate() + timedelta(days=3)).isoformat()

    answer = browse(ole).post(f"{PAGE}/new", {"name": "x", "start": day, f"price:{GPU}": "0.5", **given})

    assert answer.status_code in {409, 422}
    assert re.search(rf'data-field="{re.escape(field)}"[^§]*?field-error', answer.content.decode())
    assert PriceList.objects.count() == 1


def test_prices_export_exactly(world, browse, ole):
    rows = browse(ole).get(PAGE, {"format": "json"}).json()

    assert {(row["list"], row["item"], row["amount"]) for row in rows} == {
        ("first", GPU, "0.3"), ("first", "vcpu", "0.02"), ("first", "memory_gib", "0.003")
    }  # fmt: skip


def test_policies_say_who_approves_and_where_a_tenant_is_narrower(world, browse, ole):
    Tenant.objects.filter(name="acme").update(policy={"sites": ["berlin"], "longest_s": 7 * 86400})

    shown = text(browse(ole).get(f"{PAGE}/policies"))

    assert "More quota an owner of the tenant, a platform approver" in shown
    assert "An undecided request ends after 30 d" in shown
    assert re.search(r"Acme Works acme Sites: berlin Longest term: 7 d", shown)


def test_notices_say_what_is_told_to_whom(world, browse, ole):
    shown = text(browse(ole).get(f"{PAGE}/notices"))

    assert re.search(r"A request waits for your decision .*?who decides next at once yes", shown)
    assert "Webhooks of tenants" in shown


def test_the_number_of_queries_does_not_depend_on_the_number_of_lists(world, browse, ole):
    browser = browse(ole)

    def count(address) -> int:
        browser.get(address)
        with CaptureQueriesContext(connection) as queries:
            browser.get(address)
        return len(queries)

    addresses = (PAGE, f"{PAGE}/policies", f"{PAGE}/notices", f"{PAGE}/new")
    few = [count(address) for address in addresses]
    for number in range(40):
        a_list(f"list {number}", {GPU: "0.4"}, days=-70 + number)
        factories.tenant(name=f"t-{number}", policy={"sites": ["berlin"]})

    assert [count(address) for address in addresses] == few


def test_every_route_lets_only_those_in_whom_it_concerns(world, browse, ole):
    ana = factories.person(name="Ana", platform=(PlatformRole.APPROVER,))
    aud = factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))
    browsers = [browse(person) for person in (None, world.acme.member, world.acme.owner, ana, ole, aud)]
    one = PriceList.objects.get()
    expected = {
        ("GET", PAGE): [302, 403, 403, 200, 200, 200],
        ("GET", f"{PAGE}/{one.pk}"): [302, 403, 403, 200, 200, 200],
        ("GET", f"{PAGE}/policies"): [302, 403, 403, 200, 200, 200],
        ("GET", f"{PAGE}/notices"): [302, 403, 403, 200, 200, 200],
        ("GET", f"{PAGE}/new"): [302, 403, 403, 403, 200, 403],
        ("POST", f"{PAGE}/new"): [302, 403, 403, 403, 422, 403],
    }

    found = {(method, url): [each.generic(method, url).status_code for each in browsers] for method, url in expected}

    assert found == expected


def test_publishing_needs_the_form_token(world, ole):
    from django.test import Client

    browser = Client(headers={"accept": "text/html"}, enforce_csrf_checks=True)
    browser.force_login(ole, backend="tenants.login.PersonBackend")

    assert browser.post(f"{PAGE}/new").status_code == 403
