"""The endpoint that an operation changes: locked, permitted, of the version that was read, and not on its way out."""

from __future__ import annotations

from tenants import access
from tenants.actor import Actor
from tenants.errors import Conflict
from tenants.models import Endpoint
from tenants.operations.allocations import expect_version
from tenants.policies import ROUTES


def locked_endpoint(endpoint: Endpoint, operation_id: str, actor: Actor, version: int | None = None) -> Endpoint:
    """Return the row read anew under its lock. Raises `Forbidden`, `PreconditionFailed`, `Conflict` (`deleting`)."""
    row = (
        Endpoint.objects.select_for_update(no_key=True, of=("self",))
        .select_related("tenant", "allocation", "boundary__provider", "revision")
        .get(pk=endpoint.pk)
    )
    access.check(actor, row.tenant, ROUTES[operation_id])
    expect_version(row, version)
    if row.deletion_requested_at is not None:
        msg = f"{row.name} is being deleted."
        raise Conflict(msg, code="deleting")
    return row
