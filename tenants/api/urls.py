"""Addresses of the REST API, below `/api/v1/`."""

from __future__ import annotations

from typing import Any

from django.urls import path

from tenants.api.views import products

TENANT = "tenants/<str:tenant>/"


def _both(noun: str, anywhere: Any, collection: Any) -> list[Any]:
    """Return the list across tenants and the collection of one tenant."""
    return [path(noun, anywhere.as_view()), path(f"{TENANT}{noun}", collection.as_view())]


urlpatterns: list[Any] = [
    *_both("endpoints", products.EndpointsAnywhere, products.Endpoints),
    path(f"{TENANT}endpoints/<str:name>", products.EndpointItem.as_view()),
    path(f"{TENANT}endpoints/<str:name>/revisions", products.Revisions.as_view()),
    path(f"{TENANT}endpoints/<str:name>/keys", products.Keys.as_view()),
    path(f"{TENANT}endpoints/<str:name>/keys/<str:key>", products.KeyItem.as_view()),
    path(f"{TENANT}endpoints/<str:name>/keys/<str:key>/roll", products.KeyRoll.as_view()),
    *_both("machines", products.MachinesAnywhere, products.Machines),
    path(f"{TENANT}machines/<str:name>", products.MachineItem.as_view()),
    path(f"{TENANT}machines/<str:name>/power", products.MachinePower.as_view()),
    *_both("namespaces", products.NamespacesAnywhere, products.Namespaces),
    path(f"{TENANT}namespaces/<str:name>", products.NamespaceItem.as_view()),
]
