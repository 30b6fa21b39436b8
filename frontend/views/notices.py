"""The bell: what the person was told, read marks, and how he wants to be told of each kind."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.kernel import lists
from frontend.kernel.addresses import openable
from frontend.kernel.page import PageRequest, page
from tenants.errors import ControlPlaneError
from tenants.models import Notification
from tenants.notifications import reads, registry
from tenants.notifications.registry import GROUP_TITLES, Group, Mail
from tenants.operations import notifications
from tenants.transactions import reading

MAIL_WORDS: Final[dict[Mail, str | Promise]] = {
    Mail.OFF: gettext_lazy("No mail"),
    Mail.NOW: gettext_lazy("At once"),
    Mail.DIGEST: gettext_lazy("In the daily mail"),
}


@page("notifications.list")
def listed(request: PageRequest) -> HttpResponse:
    """List what the person was told, newest first; filters in the address."""
    kind = request.GET.get("kind", "")
    kinds = reads.kinds_for(request.actor)
    kind = kind if kind in {each.id for each in kinds} else ""
    unread = request.GET.get("show") == "unread"
    rows = reads.bell(request.actor, unread=unread, kind=kind)
    found = lists.page_of(rows, request.GET.get("after", ""), moment="at")
    kept = {key: value for key, value in (("show", "unread" if unread else ""), ("kind", kind)) if value}
    values = {
        "tabs": _tabs("list"),
        "lines": [_line(row, request) for row in found.rows],
        "is_filtered": bool(kept),
        "fields": [
            {
                "name": "show",
                "label": _("Show"),
                "value": "unread" if unread else "",
                "options": [{"value": "", "label": _("All")}, {"value": "unread", "label": _("Unread")}],
            },
            {
                "name": "kind",
                "label": _("Kind"),
                "value": kind,
                "options": [
                    {"value": "", "label": _("All")},
                    *({"value": each.id, "label": str(each.title)} for each in kinds),
                ],
            },
        ],
        "more_url": f"?{urlencode({**kept, 'after': found.after})}" if found.after else "",
        "previous_url": (f"?{urlencode(kept)}" if kept else request.path) if not found.is_first else "",
        "back": request.get_full_path(),
    }
    return render(request, "frontend/pages/notices/list.html", values)


def _line(row: Notification, request: PageRequest) -> dict[str, Any]:
    return {
        "id": row.pk,
        "title": registry.title_of(row),
        "text": registry.text_of(row),
        "url": openable(registry.link_of(row), request.actor),
        "tenant": row.tenant.display_name if row.tenant is not None else "",
        "at": row.at,
        "unread": row.read_at is None,
    }


def _tabs(current: str) -> list[dict[str, Any]]:
    return [
        {"label": _("What happened"), "url": reverse("frontend:notices"), "current": current == "list"},
        {"label": _("How you are told"), "url": reverse("frontend:notice-preferences"), "current": current == "how"},
    ]


@page("notifications.mark_read", methods=("POST",))
def mark_read(request: PageRequest) -> HttpResponse:
    """Mark one as read, or all."""
    one = request.POST.get("id", "")
    try:
        ids = None if request.POST.get("all") else [UUID(one)]
    except ValueError:
        ids = []
    left = notifications.mark_read(ids=ids, actor=request.actor, now=request.now)
    if ids is None:
        messages.success(request, _("All are marked as read."))
    elif left:
        messages.success(request, ngettext("%(n)d is unread.", "%(n)d are unread.", left) % {"n": left})
    return HttpResponseRedirect(_back(request))


def _back(request: PageRequest) -> str:
    here = reverse("frontend:notices")
    back = request.POST.get("back", "")
    return back if back == here or back.startswith(f"{here}?") else here


@page("notification-preferences.list")
def preferences(request: PageRequest) -> HttpResponse:
    """Show how the person wants each kind."""
    wishes = reads.preferences(request.actor)
    groups = [
        {"title": str(GROUP_TITLES[group]), "wishes": mine}
        for group in Group
        if (mine := [wish for wish in wishes if wish.kind.group is group])
    ]
    values = {
        "tabs": _tabs("how"),
        "groups": groups,
        "mails": [{"value": mail.value, "label": str(word)} for mail, word in MAIL_WORDS.items()],
        "columns": [
            {"key": "kind", "label": _("What")},
            {"key": "bell", "label": _("Bell")},
            {"key": "mail", "label": _("Mail")},
        ],
    }
    return render(request, "frontend/pages/notices/preferences.html", values)


@page("notification-preferences.set", methods=("POST",))
def set_preferences(request: PageRequest) -> HttpResponse:
    """Keep what differs from how it was."""
    with reading(request.actor):
        wishes = reads.preferences(request.actor)
    response = HttpResponseRedirect(reverse("frontend:notice-preferences"))
    changed = 0
    for wish in wishes:
        mail = request.POST.get(f"mail:{wish.kind.id}")
        if mail is None:  # the form did not have it
            continue
        bell = f"bell:{wish.kind.id}" in request.POST
        if (bell, mail) == (wish.bell, wish.mail.value):
            continue
        try:
            notifications.set_preference(kind=wish.kind.id, bell=bell, mail=mail, actor=request.actor, now=request.now)
        except ControlPlaneError as error:
            messages.error(request, error.detail)
            return response
        changed += 1
    if changed:
        messages.success(request, ngettext("%(n)d wish is kept.", "%(n)d wishes are kept.", changed) % {"n": changed})
    else:
        messages.info(request, _("Nothing was changed."))
    return response
