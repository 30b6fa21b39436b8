"""What approving a request would do, as the page of the decision shows it: from the operation itself, undone.

GPUs, limits and cost before and after are read inside the same transaction that tries the approval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from django.utils.translation import gettext as _

from frontend.design.quota_bar import QuotaLine
from frontend.design.strip import Gpu, Run, SlotState
from frontend.kernel import asks, words
from tenants.actor import Actor
from tenants.errors import ControlPlaneError
from tenants.models import Allocation, GpuDevice, Hold, Request
from tenants.operations import quotas, requests
from tenants.quota import TenantLimits
from tenants.states import RequestKind

NEW: Final = "new"
STATES: Final[Mapping[str, SlotState]] = {
    "tenant": SlotState.OTHERS,
    "foreign": SlotState.FOREIGN,
    "maintenance": SlotState.MAINTENANCE,
    "fault": SlotState.FAULT,
    "reserved": SlotState.RESERVED,
}


@dataclass(frozen=True, slots=True)
class Bars:
    """One limit before and after."""

    tenant: str
    before: QuotaLine
    after: QuotaLine
    changes: bool
    is_gpu: bool


@dataclass(slots=True)
class Forecast:
    """What approving would do now; with `problem` it cannot be approved."""

    proof: dict[str, Any] | None = None
    problem: str = ""
    code: str = ""
    before: list[Gpu] = field(default_factory=list)
    after: list[Gpu] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """Return `runs`, `grants`, `waits` or `""`."""
        return str(self.proof["outcome"]) if self.proof is not None else ""

    @property
    def sentence(self) -> str:
        """Return what comes of it in one sentence."""
        return {
            "runs": _("It starts at once."),
            "grants": _("It is granted at once."),
            "waits": _("It is granted, and waits for room."),
        }.get(self.outcome, self.problem)

    @property
    def tone(self) -> str:
        """Return the tone of the sentence."""
        return {"runs": "ok", "grants": "ok", "waits": "warn"}.get(self.outcome, "bad")

    @property
    def why(self) -> str:
        """Return why it would wait."""
        return words.plain(str((self.proof or {}).get("why", "")))

    @property
    def cost(self) -> dict[str, Any] | None:
        """Return total, currency and end; None where nothing is priced."""
        found = (self.proof or {}).get("cost")
        if not found:
            return None
        return {
            "total": Decimal(found["total"]),
            "currency": found["currency"],
            "until": datetime.fromisoformat(found["until"]),
        }

    @property
    def wish(self) -> dict[str, Any] | None:
        """Return what a tenant would start with: name, model, whether it starts and why not; None without a wish."""
        found: dict[str, Any] | None = (self.proof or {}).get("wish")
        return {**found, "why": words.plain(str(found.get("why", "")))} if found else None

    @property
    def delays(self) -> list[dict[str, Any]]:
        """Return who waits for the same GPUs."""
        found = (self.proof or {}).get("delays", [])
        return [{**one, "since": datetime.fromisoformat(one["since"]) if one["since"] else None} for one in found]


def of(row: Request, actor: Actor, *, now: datetime) -> Forecast:
    """Return the forecast of a request, inside the caller's read block; nothing of it stays."""
    found = Forecast()
    dimensions = _dimensions(row)
    levels = quotas.position(row.tenant, dimensions) if row.tenant is not None and dimensions else ()
    later: list[TenantLimits] = []

    def look() -> None:
        if row.tenant is not None and dimensions and row.kind == RequestKind.QUOTA.value:
            later.extend(quotas.position(row.tenant, dimensions))
        taken = row.allocation or _first_of(row, now=now)
        if taken is not None:
            found.before, found.after = _strips(taken, actor, now=now)

    try:
        found.proof = requests.proof(request=row, actor=actor, now=now, look=look)
    except ControlPlaneError as error:
        found.problem, found.code = words.plain(error.detail), error.specific_code
    found.bars = _bars(row, levels, later or levels, dimensions, now=now)
    return found


def _dimensions(row: Request) -> list[str]:
    """Return what bars are drawn for: what is asked, and the GPUs of what waits."""
    wanted = set(asks.all_limits(row.payload))
    if row.allocation is not None:
        wanted |= {name for name in row.allocation.demand if name.startswith("gpu.") and name.endswith(".slices")}
    return sorted(wanted, key=lambda name: (not name.startswith("gpu."), name))


def _bars(
    row: Request,
    levels: Sequence[TenantLimits],
    later: Sequence[TenantLimits],
    dimensions: Sequence[str],
    *,
    now: datetime,
) -> list[Bars]:
    demand = row.allocation.demand if row.allocation is not None else {}
    found = []
    for dimension in dimensions:
        is_gpu = dimension.startswith("gpu.")
        for level, then in zip(reversed(levels), reversed(later), strict=True):
            if dimension in level.inherits:
                continue
            before, after = _limit(level, dimension, now=now), _limit(then, dimension, now=now)
            line = _line(level, dimension, before, requested=int(demand.get(dimension, 0)))
            found.append(Bars(level.tenant, line, _line(then, dimension, after, requested=0), before != after, is_gpu))
    return found


def _limit(level: TenantLimits, dimension: str, *, now: datetime) -> int:
    return sum(
        int(each.amount)
        for each in level.limits
        if each.dimension == dimension and (each.until is None or each.until > now)
    )


def _line(level: TenantLimits, dimension: str, limit: int, *, requested: int) -> QuotaLine:
    label = _("%(what)s of %(tenant)s") % {"what": asks.dimension(dimension), "tenant": level.tenant}
    return QuotaLine(
        label=label[:1].upper() + label[1:],
        unit="slot" if dimension.startswith("gpu.") and dimension.endswith(".slices") else "",
        used=int(level.usage.held.get(dimension, 0)),
        pending=int(level.usage.pending.get(dimension, 0)),
        requested=requested,
        limit=limit,
    )


# --- strips -----------------------------------------------------------------------------------------------


def _first_of(row: Request, *, now: datetime) -> Allocation | None:
    """Return what the tenant that is being tried starts with, None where nothing starts."""
    if row.kind != RequestKind.TENANT.value:
        return None
    rows = Allocation.objects.filter(tenant__name=row.payload["name"], requester_id=row.requester_id, created_at=now)
    return rows.select_related("tenant").first()


def _strips(taken: Allocation, actor: Actor, *, now: datetime) -> tuple[list[Gpu], list[Gpu]]:
    """Return the GPUs that would be taken, before and after; called while the approval is tried."""
    mine = list(Hold.objects.filter(unit__allocation_id=taken.pk).values_list("device_id", "start", "size"))
    devices = {device for device, _start, _size in mine}
    holds = list(Hold.objects.filter(device_id__in=devices, during__contains=now).exclude(
        unit__allocation_id=taken.pk
    ))  # fmt: skip
    found = GpuDevice.objects.filter(pk__in=devices).select_related("host__provider").order_by("host__name", "index")
    before, after = [], []
    label = taken.name or NEW
    for device in found:
        windows = [(start, size) for key, start, size in mine if key == device.pk]
        around = [hold for hold in holds if hold.device_id == device.pk]
        cells = _cells(device, around, windows, taken.tenant_id, sees_all=actor.sees_all)
        then = list(cells)
        for start, size in windows:
            then[start : start + size] = [(SlotState.MINE, label, NEW)] * size
        before.append(_gpu(device, cells))
        after.append(_gpu(device, then))
    return before, after


Cell = tuple[SlotState, str, str]
"""State, label, holder."""


def _cells(
    device: GpuDevice, holds: Sequence[Hold], windows: Sequence[tuple[int, int]], tenant_id: UUID, *, sees_all: bool
) -> list[Cell]:
    """Return each slot as it is now; who does not see the estate sees one grey beside what his tenant holds."""
    free = device.free
    for start, size in windows:
        free |= ((1 << size) - 1) << start
    rest: Cell = (SlotState.OTHERS, "", "")
    empty: Cell = (SlotState.FREE, "", "") if sees_all else rest
    cells = [empty if free >> slot & 1 else rest for slot in range(device.slots)]
    for start, size in windows:
        cells[start : start + size] = [(SlotState.FREE, "", "")] * size
    for hold in holds:
        own = hold.tenant_id is not None and hold.tenant_id == tenant_id
        if not own and not sees_all:
            continue
        state = SlotState.MINE if own else STATES.get(hold.kind, SlotState.OTHERS)
        holder = str(hold.tenant_id or hold.pk)
        cells[hold.start : hold.start + hold.size] = [(state, hold.profile if own else "", holder)] * hold.size
    return cells


def _gpu(device: GpuDevice, cells: Sequence[Cell]) -> Gpu:
    runs: list[Run] = []
    last: Cell | None = None
    for cell in cells:
        if cell == last:
            previous = runs.pop()
            runs.append(Run(previous.state, previous.size + 1, label=previous.label, holder=previous.holder))
        else:
            runs.append(Run(cell[0], 1, label=cell[1], holder=cell[2]))
        last = cell
    place = f"{device.host.name}, {device.host.provider.name}, {device.host.provider.site}"
    return Gpu(name=_("GPU %(n)d") % {"n": device.index}, runs=runs, note=f"{device.product}, {place}")
