"""The strip: a GPU as a row of slots. Three zooms: heat map of a site, host rows, one GPU large and over time.

Colour says the state, never the tenant; a letter or a pattern says it again. `holder` is an opaque word: everything
on a page with the same one lights up together. A caller who may not know a holder leaves it empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import Promise
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import get_language, gettext_lazy, ngettext
from django.utils.translation import gettext as _

from frontend.design.moments import absolute, when
from frontend.design.numbers import UNKNOWN, number

MOST_SLOTS: Final = 16
"""The style sheet knows strips of up to this many slots."""
LANE: Final = 18
"""Height of one slot over time, in pixels."""


class SlotState(StrEnum):
    """What a slot is to the person who looks."""

    FREE = "free"
    USED = "used"
    """Held by a tenant, to whom the platform's people look after all tenants alike."""
    MINE = "mine"
    OTHERS = "others"
    RESERVED = "reserved"
    FOREIGN = "foreign"
    MAINTENANCE = "maintenance"
    FAULT = "fault"


class Sign(NamedTuple):
    """Letter, word and one sentence of a state; `code` is its class in dense pictures."""

    letter: str
    word: str | Promise
    sentence: str | Promise
    code: str


SIGNS: Final = {
    SlotState.FREE: Sign("", gettext_lazy("Free"), gettext_lazy("can be given out"), "e"),
    SlotState.USED: Sign("U", gettext_lazy("Used"), gettext_lazy("held by a tenant"), "u"),
    SlotState.MINE: Sign("M", gettext_lazy("Mine"), gettext_lazy("held by your tenant"), "m"),
    SlotState.OTHERS: Sign("O", gettext_lazy("Others"), gettext_lazy("held by another tenant"), "o"),
    SlotState.RESERVED: Sign("R", gettext_lazy("Reserved"), gettext_lazy("kept free for somebody"), "r"),
    SlotState.FOREIGN: Sign("F", gettext_lazy("Foreign"), gettext_lazy("used past this portal"), "f"),
    SlotState.MAINTENANCE: Sign("S", gettext_lazy("In service"), gettext_lazy("being looked after"), "s"),
    SlotState.FAULT: Sign("X", gettext_lazy("Fault"), gettext_lazy("broken"), "x"),
}
FOR_MEMBERS: Final = tuple(state for state in SlotState if state is not SlotState.USED)
FOR_PLATFORM: Final = tuple(state for state in SlotState if state not in {SlotState.MINE, SlotState.OTHERS})


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring slots of one state and one holder."""

    state: SlotState
    size: int
    label: str = ""
    """Stands in the strip: the object's name."""
    note: str = ""
    """Second line and table: profile, owner."""
    holder: str = ""
    url: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: runs from slot 0 on; their sizes add up to its slots."""

    name: str
    runs: Sequence[Run]
    url: str = ""
    note: str = ""

    @property
    def slots(self) -> int:
        """Number of slots."""
        return sum(run.size for run in self.runs)

    @property
    def free(self) -> int:
        """Number of free slots."""
        return sum(run.size for run in self.runs if run.state is SlotState.FREE)

    def starts(self) -> Iterable[tuple[int, Run]]:
        """Yield each run with its first slot."""
        at = 0
        for run in self.runs:
            yield at, run
            at += run.size


@dataclass(frozen=True, slots=True)
class HostCell:
    """A host in the heat map: per GPU its runs as (state, slots)."""

    name: str
    url: str
    gpus: Sequence[Sequence[tuple[SlotState, int]]]
    holders: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """Slots [first, first + size) of one GPU kept from `begin` until `end` (None: without end)."""

    first: int
    size: int
    begin: datetime
    end: datetime | None
    state: SlotState
    label: str = ""
    note: str = ""
    holder: str = ""
    url: str = ""


def positions(first: int, size: int) -> str:
    """Return `slot 3` or `slots 0-2` in words, counted from 0 as the hardware does."""
    if size == 1:
        return _("slot %(n)d") % {"n": first}
    return _("slots %(from)d–%(to)d") % {"from": first, "to": first + size - 1}


def spoken(first: int, run: Run) -> str:
    """Return what a screen reader says and the tooltip shows of one run."""
    parts = [f"{positions(first, run.size)}: {SIGNS[run.state].word}"]
    parts += [text for text in (run.label, run.note) if text]
    if run.until is not None:
        parts.append(_("until %(moment)s") % {"moment": absolute(run.until)})
    return ", ".join(parts)


def summary(gpu: Gpu) -> str:
    """Return the strip in one sentence: `GPU 0: 3 of 8 slots free`."""
    return f"{gpu.name}: {_share(gpu.free, gpu.slots, get_language() or '')}"


@lru_cache(maxsize=256)
def _share(free: int, slots: int, language: str) -> str:
    del language  # the active one; named for the memory
    words = ngettext("%(free)s of %(all)s slot free", "%(free)s of %(all)s slots free", slots)
    return words % {"free": number(free), "all": number(slots)}


def cell(first: int, run: Run, *, large: bool) -> SafeString:
    """Return one run as a list item."""
    sign = SIGNS[run.state]
    words = spoken(first, run)
    face: SafeString = (
        format_html('<b class="slot-letter" aria-hidden="true">{}</b>', sign.letter) if sign.letter else SafeString()
    )
    if large:
        title = run.label or (sign.word if run.state is not SlotState.OTHERS else "")
        face = format_html(
            '{}<span class="slot-words" aria-hidden="true"><span class="slot-label">{}</span>'
            '<span class="slot-note">{}</span></span>',
            face,
            title,
            run.note,
        )
    holder = format_html(' data-holder="{}"', run.holder) if run.holder else ""
    inner = (
        format_html('<a class="slot-link" href="{}" aria-label="{}">{}</a>', run.url, words, face)
        if run.url
        else format_html('{}<span class="visually-hidden">{}</span>', face, words)
    )
    return format_html('<li class="slot is-{} n{}" title="{}"{}>{}</li>', run.state, run.size, words, holder, inner)


def _cells(runs: tuple[Run, ...], language: str, *, large: bool) -> SafeString:
    """Return the list items of a strip, in the active language (which is named for the memory of them)."""
    del language
    starts = Gpu("", runs).starts()
    return mark_safe("".join(cell(first, run, large=large) for first, run in starts))  # noqa: S308 - built above


_known_cells = lru_cache(maxsize=1024)(_cells)
"""Most GPUs of an estate look like some other: empty, full, broken."""


def strip(gpu: Gpu, size: str = "large") -> SafeString:
    """Return a GPU as its strip; `size` is "large" (words inside), "row" (name and letters) or "bare" (letters).

    Raises `ValueError` for more slots than the style sheet knows.
    """
    if not 0 < gpu.slots <= MOST_SLOTS:
        raise ValueError(f"a strip has 1 to {MOST_SLOTS} slots, not {gpu.slots}")
    large = size == "large"
    timeless = all(run.until is None for run in gpu.runs)  # else the words depend on the reader's clock
    cells = (_known_cells if timeless else _cells)(tuple(gpu.runs), get_language() or "", large=large)
    kind = "large" if large else "row"
    picture = format_html('<ol class="strip is-{} of-{}" aria-label="{}">{}</ol>', kind, gpu.slots, summary(gpu), cells)
    if size == "bare":
        return picture
    if not large:
        name = format_html('<a href="{}">{}</a>', gpu.url, gpu.name) if gpu.url else escape(gpu.name)
        return format_html(
            '<div class="strip-row"><span class="strip-name">{}</span>{}<span class="strip-free">{}</span></div>',
            name,
            picture,
            _("%(n)s free") % {"n": gpu.free},
        )
    scale = format_html_join("", "<i>{}</i>", ((n,) for n in range(gpu.slots)))
    return format_html(
        '<div class="strip-large">{}<div class="strip-scale of-{}" aria-hidden="true">{}</div></div>',
        picture,
        gpu.slots,
        scale,
    )


def table(gpus: Sequence[Gpu]) -> SafeString:
    """Return the twin of strips: a table of what they show, closed until asked for."""
    rows = []
    for gpu in gpus:
        for first, run in gpu.starts():
            what = format_html('<a href="{}">{}</a>', run.url, run.label) if run.url else (run.label or UNKNOWN)
            rows.append(
                (
                    gpu.name,
                    positions(first, run.size),
                    SIGNS[run.state].word,
                    what,
                    run.note or UNKNOWN,
                    when(run.since, "absolute"),
                    when(run.until, "absolute"),
                )
            )
    head = (_("GPU"), _("Slots"), _("State"), _("Held by"), _("What"), _("Since"), _("Until"))
    return twin(_("As a table"), head, rows)


def twin(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> SafeString:
    """Return a plain table behind a closed `<details>`."""
    columns = format_html_join("", '<th scope="col">{}</th>', ((word,) for word in head))
    lines = []
    for row in rows:
        cells = format_html_join("", '<td data-label="{}">{}</td>', zip(head, row, strict=True))
        lines.append(format_html("<tr>{}</tr>", cells))
    return format_html(
        '<details class="more twin"><summary>{}</summary>'
        '<div class="table-scroll" role="region" aria-label="{}" tabindex="0">'
        '<table class="table is-plain"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div></details>',
        title,
        title,
        columns,
        mark_safe("".join(lines)),  # noqa: S308 - each line is built by format_html
    )


def legend(states: Iterable[SlotState] = FOR_MEMBERS) -> SafeString:
    """Return what each colour, pattern and letter means."""
    items = ((state, SIGNS[state].letter, SIGNS[state].word, SIGNS[state].sentence) for state in states)
    return format_html(
        '<ul class="strip-legend" aria-label="{}">{}</ul>',
        _("Meaning of the colours"),
        format_html_join(
            "",
            '<li title="{3}"><span class="slot is-{0}" aria-hidden="true"><b class="slot-letter">{1}</b>'
            "</span>{2}</li>",
            items,
        ),
    )


SAFE: Final = re.compile(r"[A-Za-z0-9/._~-]+\Z")


def rectangles(host: HostCell) -> dict[SlotState, str]:
    """Return per state one path over a grid of slots × GPUs; equal runs of neighbouring GPUs are one rectangle.

    Free slots are the ground and have no path. GPUs with fewer slots are stretched to the width of the widest.
    """
    width = max((sum(size for _, size in gpu) for gpu in host.gpus), default=0)
    paths: dict[SlotState, list[str]] = {}
    open_runs: dict[tuple[SlotState, float, float], int] = {}

    def close(kept: set[tuple[SlotState, float, float]], row: int) -> None:
        for key in [key for key in open_runs if key not in kept]:
            state, at, size = key
            top = open_runs.pop(key)
            paths.setdefault(state, []).append(f"M{at:g} {top}h{size:g}v{row - top}h-{size:g}z")

    for row, gpu in enumerate(host.gpus):
        stretch = width / (sum(size for _, size in gpu) or 1)
        now: list[list[object]] = []
        at = 0.0
        for state, size in gpu:
            if state is not SlotState.FREE:
                last = now[-1] if now else None
                if last is not None and last[0] is state and last[1] + last[2] == at:  # type: ignore[operator]  # numbers
                    last[2] += size * stretch  # type: ignore[operator]  # a number
                else:
                    now.append([state, at, size * stretch])
            at += size * stretch
        keys = {(entry[0], entry[1], entry[2]) for entry in now}
        close(keys, row)  # type: ignore[arg-type]  # as built above
        for key in keys:
            open_runs.setdefault(key, row)  # type: ignore[arg-type]  # as built above
    close(set(), len(host.gpus))
    return {state: "".join(sorted(path)) for state, path in sorted(paths.items())}


@lru_cache(maxsize=8192)
def face(gpus: tuple[tuple[tuple[SlotState, int], ...], ...]) -> tuple[int, str]:
    """Return free slots and picture of a host; hosts that look alike are drawn once."""
    slots = max((sum(size for _, size in gpu) for gpu in gpus), default=1)
    free = sum(size for gpu in gpus for state, size in gpu if state is SlotState.FREE)
    drawn = rectangles(HostCell("", "", gpus))
    paths = "".join(f'<path class={SIGNS[state].code} d="{path}"/>' for state, path in drawn.items())
    return free, f'<svg viewBox="0 0 {slots} {len(gpus) or 1}" preserveAspectRatio=none>{paths}</svg>'


def heat_cell(host: HostCell, words: str) -> str:
    """Return one host of the heat map as a link of about 200 bytes; its name says how much is free."""
    free, picture = face(tuple(map(tuple, host.gpus)))
    url = host.url if SAFE.match(host.url) else f'"{escape(host.url)}"'
    holders = f' data-holders="{escape(" ".join(host.holders))}"' if host.holders else ""
    return f'<a href={url} aria-label="{escape(words % {"host": host.name, "n": free})}"{holders}>{picture}</a>'


def heat_map(hosts: Iterable[HostCell], label: str = "", size: str = "") -> SafeString:
    """Return hosts as cells: GPUs down, slots across. 10,000 GPUs stay under 300 KB.

    `size` of a cell is "dense" (18 px), "" (28) or "roomy" (48).
    """
    words = _("%(host)s: %(n)s free")
    cells = "".join(heat_cell(host, words) for host in hosts)
    return format_html(
        '<div class="heat{}" role="group" aria-label="{}">{}</div>',
        f" is-{size}" if size else "",
        label or _("Hosts"),
        mark_safe(cells),  # noqa: S308 - escaped in heat_cell
    )


def over_time(
    name: str, slots: int, spans: Sequence[Span], begin: datetime, end: datetime, now: datetime | None = None
) -> SafeString:
    """Return one GPU over time: slots down, time across; what is kept is a block. Aware datetimes; `begin < end`."""
    now = now or timezone.now()
    length = (end - begin).total_seconds()

    def x(moment: datetime) -> float:
        return round(max(0.0, min(100.0, (moment - begin).total_seconds() / length * 100)), 3)

    blocks = []
    for span in sorted(spans, key=lambda s: (s.begin, s.first)):
        left, right = x(span.begin), x(span.end or end)
        if right <= left:
            continue
        tall = span.size * LANE - 2
        to = _("until %(moment)s") % {"moment": absolute(span.end)} if span.end else _("without end")
        words = ", ".join(
            text
            for text in (
                f"{positions(span.first, span.size)}: {SIGNS[span.state].word}",
                span.label,
                span.note,
                _("from %(moment)s") % {"moment": absolute(span.begin)},
                to,
            )
            if text
        )
        block = format_html(
            '<svg class="block" x="{}%" y="{}" width="{}%" height="{}"{}><title>{}</title>'
            '<rect class="{}" width="100%" height="100%" rx="3"/>'
            '<text x="7" y="13">{}</text></svg>',
            f"{left:g}",
            span.first * LANE + 1,
            f"{right - left:g}",
            tall,
            format_html(' data-holder="{}"', span.holder) if span.holder else "",
            words,
            SIGNS[span.state].code,
            " ".join(t for t in (SIGNS[span.state].letter, span.label) if t),
        )
        blocks.append(format_html('<a href="{}" aria-label="{}">{}</a>', span.url, words, block) if span.url else block)
    lanes = format_html_join(
        "",
        '<rect class="lane" x="0" y="{}" width="100%" height="{}" rx="3"/>',
        ((n * LANE + 1, LANE - 2) for n in range(slots)),
    )
    ticks = "".join(tick(moment, x(moment), slots * LANE, length) for moment in marks(begin, end))
    line = (
        format_html('<line class="now" x1="{0}%" x2="{0}%" y1="0" y2="{1}"/>', f"{x(now):g}", slots * LANE + 4)
        if begin <= now <= end
        else ""
    )
    rows = [
        (
            positions(s.first, s.size),
            SIGNS[s.state].word,
            s.label or UNKNOWN,
            when(s.begin, "absolute"),
            when(s.end, "absolute"),
        )
        for s in spans
    ]
    return format_html(
        '<figure class="over-time">'
        '<svg width="100%" height="{}" role="group" aria-label="{}">{}{}{}{}</svg>{}</figure>',
        slots * LANE + 22,
        _("%(gpu)s over time") % {"gpu": name},
        lanes,
        SafeString(ticks),
        SafeString("".join(blocks)),
        line,
        twin(_("As a table"), (_("Slots"), _("State"), _("Held by"), _("From"), _("Until")), rows),
    )


def marks(begin: datetime, end: datetime, wanted: int = 6) -> list[datetime]:
    """Return at most `wanted` + 1 round moments between two, on whole steps of the active zone."""
    length = (end - begin).total_seconds()
    steps = (60, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000)
    step = next((s for s in steps if length / s <= wanted), 31_536_000)
    local = timezone.localtime(begin)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    count = int((local - midnight).total_seconds() // step) + 1
    moments = []
    at = midnight + timedelta(seconds=count * step)
    while at < end:
        moments.append(at)
        at += timedelta(seconds=step)
    return moments


def tick(moment: datetime, at: float, bottom: int, length: float) -> SafeString:
    """Return a mark of the time axis: hours within two days, else days."""
    text = date_format(timezone.localtime(moment), "H:i" if length <= 172_800 else "j M")
    anchor = "start" if at < 4 else "end" if at > 96 else "middle"
    return format_html(
        '<line class="tick" x1="{0}%" x2="{0}%" y1="0" y2="{1}"/>'
        '<text class="tick-label" x="{0}%" y="{2}" text-anchor="{3}">{4}</text>',
        f"{at:g}",
        bottom,
        bottom + 15,
        anchor,
        text,
    )
