"""Errors as people see them: at the field of a form, as a banner of an htmx swap, or as a page with what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template import engines
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from tenants import errors, problems
from tenants.error_codes import HELP
from tenants.errors import ControlPlaneError

NEXT: Final[Mapping[str, str | Promise]] = {
    "not-found": _("Check the address, or ask the tenant's owner whether you are a member."),
    "no-route": _("Check the address, or start from Home."),
    "forbidden": _("Ask an owner of the tenant to do it, or to give you the role."),
    "dependency-down": _("Nothing was changed. Try again in a few seconds; endpoints go on answering meanwhile."),
    "internal": _("Try again. If it happens again, give the id below to an operator."),
    "csrf": _("Reload the page and try again; your log-in may have been renewed in another tab."),
    "rate-limited": _("Wait a little, then try again."),
    "version-mismatch": _("Reload the page to see what changed, then decide again."),
}


def answer(request: HttpRequest, error: ControlPlaneError, *, request_id: str = "") -> HttpResponse:
    """Return the page of an error, or the banner where htmx asked for a part of one."""
    code = error.specific_code
    values: dict[str, Any] = {
        "problem": problems.problem(error),
        "next_step": NEXT.get(code) or NEXT.get(error.code) or _explained(code),
        "request_id": request_id,
    }
    fragment = bool(getattr(request, "htmx", False)) and not request.htmx.boosted  # type: ignore[attr-defined]
    template = "frontend/pages/errors/banner.html" if fragment else "frontend/pages/errors/page.html"
    response = render(request, template, values, status=error.status)
    for name, value in problems.headers(error).items():
        if name != "WWW-Authenticate":
            response[name] = value
    if fragment:
        response["HX-Retarget"] = "#problem"
        response["HX-Reswap"] = "innerHTML"
    return response


def _explained(code: str) -> str:
    return gettext(HELP[code]) if code in HELP else ""


def at_fields(error: ControlPlaneError) -> dict[str, str]:
    """Return field → sentence of an error; what belongs to no field stands under `""`."""
    found = {str(item.get("field") or ""): str(item.get("reason") or "") for item in problems.problem(error)["errors"]}
    return found or {"": error.detail}


def status_of(error: ControlPlaneError) -> int:
    """Return the status of a form that is shown again: 422 for what its fields hold, else the error's own."""
    return 422 if isinstance(error, errors.InvalidSpec) else error.status


def plain_answer(status: int, *, code: str = "", request_id: str = "") -> HttpResponse:
    """Return a page that needs neither database nor session: for handlers of last resort."""
    error = problems.of_status(status)
    found = problems.problem(error)
    next_step = NEXT.get(code) or NEXT.get(error.specific_code) or NEXT.get(error.code, "")
    template = engines["django"].get_template("frontend/pages/errors/bare.html")
    body = template.render({"problem": found, "next_step": next_step, "request_id": request_id})
    response = HttpResponse(body, status=status)
    for name, value in problems.headers(error).items():
        response[name] = value
    response["Cache-Control"] = "no-store"
    return response
