"""Log-in of people: password → person, session → person, and the transaction of the admin console.

Looks up people as the actor `auth`. An unknown e-mail gets the same answer after the same work as a wrong
password; attempts are counted per e-mail and address, and per e-mail, before anything is looked at.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.hashers import check_password, make_password
from django.db import connection
from django.http import HttpRequest, HttpResponseBase, HttpResponseNotAllowed
from django.utils import timezone

from tenants import second_factors, tokens
from tenants.actor import AUTH, Actor
from tenants.errors import Forbidden, RateLimited, Unauthenticated
from tenants.models import Person
from tenants.transactions import acting, operation

WINDOW: Final = timedelta(minutes=15)
MOST_PER_ADDRESS: Final = 10
"""Attempts per e-mail and address in a window."""
MOST_PER_EMAIL: Final = 50
"""Attempts per e-mail from anywhere in a window."""
TOKEN_LASTS: Final = timedelta(days=30)
ADMIN_PREFIX: Final = "/admin/"
ADMIN_OWN_BLOCKS: Final = (f"{ADMIN_PREFIX}inbox/", f"{ADMIN_PREFIX}logout/")
"""Where the console has pages of the portal: the only ones that take more than reads, and each opens its own blocks."""


def actor_of(person: Person) -> Actor:
    """Return the actor of a person with his roles of now. Opens its own transaction. Raises `Unauthenticated`."""
    with acting(AUTH):
        actor = tokens.actor_of(person)
    if actor is None:
        raise Unauthenticated
    return actor


def by_password(email: str, password: str, *, address: str, now: datetime) -> Person:
    """Return the person with this e-mail and password.

    `address` is where the attempt comes from. Raises `RateLimited`, `Unauthenticated`.
    """
    keys = _count(email, address, now=now)
    with acting(AUTH):
        person = Person.objects.filter(email__iexact=email.strip()).first()
    # The slow hash runs outside any transaction, and for nobody as well.
    usable = person is not None and person.is_active and person.has_usable_password()
    stored = person.password if usable and person is not None else _hash_of_nobody()
    right = check_password(password, stored)
    if not right or not usable or person is None:
        raise Unauthenticated(_WRONG)
    with acting(AUTH), connection.cursor() as cursor:
        for key in keys:
            cursor.execute("SELECT login_attempt_clear(%s, %s)", [key, now - 2 * WINDOW])
    return person


_WRONG: Final = "E-mail or password is wrong."


def log_in(email: str, password: str, *, name: str = "log-in", address: str, now: datetime) -> tokens.Issued:
    """Return a new token for an e-mail and a password (`tenantry login`). Raises as `by_password`.

    An account that has a second factor or must have one gets none by password alone: `Forbidden` (`second-factor`).
    """
    person = by_password(email, password, address=address, now=now)
    with acting(AUTH):
        needed = second_factors.needed_by(person)
    if needed and not has_second_factor(person):
        msg = "This account needs a second factor: set it up in the portal, then make a token there (Me, Tokens)."
        raise Forbidden(msg, code="second-factor")
    if has_second_factor(person):
        msg = "This account has a second factor: log in to the portal and make a token there (Me, Tokens)."
        raise Forbidden(msg, code="second-factor")
    return _issue(person=person, name=name, actor=actor_of(person), now=now)


def has_second_factor(person: Person) -> bool:
    """Whether a password alone must not open this account. Opens its own transaction."""
    with acting(AUTH), connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM mfa_authenticator WHERE user_id = %s AND type <> 'recovery_codes')",
            [person.pk],
        )
        row = cursor.fetchone()
    return bool(row and row[0])


@operation
def _issue(*, person: Person, name: str, actor: Actor, now: datetime) -> tokens.Issued:
    return tokens.issue_row(name=name[:80], person=person, expires_at=now + TOKEN_LASTS, actor=actor, now=now)


def _count(email: str, address: str, *, now: datetime) -> list[str]:
    """Count the attempt, also when it fails later: a transaction of its own. Raises `RateLimited`."""
    folded = email.strip().casefold()
    limits = {_key("both", folded, address): MOST_PER_ADDRESS, _key("email", folded): MOST_PER_EMAIL}
    with acting(AUTH), connection.cursor() as cursor:
        over = False
        for key, most in sorted(limits.items()):  # one order for everybody: no deadlock
            cursor.execute(
                "SELECT login_attempt(%s, %s, make_interval(secs => %s))", [key, now, WINDOW.total_seconds()]
            )
            row = cursor.fetchone()
            over = over or (row is not None and row[0] > most)
    if over:
        msg = "Too many attempts to log in; wait a while."
        raise RateLimited(msg, retry_after_s=int(WINDOW.total_seconds()))
    return sorted(limits)


def _key(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode(errors="surrogateescape")).hexdigest()


@lru_cache(maxsize=1)
def _hash_of_nobody() -> str:
    """Return the hash of a password that nobody knows, at the same cost as real ones."""
    return make_password(secrets.token_urlsafe(32))


class PersonBackend(BaseBackend):
    """Django's sessions and the admin's log-in form, over the same rules as tokens."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **_: Any
    ) -> Person | None:
        """Return the person, None when anything is wrong."""
        if not username or password is None:
            return None
        address = str(request.META.get("REMOTE_ADDR", "")) if request is not None else ""
        try:
            person = by_password(username, password, address=address, now=timezone.now())
        except (Unauthenticated, RateLimited):
            return None
        return self.get_user(person.pk)

    def get_user(self, user_id: Any) -> Person | None:
        """Return the person of a session with his platform roles read; None once he left or is suspended."""
        with acting(AUTH):
            return (
                Person.objects.prefetch_related("platform_memberships")
                .filter(pk=user_id, is_active=True, left_at__isnull=True)
                .first()
            )


class AdminTransactionMiddleware:
    """Gives each read of the admin console its read block; everything else opens its own.

    Reads only, which the database sees to: the console changes nothing by itself, its decisions are POSTs that call
    operations.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        """Take the rest of the chain."""
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request, inside a read block as the person who asks where it is a page of the console."""
        if not request.path.startswith(ADMIN_PREFIX) or request.path.startswith(ADMIN_OWN_BLOCKS):
            return self.get_response(request)
        if request.method not in {"GET", "HEAD"}:
            return HttpResponseNotAllowed(["GET", "HEAD"])
        actor = session_actor(request)
        if actor is None:
            return self.get_response(request)
        with acting(actor):
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION READ ONLY")  # the database holds what the console promises
            return self.get_response(request)


def session_actor(request: HttpRequest) -> Actor | None:
    """Return the actor of a session, None without one. A session needs no Idempotency-Key."""
    user = request.user  # read before any block opens: it has one of its own
    if not isinstance(user, Person):
        return None
    try:
        return actor_of(user)
    except Unauthenticated:
        return None
