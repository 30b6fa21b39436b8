"""Shapes of endpoints' keys."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated

from pydantic import Field, StringConstraints

from tenants.api.serializers.base import In, Moment, Out, line
from tenants.key_budgets import KeySpend
from tenants.key_limits import MOST_REQUESTS, MOST_TOKENS, KeyLimits
from tenants.models import (
    EndpointKey,
)
from tenants.states import BudgetPeriod, KeyScope

MoneyIn = Annotated[
    str,
    StringConstraints(pattern=r"^([1-9][0-9]{0,8}(\.[0-9]{1,2})?|0\.[1-9][0-9]?|0\.0[1-9])$"),
    Field(description="Above 0, with at most 2 decimals, in the currency of the prices."),
]
Line80 = Annotated[str, StringConstraints(min_length=1, max_length=80)]


class KeyLimitsIn(In):
    """What a key may use; what is left out is not limited."""

    requests_per_minute: Annotated[int, Field(ge=1, le=MOST_REQUESTS)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    budget_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    budget_money: MoneyIn | None = None
    budget_period: BudgetPeriod = BudgetPeriod.MONTH

    def limits(self) -> KeyLimits:
        """Return the limits."""
        return KeyLimits(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            budget_tokens=self.budget_tokens,
            budget_money=Decimal(self.budget_money) if self.budget_money is not None else None,
            budget_period=self.budget_period.value,
        )


class KeyIn(KeyLimitsIn):
    """A new key."""

    name: line(most=80)  # type: ignore[valid-type]
    expires_at: Moment | None = None
    scopes: Annotated[list[KeyScope], Field(min_length=1, max_length=len(KeyScope))] = Field(
        [KeyScope.INFERENCE], description="What it may ask for; inference: everything that the endpoint answers."
    )


class RollIn(In):
    """How long the old key goes on."""

    overlap_s: Annotated[int, Field(ge=0, le=30 * 86400)] = 86400


class KeyOut(Out):
    """A key; its plain text only in the answer that makes it."""

    id: str
    name: str
    scopes: list[KeyScope]
    """What it may ask for."""
    author: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    replaced_by: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    budget_tokens: int | None
    budget_money: str | None = Field(description="In the currency of the prices, with 2 digits after the point.")
    budget_period: BudgetPeriod
    budget_starts_at: datetime | None = Field(None, description="When the present period of its budgets began.")
    budget_ends_at: datetime | None = Field(None, description="When its budgets begin anew.")
    spent_tokens: int | None = Field(
        None, description="Of `budget_tokens` in the present period, as gateways said last; rolled keys share it."
    )
    spent_money: str | None = Field(
        None, description="Of `budget_money` in the present period, with 6 digits after the point."
    )
    key: str | None = Field(None, description="Plain text: only in the answer to its creation.")

    @classmethod
    def of(cls, row: EndpointKey, *, spend: KeySpend | None, key: str | None = None) -> KeyOut:
        """Return a key; its successor must be loaded. `spend`: None where it has no budget."""
        money = spend.money if spend is not None else None
        return cls(
            id=row.public_id,
            name=row.name,
            scopes=[KeyScope(scope) for scope in row.scopes],
            author=str(row.author_id) if row.author_id else None,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
            replaced_by=row.replaced_by.public_id if row.replaced_by is not None else None,
            requests_per_minute=row.requests_per_minute,
            tokens_per_minute=row.tokens_per_minute,
            budget_tokens=row.budget_tokens,
            budget_money=None if row.budget_money is None else f"{row.budget_money:.2f}",
            budget_period=BudgetPeriod(row.budget_period),
            budget_starts_at=spend.starts_at if spend is not None else None,
            budget_ends_at=spend.ends_at if spend is not None else None,
            spent_tokens=spend.tokens if spend is not None else None,
            spent_money=str(money) if money is not None else None,
            key=key,
        )
