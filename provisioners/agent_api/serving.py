"""What the replica beside a gateway runs: rendered from the rows at each question, stored nowhere.

Only a gateway in an endpoint's machine has such a replica. The answer holds the key of the last hop in plain: it goes
to the one who proved to be that gateway, over TLS, and no cache may keep it.
"""

from __future__ import annotations

import logging

from provisioners import specs_from_rows
from provisioners.driver import BoundaryKind, DriverError, intent_hash
from provisioners.gateway.protocol import ServingAnswer
from provisioners.serving import replica
from provisioners.serving.vllm import PORT
from tenants.actor import Actor
from tenants.errors import Gone, NotVisible
from tenants.models import Endpoint, GatewayReplica, Revision, Unit
from tenants.operations import rollouts
from tenants.transactions import reading

log = logging.getLogger(__name__)


def _revision_of(endpoint: Endpoint, unit: Unit) -> Revision | None:
    """Return which of two revisions a unit runs while one takes over from the other, as the pass tells the driver."""
    live = rollouts.live_of(endpoint)
    if live is None:
        return None
    chosen = live.revision_id if str(unit.pk) in live.on_new else live.before_id
    return Revision.objects.select_related("model").get(pk=chosen)


def answer_to(actor: Actor) -> ServingAnswer | None:
    """Return what runs beside the gateway `actor`, None while there is nothing to run. Raises `Gone`, `NotVisible`."""
    gateway = actor.id
    assert gateway is not None
    with reading(actor):
        row = GatewayReplica.objects.select_related("boundary").filter(pk=gateway, removed_at=None).first()
        if row is None:
            raise Gone
        if row.unit_id is None:
            raise NotVisible
        unit = Unit.objects.get(pk=row.unit_id)
        endpoint = (
            Endpoint._base_manager.select_related("revision__model", "stands_in_for")
            .filter(allocation_id=unit.allocation_id, released_at=None, deletion_requested_at=None)
            .first()
        )
        if endpoint is None or endpoint.revision is None:
            return None
        # as the pass does: one rendering for all replicas, from the first placed unit
        placed = Unit.objects.filter(allocation_id=unit.allocation_id, released_at=None, host__isnull=False)
        first = placed.order_by("index").first() or unit
        try:
            revision = _revision_of(endpoint, unit) or endpoint.revision
            spec = specs_from_rows.serving_spec(endpoint, revision, first, BoundaryKind(row.boundary.kind))
        except DriverError as error:  # the endpoint's own pass says so to people
            log.warning("nothing to serve for a gateway: %s", error.detail, extra={"gateway": str(gateway)})
            return None
    return ServingAnswer(
        want=intent_hash(replica.want_of(spec, unit.pk)),
        revision_uid=spec.revision_uid,
        revision=spec.revision,
        model=spec.model,
        argv=spec.argv,
        environment=dict(spec.environment),
        secrets={name: secret.reveal() for name, secret in spec.secrets.items()},
        port=PORT,
    )
