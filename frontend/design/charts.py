"""Charts as SVG from the server: they follow the theme, have an axis, a sentence and a table twin.

The script adds hover, keys and new points (`data-chart` holds the values). Values are floats, None is a gap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _

from frontend.design import strip
from frontend.design.moments import absolute
from frontend.design.numbers import UNKNOWN, number, short

Kind = Literal["line", "area", "bar"]

WIDTH: Final = 1000
"""Units across; the picture is stretched to its place, its lines and words are not."""
HEIGHT: Final = 100
MOST_ROWS: Final = 400
"""Of the table twin; longer series show their last ones and say so."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name and one value per moment of the chart."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """What to draw. All series have as many values as `times`."""

    id: str
    title: str
    unit: str
    times: Sequence[datetime]
    series: Sequence[Series]
    kind: Kind = "line"
    note: str = ""
    """For example that values are estimated or simulated."""
    height: int = 180
    limit: float | None = None
    """A line to compare with, such as a budget."""
    limit_label: str = ""
    top: float = 0.0
    """The axis goes at least up to this: 100 where values are percents of something that can be full."""
    keep: int = 0
    """How many points stay when new ones come; 0: as many as there are."""
    empty: str = ""
    """Why there is nothing, and what to do."""


def nice(top: float) -> tuple[float, int]:
    """Return a round upper end of an axis from 0 that holds `top`, and into how many parts it divides well."""
    if top <= 0 or not math.isfinite(top):
        return 1.0, 2
    power = 10 ** math.floor(math.log10(top))
    for step, parts in ((1, 2), (1.5, 3), (2, 4), (3, 3), (4, 4), (5, 5), (6, 3), (8, 4), (10, 5)):
        if top <= step * power * (1 + 1e-9):
            return step * power, parts
    raise AssertionError  # pragma: no cover - top is at most ten times its power


def top_of(chart: Chart) -> float:
    """Return the largest value that must be seen: of stacked bars their sums."""
    if chart.kind == "bar":
        values = [sum(v or 0.0 for v in column) for column in zip(*(s.values for s in chart.series), strict=True)]
    else:
        values = [v for s in chart.series for v in s.values if v is not None]
    return max([*values, chart.limit or 0.0, chart.top, 0.0])


def line_path(values: Sequence[float | None], x: Callable[[int], float], y: Callable[[float], float]) -> str:
    """Return the path of a line; a None breaks it, and a value between two of them is a dot."""
    parts = []
    pen_up = True
    for index, value in enumerate(values):
        if value is None:
            pen_up = True
            continue
        parts.append(f"{'M' if pen_up else 'L'}{x(index):.4g} {y(value):.4g}")
        if pen_up and (index + 1 == len(values) or values[index + 1] is None):
            parts.append("h0")  # a line without length is drawn by its round ends
        pen_up = False
    return "".join(parts)


def area_path(values: Sequence[float | None], x: Callable[[int], float], y: Callable[[float], float]) -> str:
    """Return the closed path between a line and the axis, one piece per unbroken run."""
    pieces = []
    run: list[int] = []
    for index, value in enumerate([*values, None]):
        if value is not None:
            run.append(index)
        elif run:
            points = "L".join(f"{x(i):.4g} {y(values[i] or 0.0):.4g}" for i in run)
            pieces.append(f"M{x(run[0]):.4g} {HEIGHT}L{points}L{x(run[-1]):.4g} {HEIGHT}z")
            run = []
    return "".join(pieces)


def bars(chart: Chart, y: Callable[[float], float]) -> SafeString:
    """Return stacked bars, one column per moment."""
    count = len(chart.times) or 1
    step = WIDTH / count
    width = step * (0.72 if count < 60 else 0.9)
    shapes = []
    for column in range(count if chart.times else 0):
        at = 0.0
        for place, series in enumerate(chart.series):
            value = series.values[column]
            if value:
                shapes.append(
                    (
                        place + 1,
                        f"{column * step + (step - width) / 2:.4g}",
                        f"{y(at + value):.4g}",
                        f"{width:.4g}",
                        f"{y(at) - y(at + value):.4g}",
                    )
                )
                at += value
    return format_html_join("", '<rect class="bar-{}" x="{}" y="{}" width="{}" height="{}"/>', shapes)


def said(chart: Chart) -> str:
    """Return the chart in one sentence per series: last, lowest, highest."""
    if not chart.times:
        return f"{chart.title}: {chart.empty or _('no values')}"
    span = _("%(from)s to %(to)s") % {"from": absolute(chart.times[0]), "to": absolute(chart.times[-1])}
    parts = [f"{chart.title}, {chart.unit}, {span}"]
    for series in chart.series:
        known = [v for v in series.values if v is not None]
        if known:
            parts.append(
                _("%(name)s: last %(last)s, lowest %(low)s, highest %(high)s")
                % {
                    "name": series.name,
                    "last": number(known[-1]),
                    "low": number(min(known)),
                    "high": number(max(known)),
                }
            )
        else:
            parts.append(f"{series.name}: {UNKNOWN}")
    return ". ".join(parts)


def chart(data: Chart) -> SafeString:
    """Return a figure: heading, key with last values, picture, table twin. Raises `ValueError` for uneven series."""
    if any(len(series.values) != len(data.times) for series in data.series):
        raise ValueError("each series has one value per moment")
    count = len(data.times)
    end, parts = nice(top_of(data))

    def x(index: int) -> float:
        return index * WIDTH / (count - 1) if count > 1 else WIDTH / 2

    def y(value: float) -> float:
        return HEIGHT - value / end * HEIGHT

    last = [next((v for v in reversed(s.values) if v is not None), None) for s in data.series]
    keys = format_html_join(
        "",
        '<li><i class="key series-{}"></i>{} <strong data-last="{}">{}</strong></li>',
        ((n + 1, s.name, n, number(value)) for n, (s, value) in enumerate(zip(data.series, last, strict=True))),
    )
    heights = [(f"{100 - n * 100 / parts:g}", n, end * n / parts) for n in range(parts, 0, -1)]
    grid = format_html_join("", '<line class="grid-line" x1="0" x2="100%" y1="{0}%" y2="{0}%"/>', heights)
    labels = format_html_join(
        "",
        '<text class="grid-label" x="100%" dx="8" y="{0}%" dy="4" data-grid="{1}">{2}</text>',
        ((at, n, short(value)) for at, n, value in heights),
    )
    if data.kind == "bar":
        shapes = bars(data, y)
    else:
        areas = (
            format_html_join(
                "",
                '<path class="area area-{}" d="{}"/>',
                ((n + 1, area_path(s.values, x, y)) for n, s in enumerate(data.series)),
            )
            if data.kind == "area"
            else SafeString()
        )
        shapes = areas + format_html_join(
            "",
            '<path class="line line-{}" d="{}"/>',
            ((n + 1, line_path(s.values, x, y)) for n, s in enumerate(data.series)),
        )
    limit = (
        format_html(
            '<line class="limit-line" x1="0" x2="100%" y1="{0}%" y2="{0}%"/>'
            '<text class="limit-label" x="0" y="{0}%" dy="-4">{1}</text>',
            f"{100 - data.limit / end * 100:g}",
            data.limit_label or number(data.limit),
        )
        if data.limit is not None
        else ""
    )
    plot = format_html(
        '<div class="chart-plot" tabindex="0" role="img" aria-label="{}">'
        '<svg width="100%" height="{}" aria-hidden="true">{}'
        '<svg class="chart-shapes" viewBox="0 0 {} {}" width="100%" height="100%" '
        'preserveAspectRatio="none">{}</svg>{}{}'
        '<line class="cross" x1="0" x2="0" y1="0" y2="100%" visibility="hidden"/></svg>'
        '<div class="chart-tip" hidden></div></div>',
        said(data),
        data.height,
        grid,
        WIDTH,
        HEIGHT,
        shapes,
        labels,
        limit,
    )
    body = (
        plot
        if count
        else format_html('<p class="chart-empty">{}</p>', data.empty or _("Nothing has been measured yet."))
    )
    values = {
        "kind": data.kind,
        "unit": data.unit,
        "names": [s.name for s in data.series],
        "keep": data.keep or count,
        "limit": data.limit,
        "top": data.top,
        "times": [int(t.timestamp()) for t in data.times],
        "values": [[None if v is None else round(v, 4) for v in s.values] for s in data.series],
    }
    return format_html(
        '<figure class="chart" id="{}" data-chart="{}"><figcaption class="chart-head">'
        '<span class="chart-title">{}</span><span class="chart-note">{}</span>'
        '<ul class="chart-keys">{}</ul></figcaption>{}{}{}</figure>',
        data.id,
        json.dumps(values, separators=(",", ":")),
        data.title,
        f"{data.unit} · {data.note}" if data.note else data.unit,
        keys,
        body,
        axis(data),
        table(data) if count else "",
    )


def axis(data: Chart) -> SafeString:
    """Return the time axis: first, a middle and last moment, in the active zone."""
    if not data.times:
        return SafeString()
    length = (data.times[-1] - data.times[0]).total_seconds()
    form = "H:i:s" if length < 600 else "H:i" if length <= 172_800 else "j M"
    middle = data.times[len(data.times) // 2]
    words = [date_format(timezone.localtime(t), form) for t in (data.times[0], middle, data.times[-1])]
    return format_html(
        '<div class="chart-axis" aria-hidden="true">{}</div>',
        format_html_join("", "<span>{}</span>", ((w,) for w in words)),
    )


def table(data: Chart) -> SafeString:
    """Return the twin: one row per moment, newest first."""
    head = [_("Time"), *(f"{s.name} ({data.unit})" for s in data.series)]
    order = range(len(data.times) - 1, -1, -1)[:MOST_ROWS]
    rows = [[absolute(data.times[i]), *(number(s.values[i]) for s in data.series)] for i in order]
    return strip.twin(_("As a table"), head, rows)


def point(chart_id: str, moment: datetime, values: Sequence[float | None]) -> SafeString:
    """Return an element that, swapped in anywhere, adds one moment to a chart of the page."""
    stamp = int(moment.astimezone(UTC).timestamp())
    return format_html(
        '<data hidden data-chart-append="{}" data-t="{}" data-v="{}"></data>', chart_id, stamp, json.dumps(list(values))
    )


def sparkline(values: Sequence[float | None], label: str = "") -> SafeString:
    """Return a small line without axis; `label` says it to screen readers, without it it is decoration."""
    known = [v for v in values if v is not None]
    if not known:
        return SafeString()
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    last = len(values) - 1 or 1
    path = line_path(values, lambda i: i * WIDTH / last, lambda v: 92 - (v - low) / span * 84)
    fill = area_path(values, lambda i: i * WIDTH / last, lambda v: 92 - (v - low) / span * 84)
    name = format_html('role="img" aria-label="{}"', label) if label else mark_safe('aria-hidden="true"')
    return format_html(
        '<svg class="sparkline" viewBox="0 0 {} {}" preserveAspectRatio="none" focusable="false" {}>'
        '<path class="area area-1" d="{}"/><path class="line line-1" d="{}"/></svg>',
        WIDTH,
        HEIGHT,
        name,
        fill,
        path,
    )


@dataclass(frozen=True, slots=True)
class Share:
    """One part of a whole: label, value, and what is shown for it."""

    label: str
    value: float | None
    text: str = ""
    url: str = ""


def shares(parts: Sequence[Share], label: str) -> SafeString:
    """Return parts as a list with bars, longest as long as its place; for cost by person, label, object."""
    most = max((p.value or 0.0 for p in parts), default=0.0) or 1.0
    rows = []
    for item in parts:
        name = format_html('<a href="{}">{}</a>', item.url, item.label) if item.url else item.label
        text = item.text or number(item.value)
        rows.append((name, text, f"{(item.value or 0.0) / most * 100:.3f}"))
    return format_html(
        '<ul class="shares" aria-label="{}">{}</ul>',
        label,
        format_html_join(
            "",
            '<li><span class="truncate">{}</span><strong>{}</strong>'
            '<svg width="100%" height="6" aria-hidden="true">'
            '<rect class="bar-1" width="{}%" height="6" rx="3"/></svg></li>',
            rows,
        ),
    )
