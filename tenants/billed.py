"""What every tenant was billed for over a time, summed in the database: for pages over the whole platform.

The same facts as `tenants.costs` (which gives the lines of one tenant): slices from usage records, vCPU and memory
from units, storage from allocations, tokens where they have a price; billed from the first ready to the asking for
deletion. Reads only, in the caller's read block; the number of statements does not depend on what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from django.db import connection

from tenants import pricing, quota
from tenants.models import Price, Provider
from tenants.operations.pricing import TOKEN, all_prices

SECONDS: Final = 3600

_QUERY: Final = """
WITH span AS (SELECT lo, hi FROM unnest(%(lows)s::timestamptz[], %(highs)s::timestamptz[]) AS s(lo, hi)),
record AS (
  SELECT r.tenant_id, r.provider_id, r.allocation_id, r.unit_id, r.size, d.product,
         greatest(r.held_from, r.billable_from, %(start)s::timestamptz) AS lo,
         least(coalesce(r.held_to, %(end)s::timestamptz), coalesce(r.billable_to, %(end)s::timestamptz),
               %(end)s::timestamptz) AS hi
  FROM tenants_usagerecord r JOIN tenants_gpudevice d ON d.id = r.device_id
  WHERE r.allocation_id IS NOT NULL AND r.tenant_id IS NOT NULL AND r.billable_from IS NOT NULL
    AND (%(tenants)s::uuid[] IS NULL OR r.tenant_id = ANY (%(tenants)s::uuid[]))
    AND r.held_from < %(end)s::timestamptz AND (r.held_to IS NULL OR r.held_to > %(start)s::timestamptz)
),
billed AS (SELECT * FROM record WHERE lo < hi),
unit AS (
  SELECT b.tenant_id, b.provider_id, b.unit_id, min(b.lo) AS lo, max(b.hi) AS hi
  FROM billed b WHERE b.unit_id IS NOT NULL GROUP BY 1, 2, 3
),
whole AS (
  SELECT b.tenant_id, b.provider_id, b.allocation_id, min(b.lo) AS lo, max(b.hi) AS hi
  FROM billed b GROUP BY 1, 2, 3
),
used AS (
  SELECT tenant_id, provider_id, 'gpu.' || product || '.slices' AS item, size::numeric AS amount, lo, hi FROM billed
  UNION ALL
  SELECT n.tenant_id, n.provider_id, x.item, x.amount::numeric, n.lo, n.hi
  FROM unit n JOIN tenants_unit u ON u.id = n.unit_id
  CROSS JOIN LATERAL (VALUES ('vcpu', u.vcpu), ('memory_gib', u.memory_gib)) AS x(item, amount) WHERE x.amount > 0
  UNION ALL
  SELECT w.tenant_id, w.provider_id, 'storage_gib', (a.spec ->> 'storage_gib')::numeric, w.lo, w.hi
  FROM whole w JOIN tenants_allocation a ON a.id = w.allocation_id
  WHERE coalesce((a.spec ->> 'storage_gib')::numeric, 0) > 0
)
SELECT u.tenant_id, u.provider_id, u.item, s.lo,
       sum(u.amount * extract(epoch FROM least(u.hi, s.hi) - greatest(u.lo, s.lo)))
FROM used u JOIN span s ON s.lo < u.hi AND s.hi > u.lo
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""
_TOKENS: Final = """
SELECT u.tenant_id, b.provider_id, u.lo, sum(u.tokens)
FROM (
  SELECT e.tenant_id, e.endpoint_id, s.lo, sum(e.prompt_tokens + e.completion_tokens) AS tokens
  FROM tenants_endpointusage e
  JOIN unnest(%(lows)s::timestamptz[], %(highs)s::timestamptz[]) AS s(lo, hi) ON e.hour >= s.lo AND e.hour < s.hi
  WHERE e.hour >= %(start)s::timestamptz AND e.hour < %(end)s::timestamptz
    AND (%(tenants)s::uuid[] IS NULL OR e.tenant_id = ANY (%(tenants)s::uuid[]))
  GROUP BY 1, 2, 3
) AS u
JOIN tenants_endpoint p ON p.id = u.endpoint_id JOIN tenants_boundary b ON b.id = p.boundary_id
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
"""Summed by endpoint first: a third less time than joining each hour."""


@dataclass(frozen=True, slots=True)
class Billed:
    """What one tenant itself was billed of one item at one provider, while no price changed."""

    tenant: UUID
    provider: UUID
    item: str
    """`gpu.<product>.slices`, `vcpu`, `memory_gib`, `storage_gib`, or `token`."""
    since: datetime
    """The start of the time without a change of price."""
    quantity: Decimal
    """Unit-hours, exact to the microsecond; for tokens their number."""


def read(start: datetime, end: datetime, *, now: datetime, tenants: Sequence[UUID] | None = None) -> list[Billed]:
    """Return what was billed over [start, end), nothing beyond `now`, cut where any price changes.

    Of all tenants that the caller sees, or of those given.
    """
    end = min(end, now)
    if end <= start:
        return []
    changes = Price.objects.filter(price_list__valid_from__gt=start, price_list__valid_from__lt=end)
    edges = [start, *sorted(set(changes.values_list("price_list__valid_from", flat=True))), end]
    only = list(tenants) if tenants is not None else None
    values: dict[str, Any] = {"start": start, "end": end, "lows": edges[:-1], "highs": edges[1:], "tenants": only}
    with connection.cursor() as cursor:
        cursor.execute(_QUERY, values)
        found = [
            Billed(tenant, provider, item, since, Decimal(seconds) / SECONDS)
            for tenant, provider, item, since, seconds in cursor.fetchall()
        ]
        cursor.execute(_TOKENS, values)
        found += [
            Billed(tenant, provider, TOKEN, since, Decimal(count))
            for tenant, provider, since, count in cursor.fetchall()
        ]
    return found


def by_tenant(
    start: datetime, end: datetime, *, now: datetime, tenants: Sequence[UUID] | None = None
) -> dict[UUID, Decimal]:
    """Return tenant → what it alone (without its children) cost over a time; what has no price costs nothing."""
    rows = read(start, end, now=now, tenants=tenants)
    book = Book.read()
    total: dict[UUID, Decimal] = {}
    for row in rows:
        price = book.price(row.item, row.since, row.provider)
        if price is not None:
            total[row.tenant] = total.get(row.tenant, Decimal(0)) + row.quantity * price
    return total


def this_month(now: datetime) -> tuple[datetime, datetime]:
    """Return start and end of the present UTC month."""
    month = quota.month_of(now.astimezone(UTC))
    assert month.end is not None
    return month.start, month.end


def last_month(now: datetime) -> tuple[datetime, datetime]:
    """Return start and end of the UTC month before the present one."""
    end = this_month(now)[0]
    return this_month(end - timedelta(days=1))[0], end


@dataclass(frozen=True, slots=True)
class Book:
    """All prices, tokens included, looked up by provider."""

    prices: pricing.PriceList
    tokens: Sequence[tuple[datetime, UUID | None, str, Decimal]]
    """Start, provider, site, amount."""
    places: dict[UUID, tuple[str, str]]
    """Provider → its name and site."""

    @classmethod
    def read(cls) -> Book:
        """Return the book of now; three queries."""
        tokens = Price.objects.filter(item=TOKEN).values_list(
            "price_list__valid_from", "price_list__provider_id", "price_list__site", "amount"
        )
        places = {key: (name, site) for key, name, site in Provider.objects.values_list("pk", "name", "site")}
        return cls(all_prices(), tuple(tokens), places)

    def adding(self, draft: Draft) -> Book:
        """Return the book with a list that is not published yet; one of the same start gives way to it."""
        name = self.places.get(draft.provider, ("", ""))[0] if draft.provider is not None else ""
        place = (name, draft.site)
        kept = [
            one
            for one in self.prices.prices
            if not (one.item in draft.prices and one.starts_at == draft.starts_at and (one.provider, one.site) == place)
        ]
        hourly = [
            pricing.Price(item, amount, draft.starts_at, name, draft.site)
            for item, amount in draft.prices.items()
            if item != TOKEN
        ]
        tokens = list(self.tokens)
        if TOKEN in draft.prices:
            tokens.append((draft.starts_at, draft.provider, draft.site, draft.prices[TOKEN]))
        return replace(self, prices=pricing.PriceList((*kept, *hourly)), tokens=tuple(tokens))

    def price(self, item: str, at: datetime, provider: UUID) -> Decimal | None:
        """Return the price of an item at a provider, None where nobody has set one."""
        name, site = self.places.get(provider, ("", ""))
        if item == TOKEN:
            found = [
                (of is not None, bool(place), start, amount)
                for start, of, place, amount in self.tokens
                if start <= at and of in {None, provider} and place in {"", site}
            ]
            return max(found)[3] if found else None
        try:
            return self.prices.at(item, at, provider=name, site=site).amount
        except pricing.NoPrice:
            return None


# --- what other prices would have cost ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draft:
    """A price list that is not published yet."""

    prices: Mapping[str, Decimal]
    starts_at: datetime
    provider: UUID | None = None
    site: str = ""


@dataclass(frozen=True, slots=True)
class Effect:
    """What one item came to over a time at present prices, and what it would have at others."""

    item: str
    quantity: Decimal
    before: Decimal
    after: Decimal


def effects(rows: Sequence[Billed], book: Book, draft: Draft, *, now: datetime) -> list[Effect]:
    """Return by item what `rows` cost at the prices of `now`, and at those in force when the draft starts.

    What has no price costs nothing. Only items that the draft prices are in the answer.
    """
    then = book.adding(draft)
    sums: dict[str, tuple[Decimal, Decimal, Decimal]] = {}
    for row in rows:
        if row.item not in draft.prices:
            continue
        quantity, before, after = sums.get(row.item, (Decimal(0), Decimal(0), Decimal(0)))
        old = book.price(row.item, now, row.provider) or Decimal(0)
        new = then.price(row.item, max(now, draft.starts_at), row.provider) or Decimal(0)
        sums[row.item] = (quantity + row.quantity, before + row.quantity * old, after + row.quantity * new)
    return [Effect(item, *sums.get(item, (Decimal(0), Decimal(0), Decimal(0)))) for item in sorted(draft.prices)]
