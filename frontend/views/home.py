"""Home of a tenant: needs you, building now, ends soon, idle, quota, spend; and the way there."""

from __future__ import annotations

from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse

from frontend.kernel.page import PageRequest, page


@page("who.read")
def landing(request: PageRequest) -> HttpResponse:
    """Send a person to the home of his tenant, one without a tenant to his work or to the first steps."""
    tenant = request.portal.tenant
    if tenant is not None and request.portal.role:
        return HttpResponseRedirect(reverse("frontend:home-of", kwargs={"tenant": tenant.name}))
    first = next((link.url for section in request.portal.rail for link in section.items), None)
    if first is not None:
        return HttpResponseRedirect(first)
    return render(request, "frontend/pages/first/steps.html", {})


@page("tenants.read")
def show(request: PageRequest) -> HttpResponse:
    """Show the home of one tenant."""
    return render(request, "frontend/pages/home/show.html", {})
