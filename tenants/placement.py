"""Where units would go: demand and inventory in memory → host, devices and starts, or why not.

Pure; for previews, what-if and tests. The live path is the ledger's SQL, which takes the same best mask by the
same rule (`geometry.ranked_choices`), so both agree on a quiet estate. Units of one call share a provider and
are a gang: all or none. Finding a gang is a bounded search, largest units first; everything else is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import Final

from tenants import geometry, host_binding
from tenants.gpu_catalogue import WHOLE, Profile, product, profile
from tenants.specs import GpuAsk, UnitAsk
from tenants.states import Binding

GANG_TRIES: Final = 500
"""Bound on the placements tried for a gang on one provider."""
ALTERNATIVES: Final = 5
"""How many of the things that fit instead are named."""


# --- inventory ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Guess:
    """A unit whose window the provider has not reported yet; `start` is the best guess."""

    unit: str
    profile: str
    start: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the ledger sees it."""

    number: int
    product: str
    free: int
    """Mask of free positions; guesses are taken off."""
    media_free: bool = True
    layout_reported: bool = False
    """A provider has shown a layout that fits the table (only asked where placements are inferred)."""
    placeable: bool = True
    guesses: tuple[Guess, ...] = ()

    @property
    def empty(self) -> bool:
        """True if nobody holds any part."""
        return self.free == geometry.full_mask(self.product)


@dataclass(frozen=True, slots=True)
class Host:
    """One host with what is free on it."""

    id: str
    provider: str
    site: str
    binding: Binding
    gpus: tuple[Gpu, ...]
    free_vcpu: int
    free_memory_gib: int
    placeable: bool = True
    """Open, healthy, no finding in the way."""
    dedicated_to: str = ""
    """Tenant that has the whole host."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy: only these values of one kind. Its name is what a refusal shows."""

    name: str
    kind: str
    """`site`, `provider`, `binding` or `product`."""
    allowed: frozenset[str]

    def allows(self, host: Host, ask: UnitAsk) -> bool:
        """Tell whether a unit may go to a host. Raises `ValueError` for an unknown kind."""
        match self.kind:
            case "site":
                return host.site in self.allowed
            case "provider":
                return host.provider in self.allowed
            case "binding":
                return host.binding.value in self.allowed
            case "product":
                return ask.gpu is None or ask.gpu.product in self.allowed
        msg = f"no rule is about {self.kind!r}"
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Wish:
    """Who asks and under which rules."""

    tenant: str = ""
    rules: tuple[Rule, ...] = ()
    dedicated: bool = False
    """The tenant gets whole hosts (tier `dedicated-host`)."""


# --- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one unit goes: (device number, start) for each of its GPUs, none for a unit without."""

    host: str
    windows: tuple[tuple[int, int], ...]
    settled: bool
    """False where the host chooses for itself and this is our best guess."""
    moved_guesses: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Other guesses that make room: unit → (device number, start)."""


@dataclass(frozen=True, slots=True)
class Placed:
    """All units have a place, in the order they were asked for."""

    placements: tuple[Placement, ...]


class Obstacle(StrEnum):
    """The first thing that keeps a unit off a host, in the order in which they are looked at."""

    NO_PRODUCT = "no-product"
    FORBIDDEN = "forbidden"
    NOT_OPEN = "not-open"
    DEDICATED = "dedicated"
    NOT_SOLD = "not-sold"
    HELD = "held"
    TOO_FRAGMENTED = "too-fragmented"
    MEDIA_TAKEN = "media-taken"
    TOO_FEW_EMPTY = "too-few-empty"
    HOST_VCPU = "host-vcpu"
    HOST_MEMORY = "host-memory"
    NOT_REPORTED = "not-reported"
    SPREAD = "spread"
    NOT_TOGETHER = "not-together"


@dataclass(frozen=True, slots=True)
class Reason:
    """One obstacle over all hosts that it holds for."""

    obstacle: Obstacle
    hosts: int
    sentence: str
    rule: str = ""
    """Name of the rule that forbids."""
    biggest: str | None = None
    """Profile of the biggest window left, `""` a whole GPU; None where that says nothing."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """What would fit now instead: one unit with this GPU part."""

    product: str
    profile: str


@dataclass(frozen=True, slots=True)
class NoFit:
    """No place, with every reason and what fits instead."""

    unit: int
    """Index of the unit that the reasons are about."""
    reasons: tuple[Reason, ...]
    """In the order of `Obstacle`."""
    instead: tuple[Alternative, ...]


# --- placing --------------------------------------------------------------------------------------


def place(units: Sequence[UnitAsk], hosts: Sequence[Host], wish: Wish | None = None) -> Placed | NoFit:
    """Place all units on hosts of one provider, or none.

    Providers are tried in the order in which their hosts come. A single unit takes the best place over all of
    them. Raises `UnknownProduct`, `UnknownProfile`, `ValueError` for no unit or fewer than one GPU.
    """
    wish = wish or Wish()
    if not units:
        raise ValueError("nothing to place")
    for ask in units:
        if ask.gpu is not None:
            profile(ask.gpu.product, ask.gpu.profile)
            if ask.gpu.count < 1 or (ask.gpu.profile != WHOLE and ask.gpu.count != 1):
                raise ValueError("a unit has one MIG device or at least one whole GPU")
    if len(units) == 1:
        first = next(_candidates(units[0], hosts, wish, frozenset()), None)
        return Placed((first,)) if first is not None else _why_not(units, hosts, wish)
    for provider in dict.fromkeys(host.provider for host in hosts):
        found = _gang(units, [host for host in hosts if host.provider == provider], wish)
        if found is not None:
            return Placed(found)
    return _why_not(units, hosts, wish)


def taking(host: Host, ask: UnitAsk, at: Placement, *, unit: str = "", wish: Wish | None = None) -> Host:
    """Return a host after a unit took its place on it; `unit` names it where the place is a guess."""
    gpus = {gpu.number: gpu for gpu in host.gpus}
    for name, (number, start) in at.moved_guesses.items():
        old = next(gpu for gpu in gpus.values() if any(guess.unit == name for guess in gpu.guesses))
        guess = next(guess for guess in old.guesses if guess.unit == name)
        gpus[old.number] = replace(_with(old, guess.profile, guess.start, free=True), guesses=_without(old, name))
        gpus[number] = replace(gpus[number], guesses=(*gpus[number].guesses, replace(guess, start=start)))
    for name, (number, start) in at.moved_guesses.items():  # after all have left: they may swap
        guess = next(guess for guess in gpus[number].guesses if guess.unit == name)
        gpus[number] = _with(gpus[number], guess.profile, start, free=False)
    for index, (number, start) in enumerate(at.windows):
        assert ask.gpu is not None
        taken = _with(gpus[number], ask.gpu.profile, start, free=False)
        if not at.settled:
            taken = replace(taken, guesses=(*taken.guesses, Guess(f"{unit}/{index}", ask.gpu.profile, start)))
        gpus[number] = taken
    return replace(
        host,
        gpus=tuple(gpus[gpu.number] for gpu in host.gpus),
        free_vcpu=host.free_vcpu - ask.vcpu,
        free_memory_gib=host.free_memory_gib - ask.memory_gib,
        dedicated_to=wish.tenant if wish is not None and wish.dedicated else host.dedicated_to,
    )


def _with(gpu: Gpu, name: str, start: int, *, free: bool) -> Gpu:
    part = profile(gpu.product, name)
    mask = geometry.window_mask(start, part.size)
    return replace(
        gpu,
        free=gpu.free | mask if free else gpu.free & ~mask,
        media_free=free if part.media else gpu.media_free,
    )


def _without(gpu: Gpu, name: str) -> tuple[Guess, ...]:
    return tuple(guess for guess in gpu.guesses if guess.unit != name)


def _gang(units: Sequence[UnitAsk], hosts: Sequence[Host], wish: Wish) -> tuple[Placement, ...] | None:
    order = sorted(range(len(units)), key=lambda i: (-_slots(units[i]), -units[i].vcpu, -units[i].memory_gib, i))
    tries = 0

    def fill(
        depth: int, state: Mapping[str, Host], groups: Mapping[str, frozenset[str]]
    ) -> dict[int, Placement] | None:
        nonlocal tries
        if depth == len(order):
            return {}
        index = order[depth]
        ask = units[index]
        avoid = groups.get(ask.spread_group, frozenset()) if ask.spread_group else frozenset()
        faces = set()
        for at in _candidates(ask, list(state.values()), wish, avoid):
            face = _face(state[at.host], at, groups)
            if face in faces:
                continue
            faces.add(face)
            tries += 1
            if tries > GANG_TRIES + len(order):
                return None
            after = {**state, at.host: taking(state[at.host], ask, at, unit=f"#{index}", wish=wish)}
            used = {**groups, ask.spread_group: avoid | {at.host}} if ask.spread_group else groups
            rest = fill(depth + 1, after, used)
            if rest is not None:
                return {index: at, **rest}
        return None

    found = fill(0, {host.id: host for host in hosts}, {})
    return None if found is None else tuple(found[index] for index in range(len(units)))


def _face(host: Host, at: Placement, groups: Mapping[str, frozenset[str]]) -> tuple[object, ...]:
    """Return what makes two candidates alike: trying the second after the first failed is in vain."""
    gpus = {gpu.number: gpu for gpu in host.gpus}
    chosen = tuple((gpus[number].product, gpus[number].free, start) for number, start in at.windows)
    kinds = sorted((g.product, g.free, g.media_free, g.placeable, g.layout_reported, len(g.guesses)) for g in host.gpus)
    where = frozenset(group for group, used in groups.items() if host.id in used)
    guesses = tuple(sorted((guess.profile, guess.start) for gpu in host.gpus for guess in gpu.guesses))
    return (
        *(host.site, host.binding, host.free_vcpu, host.free_memory_gib, host.dedicated_to, host.placeable),
        *(tuple(kinds), chosen, where, guesses),
    )


def _candidates(ask: UnitAsk, hosts: Sequence[Host], wish: Wish, avoid: frozenset[str]) -> Iterator[Placement]:
    """Yield the places for one unit, best first; hosts whose units are not all reported come last."""
    fitting = [host for host in hosts if host.id not in avoid and _suits(host, ask, wish)]
    if ask.gpu is None:
        for host in sorted(fitting, key=lambda h: (h.free_vcpu, h.free_memory_gib, h.id)):
            yield Placement(host.id, (), settled=True)
        return
    if ask.gpu.count > 1:
        yield from _whole_groups(ask.gpu, fitting)
        return
    groups = [(host, group) for host in fitting for group in _groups(host, ask.gpu.product)]
    yield from _settled_places(ask.gpu, [(h, g) for h, g in groups if not any(gpu.guesses for gpu in g)])
    yield from _guessed_places(ask.gpu, [(h, g) for h, g in groups if any(gpu.guesses for gpu in g)])


def _settled_places(ask: GpuAsk, groups: Sequence[tuple[Host, list[Gpu]]]) -> Iterator[Placement]:
    rank = _rank(ask.product, ask.profile)
    ranked = [
        (*rank[gpu.free], gpu.number, host)
        for host, group in groups
        for gpu in group
        if gpu.free in rank and _usable(gpu, ask)
    ]
    for _, start, number, host in sorted(ranked, key=lambda r: (r[0], r[2])):
        yield Placement(host.id, ((number, start),), settled=host.binding is Binding.DEVICE)


def _guessed_places(ask: GpuAsk, groups: Sequence[tuple[Host, list[Gpu]]]) -> Iterator[Placement]:
    for host, group in sorted(groups, key=lambda g: (sum(len(gpu.guesses) for gpu in g[1]), g[0].id, g[1][0].number)):
        guess = _unsettled_place(ask, host, group)
        if guess is not None:
            yield guess


def _whole_groups(gpu: GpuAsk, hosts: Sequence[Host]) -> Iterator[Placement]:
    """Yield hosts with enough empty GPUs, fewest empty ones first, each with its lowest numbers."""
    for empty, host in sorted(((_empty(host, gpu), host) for host in hosts), key=lambda e: (len(e[0]), e[1].id)):
        unreported = host.binding is Binding.HOST and any(one.guesses for one in host.gpus)
        if len(empty) >= gpu.count and not unreported:
            windows = tuple((number, 0) for number in empty[: gpu.count])
            yield Placement(host.id, windows, settled=host.binding is Binding.DEVICE)


def _empty(host: Host, ask: GpuAsk) -> list[int]:
    return sorted(gpu.number for gpu in host.gpus if gpu.product == ask.product and gpu.placeable and gpu.empty)


def _groups(host: Host, product_id: str) -> list[list[Gpu]]:
    """Return the GPUs among which the host chooses by itself: all of them, or each alone."""
    gpus = [gpu for gpu in host.gpus if gpu.product == product_id and gpu.placeable]
    if host.binding is Binding.HOST:
        return [gpus] if gpus else []
    return [[gpu] for gpu in gpus]


def _unsettled_place(ask: GpuAsk, host: Host, group: Sequence[Gpu]) -> Placement | None:
    """Return a best guess on GPUs with guesses, if the worst choice of the host leaves room."""
    open_gpus = []
    for gpu in group:
        bare = gpu
        for guess in gpu.guesses:
            bare = _with(bare, guess.profile, guess.start, free=True)
        open_gpus.append(bare)
    if not all(_sold(gpu, ask) for gpu in group):
        return None
    crowd = [guess.profile for gpu in group for guess in gpu.guesses]
    if not host_binding.worst_case_admits(
        ask.product, [(gpu.free, gpu.media_free) for gpu in open_gpus], crowd, ask.profile
    ):
        return None
    room = host_binding.make_room(
        ask.product,
        [host_binding.Gpu(gpu.number, gpu.free, gpu.media_free) for gpu in open_gpus],
        [host_binding.HeldUnit(g.unit, g.profile, gpu.number, g.start) for gpu in group for g in gpu.guesses],
        "",
        ask.profile,
    )
    if isinstance(room, host_binding.Unexplained):
        return None
    moved = {name: room.windows[name] for name in sorted(room.moved) if name}
    return Placement(host.id, (room.windows[""],), settled=False, moved_guesses=moved)


@cache
def _rank(product_id: str, name: str) -> Mapping[int, tuple[int, int]]:
    """Return free mask → (rank, start)."""
    return {mask: (rank, start) for rank, (mask, start) in enumerate(geometry.ranked_choices(product_id, name))}


def _slots(ask: UnitAsk) -> int:
    return 0 if ask.gpu is None else profile(ask.gpu.product, ask.gpu.profile).size * ask.gpu.count


def _sold(gpu: Gpu, ask: GpuAsk) -> bool:
    return geometry.sellable(gpu.product, ask.profile, layout_reported=gpu.layout_reported)


def _usable(gpu: Gpu, ask: GpuAsk) -> bool:
    return _sold(gpu, ask) and (gpu.media_free or not profile(ask.product, ask.profile).media)


def _suits(host: Host, ask: UnitAsk, wish: Wish) -> bool:
    return (
        host.placeable
        and host.free_vcpu >= ask.vcpu
        and host.free_memory_gib >= ask.memory_gib
        and _tenancy_allows(host, wish)
        and all(rule.allows(host, ask) for rule in wish.rules)
    )


def _tenancy_allows(host: Host, wish: Wish) -> bool:
    if wish.dedicated:
        return host.dedicated_to == wish.tenant or (not host.dedicated_to and all(gpu.empty for gpu in host.gpus))
    return not host.dedicated_to


# --- why not --------------------------------------------------------------------------------------


def _why_not(units: Sequence[UnitAsk], hosts: Sequence[Host], wish: Wish) -> NoFit:
    """Return the reasons of the first unit that finds no place by itself, or why they do not fit together."""
    for index, ask in enumerate(units):
        if next(_candidates(ask, hosts, wish, frozenset()), None) is None:
            return NoFit(index, _reasons(ask, hosts, wish), _instead(ask, hosts, wish))
    sizes: dict[str, int] = {}
    for ask in units:
        if ask.spread_group:
            sizes[ask.spread_group] = sizes.get(ask.spread_group, 0) + 1
    for index, ask in enumerate(units):
        able = {at.host for at in _candidates(ask, hosts, wish, frozenset())}
        if ask.spread_group and sizes[ask.spread_group] > len(able):
            words = f"{sizes[ask.spread_group]} units want hosts of their own; {len(able)} hosts have room for one"
            return NoFit(index, (Reason(Obstacle.SPREAD, len(able), words),), ())
    words = f"each of the {len(units)} units has room by itself, but no way to place all on one provider was found"
    return NoFit(0, (Reason(Obstacle.NOT_TOGETHER, len(hosts), words),), ())


def _reasons(ask: UnitAsk, hosts: Sequence[Host], wish: Wish) -> tuple[Reason, ...]:
    if ask.gpu is not None and not any(gpu.product == ask.gpu.product for host in hosts for gpu in host.gpus):
        return (Reason(Obstacle.NO_PRODUCT, 0, f"there is no {ask.gpu.product} here"),)
    against: dict[tuple[Obstacle, str], list[Host]] = {}
    for host in hosts:
        obstacle, rule = _obstacle(ask, host, wish)
        if obstacle is not Obstacle.NO_PRODUCT:
            against.setdefault((obstacle, rule), []).append(host)
    order = list(Obstacle)
    found = sorted(against.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    return tuple(_reason(obstacle, rule, ask, blocked) for (obstacle, rule), blocked in found)


def _obstacle(ask: UnitAsk, host: Host, wish: Wish) -> tuple[Obstacle, str]:
    """Return the first thing that keeps a unit off a host, and the rule if it is one."""
    if ask.gpu is not None and not any(gpu.product == ask.gpu.product for gpu in host.gpus):
        return Obstacle.NO_PRODUCT, ""
    broken = next((rule.name for rule in wish.rules if not rule.allows(host, ask)), None)
    if broken is not None:
        return Obstacle.FORBIDDEN, broken
    if not host.placeable:
        return Obstacle.NOT_OPEN, ""
    if not _tenancy_allows(host, wish):
        return Obstacle.DEDICATED, ""
    obstacle = None if ask.gpu is None else _gpu_obstacle(ask.gpu, host)
    if obstacle is None and host.free_vcpu < ask.vcpu:
        obstacle = Obstacle.HOST_VCPU
    if obstacle is None and host.free_memory_gib < ask.memory_gib:
        obstacle = Obstacle.HOST_MEMORY
    return obstacle or Obstacle.NOT_REPORTED, ""


def _gpu_obstacle(ask: GpuAsk, host: Host) -> Obstacle | None:
    gpus = [gpu for gpu in host.gpus if gpu.product == ask.product and gpu.placeable]
    if not gpus:
        return Obstacle.NOT_OPEN
    sold = [gpu for gpu in gpus if _sold(gpu, ask)]
    if not sold:
        return Obstacle.NOT_SOLD
    if ask.count > 1:
        return Obstacle.TOO_FEW_EMPTY if len(_empty(host, ask)) < ask.count else None
    fitting = [gpu for gpu in sold if geometry.legal_starts(ask.product, ask.profile, gpu.free)]
    if not fitting:
        held = sum(gpu.free.bit_count() for gpu in sold) < profile(ask.product, ask.profile).size
        return Obstacle.HELD if held else Obstacle.TOO_FRAGMENTED
    return None if any(_usable(gpu, ask) for gpu in fitting) else Obstacle.MEDIA_TAKEN


def _reason(obstacle: Obstacle, rule: str, ask: UnitAsk, hosts: Sequence[Host]) -> Reason:
    what, where = _words(ask), f"{len(hosts)} host{'s' if len(hosts) > 1 else ''}"
    biggest: Profile | None = None
    if obstacle is Obstacle.TOO_FRAGMENTED and ask.gpu is not None:
        masks = {gpu.free for host in hosts for gpu in host.gpus if gpu.product == ask.gpu.product and gpu.placeable}
        windows = [w for w in (geometry.biggest_window(ask.gpu.product, mask) for mask in masks) if w is not None]
        biggest = max(windows, key=lambda w: w.size, default=None)
    left = "no window is left" if biggest is None else f"the biggest window left is {biggest.name or 'a whole GPU'}"
    sentence = {
        Obstacle.FORBIDDEN: f"rule {rule!r} forbids {where}",
        Obstacle.NOT_OPEN: f"{where} not open for placement",
        Obstacle.DEDICATED: f"{where} not free of other tenants, or kept for one",
        Obstacle.NOT_SOLD: f"{what} is not sold on {where} until a provider reports a layout that the table explains",
        Obstacle.HELD: f"{what} does not fit on {where}: all held",
        Obstacle.TOO_FRAGMENTED: f"{what} does not fit on {where}: too fragmented, {left}",
        Obstacle.MEDIA_TAKEN: f"the media unit is taken wherever {what} would fit on {where}",
        Obstacle.TOO_FEW_EMPTY: f"{where} with fewer than {what} empty",
        Obstacle.HOST_VCPU: f"{where} with fewer than {ask.vcpu} vCPUs left, "
        f"the most is {max(host.free_vcpu for host in hosts)}",
        Obstacle.HOST_MEMORY: f"{where} with less than {ask.memory_gib} GiB left, "
        f"the most is {max(host.free_memory_gib for host in hosts)} GiB",
        Obstacle.NOT_REPORTED: f"{where} where units not reported yet could leave no room for {what}",
    }[obstacle]
    return Reason(obstacle, len(hosts), sentence, rule, None if biggest is None else biggest.name)


def _words(ask: UnitAsk) -> str:
    if ask.gpu is None:
        return "a unit without a GPU"
    if ask.gpu.profile:
        return f"{ask.gpu.profile} of {ask.gpu.product}"
    return f"{ask.gpu.count} whole {ask.gpu.product}"


def _instead(ask: UnitAsk, hosts: Sequence[Host], wish: Wish) -> tuple[Alternative, ...]:
    """Return what one unit could have now: the same product by size, largest first, then others as large in memory."""
    if ask.gpu is None:
        return ()
    wanted = profile(ask.gpu.product, ask.gpu.profile)
    here = dict.fromkeys(gpu.product for host in hosts for gpu in host.gpus)
    same, others = [], []
    for product_id in here:
        item = product(product_id)
        for part in (item.whole, *item.placeable):
            if part.kind not in {"whole", "base", "double-memory"} or (
                product_id == ask.gpu.product and part == wanted
            ):
                continue
            if product_id == ask.gpu.product:
                same.append((-part.size, part.name, product_id))
            elif part.memory_gib_planning is not None and part.memory_gib_planning >= (wanted.memory_gib_planning or 0):
                others.append((part.memory_gib_planning, part.name, product_id))
    fits = (
        Alternative(product_id, name)
        for _, name, product_id in (*sorted(same), *sorted(others))
        if next(_candidates(replace(ask, gpu=GpuAsk(product_id, name)), hosts, wish, frozenset()), None) is not None
    )
    return tuple(alternative for alternative, _ in zip(fits, range(ALTERNATIVES), strict=False))
