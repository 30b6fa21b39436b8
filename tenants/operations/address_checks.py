"""What workers see of endpoints' addresses from outside: which are due, and what was found. Lock order: endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db.models import F, Q, QuerySet

from tenants import desired
from tenants.actor import Actor
from tenants.addresses import UNNAMED
from tenants.models import AddressCheck, Endpoint
from tenants.transactions import operation

AGAIN: Final = timedelta(minutes=10)
"""An address that was verified is looked at so often."""
SOON: Final = timedelta(minutes=1)
"""One that was not, so often: somebody may be setting its record just now."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    key: str
    """`name`, `range`, `certificate`, `answer`."""
    ok: bool
    text: str
    """What was seen; where it is not well what is missing, and who does what."""
    warns: bool = False
    """It is well now and will not be for long."""


def due(now: datetime) -> QuerySet[Endpoint]:
    """Return the endpoints whose address is to be looked at, those first that nobody has looked at."""
    fresh = Q(address_check__due_at__gt=now, address_check__address=F("address"))
    rows = Endpoint.objects.filter(released_at=None, deletion_requested_at=None, ready_at__isnull=False)
    rows = rows.exclude(address="").exclude(reachable_from__in=sorted(UNNAMED)).exclude(fresh)
    return rows.select_related("tenant", "boundary__provider").order_by(
        F("address_check__due_at").asc(nulls_first=True)
    )


@operation
def looked(*, endpoint: Endpoint, address: str, findings: Sequence[Finding], actor: Actor, now: datetime) -> bool:
    """Keep what was seen of an address; an event when it comes to be well, or is so no more. Returns if it is well."""
    row = Endpoint.objects.select_for_update(no_key=True).filter(pk=endpoint.pk, address=address).first()
    if row is None:
        return False  # it has another one by now
    before = AddressCheck.objects.filter(endpoint=row).first()
    was_ok = before is not None and before.ok and before.address == address
    ok = all(each.ok for each in findings)
    verified_at = now if ok else (before.verified_at if before is not None and before.address == address else None)
    AddressCheck.objects.update_or_create(
        endpoint=row,
        defaults={
            "tenant_id": row.tenant_id,
            "address": address,
            "ok": ok,
            "findings": [asdict(each) for each in findings],
            "checked_at": now,
            "verified_at": verified_at,
            "due_at": now + (AGAIN if ok else SOON),
        },
    )
    if ok and not was_ok:
        desired.happened(row, "endpoint.address-verified", actor=actor, at=now, nudge=False, address=address)
    if was_ok and not ok:
        why = next(each.text for each in findings if not each.ok)
        desired.happened(row, "endpoint.address-lost", actor=actor, at=now, nudge=False, address=address, why=why)
    return ok
