"""Webhooks of a tenant: made with a secret shown once, rolled, tried, switched off, removed; their log, sent again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.forms import wishes
from frontend.kernel import lists, once, problems, twins
from frontend.kernel.page import PageRequest, page
from tenants import access
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import Delivery, Webhook
from tenants.notifications import reads, registry
from tenants.operations import notifications
from tenants.policies import ROUTES
from tenants.transactions import reading

STATES: Final[Mapping[str, tuple[str | Promise, str, str]]] = {
    "pending": (gettext_lazy("On its way"), "info", "hourglass"),
    "delivered": (gettext_lazy("Delivered"), "ok", "circle-check"),
    "dead": (gettext_lazy("Given up"), "bad", "octagon-x"),
}
OVERLAPS: Final = (0, 3600, 86400, 604800)


@page("webhooks.list")
def listed(request: PageRequest) -> HttpResponse:
    """List the webhooks with how they fare."""
    return _list(request)


def _list(request: PageRequest, *, errors: Mapping[str, str] | None = None, status: int = 200) -> HttpResponse:
    where = {"tenant": request.tenant.name}
    rows = list(reads.webhooks(request.actor, request.tenant).order_by("name"))
    values = {
        "lines": [
            {
                "row": row,
                "state": _state(row),
                "gets": _gets(row),
                "url": reverse("frontend:webhook", kwargs={**where, "name": row.name}),
            }
            for row in rows
        ],
        "columns": [
            {"key": "name", "label": _("Name")},
            {"key": "url", "label": _("Goes to")},
            {"key": "gets", "label": _("Gets")},
            {"key": "state", "label": _("State")},
            {"key": "last", "label": _("Last delivered")},
        ],
        "may_act": access.allowed(request.actor, request.tenant, ROUTES["webhooks.create"]),
        "kind_groups": kind_groups(()),
        "errors": errors or {},
        "given": request.POST,
        "twins": twins.pair(
            "",
            twins.api(
                "POST",
                f"tenants/{request.tenant.name}/webhooks",
                {"name": "chat-room", "url": "https://hooks.example.org/tenantry", "kinds": []},
            ),
        ),
        "breadcrumbs": [
            {"label": _("Settings"), "url": reverse("frontend:settings", kwargs=where)},
            {"label": _("Webhooks"), "url": ""},
        ],
    }
    return render(request, "frontend/pages/settings/webhooks.html", values, status=status)


def _state(row: Webhook) -> dict[str, str]:
    if row.disabled_at is not None:
        return {"text": _("Switched off"), "tone": "warn", "icon": "pause", "why": row.disabled_why}
    if row.failing_since is not None:
        return {"text": _("Fails"), "tone": "bad", "icon": "octagon-x", "why": ""}
    return {"text": _("On"), "tone": "ok", "icon": "circle-check", "why": ""}


def _gets(row: Webhook) -> str:
    if not row.kinds:
        return _("everything about the tenant")
    titles = [str(registry.KINDS[kind].title) for kind in row.kinds if kind in registry.KINDS]
    return ", ".join(titles[:3]) + (" …" if len(titles) > 3 else "")


def kind_groups(chosen: Any) -> list[dict[str, Any]]:
    """Return the kinds a webhook may get, by group, for checkboxes; none chosen means all."""
    found: dict[str, dict[str, Any]] = {}
    for key in registry.WEBHOOK_KINDS:
        kind = registry.KINDS[key]
        group = found.setdefault(kind.group, {"title": str(registry.GROUP_TITLES[kind.group]), "kinds": []})
        group["kinds"].append({"id": key, "title": str(kind.title), "checked": key in chosen})
    return list(found.values())


@page("webhooks.create", methods=("POST",))
def create(request: PageRequest) -> HttpResponse:
    """Make a webhook; its page shows the secret once."""
    given = request.POST
    try:
        row, secret = notifications.create_webhook(
            tenant=request.tenant,
            name=given.get("name", "").strip(),
            url=given.get("url", "").strip(),
            kinds=given.getlist("kinds"),
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        found = problems.at_fields(error)
        if error.specific_code == "name-taken":
            found = {"name": error.detail}
        with reading(request.actor):
            return _list(request, errors=found, status=problems.status_of(error))
    return _shown_once(request, row, secret)


def _address(request: PageRequest, row: Webhook) -> str:
    return reverse("frontend:webhook", kwargs={"tenant": request.tenant.name, "name": row.name})


def _shown_once(request: PageRequest, row: Webhook, secret: str) -> HttpResponse:
    response = HttpResponseRedirect(_address(request, row))
    once.put(request, response, secret, path=response["Location"])
    return response


def _found(request: PageRequest, name: str) -> Webhook:
    with reading(request.actor):
        return access.find(reads.webhooks(request.actor, request.tenant), name)


# --- one ----------------------------------------------------------------------------------------------


@page("webhooks.read")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show one webhook with the log of the last 30 days."""
    return _page(request, access.find(reads.webhooks(request.actor, request.tenant), name))


def _page(
    request: PageRequest, row: Webhook, *, errors: Mapping[str, str] | None = None, status: int = 200
) -> HttpResponse:
    log = reads.deliveries(row, state=_wanted(request)).prefetch_related("tries")
    found = lists.page_of(log, request.GET.get("after", ""))
    secret = once.peek(request)
    where = {"tenant": request.tenant.name}
    query = request.GET.copy()
    query["after"] = found.after
    overlap_words = {0: _("nothing: at once"), 3600: _("an hour"), 86400: _("a day"), 604800: _("a week")}
    values = {
        "row": row,
        "state": _state(row),
        "gets": _gets(row),
        "secret": secret,
        "deliveries": [_line(request, row, each) for each in found.rows],
        "more_url": f"?{query.urlencode()}" if found.after else "",
        "previous_url": "" if found.is_first else request.path,
        "fields": [
            {
                "name": "state",
                "label": _("State"),
                "value": _wanted(request),
                "options": [
                    {"value": "", "label": _("All")},
                    *({"value": key, "label": str(text)} for key, (text, _tone, _icon) in STATES.items()),
                ],
            }
        ],
        "is_filtered": bool(_wanted(request)),
        "columns": [
            {"key": "what", "label": _("What")},
            {"key": "state", "label": _("State")},
            {"key": "status", "label": _("Answer")},
            {"key": "tries", "label": _("Attempts"), "numeric": True},
            {"key": "at", "label": _("Made")},
            {"key": "actions", "label": _("Actions"), "hidden_label": True},
        ],
        "may_act": access.allowed(request.actor, request.tenant, ROUTES["webhooks.create"]),
        "may_stop": access.allowed(request.actor, request.tenant, ROUTES["webhooks.delete"]),
        "kind_groups": kind_groups(row.kinds),
        "overlaps": [{"value": str(seconds), "label": overlap_words[seconds]} for seconds in OVERLAPS],
        "errors": errors or {},
        "url_value": request.POST.get("url", row.url) if errors else row.url,
        "breadcrumbs": [
            {"label": _("Settings"), "url": reverse("frontend:settings", kwargs=where)},
            {"label": _("Webhooks"), "url": reverse("frontend:webhooks", kwargs=where)},
            {"label": row.name, "url": ""},
        ],
    }
    response = render(request, "frontend/pages/settings/webhook.html", values, status=status)
    if secret:
        once.forget(request, response)
    return response


def _wanted(request: PageRequest) -> str:
    wanted = request.GET.get("state", "")
    return wanted if wanted in STATES else ""


def _line(request: PageRequest, row: Webhook, each: Delivery) -> dict[str, Any]:
    text, tone, icon = STATES[each.state]
    title = str(registry.KINDS[each.kind].title) if each.kind in registry.KINDS else _("Test message")
    where = {"tenant": request.tenant.name, "name": row.name, "delivery": each.pk}
    tries = sorted(each.tries.all(), key=lambda one: one.number)
    return {
        "row": each,
        "title": title,
        "state": {"text": str(text), "tone": tone, "icon": icon},
        "answer": str(each.status) if each.status else "--",
        "tries": tries,
        "again_url": reverse("frontend:webhook-send-again", kwargs=where),
    }


@page("webhooks.update", methods=("POST",))
def change(request: PageRequest, name: str) -> HttpResponse:
    """Change where it goes and what it gets."""
    row = _found(request, name)
    changes = {"url": request.POST.get("url", "").strip(), "kinds": request.POST.getlist("kinds")}
    try:
        notifications.update_webhook(webhook=row, changes=changes, actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        with reading(request.actor):
            return _page(request, row, errors=problems.at_fields(error), status=problems.status_of(error))
    messages.success(request, _("Changed. What waits to be sent goes to the new address."))
    return HttpResponseRedirect(_address(request, row))


@page("webhooks.roll", methods=("POST",))
def roll(request: PageRequest, name: str) -> HttpResponse:
    """Make a new secret, shown once; the old one signs too for a while."""
    row = _found(request, name)
    overlap = wishes.number(request.POST.get("overlap_s"), OVERLAPS[2], least=0, most=OVERLAPS[-1])
    row, secret = notifications.roll_webhook(webhook=row, overlap_s=overlap, actor=request.actor, now=request.now)
    return _shown_once(request, row, secret)


def _done(request: PageRequest, name: str, deed: Any, text: str) -> HttpResponse:
    row = _found(request, name)
    try:
        deed(webhook=row, actor=request.actor, now=request.now)
    except ControlPlaneError as error:
        if not isinstance(error, Conflict):
            raise
        messages.error(request, error.detail)
    else:
        messages.success(request, text)
    return HttpResponseRedirect(_address(request, row))


@page("webhooks.test", methods=("POST",))
def test(request: PageRequest, name: str) -> HttpResponse:
    """Send a test message; the log shows how it went."""
    return _done(
        request, name, notifications.try_webhook, _("A test message is on its way; the log shows how it went.")
    )


@page("webhooks.enable", methods=("POST",))
def enable(request: PageRequest, name: str) -> HttpResponse:
    """Switch it on again."""
    return _done(request, name, notifications.enable_webhook, _("Switched on. It gets what happens from now on."))


@page("webhooks.disable", methods=("POST",))
def disable(request: PageRequest, name: str) -> HttpResponse:
    """Switch it off."""
    return _done(request, name, notifications.disable_webhook, _("Switched off: nothing more is sent."))


@page("webhooks.delete", methods=("POST",))
def remove(request: PageRequest, name: str) -> HttpResponse:
    """Remove it and forget its secrets."""
    row = _found(request, name)
    notifications.remove_webhook(webhook=row, actor=request.actor, now=request.now)
    messages.success(request, _("%(name)s is removed and its secret forgotten.") % {"name": row.name})
    return HttpResponseRedirect(reverse("frontend:webhooks", kwargs={"tenant": request.tenant.name}))


@page("webhooks.send_again", methods=("POST",))
def send_again(request: PageRequest, name: str, delivery: UUID) -> HttpResponse:
    """Send one message once more, under the same id."""
    row = _found(request, name)
    with reading(request.actor):
        found = access.find(reads.deliveries(row).select_related("webhook__tenant"), delivery)
    try:
        notifications.send_again(delivery=found, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, _("It is sent once more, under the same id."))
    return HttpResponseRedirect(_address(request, row))
