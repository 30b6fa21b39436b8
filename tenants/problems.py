"""Error → RFC 9457 problem, and the help page of every code. No Django views, no DRF.

Codes are stable: clients branch on them. Their help texts are `tenants.error_codes`.
"""

from __future__ import annotations

from typing import Any, Final

from tenants import errors
from tenants.error_codes import HELP
from tenants.errors import ControlPlaneError

CONTENT_TYPE: Final = "application/problem+json"
HELP_PATH: Final = "/api/errors/"


def problem(error: ControlPlaneError) -> dict[str, Any]:
    """Return the problem document of an error: type, title, status, detail, code, errors, and data where there is."""
    found: list[dict[str, Any]] = list(getattr(error, "errors", []))
    if error.field and not found:
        found = [{"field": error.field, "reason": error.detail}]
    body: dict[str, Any] = {
        "type": f"{HELP_PATH}{error.specific_code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.specific_code,
        "errors": found,
    }
    if error.data:
        body["data"] = error.data
    return body


def headers(error: ControlPlaneError) -> dict[str, str]:
    """Return the headers an answer to this error carries."""
    extra = {"Retry-After": str(seconds)} if (seconds := getattr(error, "retry_after_s", 0)) else {}
    if isinstance(error, errors.Unauthenticated):
        extra["WWW-Authenticate"] = 'Bearer realm="tenantry"'
    return extra


class Internal(ControlPlaneError):
    """A bug of ours; says nothing about itself but the id under which the log has it."""

    code, status, title = "internal", 500, "Something went wrong on our side"


def help_document() -> str:
    """Return `docs/errors.md`: every code and what to do about it."""
    lines = [
        "# Error codes",
        "",
        "Every error of the API is a problem document (RFC 9457, `application/problem+json`) with a stable `code`.",
        "Written from `tenants/error_codes.py` by `python -m controlplane error_docs`; do not edit.",
    ]
    for code in sorted(HELP):
        lines += ["", f"## `{code}`", "", HELP[code]]
    return "\n".join(lines) + "\n"


def of_status(status: int) -> ControlPlaneError:
    """Return the error that stands for a bare HTTP status which somebody else produced."""
    known: dict[int, ControlPlaneError] = {
        400: errors.InvalidSpec("The request could not be read."),
        401: errors.Unauthenticated(),
        403: errors.Forbidden(),
        404: errors.NotVisible("There is no operation at this address.", code="no-route"),
        405: errors.MethodNotAllowed(),
        406: errors.NotAcceptable(),
        413: errors.PayloadTooLarge(),
        415: errors.UnsupportedMediaType(),
        429: errors.RateLimited(),
        503: errors.DependencyDown(),
    }
    if status in known:
        return known[status]
    return errors.InvalidSpec("The request could not be read.") if status < 500 else Internal()
