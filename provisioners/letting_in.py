"""Answering people who want into their namespace: a token each, asked of the cluster, sealed for the asker.

Runs beside the dispatcher, which needs no broker, and looks often: somebody waits in front of a terminal. Two processes
that answer the same asking make two tokens; the second answer is dropped and its token ends by itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from django.utils import timezone

from provisioners import connections, lookout
from provisioners.boundary import people_of
from provisioners.driver import Driver, DriverError, LetsPeopleIn
from provisioners.specs_from_rows import ref_of
from tenants.actor import SYSTEM
from tenants.models import Boundary, NamespaceCredential, Provider
from tenants.operations import namespace_access
from tenants.operations.namespace_access import Answer
from tenants.transactions import acting

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.3
PATIENCE: Final = timedelta(seconds=20)
"""So long it is tried again: the account of somebody who has just come is being made."""
AT_ONCE: Final = 20

Clock = Callable[[], datetime]
DriverOf = Callable[[Provider], Driver]


def answer(clock: Clock, *, driver_of: DriverOf = connections.driver_of) -> int:
    """Answer who asked, oldest first; return how many were answered."""
    with acting(SYSTEM):
        namespace_access.purge(clock())
        waiting = list(
            NamespaceCredential.objects.filter(answered_at__isnull=True)
            .select_related("tenant", "namespace__boundary__provider", "namespace__tenant")
            .order_by("asked_at", "pk")[:AT_ONCE]
        )
    return sum(_answer(row, clock, driver_of) for row in waiting)


def _answer(row: NamespaceCredential, clock: Clock, driver_of: DriverOf) -> bool:
    boundary = row.namespace.boundary
    made, error = None, ""
    if boundary is None or boundary.released_at is not None:
        error = "The namespace is not there any more."
    elif not _is_let_in(boundary, row):
        error = "You have no role in this namespace's tenant."
    else:
        made, error, is_final = _asked(row, boundary, driver_of)
        if made is None and not is_final and clock() - row.asked_at < PATIENCE:
            return False
    namespace_access.answered(credential=row, answer=made, error=error, actor=SYSTEM, now=clock())
    return True


def _is_let_in(boundary: Boundary, row: NamespaceCredential) -> bool:
    with acting(SYSTEM):
        return str(row.person_id) in dict(people_of(boundary))


def _asked(row: NamespaceCredential, boundary: Boundary, driver_of: DriverOf) -> tuple[Answer | None, str, bool]:
    """Return (answer, why there is none, whether that will stay so)."""
    tenant, name = row.tenant.name, row.namespace.name
    command = ("tenantry", "kube-credential", name, "--tenant", tenant)
    try:
        driver = driver_of(boundary.provider)
        if not isinstance(driver, LetsPeopleIn):
            return None, "This provider is simulated: it has no API server to let anybody in.", True
        found = driver.credential(
            ref_of(boundary), str(row.person_id), seconds=row.seconds, name=f"{tenant}-{name}", command=command
        )
    except DriverError as error:
        return None, error.detail, False
    return (
        Answer(found.token.reveal(), found.expires_at, found.kubeconfig, found.static_kubeconfig.reveal()), "", True,
    )  # fmt: skip


def beside(stop: threading.Event, *, clock: Clock = timezone.now) -> threading.Thread:
    """Start the thread that lets people in until `stop` is set; whatever goes wrong is logged and tried again."""
    return lookout.start("letting-in", lambda: answer(clock), stop, pause_s=PAUSE_S, waits="nobody is let in")
