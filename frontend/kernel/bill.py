"""A month of a tenant's costs as pages show them: by day, by object, person, label, tenant and item. UTC months.

Reads in the caller's read block, a constant number of queries; sums are exact until they are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from uuid import UUID

from django.db.models import Min, Model, Q
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design.charts import Chart, Series
from frontend.kernel import asks
from tenants import billed, bills, costs, quota
from tenants.models import Budget, Endpoint, Machine, Namespace, Tenant, UsageRecord
from tenants.operations.pricing import TOKEN, currency
from tenants.pricing import money

PRODUCTS: Final[Mapping[str, type[Model]]] = {"endpoint": Endpoint, "machine": Machine, "namespace": Namespace}
MONTHS: Final = 13
"""Months that the picker offers."""
MOST_LISTED: Final = 1500
"""Uses of GPUs in a month that a page lists by object; beyond, the page shows sums and the export has the rest."""
LABEL: Final = "label:"
"""Group by a label: `label:<key>`."""


@dataclass(frozen=True, slots=True)
class Product:
    """What is known of an object beside its costs; of one that was purged, nothing."""

    owner: UUID | None
    labels: Mapping[str, str]


@dataclass(slots=True)
class Group:
    """One line of the table: everything that has one object, person, label, tenant or item in common."""

    label: str
    note: str = ""
    url: str = ""
    exact: Fraction = field(default_factory=Fraction)
    serving: Fraction = field(default_factory=Fraction)
    """Of it, what endpoints cost."""
    idle: Fraction = field(default_factory=Fraction)
    """Of that, what was paid for hours without a call."""
    tokens: int = 0
    objects: set[UUID] = field(default_factory=set)
    share: float = 0.0

    @property
    def cost(self) -> Decimal:
        """Return the cost, rounded to 6 decimals."""
        return money(self.exact)

    @property
    def idle_cost(self) -> Decimal:
        """Return what was paid for idle hours."""
        return money(self.idle)

    @property
    def per_million(self) -> Decimal | None:
        """Return what a million tokens cost, idle time included; None where none were counted."""
        return money(self.serving * 1_000_000 / self.tokens) if self.tokens else None

    @property
    def idle_share(self) -> float | None:
        """Return how much of the endpoints' cost was paid for idle hours; None where no endpoint cost anything."""
        return float(self.idle / self.serving) if self.serving else None


@dataclass(frozen=True, slots=True)
class Total:
    """What one object was billed of one item in the month."""

    subject: costs.Subject
    item: str
    exact: Fraction


@dataclass(frozen=True, slots=True)
class Bill:
    """One month."""

    tenant: Tenant
    start: datetime
    end: datetime
    now: datetime
    lines: Sequence[costs.CostLine]
    """Day by day; what was held without being billed too."""
    totals: Sequence[Total]
    days: Mapping[tuple[str, date], Fraction]
    """Part of the picture and day → cost."""
    forecast: bills.Forecast
    calls: Mapping[UUID, bills.Calls]
    idle: Mapping[UUID, Fraction]
    currency: str
    products: Mapping[UUID, Product]

    @property
    def is_present(self) -> bool:
        """Whether the month is not over."""
        return self.start <= self.now < self.end

    @property
    def a_day(self) -> Decimal:
        """Return what a day of the month cost on average."""
        return self.forecast.spent / (self.end - self.start).days

    @property
    def whole(self) -> Group:
        """Return the month in one line."""
        found = self.grouped(lambda _total: ("all", _("All"), "", ""))
        return found[0] if found else Group(_("All"))

    @property
    def unpriced(self) -> list[str]:
        """Return what was used and has no price, in words."""
        return sorted({asks.dimension(line.item) for line in self.lines if line.price is None and line.billable})

    def grouped(self, of: Callable[[Total], tuple[Any, str, str, str]]) -> list[Group]:
        """Return groups by what `of` returns of a total (key, label, note, url), the dearest first."""
        found: dict[Any, Group] = {}
        for each in self.totals:
            key, label, note, url = of(each)
            group = found.setdefault(key, Group(label, note, url))
            group.exact += each.exact
            subject = each.subject
            if subject.kind == "endpoint":
                group.serving += each.exact
                if each.item != TOKEN:
                    group.idle += each.exact * self.idle.get(subject.allocation, 0)
                if subject.allocation not in group.objects and subject.allocation in self.calls:
                    group.tokens += self.calls[subject.allocation].tokens
            group.objects.add(subject.allocation)
        total = sum((group.exact for group in found.values()), start=Fraction(0))
        for group in found.values():
            group.share = float(group.exact / total) if total else 0.0
        return sorted(found.values(), key=lambda group: (-group.exact, group.label))


def of(tenant: Tenant, start: datetime, *, now: datetime, allocation: UUID | None = None) -> Bill:
    """Return the bill of a tenant and all below it, or of one object, for the month that begins at `start`."""
    end = quota.month_of(start).end
    assert end is not None
    lines = costs.cost_lines(tenant, start, end, now=now, allocation=allocation)
    totals, days = _summed(lines)
    spent = sum((each.exact for each in totals), start=Fraction(0))
    tokens = sum((each.exact for each in totals if each.item == TOKEN), start=Fraction(0))
    called = bills.calls(tenant, start, end)
    return Bill(
        tenant=tenant,
        start=start,
        end=end,
        now=now,
        lines=lines,
        totals=totals,
        days=days,
        forecast=bills.forecast(tenant, spent, tokens, start, end, now=now, allocation=allocation),
        calls=called,
        idle=bills.idle_shares(lines, called, start, end, now=now),
        currency=currency(),
        products=_products(lines),
    )


def _summed(lines: Iterable[costs.CostLine]) -> tuple[list[Total], dict[tuple[str, date], Fraction]]:
    """Return what was billed by object and item, and by part of the picture and day; each line is looked at once."""
    found: dict[tuple[costs.Subject, str], Fraction] = {}
    days: dict[tuple[str, date], Fraction] = {}
    for line in lines:
        if not line.billable:
            continue  # held, but not ready yet, or asked to go
        exact, key, day = line.exact, (line.subject, line.item), (_part(line.item), line.day)
        found[key] = found[key] + exact if key in found else exact
        days[day] = days[day] + exact if day in days else exact
    return [Total(subject, item, exact) for (subject, item), exact in found.items()], days


def _products(lines: Iterable[costs.CostLine]) -> dict[UUID, Product]:
    wanted: dict[str, set[UUID]] = {kind: set() for kind in PRODUCTS}
    for line in lines:
        if line.subject.kind in wanted:
            wanted[line.subject.kind].add(line.subject.allocation)
    found: dict[UUID, Product] = {}
    for kind, keys in wanted.items():
        rows = PRODUCTS[kind]._base_manager.filter(allocation_id__in=keys)
        for key, owner, labels in rows.values_list("allocation_id", "owner_id", "labels"):
            found[key] = Product(owner, labels or {})
    return found


# --- months ---------------------------------------------------------------------------------------


def month_from(text: str, *, now: datetime) -> datetime:
    """Return the start of the month written as `2026-11`; of the present one for anything else or later."""
    present = quota.month_of(now.astimezone(UTC)).start
    try:
        start = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        return present
    return min(start, present) if start.year >= 2000 else present


def months(tenant: Tenant, *, now: datetime) -> list[datetime]:
    """Return the starts of the months that a tenant has seen, newest first, at most `MONTHS`."""
    first = UsageRecord.objects.filter(tenant_id__in=costs.below(tenant)).aggregate(at=Min("held_from"))["at"]
    since = min(tenant.created_at, first or tenant.created_at)
    found = [quota.month_of(now.astimezone(UTC)).start]
    while len(found) < MONTHS and found[-1] > since:
        found.append((found[-1] - timedelta(days=1)).replace(day=1))
    return found


# --- groups ---------------------------------------------------------------------------------------


def kinds_of(bill: Bill) -> list[tuple[str, str]]:
    """Return by what the month can be grouped: (value, words)."""
    found = [("object", _("Object")), ("person", _("Person")), ("item", _("What was used"))]
    if {line.subject.tenant for line in bill.lines} - {bill.tenant.pk}:
        found.append(("tenant", _("Tenant")))
    keys = sorted({key for product in bill.products.values() for key in product.labels})
    return found + [(f"{LABEL}{key}", _("Label %(key)s") % {"key": key}) for key in keys]


def grouped(bill: Bill, by: str) -> list[Group]:
    """Return the month by `by`, one of `kinds_of`; by object for anything else."""
    if by == "person":
        return _by_person(bill)
    if by == "item":
        return bill.grouped(lambda each: (each.item, _item(each.item), "", ""))
    if by.startswith(LABEL):
        return _by_label(bill, by.removeprefix(LABEL))
    tenants = dict(Tenant.objects.filter(path__contains=[bill.tenant.pk]).values_list("pk", "name"))
    if by == "tenant":
        return bill.grouped(lambda each: (each.subject.tenant, tenants.get(each.subject.tenant, "--"), "", ""))
    return _by_object(bill, tenants)


def _by_object(bill: Bill, tenants: Mapping[UUID, str]) -> list[Group]:
    kinds = {"endpoint": _("endpoint"), "machine": _("machine"), "namespace": _("namespace"), "bare": _("capacity")}
    folder = reverse("frontend:cost", kwargs={"tenant": bill.tenant.name})

    def of_total(each: Total) -> tuple[Any, str, str, str]:
        subject = each.subject
        note = kinds.get(subject.kind, subject.kind)
        if subject.tenant != bill.tenant.pk:
            note = _("%(kind)s of %(tenant)s") % {"kind": note, "tenant": tenants.get(subject.tenant, "--")}
        url = f"{folder}/{subject.short_id}?month={bill.start:%Y-%m}"
        return subject.allocation, subject.name or subject.short_id, note, url

    return bill.grouped(of_total)


def _by_person(bill: Bill) -> list[Group]:
    known = asks.names({product.owner for product in bill.products.values()})

    def of_total(each: Total) -> tuple[Any, str, str, str]:
        product = bill.products.get(each.subject.allocation)
        if product is None or product.owner is None:
            return None, _("Nobody"), _("without an owner, or gone for long"), ""
        return product.owner, known.get(product.owner, _("Somebody from outside")), "", ""

    return bill.grouped(of_total)


def _by_label(bill: Bill, key: str) -> list[Group]:
    def of_total(each: Total) -> tuple[Any, str, str, str]:
        product = bill.products.get(each.subject.allocation)
        value = product.labels.get(key) if product is not None else None
        return (value, value, "", "") if value else (None, _("Without this label"), "", "")

    return bill.grouped(of_total)


def _item(item: str) -> str:
    if item == TOKEN:
        return _("Tokens")
    name = asks.dimension(item)
    return name[:1].upper() + name[1:]


# --- pictures -------------------------------------------------------------------------------------


def by_day(bill: Bill) -> Chart:
    """Return the month day by day, in stacked bars."""
    until = min(bill.end, bill.now)
    days = [bill.start + timedelta(days=n) for n in range(max(0, (until - bill.start).days) + 1)]
    days = [day for day in days if day < until]
    names = {
        "gpu": _("GPUs"), "cpu": _("CPU and memory"), "storage": _("Storage"), "token": _("Tokens"),
    }  # fmt: skip
    return Chart(
        id="cost-by-day",
        title=_("Cost by day"),
        unit=bill.currency,
        times=days,
        series=[
            Series(name, [float(bill.days.get((part, day.date()), 0)) for day in days])
            for part, name in names.items()
            if any(cost for (of, _day), cost in bill.days.items() if of == part)
        ],
        kind="bar",
        note=_("days in UTC"),
        empty=_("Nothing was billed in this month."),
    )


def _part(item: str) -> str:
    if item.startswith("gpu."):
        return "gpu"
    return {TOKEN: "token", "storage_gib": "storage"}.get(item, "cpu")


# --- budget ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pace:
    """How a month goes compared with its budget."""

    budget: Budget
    spent: Decimal
    total: Decimal
    """At the end of the month, by the forecast."""
    passed: float
    """Share of the month that is over."""
    as_of: datetime | None = None
    """When what runs was looked at for the forecast; None: just now."""

    @property
    def share(self) -> float:
        """Return how much of the budget is spent."""
        return float(self.spent / self.budget.amount)

    @property
    def forecast_share(self) -> float:
        """Return how much of it will be spent at the end of the month."""
        return float(self.total / self.budget.amount)

    @property
    def tone(self) -> str:
        """Return how serious that is."""
        if self.share >= 1:
            return "bad"
        return "warn" if self.share >= 0.8 or self.forecast_share > 1 else "ok"


def pace(budget: Budget, forecast: bills.Forecast, start: datetime, end: datetime, *, now: datetime) -> Pace:
    """Return how the present month goes."""
    return Pace(budget, forecast.spent, forecast.total, (now - start) / (end - start), forecast.as_of)


def month_so_far(tenant: Tenant, *, now: datetime) -> bills.Forecast:
    """Return the present month in sums alone, worked out in the database: what Home shows.

    The sums are those of `of`, to the sixth decimal, without what tokens will still cost.
    """
    start, end = billed.this_month(now)
    return sums(tenant, start, end, now=now, large=is_large(tenant, start, now=now)).forecast


# --- more than a page can hold --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sums:
    """A month in sums alone, for tenants with more objects than a page can list."""

    start: datetime
    end: datetime
    now: datetime
    forecast: bills.Forecast
    currency: str
    by_item: Sequence[Group]
    by_tenant: Sequence[Group]
    unpriced: Sequence[str]

    @property
    def is_present(self) -> bool:
        """Whether the month is not over."""
        return self.start <= self.now < self.end


def is_large(tenant: Tenant, start: datetime, *, now: datetime) -> bool:
    """Whether a month has more uses of GPUs than a page can list one by one."""
    end = quota.month_of(start).end
    rows = UsageRecord.objects.filter(
        Q(held_to=None) | Q(held_to__gt=start), tenant_id__in=costs.below(tenant), held_from__lt=min(end or now, now)
    )
    return rows.order_by()[: MOST_LISTED + 1].count() > MOST_LISTED


def sums(tenant: Tenant, start: datetime, end: datetime, *, now: datetime, large: bool) -> Sums:
    """Return a month of a tenant and all below it in sums, worked out in the database.

    What it has cost is exact. What is to come of a `large` one is what ran at the last full hour: `forecast.as_of`.
    """
    tenants = dict(Tenant.objects.filter(path__contains=[tenant.pk]).values_list("pk", "name"))
    book = billed.Book.read()
    items: dict[str, Group] = {}
    owners: dict[UUID, Group] = {}
    unpriced = set()
    for row in billed.read(start, end, now=now, tenants=list(tenants)):
        price = book.price(row.item, row.since, row.provider)
        if price is None:
            unpriced.add(asks.dimension(row.item))
            continue
        exact = Fraction(row.quantity) * Fraction(price)
        items.setdefault(row.item, Group(_item(row.item))).exact += exact
        owners.setdefault(row.tenant, Group(tenants.get(row.tenant, "--"))).exact += exact
    spent = sum((group.exact for group in items.values()), start=Fraction(0))
    for group in (*items.values(), *owners.values()):
        group.share = float(group.exact / spent) if spent else 0.0
    more, as_of = Fraction(0), None
    if start <= now < end:
        rolled = bills.running_as_rolled(list(tenants), now, end, book) if large else None
        more, as_of = rolled if rolled is not None else (bills.running(tenant, now, end), None)
    return Sums(
        start=start,
        end=end,
        now=now,
        forecast=bills.Forecast(money(spent), money(more), Decimal(0), as_of),
        currency=currency(),
        by_item=sorted(items.values(), key=lambda group: (-group.exact, group.label)),
        by_tenant=sorted(owners.values(), key=lambda group: (-group.exact, group.label)),
        unpriced=sorted(unpriced),
    )
