"""Request → actor: a bearer token, or the session of a browser with its CSRF token. No proof is `anonymous`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY, get_user
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from rest_framework.authentication import BaseAuthentication

from tenants import login, tokens
from tenants.actor import ANONYMOUS, AUTH, Actor
from tenants.errors import Forbidden
from tenants.models import Person
from tenants.transactions import acting

if TYPE_CHECKING:
    from rest_framework.request import Request

_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class PrincipalAuthentication(BaseAuthentication):
    """Gives DRF the actor as `request.user`."""

    def authenticate(self, request: Request) -> tuple[Actor, None]:
        """Return the actor. Raises `Unauthenticated` for a proof that is wrong, `Forbidden` for a CSRF fault."""
        plain = request._request
        header = plain.headers.get("Authorization", "")
        if header:
            return tokens.resolve(header, now=datetime.now(UTC)), None
        actor = session_actor(plain)
        if actor is None:
            return ANONYMOUS, None
        if plain.method not in _SAFE:
            refuse_forged(plain)
        return actor, None

    def authenticate_header(self, request: Request) -> str:  # noqa: ARG002
        """Return the challenge of a 401."""
        return 'Bearer realm="tenantry"'


def session_actor(request: HttpRequest) -> Actor | None:
    """Return the actor of a browser's session, None without one. The session row is read as `auth`."""
    session: Any = getattr(request, "session", None)
    if session is None or session.session_key is None:
        return None
    with acting(AUTH):
        known = SESSION_KEY in session and BACKEND_SESSION_KEY in session
    if not known:
        return None
    user = get_user(request)  # loads the person in a read block of its own
    return login.actor_of(user) if isinstance(user, Person) else None


def refuse_forged(request: HttpRequest) -> None:
    """Raise `Forbidden` unless the request carries the session's CSRF token."""
    check = _Csrf(_nothing)
    check.process_request(request)
    if check.process_view(request, _nothing, (), {}) is not None:
        raise Forbidden("Send the session's CSRF token in the header X-CSRFToken.", code="csrf")


class _Csrf(CsrfViewMiddleware):
    """Answers with the reason instead of a page."""

    def _reject(self, request: HttpRequest, reason: str) -> Any:  # noqa: ARG002
        return reason


def _nothing(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    return HttpResponse()
