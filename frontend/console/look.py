"""How the console looks: settings of its package, with the portal's colours, words and order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _


def _table(title: str | Promise, icon: str, model: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:tenants_{model}_changelist")}


def _file(name: str) -> Callable[[HttpRequest], str]:
    return lambda request: static(name)  # noqa: ARG005 - the package's signature


NAVIGATION: Final = [
    {
        "title": _("Decide"),
        "items": [
            {"title": _("Overview"), "icon": "dashboard", "link": reverse_lazy("admin:index")},
            {"title": _("Inbox"), "icon": "inbox", "link": reverse_lazy("admin:inbox")},
            _table(_("Requests"), "rule", "request"),
            _table(_("Decisions"), "gavel", "decision"),
            _table(_("Rules"), "tune", "autoapprovalrule"),
        ],
    },
    {
        "title": _("Estate"),
        "separator": True,
        "items": [
            _table(_("Providers"), "power", "provider"),
            _table(_("Hosts"), "dns", "host"),
            _table(_("GPUs"), "memory", "gpudevice"),
            _table(_("Holds"), "view_week", "hold"),
            _table(_("Findings"), "troubleshoot", "finding"),
            _table(_("Plans"), "engineering", "hostplan"),
        ],
    },
    {
        "title": _("Use"),
        "separator": True,
        "items": [
            _table(_("Tenants"), "account_tree", "tenant"),
            _table(_("People"), "group", "person"),
            _table(_("Endpoints"), "cell_tower", "endpoint"),
            _table(_("Machines"), "desktop_windows", "machine"),
            _table(_("Namespaces"), "deployed_code", "namespace"),
            _table(_("Allocations"), "data_usage", "allocation"),
            _table(_("Quota"), "speed", "quota"),
        ],
    },
    {
        "title": _("Record"),
        "separator": True,
        "items": [
            _table(_("Events"), "history", "event"),
            _table(_("Usage"), "receipt_long", "usagerecord"),
            _table(_("Price lists"), "sell", "pricelist"),
        ],
    },
]
UNFOLD: Final[dict[str, Any]] = {
    "SITE_TITLE": "Tenantry",
    "SITE_HEADER": "Tenantry",
    "SITE_SUBHEADER": _("Console"),
    "SITE_URL": "/",
    "SITE_SYMBOL": "grid_view",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": _file("frontend/img/favicon.svg")}],
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": True,
    "SHOW_BACK_BUTTON": False,
    "BORDER_RADIUS": "6px",
    "SITE_DROPDOWN": [{"icon": "arrow_back", "title": _("Back to the portal"), "link": "/"}],
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 268)", "100": "oklch(94% .03 268)", "200": "oklch(88% .06 268)",
            "300": "oklch(80% .1 268)", "400": "oklch(70% .145 268)", "500": "oklch(58% .19 268)",
            "600": "oklch(49% .2 268)", "700": "oklch(43% .19 268)", "800": "oklch(37% .16 268)",
            "900": "oklch(31% .12 268)", "950": "oklch(23% .08 268)",
        },
    },
    "SIDEBAR": {"show_search": True, "show_all_applications": True, "navigation": NAVIGATION},
}  # fmt: skip
