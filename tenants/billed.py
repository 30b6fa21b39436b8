"""What every tenant was billed for over a time, summed in the database: for pages over the whole platform.

The same facts as `tenants.costs` (which gives the lines of one tenant): slices from usage records, vCPU and memory
from units, storage from allocations, tokens; billed from the first ready to the asking for deletion. From the roll-up
by day (`tenants.usage_days`) as far as it goes, from the records themselves for the rest: exact either way. Reads only,
in the caller's read block; the number of statements does not depend on what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Final
from uuid import UUID

from tenants import pricing, quota, usage_days, usage_sums
from tenants.models import Price, Provider
from tenants.operations.pricing import TOKEN, all_prices
from tenants.usage_sums import Piece

SECONDS: Final = 3600


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
    edges = usage_days.edges_of(start, end)
    known = usage_days.state(tenants)
    unrolled = list(known.others) if known.tenants else tenants
    sums = list(usage_days.read(edges, known)) if known.tenants else []
    if not known.tenants or known.others:
        pieces = [Piece(lo, hi, lo) for lo, hi in pairwise(edges)]
        sums += [*usage_sums.capacity(pieces, tenants=unrolled), *usage_sums.tokens(pieces, tenants=unrolled)]
    total: dict[tuple[UUID, UUID, str, datetime], Decimal] = {}
    for one in sums:
        key = (one.tenant, one.provider, one.item, one.since)
        total[key] = total.get(key, Decimal(0)) + one.quantity
    return [
        Billed(tenant, provider, item, since, quantity if item == TOKEN else quantity / SECONDS)
        for (tenant, provider, item, since), quantity in total.items()
        if quantity
    ]


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
