"""Free masks of GPUs, counted: product → mask → GPUs. What stock and room are told from.

One statement in the caller's read block. Most GPUs are wholly free or wholly taken, and hosts count those of their own
(`ledger audit` holds them to it): only the others are read one by one, from an index that has no more than them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from django.db import connection
from django.db.models import QuerySet

from tenants import gpu_catalogue
from tenants.models import Host


@dataclass(slots=True)
class Masks:
    """GPUs of one product."""

    open: Counter[int] = field(default_factory=Counter)
    """Free mask → GPUs that take new things."""
    closed: int = 0
    """GPUs that take none: host not open, or something is wrong."""
    slots: int = 0
    """Slots of all of them."""


def of(hosts: QuerySet[Host]) -> dict[str, Masks]:
    """Return product → masks over some hosts."""
    columns = ("id", "gpu_product", "gpu_count", "empty_gpus", "placeable")
    chosen, given = hosts.order_by().values(*columns).query.sql_with_params()
    with connection.cursor() as cursor:
        cursor.execute(_COUNTED.replace("<chosen>", chosen), given)
        rows = cursor.fetchall()
    found: dict[str, Masks] = {}
    for what, product, slots, mask, count, other in rows:
        masks = found.setdefault(product, Masks())
        if what == "hosts":  # all GPUs of hosts where they are alike, the empty ones of those that are open
            slices = gpu_catalogue.product(product).slices
            masks.slots += count * slices
            masks.open[(1 << slices) - 1] += other
            masks.open[0] += count - other
        elif what == "part":
            masks.open[mask] += count
            masks.open[0] -= count
        elif what == "closed":  # of them `other` are empty on a host that is open
            masks.closed += count
            masks.open[(1 << slots) - 1] -= other
            masks.open[0] -= count - other
        else:  # each GPU of hosts with several products, `other` of them closed
            masks.open[mask] += count
            masks.closed += other
            masks.slots += slots * (count + other)
    for masks in found.values():
        masks.open = Counter({mask: count for mask, count in masks.open.items() if count > 0})
    return found


_COUNTED = """
WITH h AS MATERIALIZED (<chosen>)
SELECT 'hosts', gpu_product, 0, 0, sum(gpu_count)::int, coalesce(sum(empty_gpus) FILTER (WHERE placeable), 0)::int
FROM h WHERE gpu_product <> '' GROUP BY gpu_product
UNION ALL
SELECT 'part', d.product, d.slots, d.free, count(*)::int, 0
FROM tenants_gpudevice d JOIN h ON h.id = d.host_id
WHERE d.placeable AND d.free > 0 AND d.free <> (1 << d.slots) - 1 AND h.gpu_product <> ''
GROUP BY d.product, d.slots, d.free
UNION ALL
SELECT 'closed', d.product, d.slots, 0, count(*)::int,
       (count(*) FILTER (WHERE h.placeable AND d.free = (1 << d.slots) - 1))::int
FROM tenants_gpudevice d JOIN h ON h.id = d.host_id
WHERE NOT d.placeable AND d.removed_at IS NULL AND h.gpu_product <> '' GROUP BY d.product, d.slots
UNION ALL
SELECT 'each', d.product, d.slots, d.free, (count(*) FILTER (WHERE d.placeable))::int,
       (count(*) FILTER (WHERE NOT d.placeable))::int
FROM h CROSS JOIN LATERAL (
  SELECT product, slots, free, placeable FROM tenants_gpudevice g
  WHERE g.host_id = h.id AND g.removed_at IS NULL OFFSET 0
) AS d
WHERE h.gpu_product = '' AND h.gpu_count > 0 GROUP BY d.product, d.slots, d.free
"""
