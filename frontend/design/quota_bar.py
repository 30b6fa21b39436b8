"""The quota bar: used, pending, requested against the limit, own and of the tenants above; the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from frontend.design.icons import icon
from frontend.design.numbers import UNKNOWN, decimal_of, number, quantity


@dataclass(frozen=True, slots=True)
class Above:
    """A limit further up the tree that counts too."""

    tenant: str
    used: Decimal | int
    limit: Decimal | int


@dataclass(frozen=True, slots=True)
class QuotaLine:
    """One dimension of one tenant. `limit` None means that only the limits above count."""

    label: str
    unit: str
    """Key of `numbers.quantity`: slot, gpu, endpoint …"""
    used: Decimal | int | None
    limit: Decimal | int | None
    pending: Decimal | int = 0
    """Kept for what waits or is being built."""
    requested: Decimal | int = 0
    """Asked for and not decided."""
    above: Sequence[Above] = field(default_factory=tuple)
    ends: str = ""
    """When a time-boxed part of the limit ends, in words."""
    url: str = ""

    @property
    def over(self) -> Decimal:
        """How much is used and pending beyond the limit; 0 when within."""
        if self.limit is None or self.used is None:
            return Decimal(0)
        return max(Decimal(0), Decimal(self.used) + Decimal(self.pending) - Decimal(self.limit))

    @property
    def left(self) -> Decimal | None:
        """What may still be taken: the least of own and every limit above; None when unknown or without limit."""
        if self.used is None:
            return None
        rooms = [Decimal(line.limit) - Decimal(line.used) for line in self.above]
        if self.limit is not None:
            rooms.append(Decimal(self.limit) - Decimal(self.used) - Decimal(self.pending))
        return max(Decimal(0), min(rooms)) if rooms else None


def bar(used: Decimal, pending: Decimal, requested: Decimal, limit: Decimal | None, label: str) -> SafeString:
    """Return the picture: three parts and the limit's mark, scaled so that everything is seen."""
    total = used + pending + requested
    scale = max(total, limit or Decimal(0)) or Decimal(1)
    at = Decimal(0)
    parts = []
    for kind, amount in (("used", used), ("pending", pending), ("requested", requested)):
        if amount > 0:
            parts.append((kind, f"{at * 100 / scale:.3f}", f"{amount * 100 / scale:.3f}"))
            at += amount
    beyond = ""
    if limit is not None and used + pending > limit:
        beyond = format_html(
            '<rect class="beyond" x="{}%" y="0" width="{}%" height="10"/>',
            f"{limit * 100 / scale:.3f}",
            f"{(used + pending - limit) * 100 / scale:.3f}",
        )
    mark = ""
    if limit is not None and total > limit:
        mark = format_html(
            '{1}<line class="limit" x1="{0}%" x2="{0}%" y1="0" y2="10"/>', f"{limit * 100 / scale:.3f}", beyond
        )
    return format_html(
        '<svg class="quota-picture" width="100%" height="10" role="img" aria-label="{}">{}{}</svg>',
        label,
        format_html_join("", '<rect class="{}" x="{}%" width="{}%" height="10"/>', parts),
        mark,
    )


def quota_bar(line: QuotaLine, *, compact: bool = False) -> SafeString:
    """Return a dimension with its bar; `compact` leaves out the legend and the limits above."""
    used, limit = decimal_of(line.used), decimal_of(line.limit)
    title = format_html('<a href="{}">{}</a>', line.url, line.label) if line.url else format_html("{}", line.label)
    if used is None:
        figures = _("could not be read")
        return format_html(
            '<div class="quota"><p class="quota-head"><span class="quota-label">{}</span>'
            '<span class="quota-figures">{} · {}</span></p></div>',
            title,
            UNKNOWN,
            figures,
        )
    pending, requested = Decimal(line.pending), Decimal(line.requested)
    figures = (
        _("%(used)s of %(limit)s") % {"used": number(used + pending), "limit": quantity(limit, line.unit)}
        if limit is not None
        else _("%(used)s, no limit of its own") % {"used": quantity(used + pending, line.unit)}
    )
    over = (
        format_html(
            '<span class="badge is-bad">{}<span class="badge-word">{}</span></span>',
            icon("triangle-alert", "small"),
            _("%(n)s over the limit") % {"n": number(line.over)},
        )
        if line.over
        else ""
    )
    words = [("used", _("used"), used), ("pending", _("pending"), pending), ("requested", _("requested"), requested)]
    said = ", ".join(f"{number(amount)} {word}" for _kind, word, amount in words if amount or _kind == "used")
    picture = bar(used, pending, requested, limit, f"{line.label}: {figures}; {said}")
    left = line.left
    keys = format_html_join(
        "",
        '<li><i class="key is-{}"></i>{} {}</li>',
        ((kind, number(amount), word) for kind, word, amount in words if amount or kind == "used"),
    )
    rest = (
        format_html('<li class="quota-left">{}</li>', _("%(n)s left") % {"n": number(left)}) if left is not None else ""
    )
    ends = format_html("<li>{}</li>", line.ends) if line.ends else ""
    foot = SafeString() if compact else format_html('<ul class="quota-keys">{}{}{}</ul>', keys, ends, rest)
    above = (
        SafeString()
        if compact
        else format_html_join(
            "",
            '<li><span class="truncate">{}</span>{}<span>{}</span></li>',
            (
                (
                    _("Shared with all of %(tenant)s") % {"tenant": up.tenant},
                    bar(
                        Decimal(up.used),
                        Decimal(0),
                        Decimal(0),
                        Decimal(up.limit),
                        _("Shared: %(tenant)s") % {"tenant": up.tenant},
                    ),
                    _("%(used)s of %(limit)s") % {"used": number(up.used), "limit": number(up.limit)},
                )
                for up in line.above
            ),
        )
    )
    return format_html(
        '<div class="quota{}"><p class="quota-head">'
        '<span class="quota-label">{}</span>{}<span class="quota-figures">{}</span></p>{}{}{}</div>',
        " is-over" if line.over else "",
        title,
        over,
        figures,
        picture,
        foot,
        format_html('<ul class="quota-above">{}</ul>', above) if above else "",
    )
