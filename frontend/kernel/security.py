"""Content-Security-Policy by part of the site: strict for the portal, looser where a package needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from django.http import HttpRequest, HttpResponseBase

SELF: Final = ("'self'",)
PORTAL: Final[Mapping[str, Any]] = {
    "default-src": SELF,
    "base-uri": ("'none'",),
    "form-action": SELF,
    "frame-ancestors": ("'none'",),
    "img-src": ("'self'", "data:"),
    "object-src": ("'none'",),
}
"""No inline script or style anywhere; images may be data, for the favicon that tells the state."""
CONSOLE: Final[Mapping[str, Any]] = {
    **PORTAL,
    "script-src": ("'self'", "'unsafe-eval'"),
    "style-src": ("'self'", "'unsafe-inline'"),
}
"""The admin console: its package evaluates expressions of its templates (Alpine), and writes its colours and its bars'
widths into the page. No inline script, and nothing from elsewhere, as in the portal."""
DOCUMENTATION: Final[Mapping[str, Any]] = {
    **PORTAL,
    "script-src": ("'self'", "'unsafe-inline'"),
    "style-src": ("'self'", "'unsafe-inline'"),
    "worker-src": ("'self'", "blob:"),
}
"""The API's documentation: its package starts itself from an inline script."""
LOOSER: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (("/admin/", CONSOLE), ("/api/docs", DOCUMENTATION))


class PartPolicyMiddleware:
    """Names another policy for the parts that have one; stands inside `csp.middleware.CSPMiddleware`."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        """Take the rest of the chain."""
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request."""
        response = self.get_response(request)
        for prefix, policy in LOOSER:
            if request.path.startswith(prefix):
                response._csp_config = dict(policy)  # type: ignore[attr-defined]
        return response
