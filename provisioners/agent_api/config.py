"""Rows → the configuration of gateways. Reads in the caller's transaction, writes nothing, sends nothing.

A gateway of a namespace boundary serves all its endpoints; one in an endpoint VM serves its own unit's endpoint: from
the replica beside it, and from those in the other VMs through the gateways there. What depends on the clock (a key's
expiry) is in the document as a time, so that the same rows always give the same document. Documents are stored, so they
name the keys of the last hop by their revisions; `with_hop_keys` puts the keys in on the way out, the same ones each
time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import connection
from django.db.models import F, IntegerField, Q
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast, Coalesce, Least
from pydantic import ValidationError

from provisioners import moves, zero
from provisioners.agent_api import accounting
from provisioners.gateway.protocol import (
    Backend,
    BadDocument,
    CertificateWanted,
    ConfigDocument,
    EndpointConfig,
    EndpointKey,
    EndpointState,
    SigningKey,
    Waiting,
    canonical,
    parse,
)
from provisioners.gateway.signing import Signer
from tenants import addresses, endpoint_trust, hop_keys, models, vault
from tenants.models import GatewayReplica, Unit
from tenants.operations import rollouts, surges
from tenants.rollouts import weights
from tenants.states import RolloutStrategy

log = logging.getLogger(__name__)

REPORT_S: Final = 5.0
REPORT_WHILE_ENDING_S: Final = 1.0
"""While an endpoint drains, its deletion waits for what the gateway says is in flight."""
SUSPENDED_WORDS: Final[Mapping[str, str]] = {
    "keys": "its tenant is suspended, and keys are refused until that ends",
    "network": "its tenant is suspended and cut off from the network",
    "power": "its tenant is suspended and its machines are switched off",
}
DELETED_WORDS: Final = "it is being deleted"
_LOOPBACK: Final = "http://127.0.0.1:"
MOST_HOP_KEYS: Final = 4
"""Revisions that may be running at once, seen from a gateway; who changes faster than replicas start waits a moment."""


def signer() -> Signer:
    """Return the installation's signing key, derived from the master keys: nothing to store, the same at each start.

    The oldest key of the ring signs, and documents name all of them as trusted: a gateway learns a new one
    while the old one still speaks for it, and follows when the old one leaves the ring.
    """
    return Signer(vault.derived("gateway-config")[-1])


def trusted() -> tuple[SigningKey, ...]:
    """Return the keys a gateway is told to trust, the current one first."""
    known = [Signer(seed) for seed in vault.derived("gateway-config")]
    return tuple(SigningKey(key_id=key.key_id, public_key=key.public_key) for key in known)


def document_of(gateway: GatewayReplica, *, now: datetime) -> ConfigDocument:
    """Return one gateway's configuration in its present version."""
    return documents([gateway], now=now)[gateway.pk]


def documents(gateways: Sequence[GatewayReplica], *, now: datetime) -> dict[UUID, ConfigDocument]:
    """Return gateway → configuration; the number of queries does not grow with the gateways."""
    units = Unit.objects.filter(pk__in=[g.unit_id for g in gateways if g.unit_id])
    allocations = dict(units.values_list("pk", "allocation_id"))
    beside = set(units.filter(role=surges.ROLE).values_list("pk", flat=True)) if allocations else set()
    certificates = _certificates(allocations.values())
    in_namespaces = Q(boundary_id__in=[g.boundary_id for g in gateways if not g.unit_id])
    in_machines = Q(allocation_id__in=list(allocations.values()))
    endpoints = list(
        models.Endpoint._base_manager.filter(in_namespaces | in_machines, released_at__isnull=True)
        .select_related("revision__model", "boundary__provider", "stands_in_for", "tenant")
        .order_by("name", "pk")
    )
    keys: dict[UUID, list[models.EndpointKey]] = {}
    rows = models.EndpointKey.objects.filter(
        endpoint_id__in=[row.served_id for row in endpoints], revoked_at__isnull=True
    ).order_by("public_id")
    for key in rows:
        keys.setdefault(key.endpoint_id, []).append(key)
    rolling = {
        row.endpoint_id: row
        for row in models.Rollout.objects.select_related("before", "revision").filter(
            endpoint__in=endpoints, ended_at__isnull=True
        )
    }
    on_the_way = {row.served_id for row in endpoints if row.moving_to_id or row.stands_in_for_id}
    moving = {
        row.endpoint_id: row
        for row in (models.Move.objects.filter(endpoint_id__in=on_the_way, ended_at__isnull=True) if on_the_way else ())
    }
    serving = _revisions(endpoints, rolling)
    depths = _suspended({gateway.tenant_id for gateway in gateways})
    limits = accounting.limits_of({gateway.tenant_id for gateway in gateways})
    sharers = accounting.sharers(gateways)
    prices = accounting.Prices()
    signing = trusted()
    boundaries = models.Boundary._base_manager.select_related("provider", "tenant").in_bulk(
        {gateway.boundary_id for gateway in gateways}
    )
    made: dict[UUID, ConfigDocument] = {}
    for gateway in gateways:
        mine = tuple(
            _endpoint(
                row,
                # The address never leads to the machine of a unit beside: only other gateways send requests there.
                accounting.keys_of(
                    row,
                    () if gateway.unit_id in beside else keys.get(row.served_id, ()),
                    sharers,
                    prices,
                    of_unit=gateway.unit_id is not None,
                ),
                serving.get(row.pk) or _served_revision(row),
                gateway,
                depths.get(row.tenant_id, ""),
                prices,
                rolling.get(row.pk),
                moving.get(row.served_id),
                certificates,
            )
            for row in endpoints
            if (
                row.allocation_id == allocations.get(gateway.unit_id)
                if gateway.unit_id
                else row.boundary_id == gateway.boundary_id
            )
        )
        # While an endpoint drains or rolls out, what comes next waits for what gateways say.
        ending = any(
            endpoint.state is EndpointState.CLOSED or endpoint.uid in rolling or endpoint.uid in moving
            for endpoint in mine
        )
        made[gateway.pk] = ConfigDocument(
            version=gateway.config_version,
            boundary_uid=gateway.boundary_id,
            gateway_uid=gateway.pk,
            issued_at=now,
            endpoints=mine,
            rates=limits[gateway.tenant_id].rates(sharers.of_tenant(gateway.tenant_id)),
            budgets=limits[gateway.tenant_id].budgets(prices),
            report_interval_s=REPORT_WHILE_ENDING_S if ending else REPORT_S,
            signing_keys=signing,
            certificate=_certificate(boundaries[gateway.boundary_id]),
        )
    return made


def with_hop_keys(document: ConfigDocument) -> ConfigDocument:
    """Return a document with keys in place of the revisions that it names; those that are gone are left out."""
    named = [UUID(text) for endpoint in document.endpoints for text in endpoint.hop_keys]
    rows = models.Revision.objects.filter(pk__in=named) if named else ()
    plain = {str(row.pk): _opened(row) for row in rows}
    endpoints = tuple(
        endpoint.model_copy(update={"hop_keys": tuple(key for text in endpoint.hop_keys if (key := plain.get(text)))})
        for endpoint in document.endpoints
    )
    return document.model_copy(update={"endpoints": endpoints})


def _opened(row: models.Revision) -> str:
    try:
        return hop_keys.plain(row)
    except vault.VaultError:  # one key that was lost with its master key must not keep the others from their news
        log.error("the key of a revision does not open", extra={"revision": row.pk})  # noqa: TRY400
        return ""


def outdated(gateways: Sequence[GatewayReplica], *, now: datetime) -> list[UUID]:
    """Return the gateways whose rendered configuration is another than their rows make now, version and time aside."""
    settled = [gateway for gateway in gateways if gateway.rendered_version == gateway.config_version]
    fresh = documents(settled, now=now)
    return [gateway.pk for gateway in settled if _changed(gateway, fresh[gateway.pk])]


def _changed(gateway: GatewayReplica, fresh: ConfigDocument) -> bool:
    try:
        given = parse(ConfigDocument, gateway.rendered)
    except BadDocument:
        return True
    same_words = given.model_copy(update={"version": fresh.version, "issued_at": fresh.issued_at})
    return canonical(same_words) != canonical(fresh)


def _revisions(endpoints: Sequence[models.Endpoint], rolling: Mapping[UUID, models.Rollout]) -> dict[UUID, list[UUID]]:
    """Return endpoint → revisions with a key that a replica of it may run: the wanted, the oldest seen, those between.

    From the oldest seen on, whatever is wanted: replicas are started anew one after the other.
    """
    wanted = F("endpoint__revision__number")
    oldest = Least(Coalesce(Cast(KeyTextTransform("revision", "endpoint__observed"), IntegerField()), wanted), wanted)
    found: dict[UUID, list[tuple[bool, bool, int, UUID]]] = {}
    seen = {row.pk: row.observed.get("revision") for row in endpoints}
    now = {row.revision_id for row in endpoints}
    canaries = [row for row in rolling.values() if row.strategy == RolloutStrategy.CANARY.value]
    beside = {key for row in canaries for key in (row.before_id, row.revision_id)}
    wanted_now = Q(number__gte=oldest) | Q(pk__in=beside)
    rows = models.Revision.objects.filter(wanted_now, endpoint__in=endpoints, hop_key_sealed__isnull=False)
    for key, endpoint, number in rows.values_list("pk", "endpoint_id", "number"):
        found.setdefault(endpoint, []).append((key not in now | beside, number != seen[endpoint], -number, key))
    return {endpoint: [key for *_, key in sorted(several)[:MOST_HOP_KEYS]] for endpoint, several in found.items()}


def _served_revision(row: models.Endpoint) -> Sequence[UUID]:
    """Return the revision that a stand-in runs, which is its endpoint's: nothing takes over while that moves."""
    return () if row.stands_in_for_id is None or row.revision_id is None else (row.revision_id,)


def _endpoint(
    row: models.Endpoint,
    keys: tuple[EndpointKey, ...],
    serving: Sequence[UUID],
    gateway: GatewayReplica,
    depth: str,
    prices: accounting.Prices,
    rolling: models.Rollout | None,
    move: models.Move | None,
    certificates: Mapping[UUID, str],
) -> EndpointConfig:
    state, reason = EndpointState.OPEN, ""
    if row.deletion_requested_at is not None:
        state, reason = EndpointState.CLOSED, DELETED_WORDS
    elif depth:
        state, reason = EndpointState.SUSPENDED, SUSPENDED_WORDS[depth]
    return EndpointConfig(
        uid=row.served_id,
        name=row.served.name,
        tenant=row.tenant_id,
        state=state,
        reason=reason,
        hosts=_hosts(row),
        models=(row.served.name,),
        backends=() if _is_away(row) else _backends(row, rolling, gateway.unit_id, certificates, serving),
        waiting=_waiting(row, rolling),
        moved=moves.is_given_up(row, move),
        hop_keys=tuple(str(revision) for revision in serving),
        keys=keys,
        context_tokens=accounting.context_tokens(row),
        token_prices=prices.of(row),
    )


def _certificate(boundary: models.Boundary) -> CertificateWanted | None:
    """Return the certificate that a boundary's gateways show, None where they have none from here."""
    names = endpoint_trust.names_of(boundary.provider, boundary.tenant.name)
    if not names:
        return None
    return CertificateWanted(names=names, version=endpoint_trust.version_of(boundary.provider, boundary.tenant.name))


def _hosts(row: models.Endpoint) -> tuple[str, ...]:
    """Return the name of an endpoint in its provider's zone: what asks under it means this endpoint and no other."""
    zone = "" if row.boundary is None else str(row.boundary.provider.config.get("zone") or "")
    found = addresses.host_of(row.served.name, row.tenant.name, zone)
    return (found,) if found else ()


def _waiting(row: models.Endpoint, rolling: models.Rollout | None) -> Waiting | None:
    """Return how requests wait: for one at zero, for one that was woken, while another revision takes over."""
    asleep = row.slept_at is not None
    if not asleep and rolling is None and not zero.is_waking(row):
        return None
    return Waiting(timeout_s=row.wake_wait_s, wakes=asleep)


def _is_away(row: models.Endpoint) -> bool:
    """Whether no replica is to be asked: at zero, or woken and not looked at since, so that what was seen is stale."""
    return row.slept_at is not None or (zero.is_waking(row) and row.observed_generation < row.generation)


def _certificates(allocations: Iterable[UUID]) -> dict[UUID, str]:
    """Return unit → SHA-256 of the certificate that the gateway in its machine listens with, as it reported last."""
    wanted = set(allocations)
    rows = GatewayReplica.objects.filter(
        unit__allocation_id__in=wanted, removed_at__isnull=True, enrolled_at__isnull=False
    ).annotate(shown=KeyTextTransform("listens_with", "report")) if wanted else ()  # fmt: skip
    return {row.unit_id: row.shown or "" for row in rows if row.unit_id is not None}


def _in_its_machine(unit: Mapping[str, Any], certificate: str | None) -> dict[str, Any] | None:
    """Return how a gateway in another machine reaches a replica: through the gateway there; None while it does not.

    Over a network only with a certificate to know it by; a lab's are all on the loopback of one machine.
    """
    url = str(unit.get("gateway") or "")
    if certificate is None or not (url.startswith(_LOOPBACK) or (url.startswith("https://") and certificate)):
        return None
    return {"url": url, "through": True, "certificate": certificate if url.startswith("https://") else ""}


def _backends(
    row: models.Endpoint,
    rolling: models.Rollout | None,
    only: UUID | None,
    certificates: Mapping[UUID, str],
    serving: Sequence[UUID],
) -> tuple[Backend, ...]:
    """Return the replicas that are ready, one for each unit: of equal weights, or as a rollout shares requests out.

    For a gateway in a machine (`only`: its unit) those in the others are behind the gateways there, which let in who
    has a key of the last hop (`serving`).
    """
    revision = row.observed.get("revision")
    if not isinstance(revision, int):
        revision = row.revision.number if row.revision is not None else 0
    found: dict[UUID, Backend] = {}
    for unit in row.observed.get("units", ()):
        if not unit.get("ready") or not unit.get("backend"):
            continue
        uid = UUID(str(unit["unit"]))
        where: dict[str, Any] | None = {"url": unit["backend"]}
        if only is not None and uid != only:
            where = _in_its_machine(unit, certificates.get(uid)) if serving else None
        if where is None:
            continue
        try:
            found[uid] = Backend(unit_uid=uid, revision=unit.get("revision") or revision, **where)
        except ValidationError:  # a driver's fault must not keep the other endpoints from their news
            log.error("a backend address is not usable", extra={"endpoint": row.pk, "unit": uid})  # noqa: TRY400
    if rolling is not None:
        share = _shares(rolling, found)
        found = {uid: backend.model_copy(update={"weight": share.get(uid, 0)}) for uid, backend in found.items()}
    return tuple(found[uid] for uid in sorted(found))


def _shares(rolling: models.Rollout, found: Mapping[UUID, Backend]) -> dict[UUID, int]:
    """Return unit → weight; a replica that was drained gets nothing until it is seen to run what its unit is to run."""
    course, plan = rollouts.course_of(rolling), rollouts.plan_of(rolling)
    right = [
        uid for uid, backend in found.items() if backend.revision == (plan.new if uid in course.on_new else plan.old)
    ]
    return weights(course, plan, sorted(right))


def _suspended(tenants: set[UUID]) -> dict[UUID, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT t.id, tenant_suspension(t.id) FROM unnest(%s::uuid[]) AS t(id)", [list(tenants)])
        return {tenant: depth for tenant, depth in cursor.fetchall() if depth}
