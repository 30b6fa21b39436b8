"""Budgets of tokens as people see them: what is used up or nearly, until when, and what helps.

A request is refused (402) as soon as what it may use at most does not fit any more, so a budget says so from four
fifths on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from django.db.models import F, Sum
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design import numbers
from frontend.design.moments import absolute
from tenants.budget_periods import end_of, start_of
from tenants.gpu_catalogue import TOKEN_DIMENSIONS
from tenants.models import Endpoint, EndpointUsage, Tenant
from tenants.operations import quotas
from tenants.operations.pricing import currency
from tenants.quota import TenantLimits
from tenants.states import BudgetPeriod

NEARLY: Final = 80
"""Per cent."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A tenant's budget of tokens that refuses requests, or soon will."""

    tone: str
    title: str
    text: str
    url: str
    action: str


def troubles(tenant: Tenant, *, now: datetime) -> list[Trouble]:
    """Return what keeps, or will keep, requests to the tenant's endpoints from being answered."""
    return list(_troubles(tenant, quotas.position(tenant, sorted(TOKEN_DIMENSIONS)), now=now))


def _troubles(tenant: Tenant, levels: tuple[TenantLimits, ...], *, now: datetime) -> Iterator[Trouble]:
    anew = absolute(end_of(BudgetPeriod.MONTH, now))
    for dimension in sorted(TOKEN_DIMENSIONS):
        for level in reversed(levels):
            found = [limit for limit in level.limits if limit.dimension == dimension]
            if not found or dimension in level.inherits:
                continue
            most = sum(int(limit.amount) for limit in found if limit.until is None or limit.until > now)
            used = int(level.usage.of(dimension))
            if used * 100 < most * NEARLY:
                continue
            is_over = used >= most
            figures = {"used": said(used, dimension), "most": said(most, dimension), "when": anew}
            yield Trouble(
                "bad" if is_over else "warn",
                _title(dimension, level.tenant if level is not levels[-1] else "", is_over=is_over),
                _("%(used)s of %(most)s are used. Requests are refused (402) until %(when)s, or until there is more.")
                % figures
                if is_over
                else _(
                    "%(used)s of %(most)s are used. Requests that may use more than what is left are refused (402) "
                    "until %(when)s."
                )
                % figures,
                f"{reverse('frontend:quota-ask', kwargs={'tenant': tenant.name})}?of={dimension}",
                _("Ask for more"),
            )


def _title(dimension: str, above: str, *, is_over: bool) -> str:
    if dimension == "tokens_month":
        words = _("This month's tokens are used up") if is_over else _("This month's tokens are nearly used up")
    else:
        words = (
            _("This month's money for tokens is used up")
            if is_over
            else _("This month's money for tokens is nearly used up")
        )
    return _("%(what)s (of %(tenant)s)") % {"what": words, "tenant": above} if above else words


def said(amount: int, dimension: str) -> str:
    """Return an amount of a budget with its unit."""
    if dimension == "tokens_month":
        return _("%(n)s tokens") % {"n": numbers.number(amount)}
    return f"{numbers.number(amount)} {currency()}"


def largest(tenant: Tenant, *, most: int, now: datetime) -> list[quotas.Holder]:
    """Return the tenant's endpoints that used most tokens in this month, by gateways' word; none of tenants below."""
    since = start_of(BudgetPeriod.MONTH, now)
    sums = EndpointUsage.objects.filter(tenant=tenant, hour__gte=since).values_list("endpoint_id")
    found = sums.annotate(n=Sum(F("prompt_tokens") + F("completion_tokens"))).filter(n__gt=0).order_by("-n")[:most]
    names = dict(Endpoint.objects.filter(pk__in=[uid for uid, _n in found]).values_list("pk", "name"))
    return [
        quotas.Holder(
            tenant.name, names.get(uid) or _("an endpoint that is gone"), "endpoint" if uid in names else "", int(n)
        )
        for uid, n in found
    ]
