"""Stock per product: what is free by size, the biggest part left, and how much of the free room is of no use.

Pure but for `read`, which is two statements in the caller's read block: masks are few, so GPUs are counted by mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from django.db.models import Count
from django.utils.translation import gettext as _

from frontend.kernel import estate, free_masks
from tenants import geometry, gpu_catalogue
from tenants.models import Unit

SHOWN_KINDS = frozenset({"base", "double-memory"})
"""Kinds of profiles in the table: the others repeat the places of these."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How many of one size fit now, each size taken alone."""

    name: str
    """`""` for whole GPUs."""
    label: str
    count: int


@dataclass(frozen=True, slots=True)
class Stock:
    """What there is of one product."""

    product: str
    gpus: int
    closed: int
    """GPUs on which nothing is placed: host not open, or something is wrong."""
    slots: int
    free: int
    """Free slots on GPUs that are open."""
    fits: tuple[Fit, ...]
    biggest: str
    """Largest part that is free on one GPU, `""` where nothing is."""
    waste: Fraction | None
    """Share of free slots that the next ask cannot use, None where nothing is free or nothing was asked for."""


def read(filters: estate.Filters) -> list[Stock]:
    """Return the stock of what the filters leave, the product with most GPUs first."""
    counted = free_masks.of(estate.hosts(filters))
    if filters.product:
        counted = {name: masks for name, masks in counted.items() if name == filters.product}
    asked = _asked()
    found = [_stock(name, masks, asked.get(name, {})) for name, masks in counted.items() if masks.slots]
    return sorted(found, key=lambda one: (-one.gpus, one.product))


def _asked() -> dict[str, dict[str, int]]:
    """Return product → profile → how many are in use or waited for: what the next ask will look like."""
    rows = Unit.objects.filter(released_at__isnull=True, product__gt="").order_by()
    answer: dict[str, dict[str, int]] = {}
    for product, profile, count in rows.values_list("product", "profile").annotate(n=Count("*")):
        answer.setdefault(product, {})[profile] = count
    return answer


def _stock(product: str, masks: free_masks.Masks, asked: Mapping[str, int]) -> Stock:
    free = masks.open
    fits = sizes(product, free)
    biggest = next((fit.label for fit in fits if fit.count), "")
    return Stock(
        product=product,
        gpus=free.total() + masks.closed,
        closed=masks.closed,
        slots=masks.slots,
        free=sum(mask.bit_count() * count for mask, count in free.items()),
        fits=fits,
        biggest=biggest,
        waste=wasted(product, free, asked),
    )


def sizes(product: str, free: Mapping[int, int]) -> tuple[Fit, ...]:
    """Return how many of each size fit into free masks (mask → GPUs), the largest size first."""
    try:
        known = gpu_catalogue.product(product)
    except gpu_catalogue.UnknownProduct:
        return ()
    shown = [part for part in known.placeable if part.kind in SHOWN_KINDS]
    parts = [known.whole, *sorted(shown, key=lambda part: (-part.size, part.kind != "base", part.name))]
    return tuple(
        Fit(part.name, part.name or _("whole GPU"), sum(most(product, part.name, m) * n for m, n in free.items()))
        for part in parts
    )


@cache
def most(product: str, name: str, mask: int) -> int:
    """Return how many windows of one size fit into a free mask together: by their ends, which is the most there is."""
    count, taken = 0, 0
    for window, _start in sorted(geometry.legal_masks(product, name), key=lambda each: each[0]):
        if mask & window == window and not taken & window:
            count, taken = count + 1, taken | window
    return count


def wasted(product: str, free: Mapping[int, int], asked: Mapping[str, int]) -> Fraction | None:
    """Return `geometry.fragmentation` of masks that are counted (mask → GPUs); profiles of no use are left out."""
    slots = sum(mask.bit_count() * count for mask, count in free.items())
    weights = {name: count for name, count in asked.items() if _known(product, name)}
    total = sum(weights.values())
    if not slots or not total:
        return None
    lost = sum(
        weight * sum(geometry.unusable_slots(product, name, mask) * count for mask, count in free.items())
        for name, weight in weights.items()
    )
    return Fraction(lost, slots * total)


def _known(product: str, name: str) -> bool:
    try:
        gpu_catalogue.profile(product, name)
    except LookupError:
        return False
    return True
