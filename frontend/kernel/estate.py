"""The estate as operators look at it: filters in the address, hosts with what their GPUs are, who holds how much.

Reads only, in the caller's read block. The number of statements does not depend on the estate: each part is one
statement over all hosts that the filters leave, aggregated in PostgreSQL.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.db import connection
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy

from frontend.design.strip import SlotState
from tenants.models import Finding, GpuDevice, Hold, Host
from tenants.states import HoldKind, HostState

STATES: Final[Mapping[str, tuple[str | Promise, str, str | Promise]]] = {
    "joining": (
        gettext_lazy("Joining"),
        "info",
        gettext_lazy("The provider reported it. Nothing is placed here before it is accepted and opened."),
    ),
    "accepted": (
        gettext_lazy("Accepted"),
        "info",
        gettext_lazy("Every check has passed. Open it to let things be placed here."),
    ),
    "open": (gettext_lazy("Open"), "ok", gettext_lazy("Things are placed here.")),
    "cordoned": (
        gettext_lazy("Cordoned"),
        "warn",
        gettext_lazy("Nothing new is placed here; what is here goes on."),
    ),
    "draining": (
        gettext_lazy("Draining"),
        "warn",
        gettext_lazy("A plan empties it: what can move moves, the rest ends with its tenants."),
    ),
    "maintenance": (
        gettext_lazy("In maintenance"),
        "warn",
        gettext_lazy("It is empty and out of use until it is returned."),
    ),
    "removed": (gettext_lazy("Removed"), "quiet", gettext_lazy("It counts no longer; its history stays.")),
}
"""Host state → word, tone, sentence."""
LOOKS: Final[Mapping[str, str | Promise]] = {
    "free": gettext_lazy("With free room"),
    "fault": gettext_lazy("With a fault"),
    "foreign": gettext_lazy("Used by others"),
    "finding": gettext_lazy("With findings"),
}
"""What else the filter on states offers."""
ORDER: Final = (
    SlotState.FAULT, SlotState.MAINTENANCE, SlotState.FOREIGN, SlotState.RESERVED, SlotState.USED,
)  # fmt: skip
"""Whose slot it is where two speak of it: the first."""
BLOCK: Final = 24
"""Hosts on one page of their list, and in one cell of the map of a large estate."""
NOBODY: Final = "-"
"""No tenant has this name."""
Runs = tuple[tuple[SlotState, int], ...]
"""A GPU, slot 0 first."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What the address narrows the estate to; `tenant` narrows nothing, it lights up."""

    site: str = ""
    provider: str = ""
    product: str = ""
    state: str = ""
    tenant: str = ""

    @classmethod
    def of(cls, given: QueryDict) -> Filters:
        """Return the filters of an address."""
        return cls(**{each.name: given.get(each.name, "")[:200] for each in fields(cls)})

    @property
    def any(self) -> bool:
        """Whether any filter narrows the estate."""
        return any((self.site, self.provider, self.product, self.state))

    def query(self, **changes: str) -> str:
        """Return the query string of these filters with some changed, `""` without any."""
        chosen = replace(self, **changes)
        given = {each.name: getattr(chosen, each.name) for each in fields(chosen)}
        text = urlencode({name: value for name, value in given.items() if value})
        return f"?{text}" if text else ""


def hosts(filters: Filters) -> QuerySet[Host]:
    """Return the hosts that the filters leave; removed ones only where the filter asks for them."""
    rows = Host.objects.all()
    devices = GpuDevice.objects.filter(host=OuterRef("pk"), removed_at__isnull=True)
    if filters.site:
        rows = rows.filter(provider__site=filters.site)
    if filters.provider:
        rows = rows.filter(provider__name=filters.provider)
    if filters.product:
        mixed = Q(gpu_product="") & Exists(devices.filter(product=filters.product))
        rows = rows.filter(Q(gpu_product=filters.product, gpu_count__gt=0) | mixed)
    if filters.state != HostState.REMOVED:
        rows = rows.exclude(state=HostState.REMOVED)
    if filters.state in STATES:
        return rows.filter(state=filters.state)
    if filters.state == "free":
        return rows.filter(Exists(devices.filter(placeable=True, free__gt=0)))
    if filters.state == "fault":
        return rows.filter(Q(healthy=False) | Exists(devices.filter(healthy=False)))
    if filters.state == "foreign":
        return rows.filter(Exists(Hold.objects.filter(host=OuterRef("pk"), kind=HoldKind.FOREIGN.value)))
    if filters.state == "finding":
        return rows.filter(Exists(Finding.objects.filter(host=OuterRef("pk"), resolved_at__isnull=True)))
    return rows


# --- the heat map ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """One host of the heat map."""

    id: UUID
    short_id: str
    name: str
    state: str
    healthy: bool
    is_open: bool
    provider: str
    site: str
    gpus: tuple[Runs, ...]
    """Per GPU its runs."""
    holders: tuple[str, ...] = ()
    """Names of the tenants that hold room on it."""

    @property
    def slots(self) -> int:
        """Slots of all its GPUs."""
        return sum(size for gpu in self.gpus for _state, size in gpu)

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return sum(size for gpu in self.gpus for state, size in gpu if state is SlotState.FREE)


@dataclass(slots=True)
class Estate:
    """All that the heat map shows."""

    hosts: list[Seen]
    slots: dict[str, dict[SlotState, int]]
    """Product → state → slots."""
    shares: list[Share]

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return sum(len(host.gpus) for host in self.hosts)

    def sites(self) -> Iterator[tuple[str, list[Seen]]]:
        """Yield each site with its hosts."""
        found: dict[str, list[Seen]] = {}
        for host in self.hosts:
            found.setdefault(host.site, []).append(host)
        yield from sorted(found.items())


@dataclass(frozen=True, slots=True)
class Share:
    """How much one tenant holds."""

    name: str
    title: str
    hosts: int
    slots: int


def products(rows: QuerySet[Host]) -> list[str]:
    """Return the products of the GPUs of some hosts; of a host whose GPUs are all alike it says the host itself."""
    alike = rows.exclude(gpu_product="").values_list("gpu_product", flat=True).distinct().order_by()
    mixed = GpuDevice.objects.filter(removed_at__isnull=True, host__in=rows.filter(gpu_product="", gpu_count__gt=0))
    return sorted({*alike, *mixed.values_list("product", flat=True).distinct().order_by()})


def page_of(rows: QuerySet[Host], after: str, *, size: int = BLOCK) -> tuple[list[Host], str]:
    """Return one page by name, and the cursor of the next; the cursor is the short id of the last one shown."""
    last = Host.objects.filter(short_id=after).first() if after else None
    if last is not None:
        rows = rows.filter(Q(name__gt=last.name) | Q(name=last.name, pk__gt=last.pk))
    found = list(rows.order_by("name", "pk")[: size + 1])
    return found[:size], found[size - 1].short_id if len(found) > size else ""


def read(filters: Filters, *, now: datetime, most_lit: int) -> Estate:
    """Return the estate that the filters leave, by site, provider and name; five statements.

    Hosts know all their tenants up to `most_lit` hosts, beyond that only the one that the filters light up.
    """
    rows = list(
        hosts(filters)
        .order_by("provider__site", "provider__name", "name", "pk")
        .values_list("pk", "short_id", "name", "state", "healthy", "placeable", "provider__name", "provider__site")
    )
    keys = [row[0] for row in rows]
    within = {"every": not filters.any, "hosts": keys if filters.any else [], "product": filters.product, "now": now}
    faces: dict[UUID, tuple[Runs, ...]] = {}
    counted: Counter[str] = Counter()
    for host, text in _gpus(within):
        gpus = text.split(" ")
        counted.update(gpus)
        faces[host] = tuple(runs_in(gpu) for gpu in gpus)
    holders = _holders(within, "" if len(rows) <= most_lit else filters.tenant or NOBODY)
    seen = [Seen(*row, gpus=faces.get(row[0], ()), holders=tuple(holders.get(row[0], ()))) for row in rows]
    return Estate(seen, _sums(counted), shares(filters, now=now))


def _sums(counted: Mapping[str, int]) -> dict[str, dict[SlotState, int]]:
    found: dict[str, dict[SlotState, int]] = {}
    for gpu, count in counted.items():
        sums = found.setdefault(gpu.partition(":")[0], {})
        for state, size in runs_in(gpu):
            sums[state] = sums.get(state, 0) + size * count
    return found


def _gpus(within: Mapping[str, Any]) -> list[tuple[UUID, str]]:
    """Return (host, its GPUs by index): each as product, slots, and a mask per state of `ORDER`, between colons."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT d.host_id, string_agg(concat_ws(
                     ':', d.product, d.slots, coalesce(h.fault, 0), coalesce(h.maintenance, 0),
                     coalesce(h.used_past_us, 0), coalesce(h.reserved, 0), coalesce(h.tenant, 0)
                   ), ' ' ORDER BY d.index)
            FROM tenants_gpudevice d LEFT JOIN (
              SELECT device_id,
                     bit_or(window_mask) FILTER (WHERE kind = 'fault') AS fault,
                     bit_or(window_mask) FILTER (WHERE kind = 'maintenance') AS maintenance,
                     bit_or(window_mask) FILTER (WHERE kind = 'foreign') AS used_past_us,
                     bit_or(window_mask) FILTER (WHERE kind = 'reserved') AS reserved,
                     bit_or(window_mask) FILTER (WHERE kind = 'tenant') AS tenant
              FROM (SELECT device_id, kind, ((1 << size::int) - 1) << start::int AS window_mask FROM tenants_hold
                    WHERE during @> %(now)s AND (%(every)s OR host_id = ANY (%(hosts)s::uuid[]))) AS kept
              GROUP BY device_id
            ) AS h ON h.device_id = d.id
            WHERE d.removed_at IS NULL AND (%(every)s OR d.host_id = ANY (%(hosts)s::uuid[]))
              AND (%(product)s = '' OR d.product = %(product)s)
            GROUP BY d.host_id
            """,
            within,
        )
        rows: list[tuple[UUID, str]] = cursor.fetchall()
    return rows


@lru_cache(maxsize=16_384)
def runs_in(gpu: str) -> Runs:
    """Return the runs of a GPU as `_gpus` writes it."""
    _product, slots, *masks = gpu.split(":")
    return runs_of(int(slots), *map(int, masks))


@lru_cache(maxsize=16_384)
def runs_of(slots: int, *masks: int) -> Runs:
    """Return the runs of a GPU, slot 0 first, from one mask per state of `ORDER`; the rest is free."""
    runs: list[tuple[SlotState, int]] = []
    for slot in range(slots):
        state = next((ORDER[i] for i, mask in enumerate(masks) if mask >> slot & 1), SlotState.FREE)
        if runs and runs[-1][0] is state:
            runs[-1] = (state, runs[-1][1] + 1)
        else:
            runs.append((state, 1))
    return tuple(runs)


def shares(filters: Filters, *, now: datetime) -> list[Share]:
    """Return what each tenant holds of what the filters leave, the largest first."""
    chosen, given = hosts(filters).order_by().values("pk").query.sql_with_params()
    narrowed = f"AND o.host_id IN ({chosen})" if filters.any else ""
    if filters.product:
        narrowed += " AND EXISTS (SELECT 1 FROM tenants_gpudevice d WHERE d.id = o.device_id AND d.product = %s)"
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT t.name, t.display_name, held.hosts, held.slots
            FROM (SELECT tenant_id, count(*)::int AS hosts, sum(slots)::int AS slots
                  FROM (SELECT o.tenant_id, o.host_id, sum(o.size) AS slots FROM tenants_hold o
                        WHERE o.kind = 'tenant' AND o.during @> %s {narrowed} GROUP BY o.tenant_id, o.host_id) AS each
                  GROUP BY tenant_id) AS held
            JOIN tenants_tenant t ON t.id = held.tenant_id ORDER BY held.slots DESC, t.name
            """,  # noqa: S608 - ours; the choice of hosts comes from the ORM, with its parameters
            [now, *(given if filters.any else ()), *([filters.product] if filters.product else ())],
        )
        return [Share(*row) for row in cursor.fetchall()]


def _holders(within: Mapping[str, Any], tenant: str) -> dict[UUID, list[str]]:
    """Return host → names of the tenants on it, of one tenant if given."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT DISTINCT t.name, h.host_id FROM tenants_hold h JOIN tenants_tenant t ON t.id = h.tenant_id
            JOIN tenants_gpudevice d ON d.id = h.device_id
            WHERE h.kind = 'tenant' AND h.during @> %(now)s AND (%(every)s OR h.host_id = ANY (%(hosts)s::uuid[]))
              AND (%(product)s = '' OR d.product = %(product)s) AND (%(tenant)s = '' OR t.name = %(tenant)s)
            ORDER BY t.name
            """,
            {**within, "tenant": tenant},
        )
        found: dict[UUID, list[str]] = defaultdict(list)
        for name, host in cursor.fetchall():
            found[host].append(name)
    return dict(found)
