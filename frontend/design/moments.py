"""Moments as people read them: relative, with the exact time in the person's zone beside or behind it."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.design.numbers import UNKNOWN

Style = Literal["relative", "absolute", "both", "date"]

MINUTE: Final = 60
HOUR: Final = 3_600
DAY: Final = 86_400


def absolute(moment: datetime) -> str:
    """Return date, time and zone in the active zone, e.g. `24 Nov 2026, 14:20 CET`."""
    local = timezone.localtime(moment)
    return f"{date_format(local, 'j M Y')}, {date_format(local, 'H:i')} {local.tzname()}"


def distance(seconds: int) -> str:
    """Return a span in one unit, in words: the largest of which there is at least one."""
    if seconds < MINUTE:
        return ngettext("%(n)d second", "%(n)d seconds", seconds) % {"n": seconds}
    if seconds < HOUR:
        count = seconds // MINUTE
        return ngettext("%(n)d minute", "%(n)d minutes", count) % {"n": count}
    if seconds < 2 * DAY:
        count = seconds // HOUR
        return ngettext("%(n)d hour", "%(n)d hours", count) % {"n": count}
    count = seconds // DAY
    return ngettext("%(n)d day", "%(n)d days", count) % {"n": count}


def relative(moment: datetime, now: datetime) -> str:
    """Return `in 3 days`, `5 minutes ago`, or `now` within ten seconds; the page's script keeps it true."""
    seconds = int((moment - now).total_seconds())
    if abs(seconds) < 10:
        return _("now")
    if seconds > 0:
        return _("in %(span)s") % {"span": distance(seconds)}
    return _("%(span)s ago") % {"span": distance(-seconds)}


def when(moment: datetime | None, style: Style = "relative", now: datetime | None = None) -> SafeString:
    """Return a `<time>`: relative with the exact time as its title, `both`, `absolute`, or the `date` alone.

    `moment` is aware; None is `--`.
    """
    if moment is None:
        return SafeString(UNKNOWN)
    exact = absolute(moment)
    stamp = moment.isoformat(timespec="seconds")
    if style == "absolute":
        return format_html('<time datetime="{}">{}</time>', stamp, exact)
    if style == "date":
        day = date_format(timezone.localtime(moment), "j M Y")
        return format_html('<time datetime="{}" title="{}">{}</time>', stamp, exact, day)
    words = relative(moment, now or timezone.now())
    live = format_html('<time datetime="{}" title="{}" data-relative>{}</time>', stamp, exact, words)
    if style == "both":
        return format_html('{} <span class="exact-time">{}</span>', live, exact)
    return live
