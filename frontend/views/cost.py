"""What a tenant and all below it cost: a month by day and by object, person or label, to the second; its budget."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, time
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Final

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from frontend.kernel import asks, bill, lists, problems, twins
from frontend.kernel.page import PageRequest, page
from tenants import access, bills, costs, quota
from tenants.errors import ControlPlaneError, InvalidSpec, NotVisible
from tenants.models import Allocation, Budget, Tenant, UsageSubject
from tenants.operations import budgets
from tenants.operations.pricing import TOKEN, currency
from tenants.policies import ROUTES
from tenants.pricing import money
from tenants.transactions import reading

SHOWN: Final = 200
"""Lines of the table; the rest is summed in one line, the export has all."""


# --- the month ------------------------------------------------------------------------------------


@page("costs.list")
def show(request: PageRequest) -> HttpResponse:
    """Show a month."""
    start = bill.month_from(request.GET.get("month", ""), now=request.now)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(bill.of(request.tenant, start, now=request.now), form)
    if bill.is_large(request.tenant, start, now=request.now):
        return _large(request, start)
    found = bill.of(request.tenant, start, now=request.now)
    kinds = bill.kinds_of(found)
    by = request.GET.get("by", "")
    by = by if by in dict(kinds) else "object"
    whole = found.whole
    groups = bill.grouped(found, by)
    rest = groups[SHOWN:]
    budget = _budget(request.tenant)
    values = {
        "bill": found,
        "whole": whole,
        "month": date_format(found.start, "F Y"),
        "is_present": found.is_present,
        "to_come": found.forecast.running + found.forecast.tokens,
        "groups": groups[:SHOWN],
        "rest_count": len(rest),
        "rest_cost": money(sum((group.exact for group in rest), start=Fraction(0))),
        "by": by,
        "by_words": dict(kinds)[by],
        "chart": bill.by_day(found),
        "empty": not groups,
        "fields": _fields(request, found, kinds, by),
        "budget": budget,
        "pace": bill.pace(budget, found.forecast, found.start, found.end, now=request.now)
        if budget is not None and found.is_present
        else None,
        "can_budget": access.allowed(request.actor, request.tenant, ROUTES["budgets.set"]),
        "columns": _columns(by, dict(kinds)[by]),
        "is_serving": by != "item",
        "twins": _twins(request, found),
    }
    return render(request, "frontend/pages/cost/show.html", values)


def _large(request: PageRequest, start: datetime) -> HttpResponse:
    """Show a month with more objects than a page lists: its sums."""
    end = quota.month_of(start).end
    assert end is not None
    found = bill.sums(request.tenant, start, end, now=request.now, large=True)
    row = _budget(request.tenant)
    values = {
        "bill": found,
        "month": date_format(start, "F Y"),
        "fields": [_month_field(request, start)],
        "tables": [
            {"title": _("By what was used"), "groups": found.by_item, "columns": _columns("item", _("What was used"))},
            {"title": _("By tenant"), "groups": found.by_tenant, "columns": _columns("item", _("Tenant"))},
        ],
        "budget": row,
        "pace": bill.pace(row, found.forecast, start, end, now=request.now)
        if row is not None and found.is_present
        else None,
        "can_budget": access.allowed(request.actor, request.tenant, ROUTES["budgets.set"]),
        "twins": _twins(request, found),
    }
    return render(request, "frontend/pages/cost/large.html", values)


def _month_field(request: PageRequest, start: datetime) -> dict[str, Any]:
    months = bill.months(request.tenant, now=request.now)
    if start not in months:
        months = sorted([*months, start], reverse=True)
    return {
        "name": "month",
        "label": _("Month"),
        "value": f"{start:%Y-%m}",
        "options": [{"value": f"{month:%Y-%m}", "label": date_format(month, "F Y")} for month in months],
    }


def _fields(request: PageRequest, found: bill.Bill, kinds: list[tuple[str, str]], by: str) -> list[dict[str, Any]]:
    return [
        _month_field(request, found.start),
        {
            "name": "by",
            "label": _("By"),
            "value": by,
            "options": [{"value": value, "label": label} for value, label in kinds],
        },
    ]


def _columns(by: str, words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"key": "name", "label": words}]
    if by not in {"object", "item"}:
        found.append({"key": "objects", "label": _("Objects"), "numeric": True})
    found += [
        {"key": "cost", "label": _("Cost"), "numeric": True},
        {"key": "share", "label": _("Share"), "numeric": True},
    ]
    if by != "item":
        found += [
            {"key": "tokens", "label": _("Tokens"), "numeric": True},
            {"key": "million", "label": _("Per million tokens"), "numeric": True},
            {"key": "idle", "label": _("Idle"), "numeric": True},
        ]
    return found


def _twins(request: PageRequest, found: bill.Bill | bill.Sums) -> list[dict[str, str]]:
    start, end = f"{found.start:%Y-%m-%dT%H:%M:%SZ}", f"{found.end:%Y-%m-%dT%H:%M:%SZ}"
    name = request.tenant.name
    return twins.pair(
        f"tenantry get costs --tenant {name} -w start={start} -w end={end}",
        twins.read(f"tenants/{name}/costs?start={start}&end={end}"),
    )


def _exported(found: bill.Bill, form: str) -> HttpResponse:
    columns = [
        "day", "tenant", "object", "kind", "id", "item", "provider", "site", "held", "billed", "price", "cost",
        "currency",
    ]  # fmt: skip
    tenants = dict(Tenant.objects.filter(path__contains=[found.tenant.pk]).values_list("pk", "name"))
    body = [
        {
            "day": line.day.isoformat(),
            "tenant": tenants.get(line.subject.tenant, ""),
            "object": line.subject.name,
            "kind": line.subject.kind,
            "id": line.subject.short_id,
            "item": line.item,
            "provider": line.provider,
            "site": line.site,
            "held": money(line.held),
            "billed": money(line.billable),
            "price": line.price,
            "cost": line.cost,
            "currency": line.currency,
        }
        for line in found.lines
    ]
    return lists.exported(body, columns, name=f"{found.tenant.name}-cost-{found.start:%Y-%m}", form=form, most=None)


# --- one object -----------------------------------------------------------------------------------


@page("costs.list")
def one(request: PageRequest, name: str) -> HttpResponse:
    """Show what one object cost in a month, to the second, with the price list of each line."""
    start = bill.month_from(request.GET.get("month", ""), now=request.now)
    found = _subject(request, name)
    month = bill.of(request.tenant, start, now=request.now, allocation=found.allocation)
    spans = bills.spans(request.tenant, found.allocation, month.start, month.end, now=request.now)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported_spans(request, found, month, spans, form)
    up = reverse("frontend:cost", kwargs={"tenant": request.tenant.name})
    values = {
        "subject": found,
        "title": found.name or found.short_id,
        "bill": month,
        "whole": month.whole,
        "month": date_format(month.start, "F Y"),
        "lines": [_line(span) for span in reversed(spans)],
        "tokens": [
            {"row": line, "count": int(line.billable), "day": datetime.combine(line.day, time(), UTC)}
            for line in month.lines
            if line.item == TOKEN
        ],
        "empty": not spans,
        "object_url": _object_url(found),
        "currency": currency(),
        "fields": [_month_field(request, month.start)],
        "columns": [
            {"key": "what", "label": _("What")},
            {"key": "from", "label": _("From")},
            {"key": "to", "label": _("To")},
            {"key": "time", "label": _("Minutes"), "numeric": True},
            {"key": "list", "label": _("Price list")},
            {"key": "price", "label": _("Per unit and hour"), "numeric": True},
            {"key": "cost", "label": _("Cost"), "numeric": True},
        ],
        "breadcrumbs": [
            {"label": _("Cost"), "url": f"{up}?month={month.start:%Y-%m}"},
            {"label": found.name or found.short_id, "url": ""},
        ],
    }
    return render(request, "frontend/pages/cost/one.html", values)


def _subject(request: PageRequest, name: str) -> costs.Subject:
    """Return the object with this short id in the tenant or below it, also one that was purged. Raises `NotVisible`."""
    tenants = costs.below(request.tenant)
    row = Allocation.objects.filter(tenant_id__in=tenants, short_id=name).first()
    if row is not None:
        return costs.Subject(row.tenant_id, row.pk, row.product_kind, row.name, row.short_id)
    kept = UsageSubject.objects.filter(tenant_id__in=tenants, short_id=name).first()
    if kept is None:
        raise NotVisible
    return costs.Subject(kept.tenant_id, kept.allocation_id, kept.kind, kept.name, kept.short_id)


def _object_url(subject: costs.Subject) -> str:
    model = bill.PRODUCTS.get(subject.kind)
    if model is None:
        return ""
    row = model._base_manager.filter(allocation_id=subject.allocation).select_related("tenant").first()
    if row is None:
        return ""
    names = {"tenant": getattr(row, "tenant").name, "name": getattr(row, "short_id")}  # noqa: B009 - of any product
    return reverse(f"frontend:{subject.kind}", kwargs=names)


def _line(span: bills.Span) -> dict[str, Any]:
    return {
        "row": span,
        "what": asks.amount(span.item, span.amount),
        "start": to_the_second(span.start),
        "end": to_the_second(span.end),
        "minutes": span.seconds / 60,
        "cost": span.cost,
    }


def to_the_second(moment: datetime) -> str:
    """Return date and time with seconds in the active zone."""
    local = timezone.localtime(moment)
    return f"{date_format(local, 'j M Y')}, {date_format(local, 'H:i:s')} {local.tzname()}"


def _exported_spans(
    request: PageRequest, found: costs.Subject, month: bill.Bill, spans: list[bills.Span], form: str
) -> HttpResponse:
    columns = [
        "item", "amount", "from", "to", "goes_on", "seconds", "billed", "place", "price_list", "price", "cost",
        "currency",
    ]  # fmt: skip
    body = [
        {
            "item": span.item,
            "amount": span.amount,
            "from": span.start.astimezone(UTC),
            "to": span.end.astimezone(UTC),
            "goes_on": span.is_open,
            "seconds": span.seconds,
            "billed": span.billed,
            "place": span.place,
            "price_list": span.price_list.name if span.price_list is not None else "",
            "price": span.price,
            "cost": span.cost,
            "currency": month.currency,
        }
        for span in spans
    ]
    name = f"{request.tenant.name}-{found.short_id}-{month.start:%Y-%m}"
    return lists.exported(body, columns, name=name, form=form)


# --- budget ---------------------------------------------------------------------------------------


def _budget(tenant: Tenant) -> Budget | None:
    return Budget.objects.filter(tenant=tenant).first()


@page("budgets.set", methods=("GET", "POST"), own_blocks=True)
def budget(request: PageRequest) -> HttpResponse:
    """Set what the tenant means to spend in a month."""
    if request.method != "POST":
        return _form(request, {}, {})
    given = request.POST
    try:
        budgets.set_budget(
            tenant=request.tenant,
            amount=_amount(given.get("amount", "")),
            actor=request.actor,
            now=request.now,
            version=int(given["version"]) if given.get("version", "").isdigit() else None,
        )
    except ControlPlaneError as error:
        return _form(request, given, problems.at_fields(error), status=problems.status_of(error))
    messages.success(request, _("The owners are told at 80 and at 100 per cent of the budget."))
    return HttpResponseRedirect(reverse("frontend:cost", kwargs={"tenant": request.tenant.name}))


def _amount(text: str) -> Decimal:
    try:
        return Decimal(text.replace(" ", "").replace(",", "") or "x")
    except InvalidOperation as error:
        raise InvalidSpec(_("Give an amount, such as 2500 or 2500.00."), field="amount") from error


def _form(
    request: PageRequest, given: Mapping[str, Any], errors: Mapping[str, str], *, status: int = 200
) -> HttpResponse:
    up = reverse("frontend:cost", kwargs={"tenant": request.tenant.name})
    with reading(request.actor):
        row = _budget(request.tenant)
        start = bill.month_from("", now=request.now)
        values = {
            "budget": row,
            "amount": given.get("amount", f"{row.amount:f}" if row is not None else ""),
            "version": given.get("version", str(row.version) if row is not None else ""),
            "errors": errors,
            "error": errors.get("", ""),
            "currency": currency(),
            "forecast": bill.month_so_far(request.tenant, now=request.now),
            "month": date_format(start, "F Y"),
            "twins": twins.pair(
                "",
                twins.api(
                    "PUT",
                    f"tenants/{request.tenant.name}/budget",
                    {"amount": f"{row.amount:f}" if row is not None else "2500.00"},
                    version=row.version if row is not None else None,
                ),
            ),
            "back_url": up,
            "breadcrumbs": [{"label": _("Cost"), "url": up}, {"label": _("Budget"), "url": ""}],
        }
        return render(request, "frontend/pages/cost/budget.html", values, status=status)


@page("budgets.remove", methods=("POST",))
def remove_budget(request: PageRequest) -> HttpResponse:
    """Take the budget away."""
    with reading(request.actor):
        row = Budget.objects.filter(tenant=request.tenant).select_related("tenant").first()
    if row is None:
        raise NotVisible
    budgets.remove(budget=row, actor=request.actor, now=request.now)
    messages.success(request, _("The budget is gone; nobody is told about spending any more."))
    return HttpResponseRedirect(reverse("frontend:cost", kwargs={"tenant": request.tenant.name}))
