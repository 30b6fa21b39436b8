"""Namespaces: list, and the page of one."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render

from frontend.design import numbers
from frontend.forms import wishes
from frontend.kernel import outlook, story
from frontend.kernel.page import PageRequest, page
from frontend.views import products
from frontend.views.products import NAMESPACES
from tenants.models import Namespace


@page("namespaces.list")
def listed(request: PageRequest) -> HttpResponse:
    """List the namespaces of a tenant."""
    return products.listed(NAMESPACES, request)


@page("namespaces.read")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show one namespace."""
    row = products.find(NAMESPACES, request, name)
    values = products.frame(NAMESPACES, request, row, current="overview") | products.state(row, request)
    values |= {
        "twins": connect(row),
        "limits": limits(row),
        "events": story.events(row),
        "plan": products.deletion_plan(row, request),
        "days_options": [{"value": days, "label": str(days)} for days in wishes.DAYS],
    }
    return render(request, "frontend/pages/namespaces/show.html", values)


@page("namespaces.read")
def state(request: PageRequest, name: str) -> HttpResponse:
    """Return the part of the page that changes while it is built."""
    row = products.find(NAMESPACES, request, name)
    values = products.frame(NAMESPACES, request, row, current="overview") | products.state(row, request)
    return render(
        request, "frontend/pages/namespaces/_state_answer.html", values | {"twins": connect(row), "limits": limits(row)}
    )


def limits(row: Namespace) -> list[dict[str, str]]:
    """Return what may run in it, dimension by dimension."""
    return [
        {"label": outlook.product_of(item), "value": numbers.number(amount)}
        for item, amount in sorted(row.allocation.demand.items())
    ]


def connect(row: Namespace) -> list[dict[str, str]]:
    """Return how to get in."""
    return [
        {
            "label": "CLI",
            "text": f"tenantry kubeconfig {row.name} > {row.name}.kubeconfig\n"
            f"kubectl --kubeconfig {row.name}.kubeconfig get pods\ntenantry explain namespace/{row.name}",
            "lang": "sh",
        },
    ]


@page("namespaces.delete", methods=("POST",))
def delete(request: PageRequest, name: str) -> HttpResponse:
    """Delete a namespace."""
    return products.delete(NAMESPACES, request, name)


@page("allocations.renew", methods=("POST",))
def renew(request: PageRequest, name: str) -> HttpResponse:
    """Give a namespace a new term."""
    return products.renew(NAMESPACES, request, name)
