"""A host over time: a band per GPU, slots down, time across, one axis for all. The GPU alone is `strip.over_time`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _

from frontend.design.moments import absolute, when
from frontend.design.numbers import UNKNOWN
from frontend.design.strip import SIGNS, Span, marks, positions, tick, twin

SLOT: Final = 4
"""Height of a slot, in pixels."""
LOWEST: Final = 20
"""A band is at least this high, so that GPUs without parts are seen."""
WORDS_FROM: Final = 12
"""Blocks as high as this have room for their name."""


@dataclass(frozen=True, slots=True)
class Band:
    """One GPU."""

    name: str
    url: str
    slots: int
    spans: Sequence[Span]


def host_over_time(bands: Sequence[Band], begin: datetime, end: datetime, now: datetime) -> SafeString:
    """Return a host over time with its table twin. Aware datetimes; `begin < end`."""
    length = (end - begin).total_seconds()

    def x(moment: datetime) -> float:
        return round(max(0.0, min(100.0, (moment - begin).total_seconds() / length * 100)), 2)

    ticks = marks(begin, end)
    lines = format_html_join(
        "", '<line class="tick" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>', ((f"{x(moment):g}",) for moment in ticks)
    )
    line = format_html('<line class="now" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>', f"{x(now):g}")
    rows = format_html_join(
        "",
        '<div class="time-row"><a href="{}">{}</a>{}</div>',
        ((band.url, band.name, _band(band, x, begin, end, lines, line)) for band in bands),
    )
    axis = "".join(tick(moment, x(moment), 0, length) for moment in ticks)
    return format_html(
        '<figure class="over-time host-time">{}<div class="time-row" aria-hidden="true"><span></span>'
        '<svg width="100%" height="20">{}</svg></div>{}</figure>',
        rows,
        mark_safe(axis),  # noqa: S308 - built by format_html
        _twin(bands),
    )


def _band(
    band: Band,
    place: Callable[[datetime], float],
    begin: datetime,
    end: datetime,
    lines: SafeString,
    line: SafeString,
) -> SafeString:
    slot = max(SLOT, LOWEST / band.slots)
    blocks = []
    for span in sorted(band.spans, key=lambda one: (one.begin, one.first)):
        left, right = place(max(span.begin, begin)), place(min(span.end or end, end))
        if right <= left:
            continue
        tall = span.size * slot - 1
        sign = SIGNS[span.state]
        text = " ".join(part for part in (sign.letter, span.label) if part)
        label = format_html('<text x="5" y="{}">{}</text>', min(tall / 2 + 4, 14), text) if tall >= WORDS_FROM else ""
        words = spoken(span)
        block = format_html(
            '<svg class="block" x="{}%" y="{}" width="{}%" height="{}"{}><title>{}</title>'
            '<rect class="{}" width="100%" height="100%" rx="2"/>{}</svg>',
            f"{left:g}",
            f"{span.first * slot + 0.5:g}",
            f"{right - left:g}",
            f"{tall:g}",
            format_html(' data-holder="{}"', span.holder) if span.holder else "",
            words,
            sign.code,
            label,
        )
        blocks.append(format_html('<a href="{}" aria-label="{}">{}</a>', span.url, words, block) if span.url else block)
    return format_html(
        '<svg class="time-band" width="100%" height="{}" role="group" aria-label="{}">{}{}{}</svg>',
        f"{band.slots * slot:g}",
        _("%(gpu)s over time") % {"gpu": band.name},
        lines,
        mark_safe("".join(blocks)),  # noqa: S308 - built by format_html
        line,
    )


def spoken(span: Span) -> str:
    """Return a block in words."""
    until = _("until %(moment)s") % {"moment": absolute(span.end)} if span.end else _("no end is known")
    begun = _("from %(moment)s") % {"moment": absolute(span.begin)}
    parts = (f"{positions(span.first, span.size)}: {SIGNS[span.state].word}", span.label, span.note, begun, until)
    return ", ".join(part for part in parts if part)


def _twin(bands: Sequence[Band]) -> SafeString:
    rows = [
        (
            band.name,
            positions(span.first, span.size),
            SIGNS[span.state].word,
            span.label or UNKNOWN,
            when(span.begin, "absolute"),
            when(span.end, "absolute"),
        )
        for band in bands
        for span in band.spans
    ]
    head = (_("GPU"), _("Slots"), _("State"), _("Held by"), _("From"), _("Until"))
    return twin(_("Over time as a table"), head, rows) if rows else SafeString("")
