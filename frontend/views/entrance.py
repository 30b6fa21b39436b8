"""Log in and out by password; accounts with more (passkeys, a company's log-in) are under `/accounts/`."""

from __future__ import annotations

from django.contrib import auth
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _

from frontend.kernel.page import PageRequest, page
from tenants import login
from tenants.actor import ANONYMOUS
from tenants.errors import RateLimited, Unauthenticated


@page("login.create", methods=("GET", "POST"), own_blocks=True)
def log_in(request: PageRequest) -> HttpResponse:
    """Show the form; take e-mail and password; go where the visitor wanted to."""
    back = _safe(request, request.POST.get("next") or request.GET.get("next") or "/")
    if request.method != "POST":
        return HttpResponseRedirect(back) if request.actor is not ANONYMOUS else _form(request, back)
    email = request.POST.get("email", "")
    try:
        person = login.by_password(
            email,
            request.POST.get("password", ""),
            address=str(request.META.get("REMOTE_ADDR", "")),
            now=request.now,
        )
    except (Unauthenticated, RateLimited) as error:
        return _form(
            request, back, email=email, error=error.detail, status=error.status if error.status == 429 else 422
        )
    auth.login(request, person, backend="tenants.login.PersonBackend")
    return HttpResponseRedirect(back)


@page("login.delete", methods=("POST",))
def log_out(request: PageRequest) -> HttpResponse:
    """End the session."""
    auth.logout(request)
    return HttpResponseRedirect("/")


def _form(request: PageRequest, back: str, *, email: str = "", error: str = "", status: int = 200) -> HttpResponse:
    values = {"next": back, "email": email, "error": error, "title": _("Log in")}
    return render(request, "frontend/pages/first/log_in.html", values, status=status)


def _safe(request: PageRequest, address: str) -> str:
    """Return the address if it is one of ours: a log-in sends nobody elsewhere."""
    known = url_has_allowed_host_and_scheme(address, allowed_hosts={request.get_host()})
    return address if known else "/"
