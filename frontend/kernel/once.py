"""A secret shown once, carried over one redirect in the browser that will show it.

It is sealed with the key ring and bound to the page and the person; the server keeps nothing. The page that shows
it takes the cookie away.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any, Final

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

from tenants import vault

COOKIE: Final = "tenantry_once"
LASTS_S: Final = 300


def _place(request: HttpRequest, path: str) -> dict[str, Any]:
    return {"table": "portal_once", "column": path, "row": request.user.pk}


def put(request: HttpRequest, response: HttpResponseBase, secret: str, *, path: str) -> None:
    """Give `secret` along with a redirect to `path`."""
    body = f"{int(datetime.now(UTC).timestamp())} {secret}"
    sealed = vault.seal(body, **_place(request, path))
    response.set_cookie(
        COOKIE,
        base64.urlsafe_b64encode(sealed).decode(),
        max_age=LASTS_S,
        path=path,
        httponly=True,
        secure=bool(settings.SESSION_COOKIE_SECURE),
        samesite="Strict",
    )


def peek(request: HttpRequest, *, lasts_s: int = LASTS_S) -> str:
    """Return the secret that came with this request for this page, `""` without one not older than `lasts_s`."""
    raw = request.COOKIES.get(COOKIE, "")
    if not raw:
        return ""
    try:
        body = vault.unseal(base64.urlsafe_b64decode(raw), **_place(request, request.path))
    except (ValueError, vault.VaultError):
        return ""
    made, _, secret = body.partition(" ")
    fresh = made.isdigit() and datetime.now(UTC).timestamp() - int(made) <= lasts_s
    return secret if fresh else ""


def forget(request: HttpRequest, response: HttpResponseBase) -> None:
    """Take the secret away from the browser with this answer."""
    response.delete_cookie(COOKIE, path=request.path, samesite="Strict")
