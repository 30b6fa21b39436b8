"""Who has which part of a GPU, until when, and who had it before: strips, strips over time, lists.

For people of the platform, who see every tenant. In the caller's read block; a constant number of statements.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import Q, QuerySet
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext as _

from frontend.design.strip import Gpu, Run, SlotState, Span
from tenants.host_plans import MOVING, PLAN, STRAY
from tenants.models import Allocation, GpuDevice, Hold, Tenant, UsageRecord, UsageSubject
from tenants.states import HoldKind, ProductKind

STATE_OF: Final[Mapping[str, SlotState]] = {
    HoldKind.TENANT.value: SlotState.USED,
    HoldKind.FOREIGN.value: SlotState.FOREIGN,
    HoldKind.MAINTENANCE.value: SlotState.MAINTENANCE,
    HoldKind.FAULT.value: SlotState.FAULT,
    HoldKind.RESERVED.value: SlotState.RESERVED,
}
MOST_BEFORE: Final = 200
"""Ended uses that a page over time looks back on."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A part of a GPU that somebody or something has, had or will have."""

    device: UUID
    start: int
    size: int
    state: SlotState
    label: str
    """Name of the thing, or what it is kept for."""
    note: str
    """Size and tenant."""
    tenant: str
    tenant_title: str
    url: str
    since: datetime
    until: datetime | None
    """None: without an end that is known."""
    profile: str = ""
    is_reported: bool = True
    """False while the provider has not said where it really lies."""

    def run(self) -> Run:
        """Return it as a run of a strip."""
        return Run(self.state, self.size, self.label, self.note, self.tenant, self.url, self.since, self.until)

    def span(self) -> Span:
        """Return it as a block over time."""
        return Span(
            self.start, self.size, self.since, self.until, self.state, self.label, self.note, self.tenant, self.url
        )


def held(rows: QuerySet[Hold], *, now: datetime) -> dict[UUID, list[Kept]]:
    """Return GPU → what is kept on it now and later, by time and place; one statement."""
    found: dict[UUID, list[Kept]] = defaultdict(list)
    joined = rows.select_related("tenant", "unit__allocation")
    for hold in sorted(joined, key=lambda each: (each.during.lower, each.start)):
        found[hold.device_id].append(_kept(hold, now))
    return dict(found)


def _kept(hold: Hold, now: datetime) -> Kept:
    state = STATE_OF[hold.kind]
    if hold.unit is None or hold.tenant is None:
        return Kept(
            hold.device_id, hold.start, hold.size, state, purpose(hold), "", "", "", "",
            hold.during.lower, hold.during.upper,
        )  # fmt: skip
    allocation = hold.unit.allocation
    ends = allocation.expires_at
    return Kept(
        device=hold.device_id,
        start=hold.start,
        size=hold.size,
        state=state,
        label=allocation.name,
        note=f"{hold.profile or _('whole GPU')} · {hold.tenant.display_name}",
        tenant=hold.tenant.name,
        tenant_title=hold.tenant.display_name,
        url=product_url(allocation.product_kind, hold.tenant.name, allocation.name),
        since=hold.during.lower,
        until=ends if ends is not None and ends > now else None,  # past its term it is kept until it is given back
        profile=hold.profile,
        is_reported=hold.settled,
    )


def purpose(hold: Hold) -> str:
    """Return what a hold that is no tenant's is for, in words."""
    if hold.note.startswith(MOVING):
        return _("being moved away")
    if hold.note.startswith(STRAY):
        return _("runs here without room")
    if hold.note.startswith(PLAN):
        return _("kept empty by a plan")
    return hold.note


def product_url(kind: str, tenant: str, name: str) -> str:
    """Return the address of a thing, `""` for bare capacity, which has no page."""
    if kind == ProductKind.BARE:
        return ""
    try:
        return reverse(f"frontend:{kind}", kwargs={"tenant": tenant, "name": name})
    except NoReverseMatch:
        return ""


def ended(rows: QuerySet[UsageRecord], *, most: int = MOST_BEFORE) -> list[Kept]:
    """Return uses that are over, the latest first; at most four statements."""
    records = list(rows.filter(held_to__isnull=False).order_by("-held_to", "-held_from", "pk")[:most])
    tenants = Tenant.objects.in_bulk({row.tenant_id for row in records if row.tenant_id is not None})
    names = _names({row.allocation_id for row in records if row.allocation_id is not None})
    return [_past(row, tenants, names) for row in records]


def _names(keys: set[UUID]) -> dict[UUID, tuple[str, str]]:
    """Return allocation → (kind, name), also of those that are purged."""
    rows: Iterable[Any] = Allocation.objects.filter(pk__in=keys).values_list("pk", "product_kind", "name")
    found = {key: (kind, name) for key, kind, name in rows}
    missing = keys - set(found)
    gone = UsageSubject.objects.filter(pk__in=missing).values_list("pk", "kind", "name")
    return found | {key: (kind, name) for key, kind, name in gone}


def _past(row: UsageRecord, tenants: Mapping[UUID, Tenant], names: Mapping[UUID, tuple[str, str]]) -> Kept:
    tenant = tenants.get(row.tenant_id) if row.tenant_id is not None else None
    kind, name = names.get(row.allocation_id, ("", "")) if row.allocation_id is not None else ("", "")
    is_tenants = row.kind == HoldKind.TENANT.value
    title = tenant.display_name if tenant is not None else ""
    return Kept(
        device=row.device_id,
        start=row.start,
        size=row.size,
        state=STATE_OF[row.kind],
        label=name,
        note=f"{row.profile or _('whole GPU')} · {title}" if is_tenants else "",
        tenant=tenant.name if tenant is not None else "",
        tenant_title=title,
        url=product_url(kind, tenant.name, name) if kind and tenant is not None else "",
        since=row.held_from,
        until=row.held_to,
        profile=row.profile,
    )


# --- pictures -------------------------------------------------------------------------------------------


def strip(device: GpuDevice, kept: Sequence[Kept], *, now: datetime, url: str = "", name: str = "") -> Gpu:
    """Return a GPU as a strip of this moment; what is kept from later on counts as free."""
    runs: list[Run] = []
    at = 0
    present = (one for one in kept if one.since <= now and (one.until is None or one.until > now))
    for one in sorted(present, key=lambda each: each.start):
        if one.start < at:
            continue  # two speak of one slot only between a read and a write of the ledger
        if one.start > at:
            runs.append(Run(SlotState.FREE, one.start - at))
        runs.append(one.run())
        at = one.start + one.size
    if at < device.slots:
        runs.append(Run(SlotState.FREE, device.slots - at))
    return Gpu(name or _("GPU %(n)d") % {"n": device.index}, runs, url=url, note=device.product)


def spans(now_and_later: Sequence[Kept], before: Sequence[Kept], *, begin: datetime, end: datetime) -> list[Span]:
    """Return what is kept between two moments, as blocks over time."""
    every = [*before, *now_and_later]
    return [one.span() for one in every if one.since < end and (one.until is None or one.until > begin)]


def past_of(devices: Iterable[UUID], *, since: datetime) -> QuerySet[UsageRecord]:
    """Return the records of uses of some GPUs that ended after `since`."""
    return UsageRecord.objects.filter(Q(device_id__in=list(devices)) & Q(held_to__gt=since))
