"""One change of an endpoint by a button of its pages: find it, do it, say what came of it, go back to where one was."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import messages
from django.http import HttpResponse

from frontend.kernel.page import PageRequest
from frontend.views import products
from frontend.views.products import ENDPOINTS
from tenants.errors import Conflict, InvalidSpec, QuotaExceeded
from tenants.models import Endpoint
from tenants.transactions import reading


def done(request: PageRequest, name: str, part: str, change: Callable[[Endpoint], str]) -> HttpResponse:
    """Make a change and return to a part of its pages; `change` returns what is said where it was made."""
    with reading(request.actor):
        row: Endpoint = products.find(ENDPOINTS, request, name)
    try:
        words = change(row)
    except (InvalidSpec, Conflict, QuotaExceeded) as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, words)
    return products.back(ENDPOINTS, request, row, part)
