"""How much room there is right now, by product and size, told as exactly as the tenant may know.

Reads only, in the caller's read block: two statements whatever the estate's size. A count is of windows that fit side
by side now, each GPU counted alone; somebody may be faster.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from django.db import connection
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.design import numbers
from frontend.kernel import free_masks
from tenants import geometry, gpu_catalogue
from tenants.models import Host
from tenants.states import HostState, StockVisibility

FEW: Final = 4
"""Up to so many are a few."""
MANY: Final = 20
"""From so many on there is plenty."""


@dataclass(frozen=True, slots=True)
class Room:
    """What is free now where the tenant may run."""

    masks: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Product → free mask → GPUs with it."""
    whole: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Product → empty GPUs of a host → hosts with so many."""

    def count(self, product: str, profile: str, gpus: int = 1) -> int:
        """Return how often a size goes in; whole GPUs of one unit are on one host."""
        if not profile and gpus > 1:
            return sum((empty // gpus) * hosts for empty, hosts in self.whole.get(product, {}).items())
        found = self.masks.get(product, {})
        return sum(windows_in(product, profile, mask) * devices for mask, devices in found.items())


@cache
def windows_in(product: str, profile: str, mask: int) -> int:
    """Return how many windows of one profile fit side by side into a free mask of one GPU; of media ones, one."""
    part = gpu_catalogue.profile(product, profile)
    count, left = 0, mask
    for window, _start in geometry.legal_masks(product, profile):  # by start: taking the first that ends is the most
        if left & window == window:
            left &= ~window
            count += 1
    return min(count, 1) if part.media else count


def of(products: Collection[str], sites: Collection[str]) -> Room:
    """Return the room of products at sites."""
    counted = free_masks.of(Host.objects.exclude(state=HostState.REMOVED.value).filter(provider__site__in=list(sites)))
    masks = {name: {mask: count for mask, count in found.open.items() if mask} for name, found in counted.items()}
    whole: dict[str, dict[int, int]] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT h.gpu_product, h.empty_gpus, count(*) FROM tenants_host h JOIN tenants_provider p "
            "ON p.id = h.provider_id WHERE h.placeable AND h.empty_gpus > 1 AND h.dedicated_tenant_id IS NULL "
            "AND h.gpu_product = ANY (%s) AND p.site = ANY (%s) GROUP BY 1, 2",
            [list(products), list(sites)],
        )
        for product, empty, hosts in cursor.fetchall():
            whole.setdefault(product, {})[empty] = hosts
    return Room({name: masks[name] for name in products if masks.get(name)}, whole)


def words(count: int, visibility: str) -> str:
    """Return a count of free windows as exactly as may be told: a number, a band, or that there is room."""
    if visibility == StockVisibility.EXACT.value:
        return ngettext("%(n)s free", "%(n)s free", count) % {"n": numbers.number(count)}
    if visibility == StockVisibility.YES_NO.value or not count:
        return _("there is room") if count else _("none free")
    if count <= FEW:
        return _("a few free")
    return _("plenty free") if count >= MANY else _("some free")
