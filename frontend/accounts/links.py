"""Addresses of links, and the link that a browser is in the middle of using.

The secret stands in the address once; the page takes it into a signed cookie and goes on without it, so that it
shows in no history, log or Referer and lies in no session row.
"""

from __future__ import annotations

from typing import Final

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse

from tenants.errors import Conflict

COOKIE: Final = "tenantry_link"
NAME_COOKIE: Final = "tenantry_link_name"
"""The name that somebody gave before he went to the identity provider."""
KEPT_S: Final = 3600
PATH: Final = "/accounts/"


def pending(request: HttpRequest, cookie: str = COOKIE) -> str:
    """Return the secret that the browser carries, `""` without a valid one."""
    return str(request.get_signed_cookie(cookie, default="", salt=cookie, max_age=KEPT_S) or "")


def carry(response: HttpResponseBase, value: str, cookie: str = COOKIE) -> None:
    """Let the browser carry the secret for the next pages."""
    response.set_signed_cookie(
        cookie,
        value,
        salt=cookie,
        max_age=KEPT_S,
        path=PATH,
        httponly=True,
        samesite="Lax",
        secure=settings.SESSION_COOKIE_SECURE,
    )


def drop(response: HttpResponseBase) -> HttpResponseBase:
    """Let the browser forget it; returns the response."""
    response.delete_cookie(COOKIE, path=PATH, samesite="Lax")
    response.delete_cookie(NAME_COOKIE, path=PATH, samesite="Lax")
    return response


def absolute(path: str) -> str:
    """Return an address people can open from a mail."""
    return f"{settings.TENANTRY_PUBLIC_URL}{path}"


def url_of(secret: str) -> str:
    """Return the address of a link; whoever knows it may use it."""
    return absolute(reverse("account_link", kwargs={"secret": secret}))


def closed_page(
    request: HttpRequest, error: Conflict | None = None, *, state: str = "", kind: str = ""
) -> HttpResponseBase:
    """Return the page of a link that opens nothing: why, and what to do."""
    code = error.specific_code if error is not None else state
    return drop(render(request, "account/link_closed.html", {"state": code, "kind": kind}, status=410))
