"""Machines: GPU VMs with SSH. Create, power, change, delete."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from tenants import access, desired, machine_images, ssh_ca
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.feasibility import locked_path
from tenants.models import Machine, Tenant
from tenants.operations import products
from tenants.operations.allocations import expect_version
from tenants.policies import ROUTES
from tenants.specs import MachineAsk
from tenants.states import Login, ProductKind
from tenants.transactions import operation

SSH_KEY: Final = re.compile(
    r"^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\.com) "
    r"[A-Za-z0-9+/]{40,1200}={0,2}( [\x21-\x7e ]{0,120})?$"
)
MAX_DISK_GIB: Final = 8192
MAX_SSH_KEYS: Final = 20
KEYS_NEXT: Final = (
    "Leave ssh_keys out and log in with tenantry ssh, which gets a certificate of some minutes; "
    "an operator can allow keys by the tenant's policy (logins)."
)
"""What to do where keys that stay are not allowed."""


@operation
def create(*, tenant: Tenant, ask: MachineAsk, actor: Actor, now: datetime, managed_by: str = "api") -> Machine:
    """Ask for a machine. Raises `InvalidSpec`, `QuotaExceeded`, `Conflict`."""
    access.check(actor, tenant, ROUTES["machines.create"])
    policy = locked_path(tenant).policy
    machine_images.check(ask.image, named=ask.allocation.where.provider)
    if not 10 <= ask.disk_gib <= MAX_DISK_GIB:
        msg = f"A disk has 10 to {MAX_DISK_GIB} GiB."
        raise InvalidSpec(msg, field="disk_gib")
    if len(ask.allocation.units) != 1:
        msg = "A machine is one unit."
        raise InvalidSpec(msg, field="allocation.units")
    if len(ask.ssh_keys) > MAX_SSH_KEYS:
        msg = f"At most {MAX_SSH_KEYS} keys."
        raise InvalidSpec(msg, field="ssh_keys")
    rule = policy.forbids("logins", Login.KEY)
    if rule is not None and ask.ssh_keys:
        raise InvalidSpec(
            f"{rule.sentence} {KEYS_NEXT}",
            field="ssh_keys", code="policy-forbids", rule=rule.key, tenant=rule.tenant, allowed=rule.allowed,
        )  # fmt: skip
    for number, key in enumerate(ask.ssh_keys):
        if not SSH_KEY.fullmatch(key):
            msg = "This is no OpenSSH public key on one line."
            raise InvalidSpec(msg, field=f"ssh_keys[{number}]")
    row = products.make(
        Machine,
        tenant=tenant,
        name=ask.name,
        spec=replace(ask.allocation, where=replace(ask.allocation.where, image=ask.image)),
        kind=ProductKind.MACHINE,
        labels=ask.labels,
        description=ask.description,
        managed_by=managed_by,
        actor=actor,
        now=now,
        image=ask.image,
        disk_gib=ask.disk_gib,
        ssh_keys=list(ask.ssh_keys),
        ssh_authority=ssh_ca.of(tenant, now=now),
    )
    desired.created(row, "machine.requested", actor=actor, at=now, image=row.image, name=row.name, phase=row.phase)
    return row


@operation
def power(*, machine: Machine, want: str, actor: Actor, now: datetime, version: int | None = None) -> Machine:
    """Switch a machine on or off; its GPUs stay held."""
    row = Machine.objects.select_for_update(no_key=True, of=("self",)).select_related("tenant").get(pk=machine.pk)
    access.check(actor, row.tenant, ROUTES["machines.power"])
    expect_version(row, version)
    if want not in {"on", "off"}:
        msg = "Power is on or off."
        raise InvalidSpec(msg, field="power")
    if row.deletion_requested_at is not None:
        msg = f"{row.name} is being deleted."
        raise Conflict(msg, code="deleting")
    if row.power != want:
        row.power = want
        row.save(update_fields=["power"])
        desired.changed(row, "machine.power-changed", actor=actor, at=now, power=want)
    return row


@operation
def update(
    *, machine: Machine, changes: dict[str, Any], actor: Actor, now: datetime, version: int | None = None
) -> Machine:
    """Change labels or description."""
    return products.update(
        machine, operation_id="machines.update", changes=changes, actor=actor, now=now, version=version
    )


@operation
def delete(*, machine: Machine, actor: Actor, now: datetime, version: int | None = None) -> Machine:
    """Ask for the machine to go, its disk with it."""
    return products.delete(machine, operation_id="machines.delete", actor=actor, now=now, version=version)
