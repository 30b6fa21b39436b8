"""A demo is for simulated providers alone: it hands out log-ins and invents a past."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings
from django.db import connection

from tenants import demo
from tenants.errors import DependencyDown

log = logging.getLogger(__name__)


class RealProviders(RuntimeError):
    """A provider that is not simulated is registered here."""


def refuse_beside_real_providers() -> None:
    """Raise `RealProviders` where a provider is registered that is not simulated."""
    real = demo.real_providers()
    if real:
        msg = f"the demo is refused beside real providers: {', '.join(real)}"
        raise RealProviders(msg)


def check_at_start() -> None:
    """Keep the web process of a demo from starting beside real providers. Raises `RealProviders`.

    In a thread of its own, because a server may import us inside its event loop. A database that is away now is
    asked again at every log-in of a persona.
    """
    if not settings.TENANTRY_DEMO:
        return
    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(_check).result()
        except DependencyDown:
            log.warning("whether this demo stands beside real providers could not be looked up at start")


def _check() -> None:
    try:
        refuse_beside_real_providers()
    finally:
        connection.close()
