"""The estate: heat map of every site, stock per product, who holds how much. One page for ten or 100,000 GPUs.

Zooms of the map: each slot of each host, hosts by their looks, and for the largest estates blocks of hosts, from which
a click leads to their page of the list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from django.db.models import Count, Q
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from frontend.design import heat, numbers
from frontend.design.strip import FOR_PLATFORM, SIGNS, SlotState
from frontend.kernel import estate, estate_blocks, estate_stock, lists
from frontend.kernel.page import PageRequest, page
from tenants import access
from tenants.models import Allocation, Finding, Host, Provider
from tenants.policies import ROUTES
from tenants.states import HostState

MOST_DRAWN: Final = 320
"""Hosts up to which each cell shows every slot and lights up with its tenants; beyond, looks are shared."""
MOST_NAMED: Final = 64
"""Hosts up to which each cell has room for its name."""
MOST_CELLS: Final = 1_500
"""Hosts up to which each has a cell; beyond, a cell is a block of neighbours."""
TENANTS_SHOWN: Final = 12
TENANTS_OFFERED: Final = 200
"""The largest holders: more are found by the search."""
BAR: Final = (
    SlotState.USED, SlotState.RESERVED, SlotState.FOREIGN, SlotState.MAINTENANCE, SlotState.FAULT, SlotState.FREE,
)  # fmt: skip


@page("devices.list")
def show(request: PageRequest) -> HttpResponse:
    """Show the estate that the filters leave."""
    filters = estate.Filters.of(request.GET)
    stock = estate_stock.read(filters)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(stock, form)
    found = _map(filters, request)
    shared = frame(filters, request, None if filters.any else sorted(line.product for line in stock))
    values = {
        **shared,
        "fields": [*shared["fields"], _lights(found.shares, filters)],
        "maps": found.maps,
        "pictures": found.pictures,
        "zoom": found.zoom,
        "hosts_of_cell": estate.BLOCK,
        "is_plain_page": True,
        "legend": FOR_PLATFORM,
        "figures": _figures(found, stock),
        "stock": [_line(line, _by_state(found, line), filters) for line in stock],
        "stock_columns": [
            {"key": "product", "label": _("Product")},
            {"key": "state", "label": _("Slots by state")},
            {"key": "free", "label": _("Free slots"), "numeric": True},
            {"key": "fits", "label": _("Fits now, each size alone")},
            {"key": "biggest", "label": _("Biggest part left")},
            {"key": "waste", "label": _("Fragmentation"), "numeric": True},
        ],
        "shares": _shares(found.shares, filters),
        "more_shares": max(0, len(found.shares) - TENANTS_SHOWN),
        "hosts_url": f"{reverse('frontend:hosts')}{filters.query(tenant='')}",
        "read_at": request.now,
    }
    return render(request, "frontend/pages/estate/map.html", values)


def frame(filters: estate.Filters, request: PageRequest, products: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the filters of the estate's pages, and where to connect a provider for who may.

    One statement, and two more where the caller does not know the products of the whole estate.
    """
    providers = list(Provider.objects.filter(deletion_requested_at__isnull=True).order_by("site", "name"))
    if products is None:
        products = estate.products(Host.objects.exclude(state=HostState.REMOVED.value))
    may_connect = access.allowed(request.actor, None, ROUTES["providers.create"])
    connect = (_address("provider-connect") or _address("providers")) if may_connect else ""
    every = {"value": "", "label": _("All")}
    states = [(key, word) for key, (word, _tone, _sentence) in estate.STATES.items()]
    choices = (
        ("site", _("Site"), [(name, name) for name in sorted({row.site for row in providers})]),
        ("provider", _("Provider"), [(row.name, row.name) for row in providers]),
        ("product", _("Product"), [(name, name) for name in products]),
        ("state", _("Shows"), [*estate.LOOKS.items(), *states]),
    )
    return {
        "fields": [
            {
                "name": name,
                "label": label,
                "value": getattr(filters, name),
                "options": [every, *({"value": value, "label": str(word)} for value, word in options)],
            }
            for name, label, options in choices
        ],
        "is_filtered": filters.any,
        "has_providers": bool(providers),
        "connect_url": connect,
        "findings_url": _address("findings"),
    }


def _address(name: str) -> str:
    """Return the address of a page that may not be there."""
    try:
        return reverse(f"frontend:{name}")
    except NoReverseMatch:
        return ""


def _figures(found: Map, stock: Sequence[estate_stock.Stock]) -> dict[str, Any]:
    waiting = Allocation.objects.filter(queued_at__isnull=False, released_at__isnull=True).count()
    open_findings = Finding.objects.filter(resolved_at__isnull=True).aggregate(
        all=Count("pk"), blocking=Count("pk", filter=Q(blocks_placement=True))
    )
    slots = sum(line.slots for line in stock)
    free = sum(line.free for line in stock)
    return {
        "hosts": sum(site["hosts"] for site in found.maps),
        "gpus": sum(site["gpus"] for site in found.maps),
        "sites": len(found.maps),
        "slots": slots,
        "free": free,
        "free_share": numbers.percent(free / slots) if slots else numbers.UNKNOWN,
        "closed": sum(line.closed for line in stock),
        "waiting": waiting,
        "findings": open_findings["all"],
        "blocking": open_findings["blocking"],
    }


# --- the map --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Map:
    """The map at the zoom that the number of hosts allows."""

    zoom: str
    """`slots`, `hosts` or `blocks`: what a line of a cell is read from."""
    maps: list[dict[str, Any]]
    """One of each site."""
    slots: Mapping[str, Mapping[SlotState, int]]
    """Product → state → slots."""
    shares: list[estate.Share]
    pictures: str = ""


def _map(filters: estate.Filters, request: PageRequest) -> Map:
    count = estate.hosts(filters).count()
    if count > MOST_CELLS:
        blocks = estate_blocks.read(filters, now=request.now)
        alike = Counter(block.looks for block in blocks.blocks)
        pictures = heat.Pictures(heat.BLOCK_STEPS, once={looks for looks, count in alike.items() if count == 1})
        maps = [_blocks_of(name, found, filters, pictures) for name, found in blocks.sites()]
        return Map("blocks", maps, blocks.kept, blocks.shares, pictures.drawn())
    seen = estate.read(filters, now=request.now, most_lit=MOST_DRAWN)
    small = count <= MOST_DRAWN
    shared = None if small else heat.Pictures()
    size = "named" if count <= MOST_NAMED else "plain" if small else "dense"
    maps = [_site(name, hosts, filters, shared, size) for name, hosts in seen.sites()]
    return Map(
        "slots" if small else "hosts", maps, seen.slots, seen.shares, shared.drawn() if shared is not None else ""
    )


def _by_state(found: Map, line: estate_stock.Stock) -> dict[SlotState, int]:
    """Return the slots of a product by state; what nobody keeps is free."""
    found_slots = dict(found.slots.get(line.product, {}))
    kept = sum(size for state, size in found_slots.items() if state is not SlotState.FREE)
    return found_slots | {SlotState.FREE: max(0, line.slots - kept)}


def _blocks_of(
    name: str, blocks: Sequence[estate_blocks.Block], filters: estate.Filters, pictures: heat.Pictures
) -> dict[str, Any]:
    words = _block_speaker(filters)
    urls = {name: f"hosts{filters.query(provider=name, tenant='')}" for name in {block.provider for block in blocks}}
    cells = [
        heat.Block(
            url=urls[block.provider] + (block.after and f"&after={block.after}"),
            words=words(block),
            looks=block.looks,
            is_chosen=block.lit > 0,
            is_closed=block.closed == block.hosts,
        )
        for block in blocks
    ]
    return {
        "name": name,
        "hosts": sum(block.hosts for block in blocks),
        "gpus": sum(block.gpus for block in blocks),
        "free": sum(block.open_free for block in blocks),
        "providers": sorted({block.provider for block in blocks}),
        "picture": heat.blocks(cells, _("Hosts of %(site)s") % {"site": name}, pictures),
        "url": f"{reverse('frontend:hosts')}{filters.query(site=name, tenant='')}",
    }


def _block_speaker(filters: estate.Filters) -> Callable[[estate_blocks.Block], str]:
    """Return what says a block: its first and last host, then free room, what is not to be had, and who is lit."""
    room = _("%(first)s to %(last)s: %(n)s free")
    closed, lit = _("%(n)s hosts not available"), _("%(n)s with %(tenant)s")
    number = cache(numbers.number)  # a page speaks one language

    def words(block: estate_blocks.Block) -> str:
        parts = [room % {"first": block.first, "last": block.last, "n": number(block.free)}]
        if block.closed:
            parts.append(closed % {"n": block.closed})
        if block.lit:
            parts.append(lit % {"n": block.lit, "tenant": filters.tenant})
        return ", ".join(parts)

    return words


def _site(
    name: str, hosts: Sequence[estate.Seen], filters: estate.Filters, pictures: heat.Pictures | None, size: str
) -> dict[str, Any]:
    base = reverse("frontend:hosts").removeprefix("/ops/")
    words = _speaker()
    cells = [
        heat.Cell(
            url=f"{base}/{host.short_id}",
            words=words(host),
            gpus=host.gpus,
            is_chosen=filters.tenant in host.holders if filters.tenant else False,
            is_closed=not host.is_open,
            holders=host.holders if pictures is None else (),
            name=host.name.partition(".")[0],
        )
        for host in hosts
    ]
    return {
        "name": name,
        "hosts": len(hosts),
        "gpus": sum(len(host.gpus) for host in hosts),
        "free": sum(host.free for host in hosts if host.is_open),
        "providers": sorted({host.provider for host in hosts}),
        "picture": heat.cells(cells, _("Hosts of %(site)s") % {"site": name}, size, pictures),
        "url": f"{reverse('frontend:hosts')}{filters.query(site=name, tenant='')}",
    }


def _speaker() -> Callable[[estate.Seen], str]:
    """Return what says a cell: name, then free room or why there is none to be had. Words are looked up once."""
    room, closed = _("%(host)s: %(n)s free"), _("%(host)s: %(n)s free, not available")
    states = {state: _("%(host)s: %(state)s, %(n)s free") % {"host": "%(host)s", "n": "%(n)s", "state": str(word[0])}
              for state, word in estate.STATES.items() if state != HostState.OPEN}  # fmt: skip

    def words(host: estate.Seen) -> str:
        text = room if host.is_open else states.get(host.state, closed)
        return text % {"host": host.name, "n": host.free}

    return words


# --- stock ----------------------------------------------------------------------------------------------


def _line(line: estate_stock.Stock, slots: Mapping[SlotState, int], filters: estate.Filters) -> dict[str, Any]:
    return {
        "stock": line,
        "bar": bar(slots, line.product),
        "fits": [fit for fit in line.fits if fit.count],
        "waste": numbers.percent(float(line.waste)) if line.waste is not None else numbers.UNKNOWN,
        "url": f"{reverse('frontend:hosts')}{filters.query(product=line.product, tenant='')}",
    }


def bar(slots: Mapping[SlotState, int], name: str) -> SafeString:
    """Return slots by state as one bar whose words say the same."""
    total = sum(slots.values())
    if not total:
        return SafeString("")
    at, parts, words = 0.0, [], []
    for state in BAR:
        share = slots.get(state, 0) / total * 100
        if share:
            parts.append((SIGNS[state].code, f"{at:.2f}", f"{share:.2f}"))
            words.append(f"{SIGNS[state].word} {numbers.number(slots[state])}")
            at += share
    return format_html(
        '<svg class="state-bar" width="100%" height="12" role="img" aria-label="{}: {}">{}</svg>'
        '<p class="muted small">{}</p>',
        name,
        ", ".join(words),
        format_html_join("", '<rect class="{}" x="{}%" width="{}%" height="12"/>', parts),
        " · ".join(words),
    )


def _exported(stock: Sequence[estate_stock.Stock], form: str) -> HttpResponse:
    columns = ["product", "gpus", "closed_gpus", "slots", "free_slots", "biggest_part", "fragmentation", "fits"]
    body = [
        {
            "product": line.product,
            "gpus": line.gpus,
            "closed_gpus": line.closed,
            "slots": line.slots,
            "free_slots": line.free,
            "biggest_part": line.biggest,
            "fragmentation": round(float(line.waste), 4) if line.waste is not None else None,
            "fits": " ".join(f"{fit.name or 'whole'}={fit.count}" for fit in line.fits),
        }
        for line in stock
    ]
    return lists.exported(body, columns, name="stock", form=form)


def _lights(shares: Sequence[estate.Share], filters: estate.Filters) -> dict[str, Any]:
    """Return the choice of a tenant to light up, among those that hold anything here."""
    nobody = {"value": "", "label": _("Nobody")}
    names = sorted((share.title, share.name) for share in shares[:TENANTS_OFFERED])
    options = [{"value": name, "label": title} for title, name in names]
    return {"name": "tenant", "label": _("Light up"), "value": filters.tenant, "options": [nobody, *options]}


def _shares(shares: Sequence[estate.Share], filters: estate.Filters) -> list[dict[str, Any]]:
    return [
        {
            "share": share,
            "url": filters.query(tenant="" if share.name == filters.tenant else share.name) or "?",
            "is_chosen": share.name == filters.tenant,
        }
        for share in shares[:TENANTS_SHOWN]
    ]
