"""Error → RFC 9457 problem, and the help page of every code. No Django views, no DRF.

Codes are stable: clients branch on them. `tests/api` fails when code raises one that has no help here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tenants import errors
from tenants.errors import ControlPlaneError

CONTENT_TYPE: Final = "application/problem+json"
HELP_PATH: Final = "/api/errors/"

HELP: Final[Mapping[str, str]] = {
    "invalid": "The request does not have the form that the operation takes. `errors` names each field and what is "
    "wrong with it; nothing was changed. Compare with the operation's schema in `/api/docs`.",
    "not-supported": "The value is known to the product but nothing here can do it yet (or this provider cannot). "
    "`detail` says what; leave the field out or choose another value.",
    "unauthenticated": "There is no valid proof of who you are: no token, or one that is wrong, expired, revoked or "
    "belongs to somebody who has left. Make a new one with `tenantry login`.",
    "forbidden": "You may see the object, but your role does not allow this. `data.needed` names the role that does.",
    "read-only-token": "The token may only read. Use one that was made without `read_only`.",
    "csrf": "A change by a browser session needs the CSRF token of that session in the header `X-CSRFToken`.",
    "not-found": "There is no such object, or you may not see it: both look the same on purpose. Check the name, the "
    "tenant and the account you are logged in with.",
    "no-route": "There is no operation at this address. `/api/docs` lists all of them.",
    "method-not-allowed": "The address exists, this method does not. The header `Allow` lists those that do.",
    "not-acceptable": "Answers are `application/json` (the event stream is `text/event-stream`). Leave the header "
    "`Accept` out.",
    "conflict": "The present state of the object does not allow this. `detail` says which state is in the way.",
    "busy": "Many changes at once touched the same objects and this one lost every time. Send it again.",
    "name-taken": "Another live object of this kind has the name. Choose another one, or change that object.",
    "idempotency-running": "A request with the same `Idempotency-Key` is still running. Wait a moment and send it "
    "again: you will get its answer.",
    "quota-exceeded": "A limit of the tenant or of one above it is in the way. `data` lists each limit, its use, what "
    "is missing and a ready-made request for exactly that; `on_shortage=request` files it in one step.",
    "outcome-worse": "What was approved would now come out worse than the proof you saw. `data` holds both; decide "
    "again to accept it.",
    "gone": "What this credential belongs to was removed for good. A gateway that reads this stops serving and may be "
    "switched off; nothing brings it back but a new one.",
    "version-mismatch": "The object changed since you read it. Read it again, look at the difference, and send the "
    "new `ETag` in `If-Match`.",
    "too-large": "The body is larger than 1 MiB.",
    "unsupported-media-type": "Send the body as `application/json` in UTF-8.",
    "idempotency-mismatch": "This `Idempotency-Key` was used for another request within the last 24 hours. Use a new "
    "key for each thing you want done.",
    "precondition-required": "A header is missing: `Idempotency-Key` on POST with a token, or `If-Match` with the "
    "object's `ETag` on PUT, PATCH and DELETE.",
    "rate-limited": "Too many requests of this kind. Wait as long as `Retry-After` says.",
    "dependency-down": "A part of the control plane (its database) does not answer. Nothing was changed; repeat after "
    "`Retry-After` seconds. Running endpoints are not touched by it.",
    "internal": "This is a fault of ours. Quote `request_id` to the operators; the log has the details. Whether the "
    "change was made can be seen by reading the object, or by repeating with the same `Idempotency-Key`.",
}


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
