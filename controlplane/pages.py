"""Handlers of last resort: problem+json for machines, a page for people."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

from frontend.views import errors
from tenants.api import middleware


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's `handler500`."""
    return middleware.server_error(request) if middleware.wants_problem(request) else errors.broken(request)
