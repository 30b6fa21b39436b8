"""What holds everywhere: who approves what, which tenants are narrower, fixed limits; what is told to whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.db.models import Count, Q
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.accounts import mail
from frontend.design import numbers
from frontend.kernel import asks, outlook
from frontend.kernel.page import PageRequest, page
from frontend.views.prices import tabs
from tenants import approval
from tenants.models import AutoApprovalRule, Tenant, Webhook
from tenants.models.account import LinkKind
from tenants.models.tenant import MAX_DEPTH
from tenants.notifications import registry
from tenants.notifications.registry import Audience, Mail
from tenants.operations import accounts, delegations, requests
from tenants.policy import LIST_KEYS

TENANTS: Final = 500
RULES: Final[Mapping[str, str | Promise]] = {
    "sites": gettext_lazy("Sites"),
    "tiers": gettext_lazy("How far apart"),
    "products": gettext_lazy("GPUs"),
    "models": gettext_lazy("Models"),
    "runtimes": gettext_lazy("Model servers"),
    "logins": gettext_lazy("Logging in to machines"),
}
AUDIENCES: Final[Mapping[Audience, str | Promise]] = {
    Audience.REQUESTER: gettext_lazy("who asked"),
    Audience.DECIDERS: gettext_lazy("who decides next"),
    Audience.THREAD: gettext_lazy("who asked, and who decides"),
    Audience.OBJECT_OWNER: gettext_lazy("its owner"),
    Audience.TENANT_OWNERS: gettext_lazy("owners of the tenant"),
    Audience.TENANT_MEMBERS: gettext_lazy("members of the tenant"),
    Audience.SUBTREE_MEMBERS: gettext_lazy("members of the tenant and of those below"),
    Audience.SUBJECT: gettext_lazy("the person concerned"),
    Audience.OPERATORS: gettext_lazy("operators"),
}
MAILS: Final[Mapping[Mail, str | Promise]] = {
    Mail.NOW: gettext_lazy("at once"),
    Mail.DIGEST: gettext_lazy("once a day"),
    Mail.OFF: gettext_lazy("no"),
}


@page("people.list")
def policies(request: PageRequest) -> HttpResponse:
    """Show who approves what, fixed limits, and the tenants whose policy is narrower."""
    narrower = Tenant.objects.exclude(policy={}).exclude(status="closed").order_by("name")[:TENANTS]
    values = {
        "stages": [
            {"kind": str(asks.KINDS[kind]), "deciders": [outlook.decider(stage) for stage in stages]}
            for kind, stages in approval.DEFAULT_STAGES.items()
        ],
        "rules": AutoApprovalRule.objects.filter(enabled=True).count(),
        "rules_url": reverse("frontend:rules"),
        "fixed": _fixed(),
        "tenants": [
            {
                "tenant": row,
                "url": reverse("frontend:tenancy", kwargs={"name": row.name}),
                "rules": list(_narrowed(row.policy)),
            }
            for row in narrower
        ],
        "tabs": tabs("policies"),
        "columns": [
            {"key": "tenant", "label": _("Tenant")},
            {"key": "rules", "label": _("Only this is allowed there and below")},
        ],
    }
    return render(request, "frontend/pages/prices/policies.html", values)


def _narrowed(policy: Mapping[str, Any]) -> Any:
    for key in LIST_KEYS:
        if key in policy:
            yield {"label": str(RULES[key]), "text": ", ".join(policy[key]) or _("none")}
    if policy.get("longest_s") is not None:
        yield {"label": _("Longest term"), "text": numbers.duration(policy["longest_s"])}
    for key, label in (
        ("requests_per_minute", _("Requests per minute")),
        ("tokens_per_minute", _("Tokens per minute")),
    ):
        if policy.get(key) is not None:
            yield {"label": label, "text": numbers.number(policy[key])}
    for kind, stages in (policy.get("approvals") or {}).items():
        text = ", ".join(outlook.decider(stage) for stage in stages)
        yield {"label": _("%(kind)s is approved by") % {"kind": asks.KINDS.get(kind, kind)}, "text": text}


def _fixed() -> list[dict[str, Any]]:
    def days(span: Any) -> str:
        return numbers.duration(span.total_seconds())

    return [
        {"label": _("An undecided request ends after"), "value": days(requests.LASTS)},
        {"label": _("Open requests of one person"), "value": numbers.number(requests.MOST_OPEN)},
        {"label": _("Stages of an approval, at most"), "value": numbers.number(approval.MOST_STAGES)},
        {"label": _("Standing in for somebody, at most"), "value": days(delegations.LONGEST)},
        {"label": _("An invitation lasts"), "value": days(accounts.LASTS[LinkKind.INVITATION])},
        {"label": _("A recovery link lasts"), "value": days(accounts.LASTS[LinkKind.RECOVERY])},
        {"label": _("Levels of tenants"), "value": numbers.number(MAX_DEPTH)},
    ]


@page("people.list")
def notices(request: PageRequest) -> HttpResponse:
    """Show what is told to whom by which channel, and how the channels are."""
    hooks = Webhook.objects.filter(removed_at=None).aggregate(
        on=Count("pk", filter=Q(disabled_at=None)),
        failing=Count("pk", filter=Q(disabled_at=None, failing_since__isnull=False)),
        off=Count("pk", filter=Q(disabled_at__isnull=False)),
    )
    values = {
        "groups": [
            {
                "title": str(registry.GROUP_TITLES[group]),
                "kinds": [
                    {
                        "id": kind.id,
                        "title": str(kind.title),
                        "help": str(kind.help),
                        "audience": str(AUDIENCES[kind.audience]),
                        "mail": str(MAILS[kind.mail]),
                        "webhook": kind.webhook,
                    }
                    for kind in registry.of_group(group)
                ],
            }
            for group in registry.Group
        ],
        "mail_reaches": mail.is_set_up(),
        "hooks": hooks,
        "mine_url": reverse("frontend:notice-preferences"),
        "tabs": tabs("platform-notices"),
        "columns": [
            {"key": "title", "label": _("What")},
            {"key": "audience", "label": _("Who is told")},
            {"key": "mail", "label": _("Mail, unless chosen otherwise")},
            {"key": "webhook", "label": _("Webhooks")},
        ],
    }
    return render(request, "frontend/pages/prices/notices.html", values)
