"""Rows → what a gateway's configuration says of rates, budgets and prices. Reads in the caller's transaction.

Several gateways may serve one tenant, or one endpoint (a replica in each of its machines): each gets an equal part of a
rate, at least one a minute, so that all together keep it. Budgets are not parted here but leased as they are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import Count

from provisioners.gateway.protocol import (
    NANO,
    BudgetConfig,
    BudgetPeriod,
    BudgetUnit,
    EndpointKey,
    KeyScope,
    RateLimits,
    TokenPrice,
)
from tenants import models, models_catalogue
from tenants.models import GatewayReplica
from tenants.operations import surges
from tenants.operations.pricing import TOKEN, currency

DIMENSIONS: Final = {BudgetUnit.TOKENS: "tokens_month", BudgetUnit.MONEY: "token_spend_month"}
"""Budget of a tenant → the dimension of its quota: limits are set, asked for and decided like all others."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant's path says."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    dimensions: frozenset[str] = frozenset()

    def rates(self, sharers: int) -> RateLimits:
        """Return one gateway's part of the rates."""
        return RateLimits(
            requests_per_minute=_part(self.requests_per_minute, sharers),
            tokens_per_minute=_part(self.tokens_per_minute, sharers),
        )

    def budgets(self, prices: Prices) -> tuple[BudgetConfig, ...]:
        """Return the tenant's budgets; how large they are may be a tenant's above, so it is not said."""
        return tuple(
            BudgetConfig(
                id=f"tenant:{unit}",
                unit=unit,
                period=BudgetPeriod.MONTH,
                currency=prices.currency if unit is BudgetUnit.MONEY else "",
            )
            for unit, dimension in DIMENSIONS.items()
            if dimension in self.dimensions
        )


def limits_of(tenants: Iterable[UUID]) -> dict[UUID, TenantLimits]:
    """Return tenant → what its path says, the tenants above it included whom nobody here may see."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tenant_id, requests_per_minute, tokens_per_minute, dimensions FROM gateway_limits(%s::uuid[])",
            [list(tenants)],
        )
        return {row[0]: TenantLimits(row[1], row[2], frozenset(row[3])) for row in cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class Sharers:
    """How many gateways serve the same."""

    tenants: Counter[UUID]
    allocations: Counter[UUID]

    def of_tenant(self, tenant: UUID) -> int:
        """Return how many gateways serve a tenant."""
        return max(self.tenants[tenant], 1)

    def of_endpoint(self, endpoint: models.Endpoint) -> int:
        """Return in how many machines an endpoint has a gateway."""
        return max(self.allocations[endpoint.allocation_id], 1)


def sharers(gateways: Sequence[GatewayReplica]) -> Sharers:
    """Count the live gateways of the tenants of these; one in the machine of a unit beside takes no callers."""
    live = GatewayReplica.objects.filter(removed_at=None, tenant_id__in={gateway.tenant_id for gateway in gateways})
    live = live.exclude(unit__role=surges.ROLE)
    tenants = Counter(dict(live.values_list("tenant_id").annotate(n=Count("pk")).order_by()))
    machines = live.filter(unit__isnull=False).values_list("unit__allocation_id").annotate(n=Count("pk")).order_by()
    return Sharers(tenants, Counter(dict(machines)))


class Prices:
    """Prices of a token, read once and only where an endpoint asks."""

    @cached_property
    def currency(self) -> str:
        """Return the currency of all prices."""
        return currency()

    @cached_property
    def _dated(self) -> list[tuple[datetime, UUID | None, str, Decimal]]:
        rows = models.Price.objects.filter(item=TOKEN).order_by("price_list__valid_from")
        return list(rows.values_list("price_list__valid_from", "price_list__provider_id", "price_list__site", "amount"))

    def of(self, endpoint: models.Endpoint) -> tuple[TokenPrice, ...]:
        """Return what a token costs at an endpoint's place, from each change on."""
        place = endpoint.boundary.provider if endpoint.boundary is not None else None
        if place is None:
            return ()
        here = [row for row in self._dated if row[1] in {None, place.pk} and row[2] in {"", place.site}]
        found: list[TokenPrice] = []
        for start in sorted({row[0] for row in here}):
            known = [(of is not None, bool(site), at, amount) for at, of, site, amount in here if at <= start]
            nano = int(max(known)[3] * NANO)
            if not found or found[-1].nano != nano:
                found.append(TokenPrice(starts_at=start, nano=nano))
        return tuple(found)


def keys_of(
    endpoint: models.Endpoint,
    rows: Sequence[models.EndpointKey],
    shared: Sharers,
    prices: Prices,
    *,
    of_unit: bool,
) -> tuple[EndpointKey, ...]:
    """Return an endpoint's keys with their limits; `of_unit` for one of several gateways, each in a machine of it."""
    parts = shared.of_endpoint(endpoint) if of_unit else 1
    return tuple(
        EndpointKey(
            id=key.public_id,
            digest=key.digest,
            expires_at=key.expires_at,
            scopes=tuple(KeyScope(scope) for scope in key.scopes),
            limits_id=key.lineage,
            rates=RateLimits(
                requests_per_minute=_part(key.requests_per_minute, parts),
                tokens_per_minute=_part(key.tokens_per_minute, parts),
            ),
            budgets=_budgets(key, prices),
        )
        for key in rows
    )


def _budgets(key: models.EndpointKey, prices: Prices) -> tuple[BudgetConfig, ...]:
    period = BudgetPeriod(key.budget_period)
    found = []
    if key.budget_tokens is not None:
        found.append((BudgetUnit.TOKENS, key.budget_tokens, ""))
    if key.budget_money is not None:
        found.append((BudgetUnit.MONEY, int(key.budget_money * NANO), prices.currency))
    return tuple(
        BudgetConfig(id=f"key:{key.limits_id}:{unit}", unit=unit, period=period, amount=amount, currency=word)
        for unit, amount, word in found
    )


def context_tokens(endpoint: models.Endpoint) -> int | None:
    """Return the most tokens of one conversation, as asked for or as the model has it; None: not known."""
    revision = endpoint.revision
    if revision is None:
        return None
    asked = revision.arguments.get("max_model_len")
    if isinstance(asked, int):
        return asked
    try:
        return models_catalogue.model(revision.model.repository).max_context
    except models_catalogue.UnknownModel:
        return None


def _part(rate: int | None, sharers: int) -> int | None:
    return None if rate is None else max(rate // sharers, 1)
