"""Requests in words: what is asked, by whom, who decides next, what came of it. Reads in the caller's read block."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any, Final
from uuid import UUID

from django.urls import reverse
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.design import numbers
from frontend.design.moments import absolute
from frontend.kernel import outlook, words
from tenants import pricing
from tenants.models import Allocation, Person, Request
from tenants.operations import requests
from tenants.operations.grants import COST_DAYS
from tenants.pricing import is_priced
from tenants.specs import AllocationSpec
from tenants.states import REQUEST_FINAL, RequestKind, RequestState

KINDS: Final[Mapping[str, str | Promise]] = {
    RequestKind.QUOTA.value: gettext_lazy("More quota"),
    RequestKind.TENANT.value: gettext_lazy("New tenant"),
    RequestKind.JOIN.value: gettext_lazy("To join"),
    RequestKind.WRITE_OFF.value: gettext_lazy("To write off"),
    RequestKind.MODEL.value: gettext_lazy("A model of its own"),
}
STATES: Final[Mapping[str, tuple[str | Promise, str, str]]] = {
    RequestState.SUBMITTED.value: (gettext_lazy("Waits for a decision"), "info", "hourglass"),
    RequestState.APPROVED.value: (gettext_lazy("Approved"), "ok", "circle-check"),
    RequestState.REDUCED.value: (gettext_lazy("Approved for less"), "ok", "circle-check"),
    RequestState.DENIED.value: (gettext_lazy("Denied"), "bad", "circle-x"),
    RequestState.WITHDRAWN.value: (gettext_lazy("Withdrawn"), "quiet", "undo-2"),
    RequestState.EXPIRED.value: (gettext_lazy("Nobody decided in time"), "warn", "clock"),
}
"""State → word, tone, icon."""
PRODUCTS: Final = ("endpoint", "machine", "namespace")
VERDICTS: Final[Mapping[str, str | Promise]] = {
    "approve": gettext_lazy("approved it"),
    "reduce": gettext_lazy("approved less"),
    "deny": gettext_lazy("denied it"),
}


_SLICES: Final = re.compile(r"\bgpu\.([\w-]+)\.slices\b")


# --- words --------------------------------------------------------------------------------------------


def dimension(name: str) -> str:
    """Return a dimension in words for tenants."""
    return words.plain(outlook.product_of(name))


def amount(name: str, count: int) -> str:
    """Return so much of a dimension in words: `8 slots of H100-80GB`, `64 virtual CPUs`."""
    if name.startswith("gpu.") and name.endswith(".slices"):
        return _("%(slots)s of %(product)s") % {
            "slots": numbers.quantity(count, "slot"),
            "product": outlook.product_of(name),
        }
    if name.startswith("gpu."):
        return f"{numbers.number(count)} × {outlook.product_of(name)}"
    counted = {
        "endpoints": lambda: ngettext("%(n)s endpoint", "%(n)s endpoints", count),
        "machines": lambda: ngettext("%(n)s GPU machine", "%(n)s GPU machines", count),
        "boundaries": lambda: ngettext("%(n)s isolation", "%(n)s isolations", count),
        "vcpu": lambda: ngettext("%(n)s virtual CPU", "%(n)s virtual CPUs", count),
    }.get(name)
    if counted is not None:
        return str(counted()) % {"n": numbers.number(count)}
    return f"{numbers.number(count)} {dimension(name)}"


def amounts(limits: Mapping[str, Any]) -> str:
    """Return several amounts, GPUs first."""
    ordered = sorted(limits.items(), key=lambda entry: (not entry[0].startswith("gpu."), entry[0]))
    return ", ".join(amount(name, int(count)) for name, count in ordered)


def all_limits(payload: Mapping[str, Any]) -> dict[str, int]:
    """Return everything that a payload adds, the largest where several tenants need it."""
    found = {key: int(value) for key, value in (payload.get("limits") or {}).items()}
    for above in (payload.get("ancestors") or {}).values():
        for key, value in above.items():
            found[key] = max(found.get(key, 0), int(value))
    return found


def until_of(payload: Mapping[str, Any]) -> datetime | None:
    """Return when what is asked for would end, None for lasting."""
    text = payload.get("until")
    try:
        return datetime.fromisoformat(text) if text else None
    except (TypeError, ValueError):
        return None


def what(row: Request, *, full: bool = False) -> str:
    """Return what a request asks for, in one phrase; of several amounts its GPUs alone unless `full`."""
    payload = row.payload
    if row.kind == RequestKind.QUOTA.value:
        asked = all_limits(payload)
        gpus = {key: count for key, count in asked.items() if key.startswith("gpu.")}
        text = amounts(asked if full or not gpus else gpus) or "--"
        return (_("%(what)s in all") if payload.get("mode") == "set" else _("%(what)s more")) % {"what": text}
    if row.kind == RequestKind.TENANT.value:
        text = _("the tenant %(name)s") % {"name": payload.get("name", "")}
        asked = payload.get("limits") or {}
        first = (payload.get("wish") or {}).get("endpoint")
        if isinstance(first, Mapping) and not full:
            return _("%(tenant)s, first %(model)s") % {"tenant": text, "model": first.get("model", "")}
        given = amounts(asked)
        return _("%(tenant)s with %(what)s") % {"tenant": text, "what": given} if given else text
    if row.kind == RequestKind.JOIN.value:
        return _("to join as %(role)s") % {"role": payload.get("role", "member")}
    if row.kind == RequestKind.MODEL.value:
        return _("the model %(name)s") % {"name": payload.get("name", "")}
    return _("to write off what stood on a lost provider")


def model_lines(row: Request) -> list[str]:
    """Return what is known of a model that is asked for, line by line; [] for other requests."""
    if row.kind != RequestKind.MODEL.value:
        return []
    asked = row.payload
    weights = (asked.get("geometry") or {}).get("weights_bytes_native")
    lines = [
        f"{asked.get('repository', '')} @ {asked.get('commit', '')}",
        _("Source: %(source)s") % {"source": asked.get("source", "hub")},
        _("Licence: %(licence)s") % {"licence": asked.get("licence") or _("not said")},
    ]
    if asked.get("gating"):
        lines.append(_("Gated: %(gating)s") % {"gating": asked["gating"]})
    if weights:
        lines.append(_("Weights: %(size)s GiB") % {"size": numbers.number(weights / 2**30, 1)})
    return [*lines, *(str(note) for note in asked.get("notes", ()))]


def reason(row: Request) -> str:
    """Return why it is asked for, in words for tenants."""
    return _SLICES.sub(r"slots of \1", words.plain(row.reason))


def kind(row: Request) -> str:
    """Return the kind in words."""
    return str(KINDS.get(row.kind, row.kind))


def state(row: Request) -> dict[str, str]:
    """Return the badge of a state: text, tone, icon."""
    text, tone, icon = STATES[row.state]
    return {"text": str(text), "tone": tone, "icon": icon}


def names(keys: Iterable[UUID | None]) -> dict[UUID, str]:
    """Return person → name as far as the actor may see; one query."""
    wanted = {key for key in keys if key is not None}
    return dict(Person.objects.filter(pk__in=wanted).values_list("pk", "display_name"))


def name_of(known: Mapping[UUID, str], key: UUID | None) -> str:
    """Return a name; who shares no tenant stays unnamed."""
    return known.get(key, _("somebody from outside")) if key is not None else _("a rule")


# --- stages, product, cost ------------------------------------------------------------------------------


def stages(row: Request) -> list[dict[str, Any]]:
    """Return the stages as the steps component shows them; the stages must be prefetched."""
    found: list[dict[str, Any]] = []
    denied = row.state in {s.value for s in REQUEST_FINAL} - {"approved", "reduced"}
    at = requests.current_stage(row)
    for stage in sorted(row.stages.all(), key=lambda one: one.order):
        current = at is not None and stage.pk == at.pk and row.state == RequestState.SUBMITTED.value
        is_done = stage.done_at is not None
        label = outlook.decider(stage.decider)
        found.append(
            {
                "label": label[:1].upper() + label[1:],
                "state": "done" if is_done else ("current" if current else "todo"),
                "note": absolute(stage.done_at) if stage.done_at is not None else (_("is next") if current else ""),
            }
        )
    last_done = max((n for n, one in enumerate(found) if one["state"] == "done"), default=None)
    if row.state == RequestState.DENIED.value and denied and last_done is not None:
        found[last_done]["state"] = "failed"
    return found


def next_decider(row: Request) -> str:
    """Return who decides next, in words; `""` when nobody does."""
    stage = requests.current_stage(row) if row.state == RequestState.SUBMITTED.value else None
    return outlook.decider(stage.decider) if stage is not None else ""


def product_of(row: Request) -> Any | None:
    """Return the endpoint, machine or namespace that waits for a request; None without one."""
    if row.allocation is None:
        return None
    return next((found for word in PRODUCTS if (found := getattr(row.allocation, word, None)) is not None), None)


def product_url(product: Any) -> str:
    """Return the address of a product."""
    word = type(product).__name__.lower()
    where = {"tenant": product.tenant.name, "name": product.short_id}
    return reverse(f"frontend:{word}", kwargs=where)


def product_word(product: Any) -> str:
    """Return what a product is."""
    return {"endpoint": _("Endpoint"), "machine": _("Machine"), "namespace": _("Namespace")}[
        type(product).__name__.lower()
    ]


JOINED: Final = ("tenant", "allocation", *(f"allocation__{word}__tenant" for word in PRODUCTS))
"""What `product_of` and its address read: for `select_related`."""


def end_of(row: Request, *, now: datetime) -> datetime:
    """Return until when an approval would be paid."""
    allocation: Allocation | None = row.allocation
    if allocation is not None:
        return AllocationSpec.from_json(allocation.spec).term.ends_at(now)
    return until_of(row.payload) or now + timedelta(days=COST_DAYS)


def cost(row: Request, known: pricing.PriceList, *, currency: str, now: datetime) -> outlook.Price | None:
    """Return what it would cost to its end at present prices, a lasting limit over 30 days; None for no money."""
    source: Mapping[str, Any] = row.allocation.demand if row.allocation is not None else row.payload.get("limits") or {}
    demand = {key: int(count) for key, count in source.items() if is_priced(key)}
    if not demand:
        return None
    try:
        hour = known.hourly(demand, now)
        total = known.cost(demand, now, max(now, end_of(row, now=now))).total
    except pricing.NoPrice:
        return outlook.Price(None, None, currency)
    return outlook.Price(hour, total, currency)


# --- equal ones, dates ----------------------------------------------------------------------------------


def equal_key(row: Request) -> str:
    """Return a word that requests asking for the same share: kind, amounts, day of the end, size of what waits."""
    stage = requests.current_stage(row)
    asked = [
        row.kind,
        {key: value for key, value in row.payload.items() if key not in {"until", "ancestors", "name", "wish"}},
        str(until_of(row.payload) or "")[:10],
        sorted(all_limits(row.payload).items()),
        row.allocation.demand if row.allocation is not None else None,
        stage.decider if stage is not None else "",
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]


def groups(rows: Sequence[Request]) -> list[list[Request]]:
    """Return the requests of which there are several equal ones, in the order of the oldest of each."""
    found: dict[str, list[Request]] = {}
    for row in rows:
        if row.kind in {RequestKind.QUOTA.value, RequestKind.JOIN.value}:
            found.setdefault(equal_key(row), []).append(row)
    return [group for group in found.values() if len(group) > 1]


def end_of_day(text: str) -> str:
    """Return the last second of a day given as `2026-12-31` in the person's zone, as RFC 3339; text as it is else."""
    try:
        day = date.fromisoformat(text.strip())
    except ValueError:
        return text.strip()
    return datetime.combine(day, time(23, 59, 59), tzinfo=timezone.get_current_timezone()).isoformat()


def day_of(moment: datetime | None) -> str:
    """Return a moment as a date field holds it, in the person's zone."""
    return timezone.localtime(moment).date().isoformat() if moment is not None else ""
