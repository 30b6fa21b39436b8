"""Machines: list, and the page of one."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.forms import wishes
from frontend.kernel import story
from frontend.kernel.page import PageRequest, page
from frontend.views import products
from frontend.views.products import MACHINES
from tenants import machine_images
from tenants.errors import Conflict, InvalidSpec, NotVisible, QuotaExceeded
from tenants.models import Machine
from tenants.operations import machine_changes, machine_consoles, machines
from tenants.operations.machine_access import way_to
from tenants.transactions import reading

SIZES: Final = {
    "vcpu": gettext_lazy("vCPUs"), "memory_gib": gettext_lazy("Memory"), "disk_gib": gettext_lazy("Disk")
}  # fmt: skip
"""Fields of the dialog for another size, and what they are called there."""
MOST_DIGITS: Final = 6


@page("machines.list")
def listed(request: PageRequest) -> HttpResponse:
    """List the machines of a tenant."""
    return products.listed(MACHINES, request)


@page("machines.read")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show one machine."""
    row = products.find(MACHINES, request, name)
    values = products.frame(MACHINES, request, row, current="overview") | products.state(row, request)
    values |= {
        "twins": connect(row),
        "resources": _size(row),
        "events": story.events(row),
        "plan": products.deletion_plan(row, request),
        "has_console": row.boundary is not None
        and bool(row.boundary.provider.capabilities.get("features", {}).get(machine_consoles.CAPABILITY)),
        "images": [{"value": image, "label": image} for image in _images(row)],
        "days_options": [{"value": days, "label": str(days)} for days in wishes.DAYS],
    }
    return render(request, "frontend/pages/machines/show.html", values)


@page("machines.read")
def state(request: PageRequest, name: str) -> HttpResponse:
    """Return the part of the page that changes while it is built."""
    row = products.find(MACHINES, request, name)
    values = products.frame(MACHINES, request, row, current="overview") | products.state(row, request)
    return render(
        request, "frontend/pages/machines/_state_answer.html", values | {"twins": connect(row), "resources": _size(row)}
    )


def connect(row: Machine) -> list[dict[str, str]]:
    """Return how to get in: with a certificate, and with a key that lies in the machine."""
    found = [{"label": "SSH", "text": f"tenantry ssh {row.name}", "lang": "sh"}]
    if row.ssh_keys:
        way = way_to(row)
        found.append({"label": _("Own key"), "text": f"ssh -p {way.port} {way.login}@{way.host or '…'}", "lang": "sh"})
    return [
        *found,
        {
            "label": "CLI",
            "text": f"tenantry get machine/{row.name} -o yaml\ntenantry explain machine/{row.name}",
            "lang": "sh",
        },
    ]


@page("machines.delete", methods=("POST",))
def delete(request: PageRequest, name: str) -> HttpResponse:
    """Delete a machine."""
    return products.delete(MACHINES, request, name)


@page("allocations.renew", methods=("POST",))
def renew(request: PageRequest, name: str) -> HttpResponse:
    """Give a machine a new term."""
    return products.renew(MACHINES, request, name)


@page("machines.power", methods=("POST",))
def power(request: PageRequest, name: str) -> HttpResponse:
    """Switch a machine on or off; its GPUs stay held."""
    with reading(request.actor):
        row = products.find(MACHINES, request, name)
    try:
        machines.power(machine=row, want=request.POST.get("power", ""), actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
    return products.back(MACHINES, request, row)


@page("machines.console", methods=("POST",))
def ask_console(request: PageRequest, name: str) -> HttpResponse:
    """Ask for a machine's console and go to where its address will stand."""
    with reading(request.actor):
        row = products.find(MACHINES, request, name)
    try:
        made = machine_consoles.ask(machine=row, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, error.detail)
        return products.back(MACHINES, request, row)
    where = {"tenant": request.tenant.name, "name": row.name, "console": made.pk}
    return HttpResponseRedirect(reverse("frontend:machine-console", kwargs=where))


@page("machines.read_console")
def console(request: PageRequest, name: str, console: UUID) -> HttpResponse:
    """Show the address of a console that one asked for, as soon as there is one."""
    row = products.find(MACHINES, request, name)
    try:
        asked, answer = machine_consoles.read(row, console, actor=request.actor)
    except NotVisible:
        asked, answer = None, None  # its minute is over, or somebody else asked: the same to whoever looks
    values = products.frame(MACHINES, request, row, current="overview") | {
        "asked": asked,
        "answer": answer,
        "twins": [] if answer is None else [{"label": "WebSocket", "text": answer.address, "lang": "text"}],
    }
    template = "_console" if request.htmx else "console"
    return render(request, f"frontend/pages/machines/{template}.html", values)


@page("machines.rebuild", methods=("POST",))
def rebuild(request: PageRequest, name: str) -> HttpResponse:
    """Make a machine anew; its name was typed to show that its disk may go."""
    with reading(request.actor):
        row = products.find(MACHINES, request, name)
    if request.POST.get("confirm", "").strip() != row.name:
        messages.error(request, _("Type the name of the machine to make it anew; nothing was changed."))
        return products.back(MACHINES, request, row)
    try:
        image = request.POST.get("image", "")
        machine_changes.rebuild(machine=row, image=image, actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
    return products.back(MACHINES, request, row)


@page("machines.resize", methods=("POST",))
def resize(request: PageRequest, name: str) -> HttpResponse:
    """Give a machine that is off another size; what is refused is told with the field that it is about."""
    with reading(request.actor):
        row = products.find(MACHINES, request, name)
    wanted: dict[str, int] = {}
    for field, label in SIZES.items():
        text = request.POST.get(field, "").strip()
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
            messages.error(request, _("%(field)s: give a whole number; nothing was changed.") % {"field": label})
            return products.back(MACHINES, request, row)
        wanted[field] = int(text)
    try:
        machine_changes.resize(machine=row, actor=request.actor, now=request.now, **wanted)
    except InvalidSpec as error:
        named = SIZES.get(error.field or "")
        messages.error(request, f"{named}: {error.detail}" if named else error.detail)
    except (Conflict, QuotaExceeded) as error:
        messages.error(request, error.detail)
    return products.back(MACHINES, request, row)


def _size(row: Machine) -> dict[str, int]:
    """Return what it has beside its GPUs."""
    [unit] = row.allocation.spec["units"]
    return {"vcpu": unit["vcpu"], "memory_gib": unit["memory_gib"], "disk_gib": row.disk_gib}


def _images(row: Machine) -> list[str]:
    """Return what a machine can be made anew of where it is, its own image first."""
    have = machine_images.images_of(row.boundary.provider) if row.boundary is not None else machine_images.offered()
    return [row.image, *sorted(set(have) - {row.image})]
