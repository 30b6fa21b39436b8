"""Why nothing could be placed, in words for people and as data.

What is open is counted in the database, by free mask and layout: the answer has as many rows as GPUs differ, and not as
there are GPUs. A GPU of a fixed layout has room only where something is carved as what was asked for; where a layout
change would make room, the words say so, because waiting will not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import connection

from tenants import geometry, gpu_catalogue
from tenants.gpu_catalogue import WHOLE
from tenants.models import GpuDevice
from tenants.specs import AllocationSpec

ASK_FOR_A_CHANGE = "ask the operator for a layout change"


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Nothing was taken; why not, in words for people and as data."""

    reason: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Alike:
    """Open GPUs of one product of which each has the same room."""

    free: int
    media_free: bool
    is_fixed: bool
    layout: str
    """Of a fixed one: `profile@start` by start, with spaces between."""
    is_carved: bool
    """Fixed, and not to be given out whole."""
    count: int

    def fits(self, product: str, profile: str) -> bool:
        """Whether a window (or the whole GPU) can be taken on each of them."""
        starts = geometry.legal_starts(product, profile, self.free, media_free=self.media_free)
        if not self.is_fixed:
            return bool(starts)
        if profile == WHOLE:
            return bool(starts) and not self.is_carved
        return any((profile, start) in self.windows for start in starts)

    def has(self, profile: str) -> int:
        """Return how many windows of a profile are carved on each, free or held."""
        return sum(name == profile for name, _start in self.windows)

    @property
    def windows(self) -> frozenset[tuple[str, int]]:
        """Return (profile, start) of what is carved."""
        parts = (text.partition("@") for text in self.layout.split())
        return frozenset((name, int(start)) for name, _, start in parts)

    def biggest(self, product: str) -> gpu_catalogue.Profile | None:
        """Return the biggest window that can be taken on each, None where none can."""
        if not self.is_fixed:
            return geometry.biggest_window(product, self.free)
        whole = [gpu_catalogue.profile(product, WHOLE)]
        carved = [gpu_catalogue.profile(product, name) for name, _start in self.windows]
        fitting = [part for part in (*whole, *carved) if self.fits(product, part.name)]
        return max(fitting, key=lambda part: part.size, default=None)


def explain(spec: AllocationSpec, providers: Sequence[UUID]) -> NoRoom:
    """Say why nothing fits now: no such product, all held, carved otherwise, too fragmented, or host room."""
    asks = sorted({(u.gpu.product, u.gpu.profile, u.gpu.count) for u in spec.units if u.gpu is not None})
    data: dict[str, Any] = {"asked": [{"product": p, "profile": f, "count": c} for p, f, c in asks]}
    for product, profile, count in asks:
        alike = _open(product, providers)
        if not alike:
            total = GpuDevice.objects.filter(product=product, provider_id__in=list(providers), removed_at=None).count()
            if total == 0:
                return NoRoom(f"No {product} exists where this may run.", {**data, "devices": 0})
            return NoRoom(f"None of the {total} {product} is open for placement at the moment.", {**data, "open": 0})
        data |= {
            "free_slices": sum(each.free.bit_count() * each.count for each in alike),
            "open_gpus": sum(each.count for each in alike),
        }
        words, more = _several(product, count, alike) if count > 1 else _one(product, profile, alike)
        if words:
            return NoRoom(words, {**data, **more})
    return NoRoom(
        "Free GPU windows exist, but not on a host with enough vCPU and memory, or their place is not reported yet.",
        data,
    )


def _open(product: str, providers: Sequence[UUID]) -> list[_Alike]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT free, media_free, fixed, CASE WHEN fixed THEN layout ELSE '' END, "
            "fixed AND (layout <> '' OR mode IN ('mig', 'unknown')), count(*) FROM ("
            "SELECT free, media_free, layout, mode, layout_change = 'fixed' AS fixed FROM tenants_gpudevice "
            "WHERE product = %s AND provider_id = ANY (%s) AND removed_at IS NULL AND placeable) g "
            "GROUP BY 1, 2, 3, 4, 5",
            [product, list(providers)],
        )
        return [_Alike(*row) for row in cursor.fetchall()]


def _several(product: str, count: int, alike: Sequence[_Alike]) -> tuple[str, dict[str, Any]]:
    """Say why no host has `count` whole GPUs of a product at once."""
    full = geometry.full_mask(product)
    empty = sum(each.count for each in alike if each.free == full and not each.is_carved)
    carved = sum(each.count for each in alike if each.free == full and each.is_carved)
    words = f"No host has {count} empty {product}; {empty} are empty over all hosts."
    return f"{words}{_beside(carved, 'and carved by a fixed layout')}", {"empty_gpus": empty, "carved_gpus": carved}


def _one(product: str, profile: str, alike: Sequence[_Alike]) -> tuple[str, dict[str, Any]]:
    """Say why no window (or whole GPU) is free; `""` where one is."""
    if any(each.fits(product, profile) for each in alike):
        return "", {}
    words = "a whole GPU" if profile == WHOLE else profile
    left = [part for each in alike if (part := each.biggest(product)) is not None]
    biggest = max(left, key=lambda part: part.size, default=None)
    data: dict[str, Any] = {"biggest": None if biggest is None else biggest.name}
    fixed = [each for each in alike if each.is_fixed]
    others = [each for each in alike if not each.is_fixed]
    never = [each for each in fixed if (each.is_carved if profile == WHOLE else not each.has(profile))]
    if not others and len(never) == len(fixed):
        how = "is left whole" if profile == WHOLE else f"is carved as {profile}"
        return f"No {product} {how} here, and layouts are fixed: {ASK_FOR_A_CHANGE}.", {**data, "layout_change": True}
    could = sum(each.count for each in never if geometry.legal_starts(product, profile, each.free))
    beside = _beside(could, "and carved otherwise by a fixed layout")
    if could:
        data["layout_change"] = True
    if not others and profile != WHOLE:
        number = sum(each.has(profile) * each.count for each in fixed)
        return f"All {number} windows that are carved as {profile} on {product} are held.{beside}", data
    if biggest is None:
        return f"All {sum(each.count for each in alike)} open {product} are held.{beside}", data
    if any(geometry.legal_starts(product, profile, each.free) for each in others):
        return f"{product} has room for {profile}, but the media engines of those GPUs are held.{beside}", data
    return (
        f"No {product} has {words} free; the biggest free window is {biggest.name or 'a whole GPU'}.{beside}", data
    )  # fmt: skip


def _beside(number: int, how: str) -> str:
    """Return the sentence on GPUs that a layout change would help with."""
    if not number:
        return ""
    return f" {number} more {'is' if number == 1 else 'are'} free {how}: {ASK_FOR_A_CHANGE}."
