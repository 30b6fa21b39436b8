"""How people get to the screen of their machines: ask for a console, read its address, open it.

Only a worker talks to a provider, so a console is asked for and read some hundred milliseconds later. Its address lets
in whoever has it: it is sealed, shows to nobody but who asked, stands in no event and is gone after a minute.
Lock order: path of tenants, machine, outbox.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from tenants import desired, vault
from tenants.actor import Actor
from tenants.errors import Conflict, Forbidden, NotVisible
from tenants.feasibility import locked_path
from tenants.models import Machine, MachineConsole
from tenants.operations.guards import allow
from tenants.transactions import operation

CAPABILITY: Final = "console"
LIFE: Final = timedelta(minutes=1)
"""How long an answer waits to be read."""
PLACE: Final = {"table": "tenants_machineconsole", "column": "sealed"}
NONE: Final = (
    "Machines at {place} have no console. Log in with tenantry ssh {name}, or read tenantry logs machine/{name}."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answered."""

    address: str
    """`wss://…`, with a ticket in it."""
    expires_at: datetime
    fingerprint: str = ""
    simulated: bool = False

    def __repr__(self) -> str:
        """Show when it ends, and no address."""
        return f"Answer(expires_at={self.expires_at})"


def refusal(machine: Machine) -> str:
    """Return why nobody can open a machine's console, `""` where somebody may; its boundary must be loaded."""
    provider = None if machine.boundary is None else machine.boundary.provider
    if machine.deletion_requested_at is not None:
        return f"{machine.name} is being deleted."
    if provider is not None and not provider.capabilities.get("features", {}).get(CAPABILITY):
        return NONE.format(place=provider.name, name=machine.name)
    if provider is None or machine.ready_at is None:
        return f"{machine.name} is not there yet."
    if machine.power != "on":
        return f"{machine.name} is switched off; switch it on, and its screen can be seen."
    return ""


@operation
def ask(*, machine: Machine, actor: Actor, now: datetime) -> MachineConsole:
    """Ask for a machine's console; asked again before it was answered, it is the same asking.

    Raises `Forbidden`, `Conflict` (`deleting`, `tenant-suspended`, `not-supported`, `not-ready`).
    """
    allow(actor, machine.tenant, "machines.console")
    if actor.person_id is None:
        raise Forbidden
    locked_path(machine.tenant)
    row = Machine.objects.select_related("boundary__provider").get(pk=machine.pk)
    if why := refusal(row):
        provider = None if row.boundary is None else row.boundary.provider
        lacks = provider is not None and not provider.capabilities.get("features", {}).get(CAPABILITY)
        is_leaving = row.deletion_requested_at is not None
        raise Conflict(why, code="deleting" if is_leaving else "not-supported" if lacks else "not-ready")
    waiting = MachineConsole.objects.filter(machine=row, person_id=actor.person_id, answered_at=None)
    if (open_one := waiting.first()) is not None:
        return open_one
    return MachineConsole.objects.create(tenant_id=row.tenant_id, machine=row, person_id=actor.person_id, asked_at=now)


def read(machine: Machine, key: UUID, *, actor: Actor) -> tuple[MachineConsole, Answer | None]:
    """Return what was asked and the answer, None while a worker is at it; in a read block.

    Raises `NotVisible` for one that somebody else asked for, or that was kept long enough.
    """
    row = MachineConsole.objects.filter(pk=key, machine=machine, person_id=actor.person_id or UUID(int=0)).first()
    if row is None:
        raise NotVisible
    return row, unsealed(row)


def unsealed(row: MachineConsole) -> Answer | None:
    """Return the answer in a row, None where there is none. Raises `vault.VaultError`."""
    if row.sealed is None or row.expires_at is None:
        return None
    told = json.loads(vault.unseal(bytes(row.sealed), table=PLACE["table"], column=PLACE["column"], row=row.pk))
    return Answer(told["address"], row.expires_at, told["fingerprint"], row.simulated)


@operation
def answered(*, console: MachineConsole, answer: Answer | None, error: str, actor: Actor, now: datetime) -> None:
    """Store what a worker got, and say in the trail who opened a console until when."""
    row = MachineConsole.objects.select_for_update(no_key=True).filter(pk=console.pk).first()
    if row is None or row.answered_at is not None:
        return
    row.answered_at = now
    if answer is None:
        row.error = error[:300] or "It could not be had."
    else:
        told = {"address": answer.address, "fingerprint": answer.fingerprint}
        row.sealed = vault.seal(json.dumps(told), table=PLACE["table"], column=PLACE["column"], row=row.pk)
        row.expires_at, row.simulated = answer.expires_at, answer.simulated
        desired.happened(
            row.machine, "machine.console-opened", actor=actor, at=now, nudge=False, person=row.person_id,
            until=answer.expires_at,
        )  # fmt: skip
    row.save(update_fields=["answered_at", "error", "sealed", "expires_at", "simulated"])


def purge(now: datetime) -> int:
    """Delete answers that waited long enough; in a worker's transaction."""
    gone, _each = MachineConsole.objects.filter(asked_at__lt=now - LIFE).delete()
    return gone
