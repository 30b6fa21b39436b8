"""Terms from the first Ready to their end: warnings, grace, reclaim, renewal, reviews, and limits that end sooner."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from provisioners.sandbox import views
from tenants.errors import QuotaExceeded
from tenants.models import Allocation, Boundary, Event, Hold, Notice, Quota, QuotaCharge
from tenants.operations import allocations
from tenants.pricing import Use
from tenants.specs import Term
from tenants.states import ConditionType, ServiceClass, condition_of
from tests import factories
from tests.drive import fresh, is_gone, is_ready
from tests.scenarios.story import Customer, Deaths, Story, customer, endpoint, node, story

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

DAY_S = 86400


@pytest.fixture
def told(deaths: Deaths | None) -> Story:
    return story(node("node-1"), deaths=deaths)


@pytest.fixture
def acme() -> Customer:
    return customer("acme")


def ready(told: Story, who: Customer, name: str, days: int, service_class: ServiceClass = ServiceClass.STANDARD) -> Any:
    """Ask for an endpoint and wait until its term runs."""
    row = endpoint(who, told.now, name, term=Term(days * DAY_S, service_class=service_class))
    told.drive(lambda: is_ready(row)() and fresh(row).allocation.expires_at is not None)
    return row


def end_of(row: Any) -> datetime:
    end = fresh(row).allocation.expires_at
    assert isinstance(end, datetime)
    return end


def notices(row: Any) -> list[tuple[str, float]]:
    """Return (kind, days before the end) of everything its people were told, in order."""
    told = Notice.objects.filter(object_id=row.allocation_id).order_by("at")
    return [(notice.kind, (end_of(row) - notice.at) / timedelta(days=1)) for notice in told]


def pass_days(told: Story, until: datetime, *, hours: int = 24) -> None:
    """Let time pass in steps with a sweep at each; the last step ends exactly at `until`, with two."""
    while told.now < until:
        told.here.clock.now = min(until, told.now + timedelta(hours=hours))
        while not told.sweep():
            pass
    told.sweep()


@pytest.mark.slow
def test_standard_and_trial_are_warned_kept_and_reclaimed_in_order_and_production_is_not(
    told: Story, acme: Customer
) -> None:
    standard = ready(told, acme, "standard", 30)
    trial = ready(told, acme, "trial", 5, ServiceClass.TRIAL)
    production = ready(told, acme, "production", 20, ServiceClass.PRODUCTION)
    end = end_of(standard)

    # The trial has no room for the warnings of 14 and 7 days; a day of grace, then it goes.
    trial_end = end_of(trial)
    pass_days(told, trial_end + timedelta(hours=12))
    assert (fresh(trial).phase, fresh(trial).address != "") == ("Expiring", True)
    pass_days(told, trial_end + timedelta(days=1))
    told.drive(is_gone(trial, trial.allocation))
    assert [kind for kind, _ in notices(trial)] == ["expiry-warning", "expiry-grace"]

    # Standard: each warning once, at its time, give or take the step of this test.
    pass_days(told, end)
    assert [(kind, round(days)) for kind, days in notices(standard)] == [
        ("expiry-warning", 14), ("expiry-warning", 7), ("expiry-warning", 1), ("expiry-grace", 0),
    ]  # fmt: skip
    assert all(
        -1.01 < days - wanted <= 0.01 for (_, days), wanted in zip(notices(standard), (14, 7, 1, 0), strict=True)
    )
    grace = fresh(standard).allocation.grace_until
    assert grace == end + timedelta(days=7)
    pass_days(told, grace - timedelta(seconds=1))
    assert fresh(standard).phase == "Expiring"
    assert str(standard.allocation.units.get().pk) in {use.unit for use in views.truth(told.here.estate.state)}

    # Grace is over: given back in order.
    told.here.clock.now = grace
    told.drive(is_gone(standard, standard.allocation))
    order = ["endpoint.reclaimed", "endpoint.released", "allocation.given-back"]
    mine = Event.objects.filter(object_id__in=[standard.pk, standard.allocation_id], kind__in=order)
    assert list(mine.order_by("seq").values_list("kind", flat=True)) == order
    billed_until = fresh(standard).allocation.deletion_requested_at
    assert grace <= billed_until <= grace + timedelta(minutes=5)

    # Production: overdue for weeks, said once a week, never taken.
    assert fresh(production).phase == "Ready"
    overdue = condition_of(fresh(production.allocation).conditions, ConditionType.EXPIRING)
    assert overdue is not None
    assert (overdue["status"], overdue["reason"]) == ("False", "ReviewOverdue")
    weeks = (told.now - end_of(production)) // timedelta(days=7) + 1
    kinds = [kind for kind, _ in notices(production)]
    assert (kinds.count("expiry-warning"), kinds.count("review-overdue")) == (3, weeks)
    assert weeks >= 2
    account = told.at_rest()
    assert Hold.objects.get().unit == production.allocation.units.get()
    assert Boundary.objects.filter(released_at=None).count() == 1
    assert account.slot_hours(Use.BILLED) > 24 * 35


@pytest.mark.slow
def test_a_renewal_in_grace_undoes_it_and_the_new_term_warns_anew(told: Story, acme: Customer) -> None:
    row = ready(told, acme, "chat", 16)
    first_end = end_of(row)
    pass_days(told, first_end + timedelta(days=6))
    assert fresh(row).phase == "Expiring"
    holds = list(Hold.objects.values_list("pk", flat=True))

    allocations.renew(allocation=fresh(row).allocation, duration_s=16 * DAY_S, actor=acme.actor, now=told.now)
    renewed_end = end_of(row)
    assert renewed_end == told.now + timedelta(days=16)
    told.drive(is_ready(row))
    pass_days(told, first_end + timedelta(days=8))  # past the old grace
    assert fresh(row).phase == "Ready"
    pass_days(told, renewed_end - timedelta(hours=1))

    assert [kind for kind, _ in notices(row)] == [*["expiry-warning"] * 3, "expiry-grace", *["expiry-warning"] * 3]
    assert list(Hold.objects.values_list("pk", flat=True)) == holds
    assert QuotaCharge.objects.filter(allocation=row.allocation_id).exists()
    told.at_rest()


@pytest.mark.slow
def test_a_limit_that_ends_sooner_shortens_what_is_offered_and_names_its_date(told: Story, acme: Customer) -> None:
    ends = told.now + timedelta(days=10)
    Quota.objects.filter(tenant=acme.tenant, dimension="gpu.H100-80GB.slices").delete()
    factories.set_limit(acme.tenant, "gpu.H100-80GB.slices", 8, until=ends)

    with pytest.raises(QuotaExceeded) as refused:
        endpoint(acme, told.now, "chat", term=Term(30 * DAY_S))
    offered = datetime.fromisoformat(refused.value.data["offered_until"])
    row = endpoint(acme, told.now, "chat", term=Term(30 * DAY_S, not_after=offered))
    told.drive(lambda: is_ready(row)() and fresh(row).allocation.expires_at is not None)

    assert offered == ends
    assert ends.isoformat() in refused.value.detail
    assert end_of(row) == ends
    with pytest.raises(QuotaExceeded):
        allocations.renew(allocation=_unbounded(row), duration_s=30 * DAY_S, actor=acme.actor, now=told.now)
    pass_days(told, ends)
    assert fresh(row).phase == "Expiring"
    pass_days(told, ends + timedelta(days=7))
    told.drive(is_gone(row, row.allocation))
    told.at_rest()


def _unbounded(row: Any) -> Allocation:
    """Return its allocation without the end that was asked for: only the limit is in the way then."""
    Allocation.objects.filter(pk=row.allocation_id).update(not_after=None)
    found: Allocation = fresh(row).allocation
    return found
