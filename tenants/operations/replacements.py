"""`PUT` by name of an existing product: bring it to what is asked in one operation, or say what cannot change.

Labels, description and, of endpoints, what is served can change; the capacity under a product cannot: that is
a new product. Asking for what already is changes nothing and writes no event.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from tenants import access, desired
from tenants.actor import Actor
from tenants.errors import Conflict
from tenants.models import Endpoint, Machine, Namespace
from tenants.operations import endpoints, products, rollouts
from tenants.operations.allocations import expect_version
from tenants.policies import ROUTES
from tenants.serving_arguments import checked_arguments
from tenants.specs import AllocationSpec, EndpointAsk, MachineAsk, NamespaceAsk
from tenants.transactions import operation

R = TypeVar("R", Endpoint, Machine, Namespace)


@operation
def replace_endpoint(
    *, endpoint: Endpoint, ask: EndpointAsk, managed_by: str, actor: Actor, now: datetime, version: int | None = None
) -> Endpoint:
    """Bring an endpoint to `ask`; another model or other arguments make a new revision.

    Raises `PreconditionFailed`, `Conflict` (code `immutable`, naming the fields), `InvalidSpec`.
    """
    model = endpoints._model(endpoint.tenant, ask.revision)
    row = _locked(endpoint, actor, version)
    _refuse_other_capacity(row, ask.allocation)
    present = row.revision
    wanted = (model.pk, ask.revision.runtime, checked_arguments(ask.revision.arguments))
    labels = _label(row, ask, managed_by)
    if present is None or (present.model_id, present.runtime, present.arguments) != wanted:
        revision = endpoints._add_revision(row, model, ask.revision, actor=actor, now=now)
        rollouts.begin(row, revision, endpoints.RECREATE, None, actor=actor, now=now)
        desired.changed(
            row, "endpoint.revised", actor=actor, at=now, revision=revision.number, model=model.name, changed=labels
        )
        products.touch_gateways([row.boundary_id], now=now)
    elif labels:
        desired.changed(row, "endpoint.updated", actor=actor, at=now, changed=labels)
    return row


@operation
def replace_machine(
    *, machine: Machine, ask: MachineAsk, managed_by: str, actor: Actor, now: datetime, version: int | None = None
) -> Machine:
    """Bring a machine to `ask`. Raises `PreconditionFailed`, `Conflict` (code `immutable`)."""
    row = _locked(machine, actor, version)
    other = [
        name
        for name, wanted in (("image", ask.image), ("disk_gib", ask.disk_gib), ("ssh_keys", list(ask.ssh_keys)))
        if getattr(row, name) != wanted
    ]
    _refuse_other_capacity(row, ask.allocation, *other)
    if labels := _label(row, ask, managed_by):
        desired.changed(row, "machine.updated", actor=actor, at=now, changed=labels)
    return row


@operation
def replace_namespace(
    *, namespace: Namespace, ask: NamespaceAsk, managed_by: str, actor: Actor, now: datetime, version: int | None = None
) -> Namespace:
    """Bring a namespace to `ask`. Raises `PreconditionFailed`, `Conflict` (code `immutable`)."""
    row = _locked(namespace, actor, version)
    _refuse_other_capacity(row, ask.allocation)
    if labels := _label(row, ask, managed_by):
        desired.changed(row, "namespace.updated", actor=actor, at=now, changed=labels)
    return row


def _locked(row: R, actor: Actor, version: int | None) -> R:
    found = (
        type(row)
        .objects.select_for_update(no_key=True, of=("self",))
        .select_related("tenant", "allocation", "boundary")
        .get(pk=row.pk)
    )
    access.check(actor, found.tenant, ROUTES[f"{desired.kind_of(found)}s.put"])
    expect_version(found, version)
    if found.deletion_requested_at is not None:
        msg = f"{found.name} is being deleted."
        raise Conflict(msg, code="deleting")
    return found


def _refuse_other_capacity(row: Endpoint | Machine | Namespace, wanted: AllocationSpec, *other: str) -> None:
    stored = AllocationSpec.from_json(row.allocation.spec)
    present = replace(stored, where=replace(stored.where, image=""))  # of machines; compared as such
    fields = [
        name
        for name in ("units", "where", "term", "storage_gib", "gang")
        if getattr(present, name) != getattr(wanted, name)
    ]
    if fields := [*fields, *other]:
        way = "Renew its term"
        if "image" in fields:
            way = "Rebuild it for another image"
        elif isinstance(row, Machine) and {"units", "disk_gib"} & set(fields):
            way = "Resize it while it is off"
        msg = f"This cannot change on a living object: {', '.join(fields)}. {way}, or make a new one."
        raise Conflict(msg, code="immutable", fields=fields)


def _label(row: Endpoint | Machine | Namespace, ask: Any, managed_by: str) -> list[str]:
    wanted = {"labels": dict(ask.labels), "description": ask.description, "managed_by": managed_by}
    changed = sorted(name for name, value in wanted.items() if getattr(row, name) != value)
    for name in changed:
        setattr(row, name, wanted[name])
    if changed:
        row.save(update_fields=changed)
    return changed
