"""Windows on GPUs as bit masks: what fits, the published ranking, legal packings.

Pure, without Django or clocks. A mask is an int whose bit i stands for placement position i; a *free*
mask has the free positions set. The media unit of a GPU is a second resource that at most one media
profile holds. Legal starts come from the catalogue and from nowhere else. Hosts that choose devices by
themselves are `host_binding.py`'s matter, choosing among hosts `placement.py`'s; keeping two holders off
one window is PostgreSQL's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache

from tenants.gpu_catalogue import WHOLE, Profile, SoldByWindow, product, profile

# --- masks and windows ----------------------------------------------------------------------------


def window_mask(start: int, size: int) -> int:
    """Return the mask of [start, start + size)."""
    return ((1 << size) - 1) << start


def full_mask(product_id: str) -> int:
    """Return the free mask of an empty GPU. Raises `UnknownProduct`."""
    return window_mask(0, product(product_id).slices)


@cache
def legal_masks(product_id: str, name: str) -> tuple[tuple[int, int], ...]:
    """Return (mask, start) of every legal window of a profile, by start; empty where no start is known.

    Raises `UnknownProduct`, `UnknownProfile`.
    """
    part = profile(product_id, name)
    if name != WHOLE and part not in product(product_id).placeable:
        return ()
    return tuple((window_mask(start, part.size), start) for start in sorted(part.starts))


def legal_starts(product_id: str, name: str, free: int, *, media_free: bool = True) -> tuple[int, ...]:
    """Return the starts at which a profile fits into a free mask, ascending."""
    if profile(product_id, name).media and not media_free:
        return ()
    return tuple(start for mask, start in legal_masks(product_id, name) if free & mask == mask)


def fits_anywhere(product_id: str, name: str, free_masks: Iterable[int]) -> bool:
    """Tell whether a profile has a legal window on at least one of the GPUs."""
    return any(legal_starts(product_id, name, free) for free in free_masks)


def sellable(product_id: str, name: str, *, layout_reported: bool) -> bool:
    """Tell whether a profile may be given out; `layout_reported`: a provider has shown a layout that fits the table."""
    if name == WHOLE:
        return True
    if not legal_masks(product_id, name):
        return False
    return layout_reported or product(product_id).sold_by_window is SoldByWindow.ALWAYS


@cache
def reachable_masks(product_id: str) -> frozenset[int]:
    """Return every free mask that legal windows can leave, the empty and the full one included.

    192 masks in the 7-slice geometry, 16 in the two with four parts, 2 without MIG. Another mask comes only
    from a hold that is no window (a fault hold on a free part), and no tenant is placed beside one of those.
    """
    full = full_mask(product_id)
    windows = {mask for part in _with_whole(product_id) for mask, _ in legal_masks(product_id, part.name)}
    seen, front = {full}, [full]
    while front:
        free = front.pop()
        for mask in windows:
            if free & mask == mask and free ^ mask not in seen:
                seen.add(free ^ mask)
                front.append(free ^ mask)
    return frozenset(seen)


# --- the published ranking ------------------------------------------------------------------------


@cache
def options(product_id: str, free: int) -> int:
    """Return the sum of sizes of all legal windows inside a free mask: what the GPU can still become.

    Base and double-memory profiles count once each; suffixed profiles repeat the windows of their base.
    """
    return sum(
        part.size
        for part in product(product_id).placeable
        if part.kind in {"base", "double-memory"}
        for mask, _ in legal_masks(product_id, part.name)
        if free & mask == mask
    )


def loss(product_id: str, free: int, taken: int) -> int:
    """Return how much of `options` a window destroys.

    Ranks as the dBLK of the openb-MIG benchmark does: between windows of one size on GPUs with equally many
    free positions the two differ by a constant, because profiles larger than what is left vanish in both.
    """
    return options(product_id, free) - options(product_id, free & ~taken)


@cache
def best_start(product_id: str, name: str, free: int) -> int | None:
    """Return the start that destroys least, the larger one among equals; None if the profile does not fit."""
    size = profile(product_id, name).size
    starts = legal_starts(product_id, name, free)
    return min(starts, key=lambda start: (loss(product_id, free, window_mask(start, size)), -start), default=None)


@cache
def ranked_choices(product_id: str, name: str) -> tuple[tuple[int, int], ...]:
    """Return (free mask, start) for each reachable mask that a profile fits into, best first.

    The published rule: fewest free positions on the GPU, then the smallest `loss`, then the larger start;
    the smaller mask decides what is still equal. A whole GPU has one choice, the full mask. At most 192
    entries, so two plain arrays in SQL. Raises `UnknownProduct`, `UnknownProfile`.
    """
    size = profile(product_id, name).size
    choices = [
        (free, start)
        for free in reachable_masks(product_id)
        if (start := best_start(product_id, name, free)) is not None
    ]
    choices.sort(key=lambda c: (c[0].bit_count(), loss(product_id, c[0], window_mask(c[1], size)), -c[1], c[0]))
    return tuple(choices)


@cache
def ranked_arrays(product_id: str, name: str) -> tuple[list[int], list[int]]:
    """Return `ranked_choices` as two parallel lists, masks and starts, for `unnest(%s, %s) WITH ORDINALITY`.

    The lists are shared and must not be changed.
    """
    choices = ranked_choices(product_id, name)
    return [mask for mask, _ in choices], [start for _, start in choices]


def biggest_window(product_id: str, free: int) -> Profile | None:
    """Return the largest profile (whole GPU included) that fits into a free mask; None if nothing does."""
    fitting = [part for part in _with_whole(product_id) if legal_starts(product_id, part.name, free)]
    return max(fitting, key=lambda part: part.size, default=None)


def unusable_slots(product_id: str, name: str, free: int) -> int:
    """Return the free positions that are of no use to a profile: all of them, or none."""
    return 0 if legal_starts(product_id, name, free) else free.bit_count()


def fragmentation(product_id: str, free_masks: Sequence[int], mix: Mapping[str, int]) -> Fraction:
    """Return the expected share of free positions that the next demand of `mix` cannot use, 0 to 1.

    `mix` weighs profile names (`WHOLE` included), for example by how often each was asked for. No free
    position or no weight gives 0.
    """
    free = sum(mask.bit_count() for mask in free_masks)
    weight = sum(mix.values())
    if not free or not weight:
        return Fraction(0)
    wasted = sum(
        share * sum(unusable_slots(product_id, name, mask) for mask in free_masks) for name, share in mix.items()
    )
    return Fraction(wasted, free * weight)


# --- packings -------------------------------------------------------------------------------------


def legal_packing(product_id: str, windows: Iterable[tuple[int, str]]) -> bool:
    """Tell whether (start, profile) windows can stand on one GPU together. Raises `UnknownProfile`."""
    return packing_fault(product_id, windows) is None


def packing_fault(product_id: str, windows: Iterable[tuple[int, str]]) -> str | None:
    """Return in one sentence why windows cannot stand on one GPU together; None if they can.

    In the 7-slice geometry no check of compute slices is needed: packing intervals implies it
    (rules[1] of mig-profiles.json).
    """
    used, media_by = 0, ""
    for start, name in windows:
        part = profile(product_id, name)
        mask = window_mask(start, part.size)
        if (mask, start) not in legal_masks(product_id, name):
            return f"{name or 'a whole GPU'} cannot start at {start} on {product_id}"
        if used & mask:
            return f"{name or 'a whole GPU'} at {start} overlaps another window"
        if part.media and media_by:
            return f"{name} needs the media unit that {media_by} already has"
        used |= mask
        media_by = name if part.media else media_by
    return None


def arrangement(product_id: str, names: Iterable[str]) -> tuple[tuple[int, int, str], ...] | None:
    """Return windows (start, size, profile), by start, that some profiles can stand in on one GPU; None without any.

    The largest are placed first and each at its largest start that works, so equal wishes get equal windows.
    Raises `UnknownProduct`, `UnknownProfile`.
    """
    wanted = sorted((profile(product_id, name) for name in names), key=lambda part: (-part.size, part.name))
    if any(part.name == WHOLE for part in wanted) or sum(part.media for part in wanted) > 1:
        return None
    found = _arranged(product_id, tuple(part.name for part in wanted), full_mask(product_id))
    return None if found is None else tuple(sorted(found))


@cache
def _arranged(product_id: str, names: tuple[str, ...], free: int) -> tuple[tuple[int, int, str], ...] | None:
    if not names:
        return ()
    size = profile(product_id, names[0]).size
    for start in sorted(legal_starts(product_id, names[0], free), reverse=True):
        rest = _arranged(product_id, names[1:], free & ~window_mask(start, size))
        if rest is not None:
            return ((start, size, names[0]), *rest)
    return None


def _with_whole(product_id: str) -> tuple[Profile, ...]:
    item = product(product_id)
    return (item.whole, *item.placeable)
