"""What a key may use: requests and tokens in a minute, tokens and money in each period. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Self

from tenants.errors import InvalidSpec
from tenants.states import BudgetPeriod

if TYPE_CHECKING:
    from tenants.models import EndpointKey

MOST_REQUESTS: Final = 10**9
MOST_TOKENS: Final = 10**12
MOST_MONEY: Final = Decimal(10**9)
"""Below it billionths of the currency fit into 64 bits."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """Limits of one key; None: none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget_tokens: int | None = None
    budget_money: Decimal | None = None
    budget_period: str = BudgetPeriod.MONTH.value

    @classmethod
    def of(cls, key: EndpointKey) -> Self:
        """Return the limits of a key."""
        return cls(
            requests_per_minute=key.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute,
            budget_tokens=key.budget_tokens,
            budget_money=key.budget_money,
            budget_period=str(key.budget_period),
        )

    def check(self) -> None:
        """Raise `InvalidSpec` naming the field that cannot be."""
        for name, most in (
            ("requests_per_minute", MOST_REQUESTS),
            ("tokens_per_minute", MOST_TOKENS),
            ("budget_tokens", MOST_TOKENS),
        ):
            number = getattr(self, name)
            if number is not None and not 1 <= number <= most:
                raise InvalidSpec(f"Give a whole number from 1 to {most}.", field=name, code="out-of-range")
        money = self.budget_money
        if money is not None and (not money.is_finite() or not 0 < money < MOST_MONEY):
            msg = f"A budget is an amount above 0 and below {MOST_MONEY:f}."
            raise InvalidSpec(msg, field="budget_money", code="out-of-range")
        if money is not None and money != money.quantize(Decimal("0.01")):
            raise InvalidSpec("A budget has at most 2 decimals.", field="budget_money", code="too-exact")
        if self.budget_period not in {period.value for period in BudgetPeriod}:
            words = ", ".join(period.value for period in BudgetPeriod)
            raise InvalidSpec(f"A period is one of: {words}.", field="budget_period", code="unknown-value")

    def as_fields(self) -> dict[str, Any]:
        """Return them by the columns of a key."""
        return asdict(self)

    def as_json(self) -> dict[str, Any]:
        """Return them for an event, without those that are none."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        if not {"budget_tokens", "budget_money"} & set(found):
            del found["budget_period"]
        return {name: str(value) if isinstance(value, Decimal) else value for name, value in found.items()}
