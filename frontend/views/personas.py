"""Personas of a demo: who there is to play, and taking one up without a password. Nowhere but in a demo."""

from __future__ import annotations

from typing import Final

from allauth.usersessions.models import UserSession
from django.contrib import auth, messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils.translation import gettext as _

from frontend.kernel.page import PageRequest, page
from tenants import demo
from tenants.actor import AUTH
from tenants.errors import NotVisible
from tenants.transactions import acting

BACKEND: Final = "tenants.login.PersonBackend"


@page("login.create", methods=("GET", "POST"), own_blocks=True)
def choose(request: PageRequest) -> HttpResponse:
    """List the personas, or go on as one of them. Raises `NotVisible` (GET) and `Forbidden` (POST) without a demo."""
    if request.method == "POST":
        return _take_up(request)
    found = demo.personas()
    if not found:
        raise NotVisible
    return render(request, "frontend/pages/personas/choose.html", {"choices": found})


def _take_up(request: PageRequest) -> HttpResponse:
    person = demo.log_in(request.POST.get("persona", ""), now=request.now)
    auth.login(request, person, backend=BACKEND)
    with acting(AUTH):
        UserSession.objects.create_from_request(request)  # the library lists only what its own log-in made
    messages.info(request, _("You are %(name)s now.") % {"name": person.display_name})
    return HttpResponseRedirect("/")
