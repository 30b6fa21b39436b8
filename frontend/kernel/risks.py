"""Risks of tenants, and levels of suspension, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.design import numbers
from frontend.kernel import asks
from tenants.states import SuspensionDepth
from tenants.tenancies import Risk, RiskKind, Standing

WORDS: Final[Mapping[RiskKind, tuple[str | Promise, str, str]]] = {
    RiskKind.NOBODY: (gettext_lazy("Nobody owns it"), "bad", "user-x"),
    RiskKind.OVER: (gettext_lazy("Over a limit"), "bad", "triangle-alert"),
    RiskKind.SUSPENDED: (gettext_lazy("Suspended"), "warn", "circle-pause"),
    RiskKind.SUSPENDED_ABOVE: (gettext_lazy("Suspended with the tenant above"), "warn", "circle-pause"),
    RiskKind.NEAR_LIMIT: (gettext_lazy("Near a limit"), "warn", "gauge"),
    RiskKind.OVER_COMMITTED: (gettext_lazy("Promised more than it has"), "warn", "layers"),
    RiskKind.NO_FACTOR: (gettext_lazy("Owner without second factor"), "warn", "key-round"),
    RiskKind.ONE_OWNER: (gettext_lazy("Only one owner"), "info", "user"),
    RiskKind.NO_LIMIT: (gettext_lazy("No limit set"), "info", "circle-dashed"),
}
"""Kind → short words, tone, icon."""
LEVELS: Final[Mapping[str, tuple[str | Promise, str | Promise]]] = {
    SuspensionDepth.KEYS.value: (
        gettext_lazy("Keys refused"),
        gettext_lazy("Endpoints answer nobody. Everything else runs on and can be reached."),
    ),
    SuspensionDepth.NETWORK.value: (
        gettext_lazy("Network cut"),
        gettext_lazy("Keys are refused, and machines and namespaces cannot be reached either."),
    ),
    SuspensionDepth.POWER.value: (
        gettext_lazy("Switched off"),
        gettext_lazy("Keys, network, and everything is switched off. The GPUs stay reserved."),
    ),
}
"""Depth → short words, what it does."""


def badges(each: Standing) -> list[dict[str, str]]:
    """Return each kind of risk once, worst first, its sentences as the title."""
    found: dict[RiskKind, dict[str, str]] = {}
    for risk in each.risks:
        text, tone, icon = WORDS[risk.kind]
        if risk.kind in found:
            found[risk.kind]["title"] += f" {sentence(risk, each)}"
        else:
            found[risk.kind] = {
                "text": str(text), "tone": tone, "icon": icon, "title": sentence(risk, each), "key": risk.kind.value
            }  # fmt: skip
    return list(found.values())


def conditions(each: Standing) -> list[dict[str, Any]]:
    """Return risks as the conditions component shows them: what, why, what to do."""
    return [
        {
            "label": str(WORDS[risk.kind][0]),
            "status": "False",
            "good": False,
            "message": sentence(risk, each),
            "next_step": next_step(risk),
        }
        for risk in each.risks
    ]


def sentence(risk: Risk, each: Standing) -> str:
    """Return a risk as a sentence with its figures."""
    if risk.dimension:
        what = asks.dimension(risk.dimension)
        unit = _("slots of %(what)s") % {"what": what} if risk.dimension.endswith(".slices") else what
        figures = {"n": numbers.number(risk.count), "of": numbers.number(risk.of), "what": unit}
        return {
            RiskKind.OVER: _("%(n)s used, %(of)s allowed: %(what)s."),
            RiskKind.NEAR_LIMIT: _("%(n)s of %(of)s used: %(what)s."),
            RiskKind.OVER_COMMITTED: _("Tenants below are promised %(n)s, here are %(of)s: %(what)s."),
        }[risk.kind] % figures
    if risk.kind is RiskKind.SUSPENDED and each.suspension is not None:
        return _("%(level)s: %(reason)s") % {
            "level": LEVELS[each.suspension.depth][0],
            "reason": each.suspension.reason,
        }
    if risk.kind is RiskKind.SUSPENDED_ABOVE:
        return _("%(tenant)s above it is suspended.") % {"tenant": each.suspended_above}
    if risk.kind is RiskKind.NO_FACTOR:
        text = ngettext(
            "%(n)d of %(of)d owner has no second factor.", "%(n)d of %(of)d owners have no second factor.", risk.count
        )
        return text % {"n": risk.count, "of": risk.of}
    return {
        RiskKind.NOBODY: _("No active owner here or above: nobody invites, decides or answers for it."),
        RiskKind.ONE_OWNER: _("If this one person is away, nobody decides."),
        RiskKind.NO_LIMIT: _("Without a limit nothing can run; each wish becomes a request."),
    }[risk.kind]


def next_step(risk: Risk) -> str:
    """Return what an operator does about a risk."""
    return {
        RiskKind.NOBODY: _("Invite an owner."),
        RiskKind.OVER: _("Raise the limit, or ask the tenant to give something back; nothing new starts meanwhile."),
        RiskKind.SUSPENDED: _("Resume it when its reason is gone."),
        RiskKind.SUSPENDED_ABOVE: _("Resume the tenant above."),
        RiskKind.NEAR_LIMIT: _("Look at its open requests before they become urgent."),
        RiskKind.OVER_COMMITTED: _("Lower what is promised below, or raise the limit here."),
        RiskKind.NO_FACTOR: _("Ask them to add a second factor or a passkey under Me."),
        RiskKind.ONE_OWNER: _("Ask the owner to name a second one."),
        RiskKind.NO_LIMIT: _("Set its first limits."),
    }[risk.kind]
