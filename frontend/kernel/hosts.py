"""One host in words: why it is as it is, what may be done about it, what happened to it. No writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db.models import QuerySet
from django.urls import NoReverseMatch, reverse
from django.utils.dateparse import parse_datetime
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.kernel import asks, estate
from tenants import access
from tenants.actor import Actor
from tenants.models import Event, Finding, Host, HostPlan
from tenants.operations.layouts import FEATURE
from tenants.policies import ROUTES
from tenants.states import Binding, HostState

EVENTS_SHOWN: Final = 60
TOGETHER: Final = timedelta(minutes=10)
"""Events alike within this are one line."""
STEPS: Final[Mapping[str, tuple[str | Promise, str, str, frozenset[HostState]]]] = {
    "accept": (
        gettext_lazy("Run acceptance"),
        "clipboard-check",
        "hosts.accept",
        frozenset({HostState.JOINING, HostState.MAINTENANCE}),
    ),
    "open": (gettext_lazy("Open"), "door-open", "hosts.open", frozenset({HostState.ACCEPTED})),
    "uncordon": (gettext_lazy("Open again"), "door-open", "hosts.uncordon", frozenset({HostState.CORDONED})),
    "return": (gettext_lazy("Bring back"), "undo-2", "hosts.return", frozenset({HostState.MAINTENANCE})),
    "cordon": (gettext_lazy("Cordon"), "octagon-pause", "hosts.cordon", frozenset({HostState.OPEN})),
    "drain": (
        gettext_lazy("Drain"),
        "log-out",
        "hosts.drain",
        frozenset({HostState.OPEN, HostState.CORDONED}),
    ),
    "layout": (
        gettext_lazy("Change layout"),
        "layout-grid",
        "hosts.layout",
        frozenset({HostState.ACCEPTED, HostState.OPEN, HostState.CORDONED, HostState.MAINTENANCE}),
    ),
    "maintenance": (
        gettext_lazy("Into maintenance"),
        "wrench",
        "hosts.maintenance",
        frozenset({HostState.OPEN, HostState.CORDONED}),
    ),
    "remove": (
        gettext_lazy("Remove"),
        "trash-2",
        "hosts.remove",
        frozenset({HostState.JOINING, HostState.ACCEPTED, HostState.CORDONED, HostState.MAINTENANCE}),
    ),
}
"""What may be done with a host: label, icon, operation, states in which it is offered."""
AT_ONCE: Final = frozenset({"accept", "open", "cordon", "uncordon"})
"""Steps that a click does; the others have a page that says what comes of them first."""
PRIMARY: Final = ("open", "uncordon", "return", "accept")
WORDS: Final[Mapping[str, str | Promise]] = {
    "host.discovered": gettext_lazy("Found by its provider"),
    "host.changed": gettext_lazy("The provider reports it differently"),
    "host.acceptance-requested": gettext_lazy("Acceptance asked for"),
    "host.accepted": gettext_lazy("Accepted: every check passed"),
    "host.acceptance-failed": gettext_lazy("Acceptance failed"),
    "host.opened": gettext_lazy("Opened"),
    "host.cordoned": gettext_lazy("Cordoned"),
    "host.layout-planned": gettext_lazy("A change of its layout was planned"),
    "host.layout-started-early": gettext_lazy("The change of its layout began before the announced time"),
    "host.layout-changed": gettext_lazy("Its layout was changed"),
    "host.layout-failed": gettext_lazy("Its layout could not be changed"),
    "host.layout-cancelled": gettext_lazy("The change of its layout was cancelled"),
    "host.draining": gettext_lazy("A drain began"),
    "host.drain-cancelled": gettext_lazy("The drain was cancelled"),
    "host.maintenance": gettext_lazy("In maintenance"),
    "host.returned": gettext_lazy("Brought back"),
    "host.removed": gettext_lazy("Removed"),
    "host-plan.created": gettext_lazy("A plan was made"),
    "host-plan.cancel-requested": gettext_lazy("Its end was asked for"),
    "host.rebound": gettext_lazy("The provider said where things lie"),
    "host.uses-changed": gettext_lazy("Use by others changed"),
    "host.gpu-added": gettext_lazy("A GPU was added"),
    "host.gpu-removed": gettext_lazy("A GPU was taken out"),
    "host.gpu-replaced": gettext_lazy("A GPU was replaced"),
    "host.gpu-faulty": gettext_lazy("A GPU is faulty"),
    "host.gpu-recovered": gettext_lazy("A GPU is well again"),
}
BINDINGS: Final[Mapping[str, str | Promise]] = {
    Binding.DEVICE.value: gettext_lazy("We choose GPU and place"),
    Binding.GPU.value: gettext_lazy("We choose the GPU, the provider the place on it"),
    Binding.HOST.value: gettext_lazy("We choose the host, the provider GPU and place"),
}
BOUNDARIES: Final[Mapping[str, str | Promise]] = {
    "namespace": gettext_lazy("namespaces"),
    "vm": gettext_lazy("machines"),
    "cluster": gettext_lazy("clusters"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that may be done now."""

    key: str
    label: str
    icon: str
    url: str
    at_once: bool
    is_primary: bool
    is_danger: bool


def steps(row: Host, actor: Actor) -> list[Step]:
    """Return what the actor may do with a host in its present state."""
    found = []
    for key, (label, icon, operation_id, states) in STEPS.items():
        if row.state not in states or not access.allowed(actor, None, ROUTES[operation_id]):
            continue
        if key == "layout" and not may_carve(row):
            continue
        url = reverse(f"frontend:host-{key}", kwargs={"key": row.short_id})
        found.append(Step(key, str(label), icon, url, key in AT_ONCE, False, key == "remove"))
    first = next((key for key in PRIMARY if any(one.key == key for one in found)), "")
    return [Step(o.key, o.label, o.icon, o.url, o.at_once, o.key == first, o.is_danger) for o in found]


def may_carve(row: Host) -> bool:
    """Whether some GPU's layout is set by a plan here: not where the provider cannot, nor where placing carves."""
    if row.provider.capabilities.get("features", {}).get(FEATURE) is False:
        return False
    return bool(row.devices.filter(removed_at=None).exclude(layout_change="dynamic").exists())


def state_of(row: Host) -> dict[str, str]:
    """Return the badge of a host's state and its sentence."""
    word, tone, sentence = estate.STATES[row.state]
    return {"text": str(word), "tone": tone, "sentence": str(sentence)}


def plan_url(plan: HostPlan | None) -> str:
    """Return the address of a plan's page, `""` where there is none."""
    if plan is None:
        return ""
    try:
        return reverse("frontend:plan", kwargs={"key": plan.short_id})
    except NoReverseMatch:
        return ""


def conditions(row: Host, findings: Sequence[Finding], plan: HostPlan | None) -> list[dict[str, Any]]:
    """Return in words why things are placed here or not; the provider must be loaded."""
    state = state_of(row)
    provider = row.provider
    blocking = [one for one in findings if one.blocks_placement]
    items: list[dict[str, Any]] = [
        _item(
            _("Takes new things"),
            _("yes") if row.placeable else _("no"),
            _why_shut(row, blocking),
            good=row.placeable,
        ),
        _item(
            _("State"),
            state["text"],
            state["sentence"],
            good=row.state == HostState.OPEN,
            next_step=_next(row, plan),
        ),
        _item(
            _("Healthy"),
            _("yes") if row.healthy else _("no"),
            row.message,
            good=row.healthy,
            next_step="" if row.healthy else _("Look at it at the provider; it is seen again with the next look."),
        ),
        _item(
            _("Provider"),
            _("answers") if provider.healthy else _("does not answer"),
            "" if provider.enabled else _("It is switched off: nothing is placed on its hosts."),
            good=provider.healthy and provider.enabled,
            since=provider.snapshot_at,
        ),
    ]
    if blocking:
        items.append(_item(_("Findings"), _("keep it out of use"), blocking[0].detail, good=False))
    return items


def _item(
    label: str, reason: str, message: str, *, good: bool, next_step: str = "", since: datetime | None = None
) -> dict[str, Any]:
    return {
        "label": label,
        "status": "True" if good else "False",
        "good": good,
        "reason": reason,
        "message": message,
        "next_step": next_step,
        "since": since,
    }


def _why_shut(row: Host, blocking: Sequence[Finding]) -> str:
    if row.placeable:
        return ""
    if row.state != HostState.OPEN:
        return _("Only an open host takes new things.")
    if not row.healthy:
        return _("It is not healthy.")
    if not row.provider.enabled:
        return _("Its provider is switched off.")
    return _("A finding keeps it out of use.") if blocking else _("Its provider is being removed.")


def _next(row: Host, plan: HostPlan | None) -> str:
    return {
        HostState.JOINING: _("Acceptance was asked for and runs with the provider's next look.")
        if "requested_at" in row.acceptance
        else _("Run its acceptance, then open it."),
        HostState.ACCEPTED: _("Open it."),
        HostState.CORDONED: _("Open it again, or drain it."),
        HostState.DRAINING: _("Follow its plan.") if plan is not None else _("Wait until it is empty."),
        HostState.MAINTENANCE: _("Bring it back when the work is done."),
    }.get(HostState(row.state), "")


def acceptance(row: Host) -> dict[str, Any]:
    """Return the record of the last acceptance run; `known` is False where there was none."""
    record = row.acceptance
    checks = [
        {
            "label": str(check.get("name", "")),
            "status": "True" if check.get("passed") else "False",
            "good": bool(check.get("passed")),
            "reason": _("passed") if check.get("passed") else _("failed"),
            "message": str(check.get("seen") or ""),
        }
        for check in record.get("checks") or ()
    ]
    return {
        "known": bool(record),
        "waits": "requested_at" in record,
        "asked_at": _moment(record.get("requested_at")),
        "passed": bool(record.get("passed")),
        "at": _moment(record.get("at")),
        "message": str(record.get("message") or ""),
        "checks": checks,
        "failed": sum(not check["good"] for check in checks),
    }


def _moment(text: Any) -> datetime | None:
    return parse_datetime(text) if isinstance(text, str) else None


@dataclass(slots=True)
class Happening:
    """One line of a history: an event, or several alike that came together."""

    at: datetime
    what: str
    by: str
    details: list[str]
    count: int = 1


def history(keys: Sequence[UUID], *, words: Mapping[str, str | Promise] = WORDS) -> list[Happening]:
    """Return what happened to some objects, the latest first, with who did it; two statements."""
    rows: QuerySet[Event] = Event.objects.filter(object_id__in=list(keys)).order_by("-at", "-seq")
    found = list(rows[:EVENTS_SHOWN])
    names = asks.names(row.person_id for row in found)
    lines: list[Happening] = []
    for row in found:
        what = str(words.get(row.kind) or row.kind.partition(".")[2].replace("-", " ").capitalize())
        by = names.get(row.person_id, "") if row.person_id is not None else ""
        detail = _detail(row)
        last = lines[-1] if lines else None
        if last is not None and (last.what, last.by) == (what, by) and last.at - row.at < TOGETHER:
            last.count += 1
            last.details += [detail] if detail and detail not in last.details else []
        else:
            lines.append(Happening(row.at, what, by, [detail] if detail else []))
    return lines


def _detail(row: Event) -> str:
    """Return the particulars of an event: the reason, the provider's message, the GPU, the fields that differ."""
    data = row.data
    parts = [str(data[key]) for key in ("device", "reason", "message") if data.get(key)]
    if isinstance(data.get("fields"), list):
        parts.append(", ".join(str(each).replace("_", " ") for each in data["fields"]))
    return ": ".join(parts)
