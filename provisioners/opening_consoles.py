"""Answering people who want to see the screen of their machine: a ticket each, asked of the provider, sealed for them.

Runs beside the dispatcher, in a thread of its own: a vCenter that hangs keeps nobody out of a cluster. Two processes
that answer the same asking make two tickets; the second answer is dropped and its ticket ends by itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final

from django.utils import timezone

from provisioners import connections, lookout
from provisioners.driver import Driver, DriverError, ShowsConsoles
from provisioners.specs_from_rows import ref_of
from tenants import access
from tenants.actor import SYSTEM
from tenants.errors import DependencyDown
from tenants.models import MachineConsole, Person, Provider, Suspension
from tenants.operations import machine_consoles
from tenants.operations.machine_consoles import Answer
from tenants.policies import ROUTES
from tenants.tokens import actor_of
from tenants.transactions import acting

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.3
AT_ONCE: Final = 20


def answer(clock: Callable[[], datetime], *, driver_of: Callable[[Provider], Driver] = connections.driver_of) -> int:
    """Answer who asked, oldest first; return how many were answered."""
    with acting(SYSTEM):
        machine_consoles.purge(clock())
        waiting = list(
            MachineConsole.objects.filter(answered_at__isnull=True)
            .select_related("tenant", "machine__boundary__provider", "machine__tenant")
            .order_by("asked_at", "pk")[:AT_ONCE]
        )
    for row in waiting:
        try:
            made, error = _asked(row, driver_of)
        except DependencyDown:
            raise
        except Exception:  # one asking's trouble is not the others'
            log.exception("a console could not be opened")
            made, error = None, "It could not be had. Ask an operator to look at the log of the dispatcher."
        machine_consoles.answered(console=row, answer=made, error=error, actor=SYSTEM, now=clock())
    return len(waiting)


def _asked(row: MachineConsole, driver_of: Callable[[Provider], Driver]) -> tuple[Answer | None, str]:
    """Return (answer, why there is none)."""
    if why := machine_consoles.refusal(row.machine):
        return None, why
    if not _may(row):
        return None, "You may not open consoles here any more: your role is gone, or the tenant is suspended."
    boundary = row.machine.boundary
    assert boundary is not None  # a machine without one was refused
    try:
        driver = driver_of(boundary.provider)
        if not isinstance(driver, ShowsConsoles):
            return None, machine_consoles.NONE.format(place=boundary.provider.name, name=row.machine.name)
        found = driver.console(ref_of(row.machine))
    except DriverError as error:
        return None, f"It could not be had: {error.detail}."
    return Answer(found.address.reveal(), found.expires_at, found.fingerprint, found.simulated), ""


def _may(row: MachineConsole) -> bool:
    """Whether the person may still do this: roles may have been taken since the asking, or the tenant suspended."""
    with acting(SYSTEM):
        if Suspension.objects.filter(tenant_id__in=row.tenant.path, ended_at__isnull=True).exists():
            return False
        person = Person.objects.filter(pk=row.person_id).first()
        actor = None if person is None else actor_of(person)
        return actor is not None and access.allowed(actor, row.tenant, ROUTES["machines.console"])


def beside(stop: threading.Event, *, clock: Callable[[], datetime] = timezone.now) -> threading.Thread:
    """Start the thread that opens consoles until `stop` is set; whatever goes wrong is logged and tried again."""
    return lookout.start("opening-consoles", lambda: answer(clock), stop, pause_s=PAUSE_S, waits="no console is opened")
