"""Price lists: published from a date on, never changed backwards; what a demand costs by them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from django.db import IntegrityError, transaction

from tenants import desired, pricing
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.gpu_catalogue import BadDimension
from tenants.models import Price, PriceList, Provider
from tenants.models.fields import SLUG_PATTERN
from tenants.operations.guards import allow, clean_text
from tenants.transactions import operation

TOKEN: Final = "token"  # noqa: S105 - an item with a price, no secret
MOST_AMOUNT: Final = Decimal(10) ** 9
PLACES: Final = 9
MOST_ITEMS: Final = 500


@operation
def publish(
    *,
    name: str,
    prices: Mapping[str, Decimal],
    valid_from: datetime,
    actor: Actor,
    now: datetime,
    provider: Provider | None = None,
    site: str = "",
    currency: str = "EUR",
) -> PriceList:
    """Publish prices per hour and unit: `gpu.<product>.slices`, `vcpu`, `memory_gib`, `storage_gib`, `token` each.

    They hold from `valid_from` on: not in the past, but for the very first list of a place. Raises
    `InvalidSpec`, `Conflict` for a second list of one start.
    """
    allow(actor, None, "prices.create")
    title = clean_text(name, "name", most=80, least=1)
    if provider is not None and site:
        raise InvalidSpec("Prices hold for a provider or for a site, not for both.", field="site")
    if site and not _is_slug(site):
        raise InvalidSpec("Give the slug of a site.", field="site")
    if len(currency) != 3 or not (currency.isascii() and currency.isalpha() and currency.isupper()):
        raise InvalidSpec("Give a currency by its three letters, such as EUR.", field="currency")
    if not 1 <= len(prices) <= MOST_ITEMS:
        raise InvalidSpec(f"Give 1 to {MOST_ITEMS} prices.", field="prices")
    for item, amount in prices.items():
        _check_price(item, amount)
    others = PriceList.objects.exclude(currency=currency).first()
    if others is not None:
        raise InvalidSpec(f"All prices are in {others.currency}.", field="currency", code="other-currency")
    first = not PriceList.objects.filter(provider=provider, site=site).exists()
    if valid_from < now and not first:
        msg = "Prices are never changed backwards: let them start now or later."
        raise InvalidSpec(msg, field="valid_from", code="in-the-past")
    row = PriceList(name=title, provider=provider, site=site, currency=currency, valid_from=valid_from, created_at=now)
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError as error:
        msg = "A price list of this name, or one for this place from this moment on, exists already."
        raise Conflict(msg, code="price-list-exists") from error
    Price.objects.bulk_create(
        Price(price_list=row, item=item, amount=amount) for item, amount in sorted(prices.items())
    )
    desired.created(
        row, "price-list.published", actor=actor, at=now, name=title, currency=currency, valid_from=valid_from,
        provider=provider.pk if provider is not None else None, site=site,
        prices={item: str(amount) for item, amount in sorted(prices.items())},
    )  # fmt: skip
    return row


def _check_price(item: str, amount: Decimal) -> None:
    field = f"prices.{item[:80]}"
    try:
        priced = item == TOKEN or pricing.is_priced(item)
    except BadDimension as error:
        raise InvalidSpec(str(error), field=field, code="unknown-dimension") from error
    if not priced:
        raise InvalidSpec(f"{item} has no price of its own.", field=field, code="not-priced")
    if not amount.is_finite() or not 0 <= amount <= MOST_AMOUNT:
        raise InvalidSpec(f"A price is an exact amount from 0 to {MOST_AMOUNT}.", field=field)
    exponent = amount.normalize().as_tuple().exponent
    if isinstance(exponent, int) and -exponent > PLACES:
        raise InvalidSpec(f"A price has at most {PLACES} decimals.", field=field)


def _is_slug(text: str) -> bool:
    return re.fullmatch(SLUG_PATTERN, text) is not None


# --- reading ------------------------------------------------------------------------------------------


def all_prices() -> pricing.PriceList:
    """Return every price by the hour that there ever was, as the pure arithmetic takes it."""
    rows = (
        Price.objects.exclude(item=TOKEN)
        .select_related("price_list__provider")
        .order_by("price_list__valid_from", "item")
    )
    return pricing.PriceList(
        tuple(
            pricing.Price(
                item=row.item,
                amount=row.amount,
                starts_at=row.price_list.valid_from,
                provider=row.price_list.provider.name if row.price_list.provider is not None else "",
                site=row.price_list.site,
            )
            for row in rows
        )
    )


def currency() -> str:
    """Return the currency of all prices; EUR while there is none."""
    return PriceList.objects.values_list("currency", flat=True).first() or "EUR"


def cost_of(
    demand: Mapping[str, int], start: datetime, end: datetime, *, provider: str = "", site: str = ""
) -> dict[str, Any] | None:
    """Return total, currency and end of what a demand costs over a time; None where something has no price."""
    try:
        cost = all_prices().cost(demand, start, end, provider=provider, site=site)
    except pricing.NoPrice:
        return None
    return {"total": str(cost.total), "currency": currency(), "until": end.isoformat()}
