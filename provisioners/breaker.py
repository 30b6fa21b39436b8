"""Keeps a bad provider from taking everybody's time: a circuit breaker per provider, and slots per worker.

The breaker counts failed *looks* in a row: a provider that cannot even be read is down, whereas a step
that fails is its object's own trouble and backs off there. Open, no pass calls the provider; after a pause
that doubles one pass goes through and decides. Slots are session-level advisory locks: at most half of one
worker's processes are at one provider, and a killed process gives its slot back with its connection.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db.models import F

from tenants.actor import SYSTEM
from tenants.models import Provider
from tenants.transactions import acting, alone

THRESHOLD: Final = 5
PAUSE_S: Final = 2.0
LONGEST_PAUSE_S: Final = 60.0


def closed_until(provider: Provider, now: datetime) -> datetime | None:
    """Return until when a provider is left alone, None when it may be called."""
    until = provider.breaker_open_until
    return until if until is not None and until > now else None


def failed(provider_id: UUID, now: datetime) -> None:
    """Count a look that failed; from the fifth in a row on the provider is left alone for a growing pause."""
    with acting(SYSTEM):
        rows = Provider.objects.filter(pk=provider_id)
        rows.update(breaker_failures=F("breaker_failures") + 1)
        count = rows.values_list("breaker_failures", flat=True).first() or 0
        if count >= THRESHOLD:
            pause = min(LONGEST_PAUSE_S, PAUSE_S * 2.0 ** (count - THRESHOLD))
            jittered = pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, hides nothing
            rows.update(breaker_open_until=now + timedelta(seconds=jittered), healthy=False)


def succeeded(provider: Provider) -> None:
    """Close the breaker after a look that came back; writes only if there is something to forget."""
    if provider.breaker_failures or provider.breaker_open_until is not None:
        with acting(SYSTEM):
            Provider.objects.filter(pk=provider.pk).update(breaker_failures=0, breaker_open_until=None, healthy=True)
        provider.breaker_failures, provider.breaker_open_until = 0, None


def slots_per_provider() -> int:
    """Return how many passes of one worker may be at one provider at once."""
    return max(1, int(settings.TENANTRY_WORKER_SLOTS) // 2)


def callers() -> int:
    """Return how many processes may call a provider: those of all workers, and the dispatcher, which listens."""
    return int(settings.TENANTRY_WORKERS) * int(settings.TENANTRY_WORKER_SLOTS) + 1


@contextmanager
def slot(provider_id: UUID, *, worker: str | None = None) -> Iterator[bool]:
    """Hold one of this worker's slots at a provider while the block runs; False when all are taken."""
    name = worker or f"{socket.gethostname()}:{os.getppid()}"
    for number in range(slots_per_provider()):
        key = _key(f"{provider_id}:{name}:{number}")
        if _call("SELECT pg_try_advisory_lock(%s)", key):
            try:
                yield True
            finally:
                _call("SELECT pg_advisory_unlock(%s)", key)
            return
    yield False


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _call(query: str, key: int) -> bool:
    return bool(alone(query, [key]))
