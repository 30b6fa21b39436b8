"""Errors of the control plane: code, status and a detail that is safe to show.

Every error that an interface may meet is a `ControlPlaneError`; anything else that escapes is a bug.
`code` is stable and has a help page; `data` holds numbers and ids, never secrets. No Django, no DRF.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ControlPlaneError(Exception):
    """Root of the tree; subclasses set `code`, `status` and `title`."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong"

    def __init__(self, detail: str = "", *, field: str | None = None, code: str | None = None, **data: Any) -> None:
        """`detail` is a sentence for the caller, `field` the input at fault; `code` refines the class's code."""
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.field = field
        self.specific_code = code or self.code
        self.data = data


class InvalidSpec(ControlPlaneError):
    """The input is malformed or asks for what cannot be."""

    code, status, title = "invalid", 400, "The request is not valid"

    def __init__(
        self,
        detail: str = "",
        *,
        field: str | None = None,
        code: str | None = None,
        errors: list[dict[str, Any]] | None = None,
        **data: Any,
    ) -> None:
        """`errors` lists several fields at once as {field, reason}."""
        super().__init__(detail, field=field, code=code, **data)
        self.errors = errors or ([{"field": field, "reason": self.detail}] if field else [])


class Unauthenticated(ControlPlaneError):
    """No principal, or one whose proof is wrong, expired or revoked; all look alike."""

    code, status, title = "unauthenticated", 401, "Log in or send a valid token"


class Forbidden(ControlPlaneError):
    """Visible, but the caller's role does not allow it."""

    code, status, title = "forbidden", 403, "Your role does not allow this"


class NotVisible(ControlPlaneError):
    """Missing or foreign: both look the same."""

    code, status, title = "not-found", 404, "There is no such object, or you may not see it"


class MethodNotAllowed(ControlPlaneError):
    """The route exists, this method does not."""

    code, status, title = "method-not-allowed", 405, "This method is not allowed here"


class NotAcceptable(ControlPlaneError):
    """No representation that the caller accepts."""

    code, status, title = "not-acceptable", 406, "This representation is not offered"


class Conflict(ControlPlaneError):
    """The state of things does not allow it now."""

    code, status, title = "conflict", 409, "This is not possible in the present state"


class QuotaExceeded(ControlPlaneError):
    """A limit is in the way; `data` holds limits, use, missing amounts and a ready-made request."""

    code, status, title = "quota-exceeded", 409, "This goes beyond a quota"


class Gone(ControlPlaneError):
    """It was there and is gone for good; who asks may stop asking (gateways)."""

    code, status, title = "gone", 410, "This is gone for good"


class PreconditionFailed(ControlPlaneError):
    """`If-Match` names another version."""

    code, status, title = "version-mismatch", 412, "The object has changed since you read it"


class PayloadTooLarge(ControlPlaneError):
    """The body is larger or deeper than allowed."""

    code, status, title = "too-large", 413, "The body is too large"


class UnsupportedMediaType(ControlPlaneError):
    """The body is no JSON."""

    code, status, title = "unsupported-media-type", 415, "Send application/json"


class IdempotencyMismatch(ControlPlaneError):
    """The idempotency key was used with another body or route."""

    code, status, title = "idempotency-mismatch", 422, "This Idempotency-Key was used for something else"


class PreconditionRequired(ControlPlaneError):
    """A header is required: `If-Match` on change, `Idempotency-Key` on POST with a token."""

    code, status, title = "precondition-required", 428, "A required header is missing"


class RateLimited(ControlPlaneError):
    """Too many requests."""

    code, status, title = "rate-limited", 429, "Too many requests"

    def __init__(self, detail: str = "", *, retry_after_s: int = 1, **data: Any) -> None:
        """`retry_after_s` goes into the Retry-After header."""
        super().__init__(detail, **data)
        self.retry_after_s = retry_after_s


class DependencyDown(ControlPlaneError):
    """Our own database or broker does not answer; try again."""

    code, status, title = "dependency-down", 503, "A part of the control plane is not available"

    def __init__(self, detail: str = "", *, retry_after_s: int = 2, **data: Any) -> None:
        """`retry_after_s` goes into the Retry-After header."""
        super().__init__(detail, **data)
        self.retry_after_s = retry_after_s
