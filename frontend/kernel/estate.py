"""The estate as operators look at it: filters in the address, hosts with what their GPUs are, who holds how much.

Reads only, in the caller's read block. The number of statements does not depend on the estate: each part is one
statement over all hosts that the filters leave, aggregated in PostgreSQL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.db import connection
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext as _
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
        rows = rows.filter(Exists(devices.filter(product=filters.product)))
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
    gpus: tuple[tuple[tuple[SlotState, int], ...], ...]
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

    @property
    def words(self) -> str:
        """Return what the cell says: name, then free room or why there is none to be had."""
        word = str(STATES[self.state][0]) if self.state != HostState.OPEN else _("not available")
        room = _("%(free)s of %(all)s free") % {"free": self.free, "all": self.slots}
        return f"{self.name}: {room}" if self.is_open else f"{self.name}: {word}, {room}"


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


@dataclass(slots=True)
class Share:
    """How much one tenant holds."""

    name: str
    title: str
    gpus: int = 0
    slots: int = 0
    hosts: set[UUID] = field(default_factory=set)


def read(filters: Filters, *, now: datetime) -> Estate:
    """Return the estate that the filters leave, by site, provider and name; three statements."""
    rows = list(
        hosts(filters)
        .order_by("provider__site", "provider__name", "name", "pk")
        .values_list("pk", "short_id", "name", "state", "healthy", "placeable", "provider__name", "provider__site")
    )
    keys = [row[0] for row in rows]
    faces: dict[UUID, list[tuple[tuple[SlotState, int], ...]]] = defaultdict(list)
    slots: dict[str, dict[SlotState, int]] = {}
    for host, product, count, *masks in _gpus(keys, filters.product, now):
        runs = runs_of(count, *masks)
        faces[host].append(runs)
        sums = slots.setdefault(product, {})
        for state, size in runs:
            sums[state] = sums.get(state, 0) + size
    shares, holders = _shares(keys, filters.product, now)
    seen = [Seen(*row, gpus=tuple(faces.get(row[0], ())), holders=tuple(holders.get(row[0], ()))) for row in rows]
    return Estate(seen, slots, shares)


def _gpus(keys: Sequence[UUID], product: str, now: datetime) -> Iterable[Sequence[Any]]:
    """Return (host, product, slots, mask per state of `ORDER`) of each GPU of some hosts, in order of index."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT d.host_id, d.product, d.slots, coalesce(h.fault, 0), coalesce(h.maintenance, 0),
                   coalesce(h.used_past_us, 0), coalesce(h.reserved, 0), coalesce(h.tenant, 0)
            FROM tenants_gpudevice d LEFT JOIN (
              SELECT device_id,
                     bit_or(window_mask) FILTER (WHERE kind = 'fault') AS fault,
                     bit_or(window_mask) FILTER (WHERE kind = 'maintenance') AS maintenance,
                     bit_or(window_mask) FILTER (WHERE kind = 'foreign') AS used_past_us,
                     bit_or(window_mask) FILTER (WHERE kind = 'reserved') AS reserved,
                     bit_or(window_mask) FILTER (WHERE kind = 'tenant') AS tenant
              FROM (SELECT device_id, kind, ((1 << size::int) - 1) << start::int AS window_mask
                    FROM tenants_hold WHERE during @> %(now)s AND host_id = ANY (%(hosts)s)) AS kept
              GROUP BY device_id
            ) AS h ON h.device_id = d.id
            WHERE d.removed_at IS NULL AND d.host_id = ANY (%(hosts)s) AND (%(product)s = '' OR d.product = %(product)s)
            ORDER BY d.host_id, d.index
            """,
            {"now": now, "hosts": list(keys), "product": product},
        )
        rows: list[Sequence[Any]] = cursor.fetchall()
    return rows


@lru_cache(maxsize=16_384)
def runs_of(slots: int, *masks: int) -> tuple[tuple[SlotState, int], ...]:
    """Return the runs of a GPU, slot 0 first, from one mask per state of `ORDER`; the rest is free."""
    runs: list[tuple[SlotState, int]] = []
    for slot in range(slots):
        state = next((ORDER[i] for i, mask in enumerate(masks) if mask >> slot & 1), SlotState.FREE)
        if runs and runs[-1][0] is state:
            runs[-1] = (state, runs[-1][1] + 1)
        else:
            runs.append((state, 1))
    return tuple(runs)


def _shares(keys: Sequence[UUID], product: str, now: datetime) -> tuple[list[Share], dict[UUID, list[str]]]:
    """Return what each tenant holds on some hosts, the largest first, and host → names of its tenants."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT h.host_id, t.name, t.display_name, count(DISTINCT h.device_id), sum(h.size)
            FROM tenants_hold h JOIN tenants_tenant t ON t.id = h.tenant_id
            JOIN tenants_gpudevice d ON d.id = h.device_id
            WHERE h.kind = 'tenant' AND h.during @> %(now)s AND h.host_id = ANY (%(hosts)s)
              AND (%(product)s = '' OR d.product = %(product)s)
            GROUP BY h.host_id, t.name, t.display_name ORDER BY t.name
            """,
            {"now": now, "hosts": list(keys), "product": product},
        )
        rows = cursor.fetchall()
    shares: dict[str, Share] = {}
    holders: dict[UUID, list[str]] = defaultdict(list)
    for host, name, title, gpus, size in rows:
        share = shares.setdefault(name, Share(name, title))
        share.gpus += gpus
        share.slots += size
        share.hosts.add(host)
        holders[host].append(name)
    return sorted(shares.values(), key=lambda one: (-one.slots, one.name)), dict(holders)
