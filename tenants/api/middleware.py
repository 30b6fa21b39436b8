"""Outermost layer of every request: an id to quote, the size limit, and problem+json for whatever went wrong.

Views answer their own errors through `problem_handler`; here end those that never reached a view (unknown
address, wrong method, CSRF, a database that is away during the session look-up) and bugs.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from typing import Final
from uuid import uuid4

from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.core.serializers.json import DjangoJSONEncoder
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from tenants import problems
from tenants.api.parsing import MAX_BODY
from tenants.errors import ControlPlaneError, DependencyDown, InvalidSpec, PayloadTooLarge

logger = logging.getLogger("tenants.api")

_SAFE_ID: Final = re.compile(r"^[A-Za-z0-9._-]{8,64}$")
_MACHINE_PATHS: Final = ("/api/", "/agent/", "/healthz", "/readyz", "/metrics")


class ProblemMiddleware:
    """Gives the request its id, refuses bodies that are too large, turns bare errors into problems."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request."""
        given = request.headers.get("X-Request-Id", "")
        request.request_id = given if _SAFE_ID.match(given) else uuid4().hex  # type: ignore[attr-defined]
        response = self._answer(request)
        response["X-Request-Id"] = request.request_id  # type: ignore[attr-defined]
        if request.path.startswith(("/api/", "/agent/")):
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _answer(self, request: HttpRequest) -> HttpResponseBase:
        if _declared_length(request) > MAX_BODY:
            return problem_response(PayloadTooLarge(limit_bytes=MAX_BODY))
        response = self.get_response(request)
        if response.status_code >= 400 and wants_problem(request) and not _is_problem(response):
            allow = response.headers.get("Allow")
            response = problem_response(problems.of_status(response.status_code))
            if allow:
                response["Allow"] = allow
        return response


def problem_response(error: ControlPlaneError, *, request_id: str = "") -> HttpResponse:
    """Return the answer to an error; `request_id` only where somebody must quote it (bugs)."""
    body = problems.problem(error)
    if request_id:
        body["request_id"] = request_id
    return HttpResponse(
        json.dumps(body, cls=DjangoJSONEncoder),
        status=error.status,
        content_type=problems.CONTENT_TYPE,
        headers=problems.headers(error),
    )


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's `handler500`: 503 when our database is away, else a problem with the id of the log line."""
    return unexpected(sys.exc_info()[1] or AssertionError("no exception"), request)


def unexpected(error: BaseException, request: HttpRequest) -> HttpResponse:
    """Return the answer to an exception nobody foresaw, and log it under the request's id."""
    found, request_id = _classified(error, request)
    if request_id:
        logger.error(
            "unhandled error in %s %s", request.method, request.path, exc_info=error, extra={"request_id": request_id}
        )
    return problem_response(found, request_id=request_id)


def wants_problem(request: HttpRequest) -> bool:
    """Whether errors of this request are answered as problem+json: all but pages for people."""
    return request.path.startswith(_MACHINE_PATHS) or "text/html" not in request.headers.get("Accept", "")


def _classified(error: BaseException | None, request: HttpRequest) -> tuple[ControlPlaneError, str]:
    match error:
        case ControlPlaneError():
            return error, ""
        case RequestDataTooBig():
            return PayloadTooLarge(limit_bytes=MAX_BODY), ""
        case SuspiciousOperation():
            return InvalidSpec("The request could not be read."), ""
        case OperationalError() | InterfaceError():
            return DependencyDown("The database does not answer at the moment."), ""
    return problems.Internal(), str(getattr(request, "request_id", "")) or uuid4().hex


def _declared_length(request: HttpRequest) -> int:
    try:
        return int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return 0


def _is_problem(response: HttpResponseBase) -> bool:
    return response.headers.get("Content-Type", "").startswith(("application/problem+json", "application/json"))
