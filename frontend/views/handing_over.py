"""The last two steps of connecting a provider: what is handed over, and the acceptance of each host.

Handing over stores site, networks and prices, switches the provider on and has its hosts tested by a worker. A host
is used once its acceptance has passed and somebody opened it; those left out can be handed over later. Hosts are shown
a page at a time with the counts of all; a click on "all" takes `AT_ONCE` of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.db.models import Count, Q, QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils.dateparse import parse_datetime
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.design.numbers import number
from frontend.kernel import estate, problems
from frontend.kernel import providers as kernel
from frontend.kernel.page import PageRequest, page
from frontend.views import provider_changes
from frontend.views import providers as pages
from frontend.views.connect import address, frame
from tenants import access, gpu_catalogue, pricing
from tenants.errors import Conflict, InvalidSpec
from tenants.models import GpuDevice, Hold, Host, Provider
from tenants.operations import inventory, providers
from tenants.operations import pricing as price_lists
from tenants.states import HoldKind, HostState
from tenants.transactions import reading

SHOWN: Final = 50
"""Hosts on one page."""
AT_ONCE: Final = 500
"""Hosts that one click hands over or opens; of more, it is done again, or by API."""
TICKED: Final = "ticked"
WELL: Final = "well"
ASKED: Final = "requested_at"
"""In a host's acceptance: a worker tests it, or will."""
PASSED: Final = "passed"
"""In a host's acceptance: how the last test ended."""
MODES: Final[Mapping[str, str | Promise]] = {
    "dynamic": gettext_lazy("wholes and parts"),
    "on-idle": gettext_lazy("wholes, and parts while empty"),
    "fixed": gettext_lazy("as they are carved"),
}
"""How a GPU can be given out, by how its layout changes."""


# --- 4. hand over -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Priced:
    """One GPU product of the provider and what a slot of it costs an hour here."""

    product: str
    item: str
    amount: Decimal | None
    """None where nothing has a price yet."""


@page("providers.update", methods=("GET", "POST"), own_blocks=True)
def hand_over(request: PageRequest, provider: str) -> HttpResponse:
    """Choose hosts, networks, site and price; then the provider is switched on and its hosts are tested."""
    row = pages.found(request, provider)
    if request.method != "POST":
        return _hand_over_form(request, row, {})
    given = request.POST
    with reading(request.actor):
        chosen = _chosen(row, given.get("which", TICKED), given.getlist("host"))
        priced = _prices(row, request)
    try:
        _some(chosen)
        prices = _changed(priced, given)
        providers.update(
            provider=row,
            site=given.get("site", "").strip(),
            config=provider_changes.with_ranges(row.config, given.get("ranges", "")),
            actor=request.actor,
            now=request.now,
        )
        if prices:
            price_lists.publish(
                name=_("Prices of %(name)s") % {"name": row.name} + f" {request.now:%Y-%m-%d %H:%M:%S}",
                prices=prices, valid_from=request.now, provider=row, actor=request.actor, now=request.now,
                currency=_currency(request),
            )  # fmt: skip
        providers.enable(provider=row, actor=request.actor, now=request.now)
        for host in chosen:
            inventory.accept(host=host, actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        fields = {_field(name): text for name, text in problems.at_fields(error).items()}
        return _hand_over_form(request, row, fields, status=problems.status_of(error))
    text = ngettext("%(n)d host is being tested.", "%(n)d hosts are being tested.", len(chosen))
    messages.success(request, text % {"n": len(chosen)})
    return HttpResponseRedirect(address(row, "acceptance"))


def _chosen(row: Provider, which: str, keys: Sequence[str]) -> list[Host]:
    """Return the hosts that were ticked, or the next ones of all that are well and were not tested yet."""
    rows = _joining(row)
    rows = _untried(rows) if which == WELL else rows.filter(short_id__in=keys[:AT_ONCE])
    return list(rows.order_by("name", "pk")[:AT_ONCE])


def _some(chosen: Sequence[Host]) -> None:
    """Raise `InvalidSpec` where no host was chosen."""
    if not chosen:
        raise InvalidSpec(_("Choose at least one host."), field="host")


def _field(name: str) -> str:
    if name.startswith("prices."):
        return f"price:{name.removeprefix('prices.')}"
    return {f"config.{providers.RANGES}": "ranges"}.get(name, name)


def _joining(row: Provider) -> QuerySet[Host]:
    """Return the hosts that may be handed over: not those that are being tested."""
    return Host.objects.filter(provider=row, state=HostState.JOINING.value).exclude(acceptance__has_key=ASKED)


def _untried(rows: QuerySet[Host]) -> QuerySet[Host]:
    """Return those of them that are well and were never tested."""
    return rows.filter(healthy=True).exclude(acceptance__has_key=PASSED)


def _modes(hosts: Sequence[Host]) -> dict[UUID, str]:
    """Return host → how its GPUs can be given out, in words."""
    devices = GpuDevice.objects.filter(host__in=hosts, removed_at__isnull=True)
    found: dict[UUID, list[str]] = {}
    for host, product, change in devices.values_list("host_id", "product", "layout_change").distinct():
        has_parts = len(gpu_catalogue.product(product).placeable) > 0
        found.setdefault(host, []).append(str(MODES[change]) if has_parts else _("wholes"))
    return {host: ", ".join(sorted(set(words))) for host, words in found.items()}


def _currency(request: PageRequest) -> str:
    with reading(request.actor):
        return price_lists.currency()


def _prices(row: Provider, request: PageRequest) -> list[Priced]:
    """Return what a slot of each GPU of the provider costs an hour there now."""
    known = price_lists.all_prices()
    found_prices = []
    for product in estate.products(Host.objects.filter(provider=row)):
        item = f"gpu.{product}.slices"
        try:
            amount: Decimal | None = known.hourly({item: 1}, request.now, provider=row.name, site=row.site)
        except pricing.NoPrice:
            amount = None
        found_prices.append(Priced(product, item, amount))
    return found_prices


def _changed(priced: Sequence[Priced], given: Mapping[str, str]) -> dict[str, Decimal]:
    """Return the prices that differ from those that hold already. Raises `InvalidSpec`."""
    prices = {}
    for one in priced:
        text = given.get(f"price:{one.item}", "").strip()
        if not text:
            continue
        try:
            amount = Decimal(text)
        except InvalidOperation as error:
            raise InvalidSpec(_("Give an amount such as 0.35."), field=f"prices.{one.item}") from error
        if one.amount is None or amount != one.amount:
            prices[one.item] = amount
    return prices


def _hand_over_form(
    request: PageRequest, row: Provider, errors: Mapping[str, str], *, status: int = 200
) -> HttpResponse:
    given = request.POST
    with reading(request.actor):
        row = access.find(pages.rows_of(), row.pk)
        around = frame(row, "hand-over")
        stored = row.config.get(providers.RANGES) or (["127.0.0.0/8"] if around["simulated"] else [])
        counts = _joining(row).aggregate(
            waiting=Count("pk"), sick=Count("pk", filter=Q(healthy=False)),
            well=Count("pk", filter=Q(healthy=True) & ~Q(acceptance__has_key=PASSED)),
        )  # fmt: skip
        shown, after = estate.page_of(_joining(row), request.GET.get("after", ""), size=SHOWN)
        is_paged = bool(after or request.GET.get("after"))
        values = around | {
            "hosts": _waiting(shown, given.getlist("host") if request.method == "POST" else None),
            "waiting": counts["waiting"],
            "count": _counted(counts) if is_paged else "",
            "which": _which(counts["well"]) if is_paged and counts["well"] else [],
            "which_value": given.get("which", TICKED),
            "more_url": f"?after={after}" if after else "",
            "previous_url": request.path if request.GET.get("after") else "",
            "site": given.get("site", row.site),
            "ranges": given.get("ranges", "\n".join(stored)),
            "prices": [
                {
                    "name": f"price:{one.item}",
                    "label": _("%(product)s, a slot and hour") % {"product": one.product},
                    "value": given.get(
                        f"price:{one.item}", "" if one.amount is None else f"{one.amount.normalize():f}"
                    ),
                    "has": one.amount is not None,
                    "error": errors.get(f"price:{one.item}", ""),
                }
                for one in _prices(row, request)
            ],
            "currency": price_lists.currency(),
            "ranges_sentence": provider_changes.ranges_sentence(),
            "errors": errors,
            "other_errors": [
                text
                for field, text in errors.items()
                if field in {"", "version", "config"} or field.startswith("config.")
            ],
            "back_url": address(row, "found"),
            "acceptance_url": address(row, "acceptance"),
            "columns": [
                {"key": "take", "label": _("Hand over")},
                {"key": "name", "label": _("Host")},
                {"key": "gpus", "label": _("GPUs")},
                {"key": "modes", "label": _("Given out as")},
                {"key": "takes", "label": _("Takes")},
                {"key": "room", "label": _("CPUs and memory")},
                {"key": "foreign", "label": _("Used by others")},
            ],
        }
        return render(request, "frontend/pages/connect/hand_over.html", values, status=status)


def _waiting(shown: Sequence[Host], ticked: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return what the form says of each host; without `ticked` those that are well are."""
    holds = Hold.objects.filter(host__in=shown, kind=HoldKind.FOREIGN.value)
    foreign, modes = set(holds.values_list("host_id", flat=True)), _modes(shown)
    return [
        {
            "row": host,
            "checked": host.healthy if ticked is None else host.short_id in ticked,
            "gpus": f"{host.gpu_count} × {host.gpu_product}" if host.gpu_product else str(host.gpu_count),
            "takes": ", ".join(str(kernel.BOUNDARY_KINDS.get(k, k)) for k in host.boundary_kinds),
            "modes": modes.get(host.pk, ""),
            "foreign": host.pk in foreign,
        }
        for host in shown
    ]


def _counted(counts: Mapping[str, int]) -> str:
    text = ngettext("%(n)s host waits", "%(n)s hosts wait", counts["waiting"]) % {"n": number(counts["waiting"])}
    return text + ", " + _("%(n)s not well") % {"n": number(counts["sick"])} if counts["sick"] else text


def _which(well: int) -> list[dict[str, Any]]:
    """Return the choice between the hosts of this page and all of them, where there is more than one page."""
    most = min(well, AT_ONCE)
    title = ngettext("%(n)s host that is well", "%(n)s hosts that are well", most) % {"n": number(most)}
    text = _("All that are well and were not tested yet, whatever is ticked.")
    if well > AT_ONCE:
        title = _("The next %(n)s hosts that are well") % {"n": number(AT_ONCE)}
        text = _("Of %(all)s that were not tested yet, by name, whatever is ticked. Then do it again.") % {
            "all": number(well)
        }
    return [
        {"value": TICKED, "label": _("Those ticked below"), "text": _("Only of the page that is shown.")},
        {"value": WELL, "label": title, "text": text},
    ]


# --- 5. acceptance ----------------------------------------------------------------------------------------


@page("providers.update")
def acceptance(request: PageRequest, provider: str) -> HttpResponse:
    """Show how each host's acceptance goes; passed ones can be opened."""
    row = access.find(pages.rows_of(), provider)
    hosts = Host.objects.filter(provider=row).exclude(state=HostState.REMOVED.value)
    counts = hosts.aggregate(**{key: Count("pk", filter=found) for key, found in STANDS.items()})
    asked = sum(counts.values()) - counts["left"]
    only = request.GET.get("stands", "")
    chosen = hosts.filter(STANDS[only]) if only in STANDS else hosts
    shown, after = estate.page_of(chosen, request.GET.get("after", ""), size=SHOWN)
    query = request.GET.copy()
    query["after"] = after
    values = frame(row, "acceptance") | counts | {
        "lines": [_line(host) for host in shown],
        "asked": asked,
        "done": counts["open"] + counts["accepted"],
        "is_pending": counts["waiting"] > 0,
        "opened": counts["open"],
        "at_once": min(counts["accepted"], AT_ONCE),
        "fields": [_stands(counts, only)] if sum(counts.values()) > SHOWN else [],
        "more_url": f"?{query.urlencode()}" if after else "",
        "previous_url": f"?stands={only}" if request.GET.get("after") else "",
        "back_url": address(row, "hand-over"),
        "columns": [
            {"key": "name", "label": _("Host")},
            {"key": "state", "label": _("State")},
            {"key": "checks", "label": _("Checks")},
            {"key": "action", "label": _("Action"), "hidden_label": True},
        ],
    }  # fmt: skip
    template = "_acceptance" if request.htmx else "acceptance"
    return render(request, f"frontend/pages/connect/{template}.html", values)


_JOINING: Final = Q(state=HostState.JOINING.value)
STANDS: Final[Mapping[str, Q]] = {
    "failed": _JOINING & ~Q(acceptance__has_key=ASKED) & Q(acceptance__has_key=PASSED),
    "waiting": _JOINING & Q(acceptance__has_key=ASKED),
    "accepted": Q(state=HostState.ACCEPTED.value),
    "open": ~Q(state__in=[HostState.JOINING.value, HostState.ACCEPTED.value]),
    "left": _JOINING & ~Q(acceptance__has_any_keys=[ASKED, PASSED]),
}
"""How a host's acceptance stands; of each host one is true."""


def _stands(counts: Mapping[str, int], only: str) -> dict[str, Any]:
    words = {
        "failed": _("Did not pass"), "waiting": _("Being tested"), "accepted": _("Accepted"), "open": _("In use"),
        "left": _("Left out"),
    }  # fmt: skip
    options = [{"value": key, "label": text, "count": counts[key]} for key, text in words.items()]
    return {
        "name": "stands",
        "label": _("Shows"),
        "value": only,
        "options": [{"value": "", "label": _("All")}, *options],
    }


def _line(host: Host) -> dict[str, Any]:
    """Return how one host's acceptance stands: `left`, `waiting`, `failed`, `accepted`, `open`."""
    record: Mapping[str, Any] = host.acceptance
    checks = record.get("checks") or []
    key = "open" if host.state != HostState.JOINING.value else "left"
    if host.state == HostState.ACCEPTED.value:
        key = "accepted"
    elif host.state == HostState.JOINING.value and ASKED in record:
        key = "waiting"
    elif host.state == HostState.JOINING.value and PASSED in record:
        key = "failed"
    return {
        "row": host,
        "key": key,
        "url": kernel.host_address(host),
        "state": kernel.host_state(host.state),
        "passed": sum(bool(one["passed"]) for one in checks),
        "checks": checks,
        "trouble": [one for one in checks if not one["passed"]],
        "message": str(record.get("message") or ""),
        "at": parse_datetime(record["at"]) if record.get("at") else None,
    }


@page("hosts.accept", methods=("POST",))
def accept(request: PageRequest, provider: str) -> HttpResponse:
    """Test one host again, or hand over one that was left out."""
    row = pages.found(request, provider)
    _each(
        request,
        row,
        HostState.JOINING,
        inventory.accept,
        _("%(n)d host is being tested."),
        _("%(n)d hosts are being tested."),
    )
    return HttpResponseRedirect(address(row, "acceptance"))


@page("hosts.open", methods=("POST",))
def open_hosts(request: PageRequest, provider: str) -> HttpResponse:
    """Open the chosen accepted hosts, or the next of all of them."""
    row = pages.found(request, provider)
    _each(request, row, HostState.ACCEPTED, inventory.open_host, _("%(n)d host is open."), _("%(n)d hosts are open."))
    return HttpResponseRedirect(address(row, "acceptance"))


def _each(request: PageRequest, row: Provider, state: HostState, act: Any, one_text: str, many_text: str) -> None:
    """Do something to the named hosts of a provider in a state; where none is named, to the next `AT_ONCE` of all."""
    with reading(request.actor):
        hosts = Host.objects.filter(provider=row, state=state.value).order_by("name")
        if names := request.POST.getlist("host"):
            hosts = hosts.filter(short_id__in=names)
        chosen = list(hosts[:AT_ONCE])
    done = 0
    for host in chosen:
        try:
            act(host=host, actor=request.actor, now=request.now)
            done += 1
        except Conflict as error:
            messages.error(request, error.detail)
    if done:
        messages.success(request, (one_text if done == 1 else many_text) % {"n": done})
