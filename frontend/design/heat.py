"""The heat map of a large estate: a cell per host of about 90 bytes, so that 10,000 GPUs stay one light page.

Hosts that look alike share one picture. A picture sorts its GPUs by what they are: at this size nobody reads which
GPU it is, but how much of the host is taken shows at a glance. In small estates a cell shows every slot; in the
largest a cell is a block of neighbouring hosts, a line in it a host.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Final

from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from frontend.design.strip import SAFE, SIGNS, SlotState, face

STEPS: Final = 2
"""Parts into which the taken share of a GPU is rounded: more are not seen at this size, and each makes pictures."""
BLOCK_STEPS: Final = 3
"""The same of a host, where a cell is a block of them."""
Look = tuple[str, int]
"""State of a GPU (of a host in a block), and how many parts of it have that state."""
Runs = Sequence[tuple[SlotState, int]]
WORST: Final = (SlotState.FAULT, SlotState.MAINTENANCE, SlotState.FOREIGN, SlotState.RESERVED)


@dataclass(frozen=True, slots=True)
class Cell:
    """One host."""

    url: str
    words: str
    """Its name and how much is free: the cell's tooltip and its name for screen readers."""
    gpus: tuple[tuple[tuple[SlotState, int], ...], ...]
    is_chosen: bool = False
    is_closed: bool = False
    holders: tuple[str, ...] = ()
    name: str = ""
    """Shown below a "named" cell."""


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring hosts as one cell."""

    url: str
    words: str
    looks: tuple[Look, ...]
    """Of each host, the worst first."""
    is_chosen: bool = False
    is_closed: bool = False


class Pictures:
    """The pictures of one page: each look is drawn once and named."""

    def __init__(self, steps: int = STEPS, once: AbstractSet[tuple[Look, ...]] = frozenset()) -> None:
        """No picture yet; `steps` are the parts of which looks speak, what is seen `once` is drawn where it stands."""
        self.steps = steps
        self.once = once
        self.names: dict[tuple[Look, ...], str] = {}

    def of(self, gpus: Sequence[Runs]) -> str:
        """Return the picture of a host, `""` for an empty one: that is the ground."""
        return self.showing(tuple(sorted(map(look, gpus), reverse=True)))

    def showing(self, looks: tuple[Look, ...]) -> str:
        """Return the picture with these lines, `""` where all are empty."""
        if not any(parts for _code, parts in looks):
            return ""
        if looks in self.once:
            return f"<svg {symbol(looks, self.steps)}</svg>"
        return f"<svg><use href=#{self.names.setdefault(looks, f'h{len(self.names)}')} /></svg>"

    def drawn(self) -> SafeString:
        """Return every picture, for one place on the page."""
        drawn = "".join(f"<symbol id={name} {symbol(looks, self.steps)}</symbol>" for looks, name in self.names.items())
        return mark_safe(f'<svg class="defs" width="0" height="0" aria-hidden="true">{drawn}</svg>')  # noqa: S308 - no text


@lru_cache(maxsize=16_384)
def look(runs: Runs) -> Look:
    """Return what a GPU is at a glance: the worst that is true of any slot, else how much of it is taken."""
    sizes: dict[SlotState, int] = {}
    for state, size in runs:
        sizes[state] = sizes.get(state, 0) + size
    slots = sum(sizes.values()) or 1
    bad = next((state for state in WORST if state in sizes), None)
    taken = sizes.get(bad, 0) if bad else slots - sizes.get(SlotState.FREE, 0)
    parts = -(-taken * STEPS // slots)  # rounded up: a little is not nothing
    return SIGNS[bad or SlotState.USED].code, parts


@lru_cache(maxsize=16_384)
def symbol(looks: tuple[Look, ...], steps: int = STEPS) -> str:
    """Return the rest of a `<symbol>`: lines down, the taken part across; equal neighbours are one rectangle."""
    paths: dict[str, str] = {}
    row = 0
    while row < len(looks):
        code, parts = looks[row]
        end = row
        while end < len(looks) and looks[end] == looks[row]:
            end += 1
        if parts:
            paths[code] = f"{paths.get(code, '')}M0 {row}h{parts}v{end - row}H0z"
        row = end
    drawn = "".join(f'<path class={code} d="{path}"/>' for code, path in sorted(paths.items()))
    return f'viewBox="0 0 {steps} {len(looks)}" preserveAspectRatio=none>{drawn}'


def cells(hosts: Iterable[Cell], label: str, size: str, pictures: Pictures | None = None) -> SafeString:
    """Return hosts as cells; `size` is "dense" (18 px), "plain" (28) or "named" (wide, the name below).

    With `pictures`, the page holds `pictures.drawn()` once, after all maps are made; without, each cell holds its own
    picture, which shows every slot of every GPU.
    """
    return _map("".join(_cell(host, pictures, size) for host in hosts), label, size)


def blocks(found: Iterable[Block], label: str, pictures: Pictures) -> SafeString:
    """Return blocks of hosts as cells; the page holds `pictures.drawn()` once, after all maps are made."""
    made = []
    for one in found:
        marks = {"is-chosen": one.is_chosen, "is-closed": one.is_closed}
        classes = " ".join(word for word, wanted in marks.items() if wanted)
        extra = f' class="{classes}"' if classes else ""
        made.append(f'<a href={_url(one.url)} title="{escape(one.words)}"{extra}>{pictures.showing(one.looks)}</a>')
    return _map("".join(made), label, "block")


def _map(made: str, label: str, size: str) -> SafeString:
    return format_html(
        '<div class="heat is-{}" role="group" aria-label="{}">{}</div>',
        size,
        label,
        mark_safe(made),  # noqa: S308 - escaped by the callers
    )


def _url(url: str) -> str:
    return url if SAFE.match(url) else f'"{escape(url)}"'


def _cell(host: Cell, pictures: Pictures | None, size: str) -> str:
    url = _url(host.url)
    marks = {"is-chosen": host.is_chosen, "is-closed": host.is_closed, f"g{len(host.gpus)}": size != "dense"}
    classes = " ".join(word for word, wanted in marks.items() if wanted)
    extra = f' class="{classes}"' if classes else ""
    extra += f' data-holders="{escape(" ".join(host.holders))}"' if host.holders else ""
    picture = face(host.gpus)[1] if pictures is None else pictures.of(host.gpus)
    if size == "named":
        return (
            f'<a href={url} title="{escape(host.words)}"{extra}><span class="heat-face">{picture}</span>'
            f'<span class="heat-name">{escape(host.name)}</span></a>'
        )
    return f'<a href={url} title="{escape(host.words)}"{extra}>{picture}</a>'
