"""Hosts that choose GPU and window by themselves: our best guess, their reports, their worst choice.

With binding `host` (device plugin, ESXi) we name host and profile only, so a hold's window is a guess: the
best legal packing until a report tells. A report moves guesses and never frees one. Admission looks at the
worst that the host may have chosen, not at the guess. Pure; knows nothing of rows. One product at a time:
GPUs of different products on a host do not touch each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tenants.geometry import legal_masks, legal_starts, window_mask
from tenants.gpu_catalogue import profile

SEARCH_NODES: Final = 20_000
"""Bound on the nodes of a rebinding search; about 0.1 s."""
WORST_CASE_STATES: Final = 4_000
"""Bound on the states of a worst-case search; about 10 ms. Beyond it the answer is a refusal."""

NOWHERE: Final = -1
"""Device number of a unit that has no window yet."""


# --- rebinding: a report meets our best guess -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of a host, as far as it is no unit's: what foreign and fault holds leave."""

    device: int
    """Our device number."""
    free: int
    """Mask of positions that units of the host may have, including what they hold now."""
    media_free: bool = True


@dataclass(frozen=True, slots=True)
class HeldUnit:
    """A unit that holds a window of the host, at our best guess or where it was reported before."""

    unit: str
    profile: str
    device: int
    start: int
    exact: bool = False
    """Reported earlier: stays where it is unless a new report says otherwise."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a provider says of one unit; None is what it does not say."""

    unit: str
    device: int | None = None
    start: int | None = None
    profile: str | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """A packing that agrees with every report: unit → (device, start) for all units."""

    windows: Mapping[str, tuple[int, int]]
    moved: frozenset[str]
    """Units whose window differs from the one held so far."""


@dataclass(frozen=True, slots=True)
class Unexplained:
    """No legal packing agrees with the reports: a finding. Nothing is freed or moved for it."""

    reason: str
    units: tuple[str, ...]


def explain_report(
    product_id: str, gpus: Sequence[Gpu], held: Sequence[HeldUnit], reports: Sequence[Report]
) -> Explained | Unexplained:
    """Find windows for all units of one product on one host that agree with every report.

    Reported device and start are honoured, a unit reported with its device alone gets any legal start
    there, the others keep their windows unless they must make room; as few units move as possible (up to
    `SEARCH_NODES` nodes of search, then any legal packing). Raises `UnknownProduct`, `UnknownProfile`, and
    `ValueError` for two held rows of one unit.
    """
    units = {unit.unit: unit for unit in held}
    if len(units) != len(held):
        msg = "a unit holds one window; give each GPU of a larger unit a name of its own"
        raise ValueError(msg)
    said: dict[str, Report] = {}
    for report in reports:
        if (fault := _report_fault(product_id, gpus, units, said, report)) is not None:
            return Unexplained(fault, (report.unit,))
        said[report.unit] = report
    search = _Rebinding(product_id, gpus, units, said)
    if (clash := search.pin()) is not None:
        return clash
    windows = search.fewest_moves() or search.any_packing()
    if windows is None:
        return Unexplained("no legal packing of this host agrees with what is reported", tuple(said))
    moved = frozenset(name for name, at in windows.items() if at != (units[name].device, units[name].start))
    return Explained(windows, moved)


def make_room(
    product_id: str, gpus: Sequence[Gpu], held: Sequence[HeldUnit], unit: str, name: str
) -> Explained | Unexplained:
    """Find a best guess for one more unit, moving as few other guesses as possible; exact ones never move.

    Always found where `worst_case_admits` is True. Raises as `explain_report` does.
    """
    return explain_report(product_id, gpus, [*held, HeldUnit(unit, name, NOWHERE, 0)], [])


def _report_fault(
    product_id: str, gpus: Sequence[Gpu], units: Mapping[str, HeldUnit], said: Mapping[str, Report], report: Report
) -> str | None:
    """Return what makes one report impossible by itself."""
    if report.unit not in units:
        return f"{report.unit} is reported but holds nothing on this host"
    if report.unit in said and said[report.unit] != report:
        return f"{report.unit} is reported twice, in different places"
    wanted = units[report.unit].profile
    if report.profile is not None and report.profile != wanted:
        return f"{report.unit} holds {wanted or 'a whole GPU'} but is reported with {report.profile or 'a whole GPU'}"
    if report.device is not None and all(gpu.device != report.device for gpu in gpus):
        return f"{report.unit} is reported on a GPU that this host does not have"
    if report.start is not None and all(start != report.start for _, start in legal_masks(product_id, wanted)):
        return f"{report.unit} is reported at {report.start}, where {wanted or 'a whole GPU'} cannot start"
    return None


class _Rebinding:
    """One search. Pinned units are fixed; a displaced unit takes a window and may displace further ones."""

    def __init__(
        self, product_id: str, gpus: Sequence[Gpu], units: Mapping[str, HeldUnit], said: Mapping[str, Report]
    ) -> None:
        self.product_id, self.units, self.said = product_id, units, said
        self.gpus = {gpu.device: gpu for gpu in gpus}
        self.size = {name: profile(product_id, unit.profile).size for name, unit in units.items()}
        self.media = {name: profile(product_id, unit.profile).media for name, unit in units.items()}
        self.pinned: dict[str, tuple[int, int]] = {}
        self.nodes = 0

    def pin(self) -> Unexplained | None:
        """Fix every unit whose window is known exactly; return the clash if two cannot both be true."""
        for name, unit in self.units.items():
            report = self.said.get(name)
            device = report.device if report else None
            start = report.start if report else None
            if unit.exact and device in {None, unit.device} and start in {None, unit.start}:
                self.pinned[name] = (unit.device, unit.start)
            elif device is not None and start is not None:
                self.pinned[name] = (device, start)
        for name, at in self.pinned.items():
            if not self._allowed(name, at):
                return Unexplained(f"{name} is reported on a part that it cannot have", (name,))
            clash = [
                other for other, there in self.pinned.items() if other > name and self._clash(name, at, other, there)
            ]
            if clash:
                return Unexplained(f"{name} and {clash[0]} are reported on overlapping windows", (name, clash[0]))
        return None

    def fewest_moves(self) -> dict[str, tuple[int, int]] | None:
        """Return a packing with as few moved units as possible; None if there is none or the search is too large."""
        now = {name: self.pinned.get(name, (unit.device, unit.start)) for name, unit in self.units.items()}
        placed = dict(self.pinned)
        displaced: list[str] = []
        for name in sorted(now, key=lambda n: (-self.size[n], n)):
            if name in self.pinned:
                continue
            clash = any(self._clash(name, now[name], other, at) for other, at in placed.items())
            if clash or not self._allowed(name, now[name]):
                displaced.append(name)
            else:
                placed[name] = now[name]
        for budget in range(len(displaced), len(now) - len(self.pinned) + 1):
            found = self._repair(tuple(displaced), placed, frozenset(self.pinned), budget)
            if found is not None or self.nodes > SEARCH_NODES:
                return found
        return None

    def _repair(
        self, displaced: tuple[str, ...], placed: Mapping[str, tuple[int, int]], fixed: frozenset[str], budget: int
    ) -> dict[str, tuple[int, int]] | None:
        if not displaced:
            return dict(placed)
        self.nodes += 1
        if len(displaced) > budget or self.nodes > SEARCH_NODES:
            return None
        # Units bound to a device first, then the largest: the fewest windows to try near the root.
        name = min(displaced, key=lambda n: (not self._bound(n), -self.size[n], n))
        rest = tuple(other for other in displaced if other != name)
        for at, pushed in self._ways(name, placed, fixed):
            left = {other: there for other, there in placed.items() if other not in pushed}
            found = self._repair(rest + pushed, {**left, name: at}, fixed | {name}, budget - 1)
            if found is not None:
                return found
        return None

    def _ways(
        self, name: str, placed: Mapping[str, tuple[int, int]], fixed: frozenset[str]
    ) -> Iterator[tuple[tuple[int, int], tuple[str, ...]]]:
        """Yield (window, units it pushes out), fewest pushed first; like GPUs are tried once."""
        by_device: dict[int, list[str]] = {device: [] for device in self.gpus}
        for other, (device, _) in placed.items():
            by_device[device].append(other)
        ways: dict[tuple[object, ...], tuple[tuple[int, int], tuple[str, ...]]] = {}
        for device, others in by_device.items():
            gpu = self.gpus[device]
            face = tuple(sorted((placed[o][1], self.units[o].profile, o in fixed, self._bound(o)) for o in others))
            home = self._bound(name) and self._device_of(name) == device
            for _, start in legal_masks(self.product_id, self.units[name].profile):
                at = (device, start)
                if not self._allowed(name, at):
                    continue
                pushed = tuple(other for other in others if self._clash(name, at, other, placed[other]))
                if not fixed.isdisjoint(pushed):
                    continue
                ways.setdefault((gpu.free, gpu.media_free, face, home, start), (at, pushed))
        yield from sorted(ways.values(), key=lambda way: (len(way[1]), way[0]))

    def any_packing(self) -> dict[str, tuple[int, int]] | None:
        """Return any packing that honours the reports, largest units first; None if there is none in the bound."""
        self.nodes = 0
        order = tuple(
            sorted(
                (name for name in self.units if name not in self.pinned),
                key=lambda n: (not self._bound(n), -self.size[n], self.units[n].profile, n),
            )
        )
        return self._fill(order, dict(self.pinned), set())

    def _fill(
        self, order: tuple[str, ...], placed: dict[str, tuple[int, int]], dead: set[tuple[object, ...]]
    ) -> dict[str, tuple[int, int]] | None:
        if not order:
            return placed
        state = (len(order), self._state(placed, exact=self._bound(order[0])))
        self.nodes += 1
        if state in dead or self.nodes > SEARCH_NODES:
            return None
        for at, pushed in self._ways(order[0], placed, frozenset(placed)):
            if not pushed:
                found = self._fill(order[1:], {**placed, order[0]: at}, dead)
                if found is not None:
                    return found
        dead.add(state)
        return None

    def _state(self, placed: Mapping[str, tuple[int, int]], *, exact: bool) -> tuple[object, ...]:
        used = dict.fromkeys(self.gpus, 0)
        media = {device: gpu.media_free for device, gpu in self.gpus.items()}
        for name, (device, start) in placed.items():
            used[device] |= window_mask(start, self.size[name])
            media[device] = media[device] and not self.media[name]
        faces = [(gpu.free & ~used[device], media[device]) for device, gpu in self.gpus.items()]
        return tuple(faces) if exact else tuple(sorted(faces))

    def _device_of(self, name: str) -> int | None:
        report = self.said.get(name)
        return report.device if report else None

    def _bound(self, name: str) -> bool:
        """Tell whether a report names the unit's device; like GPUs then differ for it."""
        return self._device_of(name) is not None

    def _allowed(self, name: str, at: tuple[int, int]) -> bool:
        """Tell whether a window is legal, on a free part and in line with what is said of this unit."""
        device, start = at
        gpu, report = self.gpus.get(device), self.said.get(name)
        if gpu is None or (report and report.device not in {None, device}):
            return False
        if report and report.start not in {None, start}:
            return False
        return start in legal_starts(self.product_id, self.units[name].profile, gpu.free, media_free=gpu.media_free)

    def _clash(self, name: str, at: tuple[int, int], other: str, there: tuple[int, int]) -> bool:
        if at[0] != there[0]:
            return False
        overlap = window_mask(at[1], self.size[name]) & window_mask(there[1], self.size[other])
        return bool(overlap) or (self.media[name] and self.media[other])


# --- the worst case of a host that chooses by itself ----------------------------------------------


def worst_case_admits(
    product_id: str,
    gpus: Sequence[tuple[int, bool]],
    unreported: Iterable[str],
    name: str,
    *,
    any_order: bool = True,
) -> bool:
    """Tell whether a host that chooses device and start by itself can always take one more `name`.

    `gpus` is (free mask, media unit free) of each GPU of the host, with the units in `unreported` (profile
    names) *not* taken off. True iff no choice of windows for them, nor for a part of them, leaves the new unit
    without a legal window; with `any_order` also iff the new unit started first cannot do so to one of
    them, which is what a host does that starts units in an order of its own.

    Windows of one GPU do not touch another, so the adversary's problem falls apart: per GPU the minimal
    multisets that block it (few, cached), then a choice of one per GPU within the counts of `unreported`.
    That second part is a depth-first search that remembers dead ends: at most `WORST_CASE_STATES` of them, then
    the answer is False, a refusal that costs room and never correctness; it is exact within the bound. 8 GPUs
    and 10 unreported units take about a millisecond. Raises `UnknownProduct`, `UnknownProfile`.
    """
    crowd = Counter(unreported)
    if _can_block(product_id, gpus, crowd, name):
        return False
    if not any_order:
        return True
    crowd[name] += 1
    return not any(_can_block(product_id, gpus, crowd - Counter([other]), other) for other in crowd if other != name)


def _can_block(product_id: str, gpus: Sequence[tuple[int, bool]], crowd: Counter[str], name: str) -> bool:
    """Tell whether units of `crowd` can be packed so that `name` fits nowhere; True also beyond the bound."""
    open_gpus = [gpu for gpu in gpus if legal_starts(product_id, name, gpu[0], media_free=gpu[1])]
    if len(open_gpus) > crowd.total():
        return False  # each open GPU needs at least one unit to block it
    kinds = tuple(sorted(kind for kind, count in crowd.items() if count))
    limit = tuple(crowd[kind] for kind in kinds)
    blockers = []
    for gpu in open_gpus:
        ways = tuple(way for way in _blockers(product_id, gpu, name, kinds) if _within(way, limit))
        if not ways:
            return False
        blockers.append(ways)
    return _one_each(blockers, limit)


def _one_each(blockers: list[tuple[tuple[int, ...], ...]], limit: tuple[int, ...]) -> bool:
    """Tell whether one way per GPU can be taken within `limit`; True also beyond the bound."""
    # Like GPUs next to each other, those with the fewest ways first.
    blockers = sorted(blockers, key=lambda ways: (len(ways), ways))
    least = [sum(ways[0]) for ways in blockers]
    dead: set[tuple[int, int, tuple[int, ...]]] = set()

    def block(index: int, first: int, left: tuple[int, ...]) -> bool:
        """Block the GPUs from `index` on; of like GPUs a later one takes no earlier way than one before it."""
        if index == len(blockers):
            return True
        state = (index, first, left)
        if state in dead or sum(left) < sum(least[index:]):
            return False
        ways = blockers[index]
        for at in range(first, len(ways)):
            if _within(ways[at], left):
                alike = index + 1 < len(blockers) and blockers[index + 1] == ways
                rest = tuple(a - b for a, b in zip(left, ways[at], strict=True))
                if block(index + 1, at if alike else 0, rest):
                    return True
                if len(dead) >= WORST_CASE_STATES:
                    return True
        dead.add(state)
        return False

    return block(0, 0, limit)


@lru_cache(maxsize=2**16)
def _blockers(product_id: str, gpu: tuple[int, bool], name: str, kinds: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the minimal multisets (counts beside `kinds`) that can be packed so that `name` no longer fits.

    Each blocking packing hits the first window still open to `name`, so branching over the units that hit it
    finds them all.
    """
    found: set[tuple[int, ...]] = set()
    seen: set[tuple[tuple[int, bool], tuple[int, ...]]] = set()
    media_of = {kind: profile(product_id, kind).media for kind in kinds}
    wanted = profile(product_id, name)

    def block(gpu: tuple[int, bool], counts: tuple[int, ...]) -> None:
        if (gpu, counts) in seen or any(_within(way, counts) for way in found):
            return
        seen.add((gpu, counts))
        free, media_free = gpu
        starts = legal_starts(product_id, name, free, media_free=media_free)
        if not starts:
            found.add(counts)
            return
        target = window_mask(starts[0], wanted.size)
        for index, kind in enumerate(kinds):
            if media_of[kind] and not media_free:
                continue
            more = (*counts[:index], counts[index] + 1, *counts[index + 1 :])
            for mask, _ in legal_masks(product_id, kind):
                if free & mask == mask and (mask & target or (wanted.media and media_of[kind])):
                    block((free & ~mask, media_free and not media_of[kind]), more)

    block(gpu, (0,) * len(kinds))
    return tuple(sorted(_undominated(found), key=lambda way: (sum(way), way)))


def _within(less: Sequence[int], more: Sequence[int]) -> bool:
    return all(a <= b for a, b in zip(less, more, strict=True))


def _undominated(vectors: Iterable[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Return the vectors that no other one is below of."""
    kept: list[tuple[int, ...]] = []
    for vector in sorted(set(vectors), key=sum):
        if not any(_within(other, vector) for other in kept):
            kept.append(vector)
    return set(kept)
