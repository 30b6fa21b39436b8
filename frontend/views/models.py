"""Models: what a tenant may use, where it fits now, how fast about and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.db.models import Prefetch, Q
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.design import numbers
from frontend.design.moments import absolute
from frontend.forms import wishes
from frontend.kernel import lists, room, stock
from frontend.kernel.page import PageRequest, page
from frontend.kernel.room import Room
from frontend.kernel.stock import Served, Stock
from tenants import fit, served_facts
from tenants.fit import CannotServe, Offer
from tenants.fit_corrections import Corrections
from tenants.models import Allocation, ServedModel, Unit
from tenants.models_catalogue import NoSuchQuantisation
from tenants.operations import fit_corrections
from tenants.operations.pricing import all_prices, currency
from tenants.pricing import PriceList
from tenants.states import ServiceClass, StockVisibility

NOW: Final = "now"
WAIT: Final = "wait"
NEVER: Final = "never"
UNKNOWN: Final = "unknown"
VERDICTS: Final[Mapping[str, tuple[str | Promise, str, str]]] = {
    NOW: (gettext_lazy("Fits now"), "ok", "circle-check"),
    WAIT: (gettext_lazy("Waits for room"), "warn", "hourglass"),
    NEVER: (gettext_lazy("Does not fit"), "bad", "circle-x"),
    UNKNOWN: (gettext_lazy("Size unknown"), "quiet", "circle-question-mark"),
}
MOST_ENDS: Final = 200
COLUMNS: Final = (
    "name", "repository", "licence", "parameters", "longest_context", "verdict", "size", "free", "most_users",
    "estimated_tokens_s", "price_hour", "currency",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One model as a tenant sees it."""

    served: Served
    verdict: str
    sentence: str
    offer: Offer | None
    free: str
    deploy_url: str

    @property
    def parameters(self) -> str:
        """Return billions of parameters in words."""
        return parameters(self.served)

    @property
    def gated(self) -> str:
        """Return what its publisher asks for before the weights may be loaded, `""` for nothing."""
        known = self.served.facts.gated if self.served.facts is not None else ""
        return self.served.row.gating or known


@dataclass(frozen=True, slots=True)
class End:
    """Something of the tenant's own that ends by itself."""

    at: datetime
    name: str
    product: str
    profile: str
    gpus: int

    def makes_room_for(self, offer: Offer) -> bool:
        """Tell whether a size goes in where this was: the same one, or a part of whole GPUs."""
        size = offer.size
        if size.product != self.product:
            return False
        return size.profile == self.profile if self.profile else bool(size.profile) or size.count <= self.gpus


def parameters(served: Served) -> str:
    """Return billions of parameters in words, `--` where nobody knows."""
    if served.facts is None:
        return "--"
    total = Decimal(served.facts.params_total) / 10**9
    text = _("%(n)s B") % {"n": numbers.number(total, 0 if total >= 20 else 1)}
    if served.facts.params_active == served.facts.params_total:
        return text
    active = Decimal(served.facts.params_active) / 10**9
    return _("%(total)s, %(active)s B of them at work") % {"total": text, "active": numbers.number(active, 1)}


# --- a tenant's page ----------------------------------------------------------------------------------


@page("served-models.list")
def listed(request: PageRequest) -> HttpResponse:
    """Show what may be deployed here, where it fits now, how fast about, and what it costs."""
    given = request.GET
    users = wishes.number(given.get("users"), wishes.DEFAULT_USERS, least=1, most=4096)
    context = wishes.number(given.get("context"), wishes.DEFAULT_CONTEXT, least=256, most=2_097_152)
    held = stock.of(request.tenant)
    models = stock.models(held.policy, request.tenant.path)
    lines = _lines(request, held, models, users, context)
    text, only = given.get("q", "").strip()[:60].casefold(), given.get("fits", "")
    shown = [
        line
        for line in lines
        if text in f"{line.served.name} {line.served.row.repository}".casefold()
        and (only not in VERDICTS or line.verdict == only)
    ]
    if given.get("format") in {"csv", "json"}:
        return lists.exported([_exported(line) for line in shown], COLUMNS, name="models", form=given["format"])
    values = {
        "lines": [{"line": line, "verdict": _badge(line.verdict)} for line in shown],
        "currency": currency(),
        "simulated": held.simulated,
        "can_write": request.portal.can_write,
        "is_filtered": bool(text or only),
        "clear_url": request.path,
        "forbidden": _forbidden(held, models, request.tenant.path),
        "query": {"name": "q", "value": given.get("q", ""), "label": _("Name")},
        "fields": _filters(users, context, only, lines),
        "twins": _twins(request),
    }
    return render(request, "frontend/pages/models/list.html", values)


def _badge(verdict: str) -> dict[str, Any]:
    text, tone, icon = VERDICTS[verdict]
    return {"text": str(text), "tone": tone, "icon": icon}


def _lines(request: PageRequest, held: Stock, models: list[Served], users: int, context: int) -> list[Line]:
    free = room.of(held.products, held.sites)
    prices = all_prices()
    exact = bool(request.actor.platform_roles)
    visibility = StockVisibility.EXACT.value if exact else str(request.tenant.stock_visibility)
    address = reverse("frontend:new-endpoint", kwargs={"tenant": request.tenant.name})
    ends = cache(lambda: _own_ends(request))
    learnt = fit_corrections.all_corrections()
    found = []
    for served in models:
        known = learnt.get(served.row.pk, {})
        verdict, sentence, offer = _verdict(request, held, served, free, prices, users, context, ends, known)
        free_words = room.words(_free(free, offer), visibility) if offer is not None else ""
        query = {"model": served.name, "users": users, "context": _context(served, context)}
        found.append(Line(served, verdict, sentence, offer, free_words, f"{address}?{urlencode(query)}"))
    order = (NOW, WAIT, NEVER, UNKNOWN)
    return sorted(found, key=lambda line: order.index(line.verdict))


def _context(served: Served, asked: int) -> int:
    return min(asked, served.facts.max_context) if served.facts is not None else asked


def _verdict(
    request: PageRequest,
    held: Stock,
    served: Served,
    free: Room,
    prices: PriceList,
    users: int,
    context: int,
    ends: Callable[[], Sequence[End]],
    learnt: Corrections,
) -> tuple[str, str, Offer | None]:
    """Return whether a model fits now, a sentence that says why, and the size that it is about."""
    if served.facts is None:
        return UNKNOWN, _("The memory that it needs is not known here. Order a size by the command line."), None
    if not held.products:
        return NEVER, _("No GPU is open here at the moment."), None
    try:
        found = fit.choose(
            served.facts,
            users=users,
            context_tokens=_context(served, context),
            products=held.products,
            prices=prices,
            at=request.now,
            quantisation=served_facts.quantisation_of(served.row),
            corrections=learnt,
        )
    except (CannotServe, NoSuchQuantisation) as error:
        return NEVER, str(error), None
    usable = [offer for offer in found.offers if held.tier_allowed("shared") or not offer.size.profile]
    if not usable:
        return NEVER, found.sentence, None
    fitting = next((offer for offer in usable if _free(free, offer)), None)
    if fitting is not None:
        return NOW, "", fitting
    sizes = ngettext("%(n)s size would serve it", "%(n)s sizes would serve it", len(usable)) % {"n": len(usable)}
    text = _("%(sizes)s; none is free now. Ask, and it starts by itself when one is.") % {"sizes": sizes}
    own = next((end for end in ends() if any(end.makes_room_for(offer) for offer in usable)), None)
    if own is not None:
        text += " " + _("Your %(name)s, of such a size, ends %(when)s.") % {"name": own.name, "when": absolute(own.at)}
    return WAIT, text, usable[0]


def _own_ends(request: PageRequest) -> list[End]:
    """Return what of the tenant's own ends by itself, the next first: all that he may know of others' is nothing."""
    ending = Allocation.objects.filter(tenant=request.tenant, released_at__isnull=True, expires_at__gt=request.now)
    ending = ending.exclude(service_class=ServiceClass.PRODUCTION.value).order_by("expires_at", "pk")
    units = Unit.objects.filter(host__isnull=False).order_by("pk")
    return [
        End(row.expires_at, row.name, unit.product, unit.profile, max(1, unit.gpu_count))
        for row in ending.prefetch_related(Prefetch("units", units))[:MOST_ENDS]
        for unit in row.units.all()
        if row.expires_at is not None
    ]


def _free(free: Room, offer: Offer) -> int:
    return free.count(offer.size.product, offer.size.profile, offer.size.count)


def _forbidden(held: Stock, allowed: list[Served], path: Sequence[UUID]) -> str:
    """Return in one sentence that policy leaves models out here, `""` where it leaves out none."""
    rule = held.policy.rules.get("models")
    reachable = ServedModel.objects.filter(Q(tenant__isnull=True) | Q(tenant__in=path), enabled=True)
    hidden = reachable.count() - len(allowed) if rule is not None else 0
    if rule is None or hidden <= 0:
        return ""
    return ngettext(
        "%(n)s more model is offered, but the policy of %(tenant)s leaves it out.",
        "%(n)s more models are offered, but the policy of %(tenant)s leaves them out.",
        hidden,
    ) % {"n": hidden, "tenant": rule.tenant}


def _filters(users: int, context: int, only: str, lines: list[Line]) -> list[dict[str, Any]]:
    counts = {key: sum(line.verdict == key for line in lines) for key in VERDICTS}
    return [
        {
            "name": "users",
            "label": _("Users at once"),
            "value": users,
            "options": [{"value": n, "label": numbers.number(n)} for n in sorted({*wishes.USERS, users})],
        },
        {
            "name": "context",
            "label": _("Tokens each"),
            "value": context,
            "options": [{"value": n, "label": numbers.number(n)} for n in sorted({*wishes.CONTEXTS, context})],
        },
        {
            "name": "fits",
            "label": _("Room"),
            "value": only,
            "options": [
                {"value": "", "label": _("All")},
                *(
                    {"value": key, "label": str(text), "count": counts[key]}
                    for key, (text, _tone, _icon) in VERDICTS.items()
                    if counts[key]
                ),
            ],
        },
    ]


def _exported(line: Line) -> dict[str, Any]:
    offer, facts = line.offer, line.served.facts
    return {
        "name": line.served.name,
        "repository": line.served.row.repository,
        "licence": line.served.row.licence,
        "parameters": facts.params_total if facts is not None else None,
        "longest_context": facts.max_context if facts is not None else None,
        "verdict": line.verdict,
        "size": offer.size.name if offer is not None else None,
        "free": line.free,
        "most_users": offer.most_users if offer is not None else None,
        "estimated_tokens_s": offer.estimated_tokens_s if offer is not None else None,
        "price_hour": str(offer.price_hour) if offer is not None and offer.price_hour is not None else None,
        "currency": currency() if offer is not None else None,
    }


def _twins(request: PageRequest) -> list[dict[str, str]]:
    base = request.build_absolute_uri("/").rstrip("/")
    return [
        {"label": _("CLI"), "text": "tenantry get served-models"},
        {"label": _("API"), "text": f'curl -H "Authorization: Bearer $TENANTRY_TOKEN" {base}/api/v1/served-models'},
    ]
