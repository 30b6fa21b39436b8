"""What the log-in library's own queries run as, pages for an identity provider that is away, and required factors.

django-allauth asks the database outside our operations, where row-level security shows nothing. Below `/accounts/`
each such statement gets a transaction of its own: as the person who is logged in, else as `auth`. Nothing is set on
the connection itself, so nothing can be left on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from allauth.account.internal.flows.login import AUTHENTICATION_METHODS_SESSION_KEY
from django.conf import settings
from django.core.exceptions import MiddlewareNotUsed
from django.db import connection
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect, JsonResponse
from django.shortcuts import render
from django.urls import reverse

from tenants import problems, second_factors
from tenants.actor import AUTH, Actor
from tenants.errors import Forbidden
from tenants.models import Person
from tenants.operations import accounts
from tenants.transactions import acting, current_actor

logger = logging.getLogger("frontend.accounts")

PREFIX: Final = "/accounts/"
IDENTITIES: Final = f"{PREFIX}oidc/"
AS_AUTH: Final = (f"{PREFIX}password/reset/", IDENTITIES, f"{PREFIX}login/", f"{PREFIX}2fa/webauthn/login/")
"""Pages that find out who somebody is, whoever is logged in at the moment."""
OPEN_TABLES: Final = ('"django_session"', '"tenants_cache"')
"""Tables without row-level security: their statements need no actor."""
FACTOR_PROVEN: Final = "tenantry_factor_proven"
"""Session key: a second factor was set up in this session, so its owner proved to have it."""
FREE_OF_FACTORS: Final = (PREFIX, "/static/", "/healthz", "/readyz", "/live/")

Execute = Callable[[str, Any, bool, dict[str, Any]], Any]


class AccountsMiddleware:
    """Gives the log-in library its database actor, and people a page when the identity provider is away."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        """Take the rest of the chain."""
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a page below `/accounts/`; anything else passes."""
        if not request.path.startswith(PREFIX):
            return self.get_response(request)
        with connection.execute_wrapper(Statements(_actor(request))):
            response = self.get_response(request)
            if request.method == "POST" and request.path.startswith(IDENTITIES) and response.status_code == 302:
                response = _handed_over(request, response)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("Referrer-Policy", "same-origin")
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        """Answer what an identity provider does to us: requests' errors are OSErrors, bad documents ValueErrors."""
        if request.path.startswith(IDENTITIES) and isinstance(exception, OSError | ValueError | KeyError):
            logger.warning("the identity provider does not work: %s", type(exception).__name__)
            return identity_provider_away(request)
        return None


class Statements:
    """Runs each statement that comes outside our transactions in one of its own."""

    def __init__(self, actor: Actor) -> None:
        """Take the actor of the statements."""
        self.actor = actor

    def __call__(self, execute: Execute, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:  # noqa: FBT001 - Django's signature
        """Run one statement."""
        if current_actor() is not None or "set_config(" in sql or any(table in sql for table in OPEN_TABLES):
            return execute(sql, params, many, context)
        if connection.in_atomic_block:  # a transaction of the library's own
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT set_config('role', %s, true), set_config('app.actor', %s, true), app_enter()",
                    [settings.TENANTRY_APP_ROLE, self.actor.word],
                )
            return execute(sql, params, many, context)
        with acting(self.actor):
            return execute(sql, params, many, context)


class FactorMiddleware:
    """Leads people who must have a second factor to its page, where TENANTRY_SECOND_FACTOR says so."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        """Take the rest of the chain; leaves it where nobody must have one."""
        if settings.TENANTRY_SECOND_FACTOR == "optional":
            raise MiddlewareNotUsed
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request, unless its session lacks what it must have."""
        if request.path.startswith(FREE_OF_FACTORS) or not must_prove(request):
            return self.get_response(request)
        if request.path.startswith("/api/"):
            error = Forbidden("This account needs a second factor: set it up in the portal.", code="second-factor")
            return JsonResponse(problems.problem(error), status=error.status, content_type=problems.CONTENT_TYPE)
        return HttpResponseRedirect(reverse("mfa_index"))


def must_prove(request: HttpRequest) -> bool:
    """Whether the session's person must have a second factor and has not shown one in this session."""
    user = request.user
    return isinstance(user, Person) and second_factors.needed_by(user) and not has_proven(request)


def has_proven(request: HttpRequest) -> bool:
    """Whether a second factor or passkey was used or set up in this session."""
    records = request.session.get(AUTHENTICATION_METHODS_SESSION_KEY) or []
    return bool(request.session.get(FACTOR_PROVEN)) or any(record.get("method") == "mfa" for record in records)


def identity_provider_away(request: HttpRequest) -> HttpResponseBase:
    """Return the page that says that the identity provider does not answer, and what to do."""
    return render(request, "socialaccount/provider_away.html", status=503)


def _handed_over(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Go on to the identity provider by a page of ours: a browser refuses a form that is redirected off the host."""
    target = response.headers["Location"]
    if urlsplit(target).netloc in {"", request.get_host()}:
        return response
    page = render(request, "socialaccount/login_redirect.html", {"redirect_to": target})
    page.cookies.update(response.cookies)
    return page


def _actor(request: HttpRequest) -> Actor:
    user = request.user
    if isinstance(user, Person) and not request.path.startswith(AS_AUTH):
        return accounts.as_person(user.pk)
    return AUTH
