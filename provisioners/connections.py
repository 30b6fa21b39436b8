"""From a provider's row to a driver that can be called: credentials unsealed, one driver kept per process.

`Watched` is what passes call: it refuses to run inside a transaction, and it is where tests kill the
process after a step's effect. Drivers are made anew when the provider's row changes its version.
"""

from __future__ import annotations

import threading
from typing import Final
from uuid import UUID

from django.db import connection

from provisioners import registry
from provisioners.driver import Done, Driver, Handle, Observed, Poll, Ref, Secret, Spec, Step, TransientDriverError
from provisioners.instants import Instant, reach
from tenants import vault
from tenants.actor import SYSTEM
from tenants.models import Provider, ProviderCredential
from tenants.transactions import acting, current_actor

_drivers: Final[dict[UUID, tuple[int, Driver]]] = {}
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
    with _lock:
        known = _drivers.get(provider.pk)
        if known is not None and known[0] == provider.version:
            return known[1]
    try:
        driver = registry.make_driver(provider.kind, provider.config, credentials_of(provider.pk))
    except KeyError as error:
        msg = f"the provider's setting or credential {error.args[0]!r} is missing"
        raise TransientDriverError(msg) from error
    except ValueError as error:
        msg = "a setting of the provider cannot be used"
        raise TransientDriverError(msg, raw=str(error)[:500]) from error
    with _lock:
        # The old driver's connections end with their last user: another thread may be in the middle of a call.
        _drivers[provider.pk] = (provider.version, driver)
    return driver


def forget_all() -> None:
    """Close and forget every driver of this process: after a fork, and at the end of tests."""
    with _lock:
        for _version, driver in _drivers.values():
            driver.close()
        _drivers.clear()


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
