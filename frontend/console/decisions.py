"""Inbox and decisions inside the console: the portal's own views in the console's frame.

Nothing is decided here: each POST calls the same operation with the same forecast. Platform roles only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from django.contrib import admin
from django.http import HttpResponseBase
from django.urls import path

from frontend.kernel.page import PageRequest, page
from frontend.views.deciding import Addresses
from frontend.views.inbox import Inbox


def _frame(request: PageRequest) -> dict[str, Any]:
    found: dict[str, Any] = admin.site.each_context(request)
    return found


CONSOLE: Final = Inbox(Addresses("admin"), "console/inbox", _frame)


def addresses() -> list[Any]:
    """Return the addresses of decisions, for the console's site."""
    return [
        path("inbox/", _framed("requests.inbox", CONSOLE.listed), name="inbox"),
        path("inbox/equal/", _framed("requests.proof", CONSOLE.equal), name="inbox-equal"),
        path(
            "inbox/equal/approve/",
            _framed("requests.decide", CONSOLE.approve_equal, "POST"),
            name="inbox-equal-approve",
        ),
        path("inbox/<str:key>/", _framed("requests.proof", CONSOLE.show), name="decide"),
        path("inbox/<str:key>/decide/", _framed("requests.decide", CONSOLE.decide, "POST"), name="request-decide"),
        path("inbox/<str:key>/comment/", _framed("requests.comment", CONSOLE.comment, "POST"), name="decide-comment"),
    ]


def _framed(operation_id: str, view: Callable[..., HttpResponseBase], method: str = "GET") -> Any:
    """Return a view of the portal for the console: same policy, platform roles only, the console's rail around it."""
    inner = page(operation_id, methods=(method,))(view)

    @wraps(view)
    def run(request: PageRequest, **where: Any) -> HttpResponseBase:
        request.current_app = admin.site.name
        return inner(request, **where)

    return admin.site.admin_view(run)
