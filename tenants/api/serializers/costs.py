"""Shapes of what a tenant cost: lines by object, day and item, and their exact sum; and of its budget."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Self

from pydantic import Field, StringConstraints

from tenants import costs
from tenants.api.serializers.base import In, Moment, Out, Query
from tenants.models import Budget
from tenants.pricing import money

Amount = Annotated[str, Field(description="A decimal number with 6 digits after the point.")]


class CostQuery(Query):
    """Which time."""

    start: Moment | None = Field(None, description="Left out: the beginning of the present month (UTC).")
    end: Moment | None = Field(None, description="Left out: the end of the month in which `start` lies.")


class CostLineOut(Out):
    """One item of one object on one UTC day at one place and price."""

    day: date
    tenant_id: str
    allocation_id: str
    allocation: str = Field(description="Short id of the allocation.")
    kind: str = Field(description="endpoint, machine, namespace or bare.")
    name: str
    provider: str
    site: str
    item: str
    held: Amount = Field(description="Unit-hours from claim to release; of tokens their number.")
    billable: Amount = Field(description="Unit-hours from the first ready to the asking for deletion.")
    price: str | None = Field(description="Per unit and hour, or per token; null where nobody has set one.")
    cost: Amount
    currency: str

    @classmethod
    def of(cls, line: costs.CostLine) -> Self:
        """Return a line."""
        return cls(
            day=line.day,
            tenant_id=str(line.subject.tenant),
            allocation_id=str(line.subject.allocation),
            allocation=line.subject.short_id,
            kind=line.subject.kind,
            name=line.subject.name,
            provider=line.provider,
            site=line.site,
            item=line.item,
            held=_said(money(line.held)),
            billable=_said(money(line.billable)),
            price=None if line.price is None else _said(line.price),
            cost=_said(line.cost),
            currency=line.currency,
        )


class CostsOut(Out):
    """What a tenant and all below it cost over a time, as far as it has passed."""

    start: datetime
    end: datetime
    total: Amount = Field(description="Of the exact lines, rounded once.")
    currency: str
    unpriced: list[str] = Field(description="Items that were billed and have no price.")
    items: list[CostLineOut]

    @classmethod
    def of(cls, lines: list[costs.CostLine], *, start: datetime, end: datetime, currency: str) -> Self:
        """Return lines with their sum."""
        return cls(
            start=start,
            end=end,
            total=_said(money(sum((line.exact for line in lines), start=Fraction(0)))),
            currency=currency,
            unpriced=sorted({line.item for line in lines if line.price is None and line.billable}),
            items=[CostLineOut.of(line) for line in lines],
        )


def _said(amount: Decimal) -> str:
    return f"{amount:f}"


class BudgetIn(In):
    """What a tenant means to spend in each calendar month."""

    amount: Annotated[
        str,
        StringConstraints(pattern=r"^([1-9][0-9]{0,10}(\.[0-9]{1,2})?|0\.[1-9][0-9]?|0\.0[1-9])$"),
        Field(description="Above 0, with at most 2 decimals, in the currency of the prices.", examples=["2500.00"]),
    ]


class BudgetOut(Out):
    """The budget of a tenant and all below it, for each calendar month (UTC)."""

    id: str
    tenant: str
    amount: str = Field(description="A decimal number with 2 digits after the point.")
    currency: str
    created_at: datetime
    version: int

    @classmethod
    def of(cls, row: Budget) -> Self:
        """Return a budget; its tenant must be loaded."""
        return cls(
            id=str(row.pk),
            tenant=row.tenant.name,
            amount=f"{row.amount:.2f}",
            currency=row.currency,
            created_at=row.created_at,
            version=row.version,
        )
