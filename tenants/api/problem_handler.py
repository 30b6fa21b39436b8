"""DRF's exception handler: every error of a view as problem+json."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from rest_framework import exceptions

from tenants import errors
from tenants.api.middleware import problem_response, unexpected
from tenants.errors import ControlPlaneError


def handle(error: Exception, context: dict[str, Any]) -> HttpResponse:
    """Return the problem for `error`; what nobody foresaw is logged and becomes `internal`."""
    request: HttpRequest = context["request"]._request
    known = error if isinstance(error, ControlPlaneError) else _translated(error)
    if known is None:
        return unexpected(error, request)
    response = problem_response(known)
    if isinstance(error, exceptions.MethodNotAllowed):
        response["Allow"] = ", ".join(context["view"].allowed_methods)
    return response


def _translated(error: Exception) -> ControlPlaneError | None:  # noqa: PLR0911 - a table reads best flat
    match error:
        case exceptions.MethodNotAllowed():
            return errors.MethodNotAllowed()
        case exceptions.NotAcceptable():
            return errors.NotAcceptable()
        case exceptions.UnsupportedMediaType():
            return errors.UnsupportedMediaType(field="Content-Type")
        case exceptions.ParseError() | exceptions.ValidationError():
            return errors.InvalidSpec("The request could not be read.")
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            return errors.Unauthenticated()
        case exceptions.PermissionDenied() | PermissionDenied():
            return errors.Forbidden()
        case exceptions.NotFound() | Http404():
            return errors.NotVisible()
        case exceptions.Throttled():
            return errors.RateLimited(retry_after_s=int(getattr(error, "wait", None) or 1))
    return None
