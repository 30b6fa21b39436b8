"""Boundaries: ask for a certificate of isolation, store one that was made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tenants import certificates, desired
from tenants.actor import Actor
from tenants.errors import Conflict
from tenants.models import Boundary
from tenants.operations.guards import allow
from tenants.transactions import operation


@operation
def certify(*, boundary: Boundary, actor: Actor, now: datetime) -> Boundary:
    """Ask for a certificate: a worker tries to break out of the boundary now and says what held.

    One that is asked for already is not asked for twice. Raises `Conflict` (`not-supported`) where its provider
    cannot be tried.
    """
    allow(actor, boundary.tenant, "boundaries.certify")
    row = Boundary.objects.select_for_update(no_key=True).get(pk=boundary.pk)
    row.provider = boundary.provider
    if not certificates.can_be(row):
        msg = "Only a namespace that stays, on a cluster that is connected, can be certified."
        raise Conflict(msg, code="not-supported")
    if certificates.ASKED not in row.observed:
        row.observed = {**row.observed, certificates.ASKED: {"at": now.isoformat()}}
        row.save(update_fields=["observed"])
        desired.happened(row, "boundary.certificate-asked", actor=actor, at=now, nudge=False)
    return row


@operation
def certified(
    *,
    boundary: Boundary,
    checks: Sequence[tuple[str, str, str, str]],
    passed: bool,
    facts: dict[str, Any],
    actor: Actor,
    now: datetime,
) -> None:
    """Store a certificate: `checks` are (key, title, outcome, seen); `facts` version, took_ms, unshown, simulated.

    `boundary` is as it was read before it was tried.
    """
    row = Boundary.objects.select_for_update(no_key=True).get(pk=boundary.pk)
    desired.happened(
        row, certificates.CERTIFIED, actor=actor, at=now, nudge=False, passed=passed,
        checks=[list(each) for each in checks], **facts,
    )  # fmt: skip
    over = {certificates.ASKED, certificates.RUNNING}
    if row.observed.get(certificates.SHAKEN) == boundary.observed.get(certificates.SHAKEN):
        over.add(certificates.SHAKEN)  # else it was shaken again while it was tried
    rest = {key: value for key, value in row.observed.items() if key not in over}
    failed = sum(outcome == "failed" for _key, _title, outcome, _seen in checks)
    row.observed = {**rest, certificates.LAST: {"at": now.isoformat(), "passed": passed, "failed": failed}}
    row.save(update_fields=["observed"])
