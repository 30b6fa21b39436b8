"""Plans over hosts in words: how far one is, whom it touches and how hard, who was told, the host before and after.

Reads in the caller's read block; the number of queries does not depend on how many things a plan touches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db.models import Count, Q, Sum
from django.utils.dateparse import parse_datetime
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.design.strip import Gpu, Run, SlotState
from frontend.kernel import estate_windows
from tenants import host_plans, layout_plans
from tenants.layout_plans import Stage, Wish
from tenants.models import EndpointKey, EndpointUsage, GpuDevice, Hold, HostPlan, Notice
from tenants.states import ProductKind

Text = str | Promise
USED_WITHIN: Final = timedelta(days=1)
KINDS: Final[Mapping[str, tuple[Text, str]]] = {
    host_plans.DRAIN: (gettext_lazy("Drain"), "log-out"),
    host_plans.REPAIR: (gettext_lazy("Repair of a GPU"), "wrench"),
    host_plans.RETURN: (gettext_lazy("Return to service"), "log-in"),
    host_plans.LAYOUT: (gettext_lazy("Layout change"), "layout-grid"),
}
STATES: Final[Mapping[str, tuple[Text, str, str]]] = {
    "notice": (gettext_lazy("Notice runs"), "info", "hourglass"),
    "moving": (gettext_lazy("Under way"), "info", "loader-circle"),
    "cancelling": (gettext_lazy("Being rolled back"), "warn", "undo-2"),
    "done": (gettext_lazy("Done"), "ok", "circle-check"),
    "cancelled": (gettext_lazy("Cancelled"), "quiet", "x"),
    "failed": (gettext_lazy("Failed"), "bad", "octagon-x"),
}
"""Where a plan stands → word, tone, icon."""
UNITS: Final[Mapping[str, tuple[Text, str, str]]] = {
    "pending": (gettext_lazy("Not yet"), "quiet", "circle-dashed"),
    "moved": (gettext_lazy("Moved"), "ok", "circle-check"),
    "gone": (gettext_lazy("Gone"), "ok", "circle-check"),
    "waiting for room": (gettext_lazy("Waits for room"), "warn", "hourglass"),
    "waiting for tenant": (gettext_lazy("Waits for its tenant"), "warn", "user-round"),
}
"""State of one thing → word, tone, icon."""
OVER: Final = frozenset({"moved", "gone"})


def kind(row: HostPlan) -> str:
    """Return what kind of plan it is, in words."""
    found = KINDS.get(row.kind)
    return str(found[0]) if found else row.kind


def stands(row: HostPlan, *, now: datetime) -> str:
    """Return where a plan stands: `notice`, `moving`, `cancelling`, `done`, `cancelled`, `failed`."""
    if row.state != "running":
        return str(row.state)
    if "cancelling" in row.observed:
        return "cancelling"
    return "notice" if row.starts_at > now and "started" not in row.observed else "moving"


def badge(row: HostPlan, *, now: datetime) -> dict[str, str]:
    """Return where a plan stands, for a badge."""
    word, tone, icon = STATES[stands(row, now=now)]
    return {"text": str(word), "tone": tone, "icon": icon}


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing that a plan touches."""

    name: str
    url: str
    tenant: str
    moves: bool
    to: str
    state: dict[str, str]
    is_over: bool
    keys: int = 0
    """Keys of an endpoint that work."""
    used_keys: int = 0
    """Of them, used in the last day."""
    calls: int | None = None
    """Requests in the last day; None for what takes none."""


def things(row: HostPlan, *, now: datetime) -> list[Thing]:
    """Return what a plan touches with its state of now, what is not over first; at most four statements."""
    entries = host_plans.progress(row) if row.state == "running" else row.touched
    endpoints = {UUID(one["object_id"]) for one in entries if one["object_kind"] == ProductKind.ENDPOINT.value}
    keys = _keys(endpoints, now=now)
    calls = _calls(endpoints, now=now)
    found = [_thing(one, keys, calls) for one in entries]
    return sorted(found, key=lambda one: (one.is_over, one.tenant, one.name))


def _thing(entry: Mapping[str, Any], keys: Mapping[UUID, tuple[int, int]], calls: Mapping[UUID, int]) -> Thing:
    key = UUID(entry["object_id"])
    is_endpoint = entry["object_kind"] == ProductKind.ENDPOINT.value
    word, tone, icon = UNITS.get(entry["state"], (entry["state"], "quiet", ""))
    is_product = entry["object_kind"] in {kind.value for kind in ProductKind}
    live, used = keys.get(key, (0, 0))
    return Thing(
        name=entry["name"],
        url=estate_windows.product_url(entry["object_kind"], entry["tenant_name"], entry["name"]) if is_product else "",
        tenant=entry["tenant_name"],
        moves=entry["action"] == "move",
        to=entry["to"],
        state={"text": str(word), "tone": tone, "icon": icon},
        is_over=entry["state"] in OVER,
        keys=live,
        used_keys=used,
        calls=calls.get(key, 0) if is_endpoint else None,
    )


def _keys(endpoints: set[UUID], *, now: datetime) -> dict[UUID, tuple[int, int]]:
    rows: Any = EndpointKey.objects.filter(endpoint_id__in=endpoints, revoked_at__isnull=True)
    rows = rows.filter(Q(expires_at__isnull=True) | Q(expires_at__gt=now))
    counted = rows.values("endpoint_id").annotate(
        n=Count("pk"), used=Count("pk", filter=Q(last_used_at__gte=now - USED_WITHIN))
    )
    return {one["endpoint_id"]: (one["n"], one["used"]) for one in counted}


def _calls(endpoints: set[UUID], *, now: datetime) -> dict[UUID, int]:
    rows: Any = EndpointUsage.objects.filter(endpoint_id__in=endpoints, hour__gte=now - USED_WITHIN)
    return {one["endpoint_id"]: one["n"] or 0 for one in rows.values("endpoint_id").annotate(n=Sum("requests"))}


@dataclass(frozen=True, slots=True)
class Blast:
    """How far a plan reaches."""

    tenants: int
    things: int
    move: int
    no_room: int
    """Could not be placed elsewhere when the plan was made."""
    wait: int
    """Only their tenants can let go."""
    keys: int
    used_keys: int
    calls: int
    over: int


def blast(found: Sequence[Thing]) -> Blast:
    """Return how far a plan reaches."""
    return Blast(
        tenants=len({one.tenant for one in found}),
        things=len(found),
        move=sum(one.moves for one in found),
        no_room=sum(one.moves and not one.to for one in found),
        wait=sum(not one.moves for one in found),
        keys=sum(one.keys for one in found),
        used_keys=sum(one.used_keys for one in found),
        calls=sum(one.calls or 0 for one in found),
        over=sum(one.is_over for one in found),
    )


def steps(row: HostPlan, *, now: datetime) -> list[dict[str, str]]:
    """Return the steps of a plan with where it stands, for the guide on top."""
    at = stands(row, now=now)
    if row.kind == host_plans.RETURN:
        labels = [_("Asked for"), _("Provider told"), _("Open again")]
        done = {"moving": 1, "done": 3}.get(at, 1)
    elif row.kind == host_plans.REPAIR:
        labels = [_("Tenants told"), _("Moved off the GPU"), _("Nobody left on it")]
        done = {"moving": 1, "done": 3}.get(at, 1)
    elif row.kind == host_plans.LAYOUT:
        labels = [
            _("Tenants told"),
            _("Notice"),
            _("Moved and let go"),
            _("Carved"),
            _("Compared"),
            _("In service again"),
        ]
        reached = {Stage.DRAIN: 2, Stage.CARVE: 3, Stage.COMPARE: 4, Stage.RESTORE: 3}[layout_plans.stage(row)]
        done = {"notice": 1, "done": 6}.get(at, reached)
    else:
        labels = [_("Tenants told"), _("Notice"), _("Moved and let go"), _("In maintenance")]
        done = {"notice": 1, "moving": 2, "done": 4}.get(at, 2)
    found = []
    for number, label in enumerate(labels):
        state = "done" if number < done else ("current" if number == done and row.state == "running" else "todo")
        if at in {"cancelled", "cancelling", "failed"} and number == done:
            state = "failed"
        found.append({"label": label, "state": state})
    return found


def notices(row: HostPlan) -> list[dict[str, Any]]:
    """Return who was told what, and when."""
    found = Notice.objects.filter(object_kind="host-plan", object_id=row.pk).select_related("tenant")
    return [{"tenant": one.tenant.name, "at": one.at, "text": one.text} for one in found.order_by("at", "pk")]


def pictures(row: HostPlan, *, now: datetime) -> list[dict[str, Gpu]]:
    """Return each GPU that a plan is about as it is now and as it will be.

    None for a plan that has ended; a layout change then shows what was and what was to be.
    """
    if row.kind == host_plans.LAYOUT:
        return _carvings(row, now=now)
    if row.state != "running":
        return []
    devices = GpuDevice.objects.filter(host_id=row.host_id, removed_at__isnull=True).order_by("index")
    if row.observed.get("device"):
        devices = devices.filter(pk=row.observed["device"])
    held = estate_windows.held(Hold.objects.filter(host_id=row.host_id), now=now)
    after = {
        host_plans.RETURN: Run(SlotState.FREE, 0),
        host_plans.REPAIR: Run(SlotState.FAULT, 0, label=_("faulty")),
    }.get(row.kind, Run(SlotState.MAINTENANCE, 0, label=_("in service")))
    return [
        {
            "now": estate_windows.strip(device, held.get(device.pk, ()), now=now),
            "after": Gpu(
                _("GPU %(n)d") % {"n": device.index},
                [Run(after.state, device.slots, label=after.label)],
                note=device.product,
            ),
        }
        for device in devices
    ]


def _carvings(row: HostPlan, *, now: datetime) -> list[dict[str, Gpu]]:
    wanted = [gpu for gpu in Wish.from_json(row.layout).gpus if gpu.differs]
    devices = {device.pk: device for device in GpuDevice.objects.filter(pk__in=[gpu.id for gpu in wanted])}
    held = estate_windows.held(Hold.objects.filter(host_id=row.host_id), now=now) if row.state == "running" else {}
    return [
        {
            "now": estate_windows.strip(device, held.get(gpu.id, ()), now=now)
            if row.state == "running"
            else layout_strip(gpu.index, gpu.product, device.slots, gpu.before),
            "after": layout_strip(gpu.index, gpu.product, device.slots, gpu.after),
        }
        for gpu in wanted
        for device in (devices[gpu.id],)
    ]


def layout_strip(index: int, product: str, slots: int, windows: layout_plans.Windows | None) -> Gpu:
    """Return how a GPU is carved, as a strip; what no part takes stays unnamed."""
    runs: list[Run] = []
    at = 0
    for start, size, profile in windows or ():
        if start > at:
            runs.append(Run(SlotState.FREE, start - at))
        runs.append(Run(SlotState.FREE, size, label=profile))
        at = start + size
    if at < slots:
        label = "" if windows else layout_words(windows)
        runs.append(Run(SlotState.FREE, slots - at, label=label))
    return Gpu(_("GPU %(n)d") % {"n": index}, runs, note=f"{product}: {layout_words(windows)}")


def layout_words(windows: layout_plans.Windows | None) -> str:
    """Return a layout in words."""
    if windows is None:
        return _("unknown")
    counted = Counter(profile for _start, _size, profile in windows)
    return ", ".join(f"{count} × {profile}" for profile, count in sorted(counted.items())) or _("whole")


def moment(row: HostPlan, name: str) -> datetime | None:
    """Return a moment that the passes noted: `started`, `ended`."""
    text = row.observed.get(name)
    return parse_datetime(text) if isinstance(text, str) else None
