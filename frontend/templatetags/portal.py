"""The one template library of the portal: `{% load portal %}`.

`{% part "stat" label=… value=… %}` renders `frontend/components/stat.html` with exactly these values;
`{% component "card" title=… %}body{% slot "actions" %}…{% endslot %}{% endcomponent %}` also hands over its body as
`children` and each slot by its name. A component sees its own values, `request` and `csrf_token`, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from django import template
from django.template.base import FilterExpression, Node, NodeList, Parser, Token, token_kwargs
from django.template.context import Context
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext

from frontend.design import charts, icons, moments, numbers, phases, quota_bar, resting, strip
from tenants import field_help

SHOW_CHOICES: Final = frozenset({"select", "checkbox", "date", "password", "search", "number"})
"""Types of fields that show by themselves what one may give."""

register = template.Library()

register.simple_tag(icons.icon, name="icon")
register.simple_tag(moments.when, name="when")
register.simple_tag(numbers.quantity, name="quantity")
register.simple_tag(strip.strip, name="strip")
register.simple_tag(strip.table, name="strip_table")
register.simple_tag(strip.legend, name="strip_legend")
register.simple_tag(strip.heat_map, name="heat_map")
register.simple_tag(strip.over_time, name="gpu_over_time")
register.simple_tag(quota_bar.quota_bar, name="quota_bar")
register.simple_tag(charts.chart, name="chart")
register.simple_tag(charts.point, name="chart_point")
register.simple_tag(charts.sparkline, name="sparkline")
register.simple_tag(charts.shares, name="shares")
register.filter("number", numbers.number)
register.filter("short_number", numbers.short)
register.filter("memory", numbers.memory)
register.filter("file_size", numbers.size)
register.filter("duration", numbers.duration)
register.filter("percent", numbers.percent)
register.filter("seconds", numbers.seconds)
register.filter("milliseconds", lambda value: numbers.seconds(None if value in (None, "") else float(value) / 1000))
register.filter(
    "absolute", lambda moment: moments.absolute(moment) if isinstance(moment, datetime) else numbers.UNKNOWN
)


@register.simple_tag
def quota_of(
    label: str,
    unit: str,
    used: int | None,
    limit: int | None,
    pending: int | str = 0,
    requested: int | str = 0,
    *,
    url: str = "",
    ends: str = "",
    compact: object = False,
) -> SafeString:
    """Return the quota bar of flat values; empty text counts as none."""
    line = quota_bar.QuotaLine(
        label=label,
        unit=unit,
        used=used,
        limit=limit,
        pending=int(pending or 0),
        requested=int(requested or 0),
        url=url,
        ends=ends,
    )
    return quota_bar.quota_bar(line, compact=bool(compact))


@register.simple_tag
def money(value: object, currency: str = "EUR", places: int = 2) -> str:
    """Return an amount with its currency sign."""
    return numbers.money(value, currency, places)


@register.simple_tag
def phase(value: str | None, *, short: bool = False) -> SafeString:
    """Return the badge of a phase: colour, icon and word; `short` leaves the word to screen readers and the title."""
    return _badge(phases.look(value), value or "", short=short)


@register.simple_tag
def state(row: Any) -> SafeString:
    """Return the badge of a product's phase, or of the sleep that an endpoint is in."""
    return _badge(resting.look_of(row) or phases.look(row.phase), row.phase)


def _badge(look: phases.Look, phase: str, *, short: bool = False) -> SafeString:
    turning = " is-moving" if look.is_moving else ""
    word = format_html('<span class="{}">{}</span>', "visually-hidden" if short else "badge-word", look.word)
    return format_html(
        '<span class="badge is-{}{}" data-phase="{}" title="{}">{}{}</span>',
        look.tone, turning, phase, look.sentence, icons.icon(look.icon, "small"), word,
    )  # fmt: skip


@register.filter
def phase_word(value: str | None) -> str:
    """Return a phase as people call it."""
    return str(phases.look(value).word)


@register.filter
def page_state(value: str | None) -> str:
    """Return what title and favicon show for a phase: building, ready, failed or nothing."""
    return phases.look(value).page_state


@register.filter
def initials(name: str) -> str:
    """Return one or two letters for an avatar."""
    words = [word for word in name.replace("@", " ").replace(".", " ").split() if word[:1].isalnum()]
    return "".join(word[0] for word in words[:2]).upper() or "?"


@register.filter
def as_json(value: object) -> str:
    """Return JSON for a data attribute; the template escapes it."""
    return json.dumps(value, separators=(",", ":"), default=str)


@register.simple_tag(takes_context=True)
def sort_link(context: Context, key: str) -> str:
    """Return the query string that sorts by `key`, or turns the order round where that is how it is sorted now."""
    request = context.get("request")
    if request is None:
        return f"?sort={key}"
    query = request.GET.copy()
    query["sort"] = f"-{key}" if query.get("sort") == key else key
    query.pop("page", None)
    return f"?{query.urlencode()}"


@register.simple_tag(takes_context=True)
def sorted_as(context: Context, key: str) -> str:
    """Return ascending, descending or none: how the list is sorted by `key` (value of `aria-sort`)."""
    request = context.get("request")
    now = request.GET.get("sort", "") if request is not None else ""
    return {key: "ascending", f"-{key}": "descending"}.get(now, "none")


@register.simple_tag(takes_context=True)
def export_link(context: Context, form: str) -> str:
    """Return this page's query string with `format` set to csv or json and without the page."""
    request = context.get("request")
    if request is None:
        return f"?format={form}"
    query = request.GET.copy()
    query["format"] = form
    for place in ("page", "after"):
        query.pop(place, None)
    return f"?{query.urlencode()}"


def inner(context: Context, values: Mapping[str, Any]) -> Context:
    """Return the context of a component: its own values, the request and the form token."""
    shared = {key: context[key] for key in ("request", "csrf_token") if key in context}
    return context.new({**shared, **values})


class Slot(Node):
    """A named piece of a component's body; renders nothing where it stands."""

    def __init__(self, name: str, nodelist: NodeList) -> None:
        """Keep name and content."""
        self.name = name
        self.nodelist = nodelist

    def render(self, context: Context) -> SafeString:  # noqa: ARG002 - the component renders it
        """Return nothing: the component places it."""
        return mark_safe("")


class Component(Node):
    """A component with or without a body."""

    def __init__(self, name: FilterExpression, values: Mapping[str, FilterExpression], nodelist: NodeList) -> None:
        """Keep what to render."""
        self.name = name
        self.values = values
        self.nodelist = nodelist

    def render(self, context: Context) -> SafeString:
        """Render the component's template with its values, its body and its slots."""
        values: dict[str, Any] = {key: value.resolve(context) for key, value in self.values.items()}
        for node in self.nodelist:
            if isinstance(node, Slot):
                values[node.name] = node.nodelist.render(context)
        if self.nodelist:
            values["children"] = self.nodelist.render(context)
        engine = context.template.engine  # type: ignore[union-attr]  # a template is being rendered
        name = self.name.resolve(context)
        if name in {"field", "stepper"}:
            values = explained(values)
        chosen = engine.get_template(f"frontend/components/{name}.html")
        return chosen.render(inner(context, values))


def explained(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a field with the sentence and example of `tenants.field_help` where it has none of its own.

    What is chosen, ticked or hidden needs no example: its choices stand there.
    """
    known = field_help.help_of(str(values.get("name") or ""))
    if known is None:
        return values
    found = {"sentence": gettext(known.sentence), **values}
    if values.get("type") not in SHOW_CHOICES and "children" not in values and "min" not in values:
        found.setdefault("example", known.example_text)
    return found


def head(parser: Parser, token: Token) -> tuple[FilterExpression, dict[str, FilterExpression]]:
    """Return name and values of a component tag. Raises `TemplateSyntaxError` for anything else."""
    tag, *bits = token.split_contents()
    if not bits:
        raise template.TemplateSyntaxError(f"{tag} needs the name of a component")
    values = token_kwargs(bits[1:], parser)
    if len(values) != len(bits) - 1:
        raise template.TemplateSyntaxError(f"{tag} takes a name and key=value pairs, each key once")
    return parser.compile_filter(bits[0]), values


@register.tag("part")
def part(parser: Parser, token: Token) -> Component:
    """Render a component that has no body."""
    name, values = head(parser, token)
    return Component(name, values, NodeList())


@register.tag("component")
def component(parser: Parser, token: Token) -> Component:
    """Render a component around a body."""
    name, values = head(parser, token)
    nodelist = parser.parse(("endcomponent",))
    parser.delete_first_token()
    return Component(name, values, nodelist)


@register.tag("slot")
def slot(parser: Parser, token: Token) -> Slot:
    """Name a piece of a component's body."""
    bits = token.split_contents()
    if len(bits) != 2:
        raise template.TemplateSyntaxError("slot takes one name")
    nodelist = parser.parse(("endslot",))
    parser.delete_first_token()
    return Slot(bits[1].strip("\"'"), nodelist)
