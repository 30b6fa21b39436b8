"""How people get into their machines: a short-lived SSH certificate on a key of their own, and its end.

A certificate is signed at once and kept nowhere; its serial is, until it is over, so that machines can be told which
ones do not count any more. Who leaves gets no other one, and what he has is taken back in the same transaction.
Lock order: tenant, machine, outbox, chain head.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from ipaddress import IPv6Address
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection

from tenants import desired, ssh_ca, tokens
from tenants.actor import Actor, Kind
from tenants.errors import Conflict, Forbidden
from tenants.feasibility import locked_path
from tenants.models import Machine, Person, ServiceAccount, SshAuthority, SshCertificate, Tenant
from tenants.operations.guards import allow, lock_path
from tenants.states import Login, Role
from tenants.transactions import operation

KEPT: Final = timedelta(minutes=5)
"""So long after its end a certificate is remembered; the trail has it for good."""
DEFAULT_PORT: Final = 22
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Way:
    """Where and as whom one logs in to a machine."""

    host: str
    port: int
    login: str


def way_to(machine: Machine) -> Way:
    """Return how to reach a machine; the host is `""` while it has no address.

    A guest tells its address, and people paste what is made of it into a shell: anything but a host is no address.
    """
    text, port = machine.address, ""
    if text.startswith("["):
        host, _end, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _colon, port = text.partition(":")
    else:
        host = text
    is_host = _HOST.fullmatch(host) if ":" not in host else _is_v6(host)
    if not is_host or not (port == "" or _PORT.fullmatch(port)):
        return Way("", DEFAULT_PORT, ssh_ca.LOGIN)
    return Way(host, int(port or DEFAULT_PORT), ssh_ca.LOGIN)


def _is_v6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text


@operation
def certify(*, machine: Machine, public_key: str, actor: Actor, now: datetime) -> tuple[SshCertificate, str]:
    """Sign a certificate that lets the actor into one machine for some minutes; return its row and its one line.

    Raises `Forbidden`, `InvalidSpec` for the key, `Conflict` (`not-ready`, `deleting`, `no-authority`,
    `policy-forbids`, `tenant-suspended`).
    """
    allow(actor, machine.tenant, "machines.ssh_certificate")
    if actor.id is None:
        raise Forbidden
    key, fingerprint = ssh_ca.read_key(public_key)
    rule = locked_path(machine.tenant).policy.forbids("logins", Login.CERTIFICATE)
    # again under the lock: what shuts somebody out holds it too, and takes back what is there by then
    allow(_as_of_now(actor, now=now), machine.tenant, "machines.ssh_certificate")
    row = Machine.objects.select_related("tenant", "ssh_authority").get(pk=machine.pk)
    if row.deletion_requested_at is not None:
        msg = f"{row.name} is being deleted."
        raise Conflict(msg, code="deleting")
    if row.ssh_authority is None:
        msg = f"{row.name} is older than certificates: it takes the keys that it was made with, and no others."
        raise Conflict(msg, code="no-authority")
    if not way_to(row).host:
        msg = f"{row.name} is not there yet: it has no address."
        raise Conflict(msg, code="not-ready")
    if rule is not None:
        raise Conflict(rule.sentence, code="policy-forbids", rule=rule.key, tenant=rule.tenant, allowed=rule.allowed)
    until = now + timedelta(seconds=settings.TENANTRY_SSH_CERTIFICATE_S)
    made = SshCertificate.objects.create(
        tenant_id=row.tenant_id, machine=row, authority=row.ssh_authority, serial=secrets.randbits(63) or 1,
        principal_id=actor.id, person_id=actor.person_id, fingerprint=fingerprint, created_at=now, expires_at=until,
    )  # fmt: skip
    line = ssh_ca.sign(
        row.ssh_authority,
        key,
        serial=made.serial,
        key_id=f"{actor.word} {row.short_id}",
        principals=[ssh_ca.principal_of(row.pk)],
        now=now,
        until=until,
    )
    desired.happened(
        row, "machine.ssh-certificate-made", actor=actor, at=now, nudge=False, serial=str(made.serial),
        fingerprint=fingerprint, until=until,
    )  # fmt: skip
    return made, line


def _as_of_now(actor: Actor, *, now: datetime) -> Actor:
    """Return an actor with the roles of now, none for one that has ended."""
    assert actor.id is not None
    roles: Mapping[UUID, Role] = {}
    if actor.kind is Kind.PERSON:
        person = Person.objects.filter(pk=actor.id).first()
        found = tokens.actor_of(person) if person is not None else None
        roles = found.tenant_roles if found is not None else {}
    elif actor.kind is Kind.SERVICE_ACCOUNT:
        account = ServiceAccount.objects.filter(pk=actor.id, disabled_at__isnull=True).first()
        if account is not None and (account.expires_at is None or account.expires_at > now):
            roles = {account.tenant_id: Role(account.role)}
    return replace(actor, tenant_roles=roles)


def shut_out(person: UUID, tenants: Iterable[Tenant], *, now: datetime) -> int:
    """Take back what a person has for machines of tenants and everything below them, in the caller's transaction."""
    taken = 0
    for tenant in tenants:
        taken += SshCertificate.objects.filter(
            person_id=person, tenant__path__contains=[tenant.pk], revoked_at__isnull=True, expires_at__gt=now
        ).update(revoked_at=now)
    return taken


def end(principal: UUID, *, now: datetime) -> int:
    """Take back what a person or service account has that ends as a whole, in the caller's transaction."""
    return SshCertificate.objects.filter(principal_id=principal, revoked_at__isnull=True, expires_at__gt=now).update(
        revoked_at=now
    )


@operation
def rotate(*, tenant: Tenant, actor: Actor, now: datetime) -> SshAuthority:
    """Give a tenant a new authority: machines made from now on trust it and no older one.

    Machines that are there go on with the one that they were made with; all that it signed and that still counts is
    taken back, so a key that got out opens nothing for longer than it takes to make the machines anew.
    """
    allow(actor, tenant, "tenants.rotate_ssh_authority")
    lock_path(tenant.pk)
    old = SshAuthority.objects.filter(tenant=tenant, retired_at__isnull=True).first()
    if old is not None:
        SshAuthority.objects.filter(pk=old.pk).update(retired_at=now)
        SshCertificate.objects.filter(authority=old, revoked_at__isnull=True, expires_at__gt=now).update(revoked_at=now)
    made = ssh_ca.make(tenant, now=now)
    desired.happened(
        tenant, "tenant.ssh-authority-rotated", actor=actor, at=now, nudge=False, public_key=made.public_key
    )
    return made


def revoked(authority: UUID, *, now: datetime) -> list[int]:
    """Return the serials that an authority has signed, that are not over, and that count no more; in a read block.

    Also those for machines of a suspended tenant or on their way out. Empty for an authority that nobody has.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT serial FROM ssh_revoked(%s, %s) AS serial", [authority, now])
        return [int(row[0]) for row in cursor.fetchall()]
