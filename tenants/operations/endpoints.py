"""Endpoints: create with the first key, new revisions, keys, delete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db.models import Max, Q

from tenants import access, credentials, desired, hop_keys
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec, NotVisible
from tenants.feasibility import locked_path
from tenants.key_limits import KeyLimits
from tenants.models import Endpoint, EndpointKey, Revision, ServedModel, Tenant
from tenants.operations import products, rollouts
from tenants.operations.locking import locked_endpoint
from tenants.policies import ROUTES
from tenants.serving_arguments import checked_arguments
from tenants.specs import EndpointAsk, RevisionAsk, RolloutAsk
from tenants.states import KeyScope, ProductKind
from tenants.transactions import operation

MAX_KEYS = 50
LONGEST_OVERLAP = timedelta(days=30)
RECREATE = RolloutAsk()


@dataclass(frozen=True, slots=True)
class Made:
    """An endpoint and its first key; the plain key is shown once."""

    endpoint: Endpoint
    key: EndpointKey
    secret: str = field(repr=False)


@operation
def create(*, tenant: Tenant, ask: EndpointAsk, actor: Actor, now: datetime, managed_by: str = "api") -> Made:
    """Ask for an endpoint; its first key is made with the submit.

    Raises `InvalidSpec`, `QuotaExceeded`, `Conflict`.
    """
    row = make(tenant=tenant, ask=ask, actor=actor, now=now, managed_by=managed_by)
    key, secret = new_key(row, "first", actor=actor, now=now, expires_at=None)
    products.touch_gateways([row.boundary_id], now=now)
    return Made(row, key, secret)


def make(*, tenant: Tenant, ask: EndpointAsk, actor: Actor, now: datetime, managed_by: str) -> Endpoint:
    """Ask for an endpoint without a key, in the caller's transaction. Raises as `create`."""
    access.check(actor, tenant, ROUTES["endpoints.create"])
    model = _model(tenant, ask.revision)
    row = products.make(
        Endpoint,
        tenant=tenant,
        name=ask.name,
        spec=ask.allocation,
        kind=ProductKind.ENDPOINT,
        labels=ask.labels,
        description=ask.description,
        managed_by=managed_by,
        actor=actor,
        now=now,
    )
    row.revision = _add_revision(row, model, ask.revision, actor=actor, now=now)
    row.save(update_fields=["revision"])
    desired.created(row, "endpoint.requested", actor=actor, at=now, model=model.name, name=row.name, phase=row.phase)
    return row


def _model(tenant: Tenant, ask: RevisionAsk) -> ServedModel:
    path = locked_path(tenant)
    for key, value, where in (("models", ask.model, "model"), ("runtimes", ask.runtime, "runtime")):
        rule = path.policy.forbids(key, value)
        if rule is not None:
            raise InvalidSpec(
                rule.sentence, field=where, code="policy-forbids", rule=key, tenant=rule.tenant, allowed=rule.allowed
            )
    if ask.runtime != "vllm":
        msg = f"The runtime {ask.runtime} is not offered yet; use vllm."
        raise InvalidSpec(msg, field="runtime", code="not-supported")
    model = ServedModel.objects.filter(name=ask.model, enabled=True).first()
    # Whoever belongs to two tenants does not carry the model of one into the other.
    if model is None or (model.tenant_id is not None and model.tenant_id not in tenant.path):
        msg = f"No served model is called {ask.model}; see /api/v1/served-models/."
        raise InvalidSpec(msg, field="model", code="unknown-model")
    return model


def _add_revision(row: Endpoint, model: ServedModel, ask: RevisionAsk, *, actor: Actor, now: datetime) -> Revision:
    last = Revision.objects.filter(endpoint=row).aggregate(n=Max("number"))["n"] or 0
    key = uuid4()
    return Revision.objects.create(
        id=key,
        tenant_id=row.tenant_id,
        endpoint=row,
        number=last + 1,
        model=model,
        runtime=ask.runtime,
        arguments=checked_arguments(ask.arguments),
        created_at=now,
        author_id=actor.person_id,
        hop_key_sealed=hop_keys.make(key),
    )


def new_key(
    row: Endpoint,
    name: str,
    *,
    actor: Actor,
    now: datetime,
    expires_at: datetime | None,
    limits: KeyLimits | None = None,
    scopes: Sequence[str] = (KeyScope.INFERENCE.value,),
) -> tuple[EndpointKey, str]:
    """Make a key in the caller's transaction; returns it with its plain text. The caller touches the gateways."""
    made = credentials.make(settings.TENANTRY_ENVIRONMENT)
    key = EndpointKey.objects.create(
        tenant_id=row.tenant_id,
        endpoint=row,
        public_id=made.id,
        digest=made.digest.hex(),
        name=name,
        scopes=list(scopes),
        author_id=actor.person_id,
        created_at=now,
        expires_at=expires_at,
        **(limits or KeyLimits()).as_fields(),
    )
    return key, made.plain


@operation
def revise(
    *,
    endpoint: Endpoint,
    ask: RevisionAsk,
    rollout: RolloutAsk = RECREATE,
    actor: Actor,
    now: datetime,
    version: int | None = None,
) -> Revision:
    """Serve something else: a new immutable revision takes over, as `rollout` says.

    By default the old replicas stop first. A canary runs on a unit of its own, in quota; without room for one it is a
    recreate, and says so. Raises `Conflict` (`rollout-running`, `not-supported`, `no-room`), `InvalidSpec`.
    """
    model = _model(endpoint.tenant, ask)
    beside = rollouts.claim_beside(endpoint, rollout, actor=actor, now=now)
    row = locked_endpoint(endpoint, "endpoints.revise", actor, version)
    revision = _add_revision(row, model, ask, actor=actor, now=now)
    rollouts.begin(row, revision, rollout, beside, actor=actor, now=now)
    desired.changed(row, "endpoint.revised", actor=actor, at=now, revision=revision.number, model=model.name)
    products.touch_gateways([row.boundary_id], now=now)
    return revision


@operation
def update(
    *, endpoint: Endpoint, changes: dict[str, Any], actor: Actor, now: datetime, version: int | None = None
) -> Endpoint:
    """Change labels or description."""
    return products.update(
        endpoint, operation_id="endpoints.update", changes=changes, actor=actor, now=now, version=version
    )


@operation
def delete(*, endpoint: Endpoint, actor: Actor, now: datetime, version: int | None = None) -> Endpoint:
    """Ask for the endpoint to go: its keys stop at once, its GPUs come back when its replicas are seen gone."""
    return products.delete(endpoint, operation_id="endpoints.delete", actor=actor, now=now, version=version)


@operation
def create_key(
    *,
    endpoint: Endpoint,
    name: str,
    expires_at: datetime | None,
    actor: Actor,
    now: datetime,
    limits: KeyLimits | None = None,
    scopes: Sequence[str] = (KeyScope.INFERENCE.value,),
) -> tuple[EndpointKey, str]:
    """Make another key; returns it with its plain text, shown once. Raises `InvalidSpec`, `Conflict`."""
    row = locked_endpoint(endpoint, "endpoints.create_key", actor)
    may = _scopes(scopes)
    if limits is not None:
        limits.check()
    if expires_at is not None and expires_at <= now:
        msg = "This time is over already."
        raise InvalidSpec(msg, field="expires_at")
    if EndpointKey.objects.filter(endpoint=row, revoked_at=None).count() >= MAX_KEYS:
        msg = f"An endpoint has at most {MAX_KEYS} live keys; revoke one first."
        raise Conflict(msg, code="too-many-keys")
    key, secret = new_key(row, name, actor=actor, now=now, expires_at=expires_at, limits=limits, scopes=may)
    narrow: dict[str, Any] = {} if may == [KeyScope.INFERENCE.value] else {"scopes": may}
    desired.happened(row, "endpoint.key-created", actor=actor, at=now, key=key.public_id, name=name, **narrow)
    products.touch_gateways([row.boundary_id], now=now)
    return key, secret


def _scopes(given: Sequence[str]) -> list[str]:
    """Return scopes once each and in order. Raises `InvalidSpec`."""
    words = [scope.value for scope in KeyScope]
    unknown = sorted(set(given) - set(words))
    if unknown or not given:
        msg = f"A key may use one or more of: {', '.join(words)}."
        raise InvalidSpec(msg, field="scopes", code="unknown-value")
    if KeyScope.INFERENCE.value in given:
        return [KeyScope.INFERENCE.value]
    return [word for word in words if word in given]


@operation
def roll_key(
    *, endpoint: Endpoint, key: EndpointKey, overlap_s: int, actor: Actor, now: datetime
) -> tuple[EndpointKey, str]:
    """Replace a key: the old one goes on for `overlap_s` seconds. Both have its scopes, and its limits together."""
    row = locked_endpoint(endpoint, "endpoints.roll_key", actor)
    old = EndpointKey.objects.select_for_update(no_key=True).filter(pk=key.pk, endpoint=row).first()
    if old is None:
        raise NotVisible
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        msg = "This key is not valid any more; make a new one."
        raise Conflict(msg, code="key-ended")
    if not 0 <= overlap_s <= LONGEST_OVERLAP.total_seconds():
        msg = "The overlap lasts 0 seconds to 30 days."
        raise InvalidSpec(msg, field="overlap_s")
    made, secret = new_key(
        row, old.name, actor=actor, now=now, expires_at=old.expires_at, limits=KeyLimits.of(old), scopes=old.scopes
    )
    made.lineage = old.limits_id
    made.save(update_fields=["lineage"])
    end = now + timedelta(seconds=overlap_s)
    old.expires_at = min(end, old.expires_at) if old.expires_at else end
    old.replaced_by = made
    if overlap_s == 0:
        old.revoked_at = now
    old.save(update_fields=["expires_at", "replaced_by", "revoked_at"])
    desired.happened(row, "endpoint.key-rolled", actor=actor, at=now, key=old.public_id, new=made.public_id)
    products.touch_gateways([row.boundary_id], now=now)
    return made, secret


@operation
def limit_key(*, endpoint: Endpoint, key: EndpointKey, limits: KeyLimits, actor: Actor, now: datetime) -> EndpointKey:
    """Replace a key's limits; those that it was rolled from or into share them. Raises `InvalidSpec`, `Conflict`."""
    row = locked_endpoint(endpoint, "endpoints.limit_key", actor)
    limits.check()
    found = EndpointKey.objects.select_for_update(no_key=True).filter(pk=key.pk, endpoint=row).first()
    if found is None:
        raise NotVisible
    before, whose = KeyLimits.of(found), found.limits_id
    if before != limits:
        of_them = Q(lineage=whose) | Q(public_id=whose)
        EndpointKey.objects.filter(of_them, endpoint=row).update(**limits.as_fields())
        desired.happened(
            row, "endpoint.key-limited", actor=actor, at=now, key=found.public_id, before=before.as_json(),
            limits=limits.as_json(),
        )  # fmt: skip
        products.touch_gateways([row.boundary_id], now=now)
        found.refresh_from_db()
    return found


@operation
def revoke_key(*, endpoint: Endpoint, key: EndpointKey, actor: Actor, now: datetime) -> EndpointKey:
    """Revoke a key; gateways refuse it within 5 seconds. Safe to repeat."""
    row = Endpoint.objects.select_for_update(no_key=True).select_related("tenant").get(pk=endpoint.pk)
    access.check(actor, row.tenant, ROUTES["endpoints.revoke_key"])
    old = EndpointKey.objects.select_for_update(no_key=True).filter(pk=key.pk, endpoint=row).first()
    if old is None:
        raise NotVisible
    if old.revoked_at is None:
        old.revoked_at = now
        old.save(update_fields=["revoked_at"])
        desired.happened(row, "endpoint.key-revoked", actor=actor, at=now, key=old.public_id)
        products.touch_gateways([row.boundary_id], now=now)
    return old
