"""The console's site: who gets in, the first page, and the addresses beside the tables.

Its pages run in the read block that `tenants.login.AdminTransactionMiddleware` opens; decisions open their own.
"""

from __future__ import annotations

from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.generic import RedirectView
from unfold.sites import UnfoldAdminSite

from frontend.console import events, stylesheet
from frontend.kernel import portal
from frontend.views import deciding, entrance
from tenants.models import Event, Finding, Host, HostPlan, Person, Provider
from tenants.transactions import current_actor

NEWEST: Final = 8
"""Requests and events on the first page."""


class ConsoleSite(UnfoldAdminSite):  # type: ignore[misc]  # the package has no types
    """Platform roles read everything; what they decide goes through the portal's operations."""

    site_title = "Tenantry"
    site_header = "Tenantry"
    index_title = gettext_lazy("Console")
    index_template = "console/index.html"
    enable_nav_sidebar = True
    final_catch_all_view = True

    def has_permission(self, request: HttpRequest) -> bool:
        """Whether a person with a platform role asks."""
        return isinstance(request.user, Person) and bool(request.user.is_active and request.user.is_staff)

    def get_urls(self) -> list[Any]:
        """Add decisions and the portal's styles, and leave out the log-in forms of the framework."""
        from frontend.console import decisions  # its views need the site

        own = [
            path("portal.css", self.admin_view(stylesheet.show), name="portal-styles"),
            path("password_change/", RedirectView.as_view(url="/accounts/password/change/"), name="password_change"),
            path("logout/", entrance.log_out, name="logout"),
            *decisions.addresses(),
        ]
        left_out = {"password_change", "password_change_done", "logout"}
        return own + [each for each in super().get_urls() if getattr(each, "name", "") not in left_out]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show what waits for a decision, what needs a look, and what happened last."""
        actor = current_actor()
        assert actor is not None  # the middleware has opened a block, or admin_view has sent the visitor away
        request.actor, request.now = actor, timezone.now()  # type: ignore[attr-defined]
        request.portal = portal.of(request, actor, None)  # type: ignore[attr-defined]
        rows = deciding.waiting(request)  # type: ignore[arg-type]  # it is a PageRequest now
        shown = deciding.inbox_values(request, rows[:NEWEST], deciding.Addresses("admin"))  # type: ignore[arg-type]
        values = {
            **shown,
            "waiting_count": len(rows),
            "looks": _looks(),
            "can_export": False,
            "is_summary": True,
            "events": events.lines(list(Event.objects.order_by("-at", "-id")[:NEWEST])),
            "event_columns": events.columns(),
            **(extra_context or {}),
        }
        answer: HttpResponse = super().index(request, values)
        return answer


def _looks() -> list[dict[str, Any]]:
    """Return what may need a look: counts over small tables and indexed columns."""
    counted = (
        ("finding", _("Open findings"), Finding.objects.filter(resolved_at__isnull=True), "resolved_at_is=open"),
        ("provider", _("Providers that do not answer"), Provider.objects.filter(healthy=False), "healthy__exact=0"),
        ("host", _("Hosts with a fault"), Host.objects.filter(healthy=False), "healthy__exact=0"),
        ("hostplan", _("Work on hosts"), HostPlan.objects.filter(state="running"), "state=running"),
    )
    return [
        {"label": label, "count": rows.count(), "url": f"/admin/tenants/{name}/?{query}"}
        for name, label, rows, query in counted
    ]
