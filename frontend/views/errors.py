"""Pages of last resort: an address that leads nowhere, a forged form, a bug, a database that is away."""

from __future__ import annotations

import logging
import sys
from uuid import uuid4

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse

from frontend.kernel import problems
from tenants.errors import ControlPlaneError

log = logging.getLogger(__name__)


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:  # noqa: ARG001
    """Django's `handler404`."""
    return problems.plain_answer(404)


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:  # noqa: ARG001
    """Django's `handler403`."""
    return problems.plain_answer(403)


def forged(request: HttpRequest, reason: str = "") -> HttpResponse:  # noqa: ARG001
    """Answer a form without its CSRF token (`CSRF_FAILURE_VIEW`)."""
    return problems.plain_answer(403, code="csrf")


def broken(request: HttpRequest) -> HttpResponse:
    """Answer a bug with an id to quote, and a database that is away with 503."""
    error = sys.exc_info()[1]
    if isinstance(error, OperationalError | InterfaceError):
        return problems.plain_answer(503)
    if isinstance(error, ControlPlaneError) and error.status < 500:
        return problems.plain_answer(error.status)
    request_id = str(getattr(request, "request_id", "")) or uuid4().hex
    log.error(
        "unhandled error in %s %s", request.method, request.path, exc_info=error, extra={"request_id": request_id}
    )
    return problems.plain_answer(500, request_id=request_id)
