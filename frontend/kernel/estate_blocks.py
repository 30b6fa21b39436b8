"""A large estate in blocks of neighbouring hosts, grouped in PostgreSQL: what a map of thousands is drawn from.

A block is the next `estate.BLOCK` hosts of one provider by name, which is one page of the list of hosts. Reads only, in
the caller's read block; five statements whatever the estate's size, and as many rows as blocks have looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from django.db import connection

from frontend.design.heat import BLOCK_STEPS, WORST, Look
from frontend.design.strip import SIGNS, SlotState
from frontend.kernel import estate
from tenants import gpu_catalogue
from tenants.models import Provider

STATES: Final = (*WORST, SlotState.USED)
"""What a host shows: the first that is true of any of its slots. The order of `_SIZES`."""

CODES: Final = tuple(SIGNS[state].code for state in STATES)
COLUMNS: Final = ("id", "provider_id", "name", "short_id", "gpu_product", "placeable", "gpu_count")
"""What the statements read of the hosts that the filters leave."""


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring hosts of one provider."""

    site: str
    provider: str
    first: str
    """Name of its first host."""
    last: str
    after: str
    """Short id of the host before it, `""` for the first block of a provider."""
    hosts: int
    gpus: int
    free: int
    """Slots that nobody has."""
    open_free: int
    """Of them those on hosts that take new things."""
    closed: int
    """Hosts that take nothing new."""
    lit: int
    """Hosts on which the tenant that the filters light up holds something."""
    looks: tuple[Look, ...]
    """Of each host what it is at a glance, the worst first."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """All that the map of a large estate shows."""

    blocks: list[Block]
    kept: dict[str, dict[SlotState, int]]
    """Product → state → slots, but for the free ones."""
    shares: list[estate.Share]

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return sum(block.hosts for block in self.blocks)

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return sum(block.gpus for block in self.blocks)

    def sites(self) -> Iterator[tuple[str, list[Block]]]:
        """Yield each site with its blocks."""
        for site, found in groupby(self.blocks, key=lambda block: block.site):
            yield site, list(found)


def read(filters: estate.Filters, *, now: datetime) -> Blocks:
    """Return the estate that the filters leave, by site, provider and name of the hosts."""
    chosen, given = estate.hosts(filters).order_by().values(*COLUMNS).query.sql_with_params()
    product, tenant = filters.product, filters.tenant
    known = gpu_catalogue.products()
    names, slots = [one.id for one in known], [one.slices for one in known]
    rows = _rows(
        _BLOCKS.replace("<chosen>", chosen),
        [now, product, product, tenant, tenant, now, product, product, product, product, *given, names, slots],
    )
    kept: dict[str, dict[SlotState, int]] = {}
    mixed = _rows(_MIXED.replace("<chosen>", chosen), [*given, now, product, product])
    for row in [*mixed, *(row for row in rows if row["provider_id"] is None and row["gpu_product"])]:
        sums = kept.setdefault(row["gpu_product"], {})
        for number, state in enumerate(STATES):
            if size := row[f"s{number}"]:
                sums[state] = sums.get(state, 0) + size
    places = {row.pk: (row.site, row.name) for row in Provider.objects.all()}
    blocks = _merged((row for row in rows if row["provider_id"] is not None), places)
    return Blocks(sorted(blocks, key=lambda block: (block.site, block.provider)), kept, estate.shares(filters, now=now))


def _rows(query: str, given: Sequence[Any]) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(query, given)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _merged(rows: Iterable[Mapping[str, Any]], places: Mapping[UUID, tuple[str, str]]) -> Iterator[Block]:
    """Yield a block for all rows of it; each row counts the hosts of one look."""
    end = ""
    for (provider, number), found in groupby(rows, key=itemgetter("provider_id", "block")):
        parts = sorted(found, key=itemgetter("near"))
        hosts = gpus = free = open_free = closed = lit = 0
        looks: list[tuple[int, int, int]] = []
        after = end if number else ""
        end = ""
        for row in parts:
            hosts += row["hosts"]
            gpus += row["gpus"]
            free += row["free"]
            open_free += row["open_free"]
            closed += row["closed"]
            lit += row["lit"]
            looks.append((row["state"], -row["parts"], row["hosts"]))
            end = row["last_id"] or end
        looks.sort()
        yield Block(
            *places[provider],
            first=parts[0]["first"],
            last=max(parts, key=itemgetter("far"))["last"],
            after=after,
            hosts=hosts,
            gpus=gpus,
            free=free,
            open_free=open_free,
            closed=closed,
            lit=lit,
            looks=tuple(look for state, part, count in looks for look in ((CODES[state], -part),) * count),
        )


# Two holds of one slot never meet in time (`hold_no_overlap`), so sizes add up. A GPU that was taken out is no more.
_SIZES: Final = """
         coalesce(sum(o.size) FILTER (WHERE o.kind = 'fault'), 0) AS s0,
         coalesce(sum(o.size) FILTER (WHERE o.kind = 'maintenance'), 0) AS s1,
         coalesce(sum(o.size) FILTER (WHERE o.kind = 'foreign'), 0) AS s2,
         coalesce(sum(o.size) FILTER (WHERE o.kind = 'reserved'), 0) AS s3,
         coalesce(sum(o.size) FILTER (WHERE o.kind = 'tenant'), 0) AS s4"""

# A host whose GPUs are all alike has as many slots as the catalogue says, as inventory writes them; only of the others
# is each GPU read. The last host of a block is where the list of hosts goes on for the next. Two sums of one reading:
# by provider, block and look, and by product.
_BLOCKS: Final = f"""
WITH kept AS (
  SELECT o.host_id, {_SIZES}
  FROM tenants_hold o
  WHERE o.during @> %s AND o.device_id NOT IN (SELECT id FROM tenants_gpudevice WHERE removed_at IS NOT NULL)
    AND (%s = '' OR o.host_id NOT IN (SELECT id FROM tenants_host WHERE gpu_product = '')
         OR EXISTS (SELECT 1 FROM tenants_gpudevice d WHERE d.id = o.device_id AND d.product = %s))
  GROUP BY o.host_id
), lit AS (
  SELECT DISTINCT o.host_id FROM tenants_hold o JOIN tenants_tenant t ON t.id = o.tenant_id
  WHERE %s <> '' AND t.name = %s AND o.kind = 'tenant' AND o.during @> %s
), numbered AS (
  SELECT h.provider_id, h.name, h.short_id, h.gpu_product, h.placeable AS is_open, lit.host_id IS NOT NULL AS is_lit,
         (row_number() OVER (PARTITION BY h.provider_id ORDER BY h.name, h.id))::int - 1 AS place,
         CASE WHEN c.slots IS NULL THEN (SELECT count(*)::int FROM tenants_gpudevice d WHERE d.host_id = h.id
                AND d.removed_at IS NULL AND (%s = '' OR d.product = %s)) ELSE h.gpu_count END AS gpus,
         CASE WHEN c.slots IS NULL THEN (SELECT coalesce(sum(d.slots), 0)::int FROM tenants_gpudevice d
                WHERE d.host_id = h.id AND d.removed_at IS NULL AND (%s = '' OR d.product = %s))
              ELSE h.gpu_count * c.slots END AS slots,
         coalesce(k.s0, 0)::int AS s0, coalesce(k.s1, 0)::int AS s1, coalesce(k.s2, 0)::int AS s2,
         coalesce(k.s3, 0)::int AS s3, coalesce(k.s4, 0)::int AS s4
  FROM (<chosen>) AS h LEFT JOIN unnest(%s::text[], %s::int[]) AS c(name, slots) ON c.name = h.gpu_product
  LEFT JOIN kept k ON k.host_id = h.id LEFT JOIN lit ON lit.host_id = h.id
), seen AS (
  SELECT *, place / {estate.BLOCK} AS block, slots - s0 - s1 - s2 - s3 - s4 AS free,
         CASE WHEN s0 > 0 THEN 0 WHEN s1 > 0 THEN 1 WHEN s2 > 0 THEN 2 WHEN s3 > 0 THEN 3 ELSE 4 END AS state,
         CASE WHEN s0 > 0 THEN s0 WHEN s1 > 0 THEN s1 WHEN s2 > 0 THEN s2 WHEN s3 > 0 THEN s3 ELSE s4 END AS taken
  FROM numbered
), drawn AS (
  SELECT *, (taken * {BLOCK_STEPS} + greatest(slots, 1) - 1) / greatest(slots, 1) AS parts FROM seen
)
SELECT provider_id, block, state, parts, gpu_product, count(*)::int AS hosts, sum(gpus)::int AS gpus,
       sum(free)::int AS free, coalesce(sum(free) FILTER (WHERE is_open), 0)::int AS open_free,
       (count(*) FILTER (WHERE NOT is_open))::int AS closed, (count(*) FILTER (WHERE is_lit))::int AS lit,
       min(place) AS near, min(name) AS first, max(place) AS far, max(name) AS last,
       max(short_id) FILTER (WHERE mod(place, {estate.BLOCK}) = {estate.BLOCK - 1}) AS last_id,
       sum(s0)::int AS s0, sum(s1)::int AS s1, sum(s2)::int AS s2, sum(s3)::int AS s3, sum(s4)::int AS s4
FROM drawn GROUP BY GROUPING SETS ((provider_id, block, state, parts), (gpu_product)) ORDER BY provider_id, block
"""  # noqa: S608 - ours; the choice of hosts comes from the ORM, with its parameters

# Hosts with GPUs of several products are few; the fence keeps the planner from reading all holds for them.
_MIXED: Final = f"""
SELECT o.product AS gpu_product, {_SIZES}
FROM (<chosen>) AS h CROSS JOIN LATERAL (
  SELECT d.product, k.kind, k.size FROM tenants_hold k JOIN tenants_gpudevice d ON d.id = k.device_id
  WHERE k.host_id = h.id AND k.during @> %s AND d.removed_at IS NULL OFFSET 0
) AS o
WHERE h.gpu_product = '' AND (%s = '' OR o.product = %s)
GROUP BY o.product
"""  # noqa: S608 - as above
