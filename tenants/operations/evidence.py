"""Packs of evidence: made as a stream for one person, kept nowhere, and recorded: who made which pack."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Final

from tenants import desired, evidence_pack
from tenants.actor import Actor
from tenants.evidence_pack import Wanted, Written
from tenants.models import Tenant
from tenants.operations.guards import allow
from tenants.transactions import operation, reading

IN_MEMORY: Final = 4 * 2**20
"""Bytes of a pack that are held in memory; a larger one goes through a nameless temporary file."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack, ready to be read from its beginning; closing the file forgets it."""

    file: IO[bytes]
    name: str
    written: Written


def make(
    *, tenant: Tenant, since: datetime, until: datetime, actor: Actor, now: datetime, children: bool = False
) -> Pack:
    """Write the pack of a tenant over [since, until), then record that it was made. Opens its own transactions.

    What the pack holds is one snapshot; without the event there is no pack. Raises `Forbidden`, `InvalidSpec`.
    """
    wanted = Wanted(tenant, since, until, children)
    file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - the caller closes it
    try:
        with reading(actor):
            allow(actor, tenant, "evidence.make")
            written = evidence_pack.write(wanted, file, by=actor.word, now=now)
        _record(wanted=wanted, written=written, actor=actor, now=now)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    name = f"evidence-{tenant.name}-{since:%Y%m%d}-{until:%Y%m%d}.zip"
    return Pack(file, name, written)


@operation
def _record(*, wanted: Wanted, written: Written, actor: Actor, now: datetime) -> None:
    desired.happened(
        wanted.tenant, "evidence.made", actor=actor, at=now, nudge=False, since=wanted.start, until=wanted.end,
        children=wanted.children, manifest=written.digest, events=written.rows("events.jsonl"),
        windows=written.rows("windows.csv"),
    )  # fmt: skip
