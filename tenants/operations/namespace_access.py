"""How people get into their namespaces: ask for a credential, read the answer; be kept out at once when they leave.

Only a worker talks to a cluster, so a credential is asked for and read some hundred milliseconds later. It is sealed,
shows to nobody but the person who asked, and is gone after two minutes. Lock order: namespace, outbox.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from tenants import desired, vault
from tenants.actor import Actor
from tenants.errors import Conflict, Forbidden, NotVisible
from tenants.models import Boundary, Namespace, NamespaceCredential, Tenant
from tenants.operations.guards import allow
from tenants.transactions import operation

LONGEST_S: Final = 3600
LIFE: Final = timedelta(minutes=2)
"""How long an answer waits to be read."""
PLACE: Final = {"table": "tenants_namespacecredential", "column": "sealed"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answered."""

    token: str
    expires_at: datetime
    kubeconfig: str
    """Asks `tenantry kube-credential` for a token whenever kubectl needs one; holds no secret."""
    static_kubeconfig: str
    """For tools that run no program: holds the token, and ends with it."""

    def __repr__(self) -> str:
        """Show when it ends, and no token."""
        return f"Answer(expires_at={self.expires_at})"


@operation
def ask(*, namespace: Namespace, seconds: int, actor: Actor, now: datetime) -> NamespaceCredential:
    """Ask for a credential of one's own, for an hour at most. Raises `Forbidden`, `Conflict` while it is not there."""
    allow(actor, namespace.tenant, "namespaces.credential")
    if actor.person_id is None:
        raise Forbidden
    if namespace.deletion_requested_at is not None or namespace.boundary_id is None:
        msg = "The namespace is not there yet, or is being given back."
        raise Conflict(msg, code="not-ready")
    return NamespaceCredential.objects.create(
        tenant_id=namespace.tenant_id,
        namespace=namespace,
        person_id=actor.person_id,
        seconds=max(60, min(seconds, LONGEST_S)),
        asked_at=now,
    )


def read(namespace: Namespace, key: UUID, *, actor: Actor) -> tuple[NamespaceCredential, Answer | None]:
    """Return what was asked and the answer, None while a worker is at it; in a read block.

    Raises `NotVisible` for one that somebody else asked for, or that was kept long enough.
    """
    row = NamespaceCredential.objects.filter(
        pk=key, namespace=namespace, person_id=actor.person_id or UUID(int=0)
    ).first()
    if row is None:
        raise NotVisible
    return row, unsealed(row)


def unsealed(row: NamespaceCredential) -> Answer | None:
    """Return the answer in a row, None where there is none. Raises `vault.VaultError`."""
    if row.sealed is None or row.expires_at is None:
        return None
    told = json.loads(vault.unseal(bytes(row.sealed), table=PLACE["table"], column=PLACE["column"], row=row.pk))
    return Answer(told["token"], row.expires_at, told["kubeconfig"], told["static_kubeconfig"])


@operation
def answered(
    *, credential: NamespaceCredential, answer: Answer | None, error: str, actor: Actor, now: datetime
) -> None:
    """Store what a worker got, and say in the trail that somebody was let in until when."""
    row = NamespaceCredential.objects.select_for_update(no_key=True).filter(pk=credential.pk).first()
    if row is None or row.answered_at is not None:
        return
    row.answered_at = now
    if answer is None:
        row.error = error[:300] or "It could not be had."
    else:
        told = {
            "token": answer.token, "kubeconfig": answer.kubeconfig, "static_kubeconfig": answer.static_kubeconfig,
        }  # fmt: skip
        row.sealed = vault.seal(json.dumps(told), table=PLACE["table"], column=PLACE["column"], row=row.pk)
        row.expires_at = answer.expires_at
        desired.happened(
            row.namespace, "namespace.credential-made", actor=actor, at=now, nudge=False, person=row.person_id,
            until=answer.expires_at,
        )  # fmt: skip
    row.save(update_fields=["answered_at", "error", "sealed", "expires_at"])


def purge(now: datetime) -> int:
    """Delete answers that waited long enough; in a worker's transaction."""
    gone, _each = NamespaceCredential.objects.filter(asked_at__lt=now - LIFE).delete()
    return gone


def people_changed(tenants: Iterable[Tenant], *, now: datetime) -> None:
    """Have workers look at once at who may into the namespaces of tenants, in the caller's transaction.

    Whoever left is shut out within seconds, whoever came is let in. Roles go up the tree, so namespaces of everything
    below are looked at as well. Call it before the event is appended: chain heads are locked last.
    """
    for tenant in tenants:
        rows = Namespace._base_manager.filter(
            tenant__path__contains=[tenant.pk], released_at__isnull=True, boundary__isnull=False
        ).order_by("pk")
        for row in rows:
            desired.nudge_now(row, at=now)
            assert row.boundary_id is not None
            boundary = Boundary._base_manager.filter(pk=row.boundary_id, released_at__isnull=True).first()
            if boundary is not None:
                desired.nudge_now(boundary, at=now)
