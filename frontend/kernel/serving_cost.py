"""What an endpoint costs by the hour at present prices, and what that makes of a million tokens."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Final

from frontend.kernel import outlook
from tenants.models import Endpoint
from tenants.operations.pricing import all_prices

MILLION: Final = 1_000_000
HOUR_S: Final = 3600


def hour_of(row: Endpoint, *, now: datetime) -> Decimal | None:
    """Return what an endpoint costs an hour; None where something of it has no price. Its boundary must be loaded."""
    provider = row.boundary.provider if row.boundary is not None else None
    place = {"provider": provider.name, "site": provider.site} if provider is not None else {}
    demand = {key: int(amount) for key, amount in row.allocation.demand.items()}
    return outlook.price(demand, now, now, prices=all_prices(), **place).hour


def per_million(hour: Decimal | None, tokens: float | None, seconds: float) -> Decimal | None:
    """Return what a million tokens cost where so many came in so many seconds; None where nothing can be said."""
    if hour is None or not tokens or seconds <= 0:
        return None
    return hour * Decimal(seconds) / HOUR_S / Decimal(tokens) * MILLION
