"""What a layout change of a host is: which GPUs, from what to what, who stands in the way of it.

A plan's `layout` holds a `Wish`. Only GPUs whose layout differs are emptied and carved; the others of the host go on.
What stands in the way is said by the ledger, which inventory keeps no freer than the provider's last report: a GPU
counts as empty by report alone, and where a report does not say which GPU is used, all of the host's have to be empty.
Plain functions inside the caller's transaction, the host being locked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from django.utils.dateparse import parse_datetime

from tenants import geometry, host_plans
from tenants.errors import InvalidSpec
from tenants.gpu_catalogue import UnknownProduct, UnknownProfile
from tenants.models import GpuDevice, Hold, Host, HostPlan, MigDevice, Unit
from tenants.states import Binding, HoldKind, HostState

Windows = tuple[tuple[int, int, str], ...]
"""Carved MIG devices: (start, size, profile), by start."""
EVERY: Final = "all"
"""Names, in what is asked for, every GPU that is not named otherwise."""
EMPTIED: Final = frozenset({HostState.OPEN.value, HostState.CORDONED.value})
"""States that a layout change turns into draining; of the others nothing is placed on a host anyway."""


class Stage(StrEnum):
    """How far a layout change is, in its plan's `observed`."""

    DRAIN = "drain"
    """Cordoned; units move or are waited for."""
    CARVE = "carve"
    """The provider is at work."""
    COMPARE = "compare"
    """It says that it is done; inventory has to show it."""
    RESTORE = "restore"
    """It failed, took too long or was cancelled: what was changed is changed back."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of a wish."""

    id: UUID
    ref: str
    """The provider's id."""
    index: int
    product: str
    before: Windows | None
    """None where the provider did not tell it; then nothing can be changed back."""
    after: Windows

    @property
    def differs(self) -> bool:
        """Whether it has to be emptied and carved; where the windows of equal profiles lie is the provider's."""
        return self.before is None or profiles(self.before) != profiles(self.after)

    def as_json(self) -> dict[str, Any]:
        """Return the stored shape."""
        return {
            "id": str(self.id),
            "ref": self.ref,
            "index": self.index,
            "product": self.product,
            "before": None if self.before is None else [list(window) for window in self.before],
            "after": [list(window) for window in self.after],
            "differs": self.differs,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Gpu:
        """Return what `as_json` wrote."""
        before = value["before"]
        return cls(
            UUID(value["id"]),
            value["ref"],
            value["index"],
            value["product"],
            None if before is None else _windows(before),
            _windows(value["after"]),
        )


@dataclass(frozen=True, slots=True)
class Wish:
    """The layouts that some GPUs of one host shall have."""

    gpus: tuple[Gpu, ...]
    """Also those that have it already: some providers change a host in one go."""
    evict: bool = False
    """What of ours still runs on the GPUs when nobody holds room there any more is evicted by the provider."""

    @property
    def differing(self) -> tuple[Gpu, ...]:
        """GPUs that are emptied and carved."""
        return tuple(gpu for gpu in self.gpus if gpu.differs)

    def as_json(self) -> dict[str, Any]:
        """Return the stored shape."""
        return {"evict": self.evict, "gpus": [gpu.as_json() for gpu in self.gpus]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Wish:
        """Return what `as_json` wrote."""
        return cls(tuple(Gpu.from_json(one) for one in value["gpus"]), bool(value["evict"]))


def _windows(rows: Iterable[Sequence[Any]]) -> Windows:
    return tuple(sorted((int(start), int(size), str(profile)) for start, size, profile in rows))


def profiles(windows: Windows) -> tuple[str, ...]:
    """Return the profiles of windows, sorted."""
    return tuple(sorted(name for _, _, name in windows))


# --- what is asked for ------------------------------------------------------------------------------------


def wish(host: Host, layouts: Mapping[str, Sequence[str]], *, evict: bool) -> Wish:
    """Return what is asked of a host's GPUs: id, short id, index or `EVERY` → profiles, none for a whole GPU.

    Raises `InvalidSpec` naming the field for a GPU that the host has not, one that is named twice, a profile that is
    none of the product, or profiles that no GPU can have together.
    """
    devices = list(GpuDevice.objects.filter(host=host, removed_at__isnull=True).order_by("index", "number"))
    asked: dict[UUID, Sequence[str]] = {}
    for name, names in layouts.items():
        if name != EVERY:
            device = _named(host, devices, name)
            if device.pk in asked:
                msg = f"GPU {device.index} is named twice."
                raise InvalidSpec(msg, field="layouts", code="layout-impossible")
            asked[device.pk] = names
    if EVERY in layouts:
        asked |= {device.pk: layouts[EVERY] for device in devices if device.pk not in asked}
    shown = shown_on(asked)
    return Wish(
        tuple(
            Gpu(
                device.pk,
                device.provider_ref,
                device.index,
                device.product,
                None if device.mode == "unknown" else shown[device.pk],
                _carved(device, asked[device.pk], shown[device.pk]),
            )
            for device in devices
            if device.pk in asked
        ),
        evict,
    )


def _named(host: Host, devices: Sequence[GpuDevice], name: str) -> GpuDevice:
    for device in devices:
        if name in {str(device.pk), device.short_id, str(device.index)}:
            return device
    msg = f"{host.name} has no GPU {name}; it has {', '.join(str(device.index) for device in devices) or 'none'}."
    raise InvalidSpec(msg, field="layouts", code="layout-impossible")


def _carved(device: GpuDevice, names: Sequence[str], shown: Windows) -> Windows:
    if tuple(sorted(names)) == profiles(shown):
        return shown
    try:
        found = geometry.arrangement(device.product, names)
    except (UnknownProduct, UnknownProfile) as error:
        msg = f"GPU {device.index}: {error.args[0]}"
        raise InvalidSpec(msg, field="layouts", code="layout-impossible") from error
    if found is None:
        msg = f"GPU {device.index}: one {device.product} cannot be carved into {', '.join(names)} at the same time."
        raise InvalidSpec(msg, field="layouts", code="layout-impossible")
    return found


def shown_on(devices: Iterable[UUID]) -> dict[UUID, Windows]:
    """Return GPU → carved windows as inventory last read them."""
    found: dict[UUID, list[tuple[int, int, str]]] = {device: [] for device in devices}
    for part in MigDevice.objects.filter(device__in=found):
        found[part.device_id].append((part.start, part.size, part.profile))
    return {device: tuple(sorted(windows)) for device, windows in found.items()}


def is_shown(plan: HostPlan) -> bool:
    """Whether inventory shows what a plan's GPUs were to become; all in one where it does not know them one by one."""
    wanted = Wish.from_json(plan.layout).gpus
    shown = shown_on(gpu.id for gpu in wanted)
    if plan.host.binding == Binding.HOST.value:
        have = Counter(name for windows in shown.values() for name in profiles(windows))
        return have == Counter(name for gpu in wanted for name in profiles(gpu.after))
    return all(profiles(shown[gpu.id]) == profiles(gpu.after) for gpu in wanted)


# --- who is concerned -------------------------------------------------------------------------------------


def units_on(host: Host, wanted: Wish) -> list[Unit]:
    """Return the units that a change concerns: on the GPUs that differ, or on any where nobody knows on which."""
    devices = [gpu.id for gpu in wanted.differing]
    rows = Unit.objects.filter(host=host, holds__device__in=devices)
    if host.binding == Binding.HOST.value:
        rows = rows | Unit.objects.filter(host=host, holds__settled=False)
    return host_plans.largest_first(rows.select_related("allocation__boundary", "tenant").distinct())


def foreign_on(host: Host, wanted: Wish) -> list[Hold]:
    """Return what is not a tenant's and not ours to move on the GPUs that differ, or somewhere on the host."""
    devices = {gpu.id for gpu in wanted.differing}
    rows = Hold.objects.filter(host=host, kind__in=[HoldKind.FOREIGN.value, HoldKind.RESERVED.value])
    return [
        hold
        for hold in rows.order_by("device_number", "start")
        if not hold.note.startswith((host_plans.MOVING, host_plans.STRAY))
        and (hold.device_id in devices or hold.note.endswith(host_plans.GUESS))
    ]


def leaving(host: Host, wanted: Wish) -> list[Hold]:
    """Return the holds over units of ours that hold room elsewhere, or none, and are still seen on the GPUs."""
    devices = {gpu.id for gpu in wanted.differing}
    rows = Hold.objects.filter(host=host, kind=HoldKind.FOREIGN.value).order_by("device_number", "start")
    return [
        hold
        for hold in rows
        if hold.note.startswith((host_plans.MOVING, host_plans.STRAY))
        and (hold.device_id in devices or hold.note.endswith(host_plans.GUESS))
    ]


def in_the_way(plan: HostPlan) -> list[str]:
    """Return what a plan waits for before its GPUs may be carved, a sentence per thing; [] when they are empty."""
    wanted = Wish.from_json(plan.layout)
    found = []
    for unit in units_on(plan.host, wanted):
        movable = host_plans.movable(unit)
        verb = "waits for room elsewhere" if movable else "is held until its tenant gives it back"
        if unit.allocation.deletion_requested_at is not None:
            verb = "is being given back"
        found.append(f"{unit.tenant.name}/{unit.allocation.name} {verb}")
    found += [f"{foreign_words(hold)} uses it and is not ours" for hold in foreign_on(plan.host, wanted)]
    if not wanted.evict:
        found += [f"{_unit_words(hold)} has not left it yet" for hold in leaving(plan.host, wanted)]
    faulty = GpuDevice.objects.filter(pk__in=[gpu.id for gpu in wanted.differing], healthy=False).order_by("index")
    found += [f"GPU {device.index} is faulty: {device.message}".rstrip(": ") for device in faulty]
    if not plan.host.healthy:
        found.append(f"{plan.host.name} is not available: {plan.host.message}".rstrip(": "))
    return list(dict.fromkeys(found))


def foreign_words(hold: Hold) -> str:
    """Return what people call a use that is not ours."""
    return hold.note.removesuffix(host_plans.GUESS) or "something"


def _unit_words(hold: Hold) -> str:
    pk = hold.note.removesuffix(host_plans.GUESS).rpartition(" ")[2]
    unit = Unit.objects.filter(pk=pk).select_related("allocation", "tenant").first() if pk else None
    return f"{unit.tenant.name}/{unit.allocation.name}" if unit is not None else "something of ours"


# --- how far it is ----------------------------------------------------------------------------------------


def stage(plan: HostPlan) -> Stage:
    """Return how far a running layout change is."""
    return Stage(plan.observed.get("stage", Stage.DRAIN.value))


def since(plan: HostPlan) -> datetime:
    """Return when its stage began."""
    found = parse_datetime(str(plan.observed.get("stage_at", "")))
    return found if found is not None else plan.created_at


def empties(plan: HostPlan) -> bool:
    """Whether the plan cordoned its host, and opens it again."""
    return plan.observed.get("from", HostState.OPEN.value) in EMPTIED
