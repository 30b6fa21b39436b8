"""Keys of an endpoint as people see them: their limits in words, what they used, and limits read from a form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.design import numbers
from tenants import endpoint_calls, key_budgets
from tenants.errors import InvalidSpec
from tenants.key_budgets import NANO, KeySpend
from tenants.key_limits import KeyLimits
from tenants.models import Endpoint, EndpointKey
from tenants.operations.pricing import currency
from tenants.states import BudgetPeriod, KeyScope

SHOWN: Final = timedelta(days=30)
NEARLY: Final = 80
"""Per cent of a budget from which on it is nearly used up."""


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """One budget of a key, in its present period."""

    words: str
    per_cent: int
    ends_at: datetime
    """When it begins anew."""

    @property
    def used_up(self) -> bool:
        """Whether nothing is left."""
        return self.per_cent >= 100

    @property
    def near(self) -> bool:
        """Whether little is left: a request that may use more than that is refused."""
        return NEARLY <= self.per_cent < 100


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One key: calls of the last 30 days, and its limits in words."""

    requests: int
    errors: int
    tokens: int
    limits: tuple[str, ...]
    budgets: tuple[BudgetUse, ...] = ()
    may: str = ""
    """What alone it may ask for, in words; `""`: everything."""

    @property
    def calls(self) -> str:
        """Return how many requests were answered or failed."""
        return numbers.quantity(self.requests, "request")

    @property
    def read_and_written(self) -> str:
        """Return how many tokens it used."""
        return _("%(n)s tokens") % {"n": numbers.short(self.tokens)}

    @property
    def failed(self) -> str:
        """Return how many of its requests failed."""
        text = ngettext("%(n)s error", "%(n)s errors", self.errors)
        return text % {"n": numbers.number(self.errors)}

    @property
    def used_up(self) -> BudgetUse | None:
        """Return the budget that refuses its requests longest; None where none does."""
        return max((each for each in self.budgets if each.used_up), key=lambda each: each.ends_at, default=None)


def used(row: Endpoint, keys: Sequence[EndpointKey], *, now: datetime) -> dict[str, KeyUse]:
    """Return public id → what is said of each key."""
    calls: dict[str, list[endpoint_calls.Calls]] = {}
    for each in endpoint_calls.calls(row, now - SHOWN, now):
        calls.setdefault(each.key, []).append(each)
    spent = key_budgets.spent(keys, now=now)
    return {
        key.public_id: KeyUse(
            requests=sum(each.requests for each in calls.get(key.public_id, ())),
            errors=sum(each.errors for each in calls.get(key.public_id, ())),
            tokens=sum(each.prompt_tokens + each.completion_tokens for each in calls.get(key.public_id, ())),
            limits=tuple(_rates(key)),
            budgets=tuple(_budgets(key, spent.get(key.public_id))),
            may="" if KeyScope.INFERENCE.value in key.scopes else ", ".join(dict(scopes())[one] for one in key.scopes),
        )
        for key in keys
    }


def _rates(key: EndpointKey) -> list[str]:
    words = []
    if key.requests_per_minute is not None:
        words.append(_("%(n)s requests a minute") % {"n": numbers.number(key.requests_per_minute)})
    if key.tokens_per_minute is not None:
        words.append(_("%(n)s tokens a minute") % {"n": numbers.number(key.tokens_per_minute)})
    return words


def _budgets(key: EndpointKey, spent: KeySpend | None) -> Iterator[BudgetUse]:
    if spent is None:
        return
    per = dict(periods())[key.budget_period]
    if key.budget_tokens is not None and spent.tokens is not None:
        words = _("%(used)s of %(most)s tokens, %(per)s") % {
            "used": numbers.number(spent.tokens), "most": numbers.number(key.budget_tokens), "per": per,
        }  # fmt: skip
        yield BudgetUse(words, spent.tokens * 100 // key.budget_tokens, spent.ends_at)
    if key.budget_money is not None and spent.money_nano is not None:
        amount = (Decimal(spent.money_nano) / NANO).quantize(Decimal("0.01"))
        words = _("%(used)s of %(most)s %(currency)s, %(per)s") % {
            "used": amount, "most": key.budget_money, "currency": currency(), "per": per,
        }  # fmt: skip
        yield BudgetUse(words, int(spent.money_nano * 100 // (key.budget_money * NANO)), spent.ends_at)


def periods() -> list[tuple[str, str]]:
    """Return the periods of budgets and how they are called."""
    return [
        (BudgetPeriod.DAY.value, _("each day")),
        (BudgetPeriod.WEEK.value, _("each week")),
        (BudgetPeriod.MONTH.value, _("each month")),
    ]


def scopes() -> list[tuple[str, str]]:
    """Return what a key may ask for and how that is called."""
    return [
        (KeyScope.INFERENCE.value, _("Everything")),
        (KeyScope.CHAT.value, _("Chat")),
        (KeyScope.COMPLETIONS.value, _("Completions")),
        (KeyScope.EMBEDDINGS.value, _("Embeddings")),
        (KeyScope.MODELS.value, _("Names of models")),
    ]


def read(given: Mapping[str, str]) -> KeyLimits:
    """Return the limits of a form; an empty field is no limit. Raises `InvalidSpec` naming the field."""
    return KeyLimits(
        requests_per_minute=_whole(given, "requests_per_minute"),
        tokens_per_minute=_whole(given, "tokens_per_minute"),
        budget_tokens=_whole(given, "budget_tokens"),
        budget_money=_money(given, "budget_money"),
        budget_period=given.get("budget_period", BudgetPeriod.MONTH.value),
    )


def _whole(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 13):
        raise InvalidSpec(_("Give a whole number, or nothing for no limit."), field=name)
    return int(text)


def _money(given: Mapping[str, str], name: str) -> Decimal | None:
    text = given.get(name, "").strip()
    if not text:
        return None
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise InvalidSpec(_("Give an amount such as 250.00, or nothing for no limit."), field=name) from error
