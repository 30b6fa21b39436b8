"""The one helper that opens a transaction, takes the database role and says who acts.

Every read block and every domain operation is its own durable transaction through here. Without it
row-level security shows nothing. `operation` adds retries of deadlocks and the idempotency record.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar, cast

from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction
from psycopg import errors as pg

from tenants.actor import Actor, Kind
from tenants.errors import Conflict, DependencyDown

WORKER_ROLE: Final = "cp_worker"
ATTEMPTS: Final = 4

_current: ContextVar[Actor | None] = ContextVar("tenantry_actor", default=None)
_before_commit: ContextVar[list[Callable[[Any], None]] | None] = ContextVar("tenantry_before_commit", default=None)

F = TypeVar("F", bound=Callable[..., Any])


def current_actor() -> Actor | None:
    """Return the actor of the open transaction, None outside one."""
    return _current.get()


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Open a durable transaction as `actor`. Raises `DependencyDown` when PostgreSQL does not answer."""
    with _translated(), transaction.atomic(durable=True):
        role = WORKER_ROLE if actor.kind is Kind.SYSTEM else settings.TENANTRY_APP_ROLE
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('role', %s, true), set_config('app.actor', %s, true), app_enter()",
                [role, actor.word],
            )
        token = _current.set(actor)
        try:
            yield
        finally:
            _current.reset(token)


reading = acting
"""A read block is a transaction like any other; the name says the intent."""


def alone(query: str, parameters: Sequence[Any]) -> Any:
    """Run one statement outside any transaction and return its first value: session locks need that.

    Raises `DependencyDown`; the locks of a session that is gone are gone with it.
    """
    with _translated(), connection.cursor() as cursor:
        cursor.execute(query, parameters)
        row = cursor.fetchone()
    return row[0] if row else None


def refresh_visibility() -> None:
    """Work out again what the actor may see, after an insert that changes it (a new tenant)."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT app_enter()")


@contextmanager
def before_commit(hook: Callable[[Any], None]) -> Iterator[None]:
    """Run `hook(result)` inside the transaction of the next operation, before it commits."""
    token = _before_commit.set([hook])
    try:
        yield
    finally:
        _before_commit.reset(token)


def operation(function: F) -> F:
    """Make a keyword-only function one domain operation: one durable transaction under its `actor`.

    Deadlocks and serialisation failures are repeated: an operation touches nothing but the database.
    """

    @functools.wraps(function)
    def run(*args: Any, actor: Actor, **kwargs: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with acting(actor):
                    result = function(*args, actor=actor, **kwargs)
                    for hook in _before_commit.get() or ():
                        hook(result)
                    return result
            except RetryableError as error:
                if attempt == ATTEMPTS:
                    msg = "Many changes at once touch the same objects; try again."
                    raise Conflict(msg, code="busy") from error
                _pause(attempt)
        raise AssertionError  # pragma: no cover - the loop returns or raises

    return cast("F", run)


class RetryableError(Exception):
    """A deadlock or serialisation failure; the transaction is rolled back and may simply be repeated."""


def _pause(attempt: int) -> None:
    """Wait a few milliseconds with jitter inside PostgreSQL, so that rivals part."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [random.uniform(0.002, 0.02) * attempt])  # noqa: S311 - no secret


@contextmanager
def _translated() -> Iterator[None]:
    """Turn a database that is away into `DependencyDown`, and deadlocks into `RetryableError`."""
    try:
        yield
    except (OperationalError, InterfaceError, DatabaseError) as error:
        cause = error.__cause__
        if isinstance(cause, pg.DeadlockDetected | pg.SerializationFailure):
            raise RetryableError from error
        if isinstance(error, InterfaceError) or _is_away(cause):
            connection.close()
            msg = "The database does not answer at the moment; nothing was changed."
            raise DependencyDown(msg) from error
        raise


def _is_away(cause: BaseException | None) -> bool:
    """Whether an error means that the server or the connection is gone, rather than that a statement is wrong."""
    if cause is None:
        return True
    if type(cause).__name__ in {"PoolTimeout", "PoolClosed"}:
        return True
    if not isinstance(cause, pg.Error):
        return True
    return isinstance(cause, pg.OperationalError) and (
        cause.sqlstate is None or cause.sqlstate[:2] in {"08", "57", "53"} or cause.sqlstate == "58030"
    )
