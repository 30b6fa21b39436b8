"""From a provider's row to a driver that can be called: credentials unsealed, one driver kept per process.

`Watched` is what passes call: it refuses to run inside a transaction, and it is where tests kill the
process after a step's effect. Drivers are made anew when the provider's row changes its version; the one before is
closed as soon as no other thread may be in the middle of a call to it, the rest when the process ends (`close_all`):
providers count sessions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import connection

from provisioners import breaker, registry
from provisioners.driver import Done, Driver, Handle, Observed, Poll, Ref, Secret, Spec, Step, TransientDriverError
from provisioners.instants import Instant, reach
from tenants import vault
from tenants.actor import SYSTEM
from tenants.models import Provider, ProviderCredential
from tenants.transactions import acting, current_actor

log = logging.getLogger(__name__)

CLOSE_S: Final = 5.0
"""So long the closing of drivers is waited for: a provider that hangs keeps nobody from going on, or from ending."""


@dataclass(slots=True)
class _Lent:
    """A driver and who may be calling it."""

    provider: UUID
    version: int
    """Of the provider's row."""
    driver: Driver
    users: set[threading.Thread]
    """Threads that have asked for it and for no later one: a thread does one thing at a time."""


_drivers: Final[dict[UUID, _Lent]] = {}
_replaced: Final[list[_Lent]] = []
_lock: Final = threading.Lock()


class InTransaction(RuntimeError):
    """A provider was about to be called inside a transaction."""


def credentials_of(provider_id: UUID) -> dict[str, Secret]:
    """Return a provider's credentials by name. Raises `vault.VaultError`."""
    with acting(SYSTEM):
        rows = list(ProviderCredential.objects.filter(provider_id=provider_id))
    return {
        row.name: Secret(vault.unseal(row.sealed, table=row._meta.db_table, column="sealed", row=row.pk))
        for row in rows
    }


def driver_of(provider: Provider) -> Driver:
    """Return the driver of a provider.

    Raises `NotSupported` for an unknown kind, `TransientDriverError` while a setting or credential is missing or
    cannot be used: an operator can mend that at any time.
    """
    unused: list[Driver] = []
    with _lock:
        known = _drivers.get(provider.pk)
        if known is not None and known.version != provider.version:
            known = None
        if known is not None:
            known.users.add(threading.current_thread())
            unused = _take_unused(provider.pk)
    if known is not None:
        _close(unused)
        return known.driver
    try:
        driver = registry.make_driver(
            provider.kind, provider.config, credentials_of(provider.pk), processes=breaker.callers()
        )
    except KeyError as error:
        name = str(error.args[0])
        msg = f"the provider's setting or credential {name!r} is missing"
        raise TransientDriverError(msg, field=_field(provider.kind, name)) from error
    except ValueError as error:
        name, found, _ = str(error).partition(": ")
        msg = "a setting of the provider cannot be used"
        field = _field(provider.kind, name) if found else ""
        raise TransientDriverError(msg, raw=str(error)[:500], field=field) from error
    lent = _Lent(provider.pk, provider.version, driver, {threading.current_thread()})
    with _lock:
        if provider.pk in _drivers:
            _replaced.append(_drivers[provider.pk])
        _drivers[provider.pk] = lent
        unused = _take_unused(provider.pk)
    _close(unused)
    return driver


def _field(kind: str, name: str) -> str:
    """Return the field of a setting or secret as forms call it, `""` for a name that is neither."""
    described = next((one for one in registry.CONNECTIONS if one.slug == kind), None)
    if described is not None and described.credential(name) is not None:
        return f"secret.{name}"
    return f"config.{name}" if described is not None and not described.unknown(name) else ""


def _take_unused(provider: UUID) -> list[Driver]:
    """Return the replaced drivers of a provider that nobody uses now that this thread has another; under the lock."""
    unused = []
    for lent in [one for one in _replaced if one.provider == provider]:
        lent.users = {user for user in lent.users if user.is_alive() and user is not threading.current_thread()}
        if not lent.users:
            _replaced.remove(lent)
            unused.append(lent.driver)
    return unused


def close_all() -> None:
    """Close and forget every driver of this process, at its end: whoever is in a call has to be done with it."""
    with _lock:
        drivers = [lent.driver for lent in (*_drivers.values(), *_replaced)]
        _drivers.clear()
        _replaced.clear()
    _close(drivers)


def _close(drivers: Iterable[Driver]) -> None:
    threads = [threading.Thread(target=_close_one, args=(driver,), daemon=True) for driver in drivers]
    until = time.monotonic() + CLOSE_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=max(0.0, until - time.monotonic()))


def _close_one(driver: Driver) -> None:
    try:
        driver.close()
    except Exception:  # what ends is not worth more than a word
        log.exception("a driver could not be closed")


def step_word(step: Step) -> str:
    """Return how instants and logs call a step: its name, with `undo:` before it where it removes."""
    return f"undo:{step.name}" if step.undo else step.name


class Watched:
    """The calls of one pass to one driver."""

    def __init__(self, driver: Driver) -> None:
        """Watch over `driver`."""
        self._driver = driver

    def observe(self, ref: Ref) -> Observed:
        """Read one object exactly."""
        _outside_transaction()
        return self._driver.observe(ref)

    def steps(self, spec: Spec) -> tuple[Step, ...]:
        """Return the ordered steps of a spec; pure."""
        return tuple(self._driver.steps(spec))

    def start(self, step: Step) -> Handle | Done:
        """Start one step."""
        _outside_transaction()
        answer = self._driver.start(step)
        reach(step_word(step), Instant.AFTER_CALL)
        return answer

    def poll(self, handle: Handle) -> Poll:
        """Look at a running step."""
        _outside_transaction()
        return self._driver.poll(handle)


def _outside_transaction() -> None:
    if connection.in_atomic_block or current_actor() is not None:
        msg = "a provider is never called inside a transaction"
        raise InTransaction(msg)
