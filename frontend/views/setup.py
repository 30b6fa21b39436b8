"""Set-up of an installation: a checklist that ticks itself from what is there, each line with the page that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings
from django.db import connection
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import NoReverseMatch, reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.kernel.page import PageRequest, page
from tenants import second_factors
from tenants.models import Delivery, Host, PlatformMembership, PriceList, Provider, ServedModel, Tenant
from tenants.states import HostState, PlatformRole

OPERATORS: Final = 2
"""So many are needed: nobody recovers himself, and somebody is on holiday."""


@dataclass(frozen=True, slots=True)
class Fact:
    """How one line stands."""

    done: bool | None
    """None: it cannot be seen from here."""
    said: str


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the checklist."""

    key: str
    title: str | Promise
    why: str | Promise
    look: Callable[[PageRequest], Fact]
    action: str | Promise
    route: str = ""
    """Name of the page that does it; a line whose page is not there shows `text` alone."""
    text: str | Promise = ""
    """What to do where no page does it."""


def _operators(_request: PageRequest) -> Fact:
    count = PlatformMembership.objects.filter(role=PlatformRole.OPERATOR.value, person__is_active=True).count()
    return Fact(count >= 1, _count_operators(count))


def _count_operators(count: int) -> str:
    return ngettext("%(n)d operator", "%(n)d operators", count) % {"n": count}


def _second_operator(_request: PageRequest) -> Fact:
    count = PlatformMembership.objects.filter(role=PlatformRole.OPERATOR.value, person__is_active=True).count()
    approvers = PlatformMembership.objects.filter(role=PlatformRole.APPROVER.value, person__is_active=True).count()
    others = ngettext("%(n)d approver", "%(n)d approvers", approvers) % {"n": approvers}
    return Fact(count >= OPERATORS and approvers >= 1, f"{_count_operators(count)}, {others}")


def _factor(request: PageRequest) -> Fact:
    person = request.portal.person
    has = person is not None and person.pk in second_factors.having([person.pk])
    return Fact(has, _("set up for you") if has else _("you have none"))


def _provider(_request: PageRequest) -> Fact:
    rows = Provider.objects.filter(released_at__isnull=True, enabled=True)
    healthy = [row.name for row in rows.filter(healthy=True).order_by("name")[:5]]
    if healthy:
        return Fact(True, ", ".join(healthy))
    return Fact(False, _("none that answers") if rows.exists() else _("none"))


def _hosts(_request: PageRequest) -> Fact:
    count = Host.objects.filter(state=HostState.OPEN.value).count()
    return Fact(count > 0, _("%(n)d open") % {"n": count})


def _prices(request: PageRequest) -> Fact:
    row = PriceList.objects.filter(valid_from__lte=request.now).order_by("-valid_from").first()
    return Fact(row is not None, row.name if row is not None else _("none: costs show as --"))


def _models(_request: PageRequest) -> Fact:
    count = ServedModel.objects.filter(enabled=True).count()
    return Fact(count > 0, _("%(n)d offered") % {"n": count})


def _tenants(_request: PageRequest) -> Fact:
    count = Tenant.objects.exclude(status="closed").count()
    return Fact(count > 0, _("%(n)d there") % {"n": count})


def _mail(_request: PageRequest) -> Fact:
    delivered = Delivery.objects.filter(state="delivered").order_by("-done_at").values_list("medium", flat=True).first()
    if not settings.TENANTRY_MAIL_REACHES_PEOPLE:
        return Fact(False, _("no mail server; links are shown to whoever makes them"))
    return Fact(delivered is not None, _("a message was delivered") if delivered else _("set, nothing delivered yet"))


def _backup(_request: PageRequest) -> Fact:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('archive_mode'), last_archived_time IS NOT NULL, "
            "coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL) FROM pg_stat_archiver"
        )
        row = cursor.fetchone()
    if row is None or row[0] == "off":
        return Fact(None, _("cannot be seen from here"))
    return Fact(
        bool(row[1]) and not row[2], _("write-ahead log archived") if row[1] and not row[2] else _("archiving fails")
    )


ITEMS: Final = (
    Item(
        "operator", gettext_lazy("First operator"), gettext_lazy("Somebody has to run it."), _operators,
        gettext_lazy("See who"), "everybody",
    ),
    Item(
        "factor", gettext_lazy("Your second factor"),
        gettext_lazy("An operator's password alone must not open everything."), _factor, gettext_lazy("Set it up"),
        "mfa_index",
    ),
    Item(
        "second-operator", gettext_lazy("A second operator, an approver"),
        gettext_lazy("Nobody recovers or approves himself."), _second_operator, gettext_lazy("Give roles"), "everybody",
    ),
    Item(
        "provider", gettext_lazy("A provider"), gettext_lazy("The vCenter or cluster whose GPUs are handed out."),
        _provider, gettext_lazy("Connect a provider"), "provider-connect",
    ),
    Item(
        "host", gettext_lazy("A host that is open"),
        gettext_lazy("Nothing is placed before a host was accepted and opened."), _hosts,
        gettext_lazy("Accept and open hosts"), "hosts",
    ),
    Item(
        "prices", gettext_lazy("A price list"),
        gettext_lazy("People see what they ask for, approvers what they grant."), _prices,
        gettext_lazy("Publish prices"), "prices",
    ),
    Item(
        "model", gettext_lazy("A model to serve"), gettext_lazy("What New offers first."), _models,
        gettext_lazy("Offer a model"), "served-models",
    ),
    Item(
        "tenant", gettext_lazy("The first tenant"), gettext_lazy("The room of a team: people, limits, what runs."),
        _tenants, gettext_lazy("Make a tenant"), "tenancy-new",
    ),
    Item(
        "mail", gettext_lazy("Mail that arrives"), gettext_lazy("Invitations, decisions and ends reach people."), _mail,
        gettext_lazy("Look at the messages"), "outbox",
        gettext_lazy("Set the mail server in the environment; docs/configuration.md names the variables."),
    ),
    Item(
        "backup", gettext_lazy("A backup that was restored once"),
        gettext_lazy("The database is the only memory of who holds what."), _backup, gettext_lazy("Look at the system"),
        "system", gettext_lazy("docs/backups.md says what a copy must hold and how it is tried."),
    ),
)  # fmt: skip


@page("people.create")
def show(request: PageRequest) -> HttpResponse:
    """Show the checklist; each line as the facts are now."""
    lines = [_line(item, request) for item in ITEMS]
    done = sum(line["done"] is True for line in lines)
    following = next((line for line in lines if line["done"] is False), None)
    values: dict[str, Any] = {
        "lines": lines,
        "done": done,
        "all": len(lines),
        "following": following,
        "text": _("%(done)d of %(all)d") % {"done": done, "all": len(lines)},
    }
    template = "_list" if request.htmx else "show"
    return render(request, f"frontend/pages/setup/{template}.html", values)


def _line(item: Item, request: PageRequest) -> dict[str, Any]:
    fact = item.look(request)
    return {
        "key": item.key,
        "title": item.title,
        "why": item.why,
        "done": fact.done,
        "said": fact.said,
        "action": item.action,
        "url": _url(item.route),
        "text": item.text,
    }


def _url(route: str) -> str:
    for name in (f"frontend:{route}", route):
        try:
            return reverse(name)
        except NoReverseMatch:
            continue
    return ""
