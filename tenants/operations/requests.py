"""Requests: asked by an accountable person, decided by others in stages, applied in the last decision.

A decision binds to (request, version). What an approval would do is found by doing it in its own transaction:
the proof shown before and the proof of the decision come from the same code, and a worse outcome undoes it all.
Lock order: tenant path, request, what it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import IntegrityError, connection, transaction
from django.db.models import Q, QuerySet

from tenants import access, approval, desired, tokens
from tenants.actor import Actor, Kind
from tenants.errors import Conflict, Forbidden, InvalidSpec, NotVisible, QuotaExceeded
from tenants.models import (
    Allocation,
    AutoApprovalRule,
    Decision,
    Delegation,
    Membership,
    Request,
    RequestComment,
    RequestStage,
    Tenant,
)
from tenants.operations import grants, served_models
from tenants.operations.guards import accountable, allow, clean_text, expect_version, lock_path, locked
from tenants.operations.payloads import checked, reduced
from tenants.operations.tenants import check_name
from tenants.states import (
    ConditionType,
    PlatformRole,
    Reason,
    RequestKind,
    RequestState,
    Role,
    TenantStatus,
    phase_of,
    set_condition,
)
from tenants.transactions import operation

LASTS: Final = timedelta(days=30)
"""A request that nobody decides expires."""
MOST_OPEN: Final = 100
"""Open requests of one person."""
INBOX_ROWS: Final = 500
OPERATION_OF: Final[Mapping[str, str]] = {
    RequestKind.QUOTA.value: "requests.create",
    RequestKind.TENANT.value: "requests.create_tenant",
    RequestKind.JOIN.value: "requests.create_join",
    RequestKind.WRITE_OFF.value: "requests.create_write_off",
    RequestKind.MODEL.value: "requests.create_model",
}
VERDICTS: Final = ("approve", "reduce", "deny")


@dataclass(frozen=True, slots=True)
class Standing:
    """In whose place somebody may decide: his own, or that of a person he stands in for."""

    on_behalf_of: UUID | None = None


# --- asking -------------------------------------------------------------------------------------------


@operation
def submit(
    *, kind: str, payload: Any, reason: str, actor: Actor, now: datetime, tenant: Tenant | None = None, join: str = ""
) -> Request:
    """Ask for something: `quota` of a tenant, a new `tenant`, to `join` the tenant named `join`, a `write-off`.

    A `model` is to become the tenant's own. Small quota requests may be approved at once by a rule. Raises
    `InvalidSpec` (later kinds: `not-supported`), `Forbidden`, `NotVisible`, `Conflict`.
    """
    body = checked(kind, payload, now=now)
    text = clean_text(reason, "reason", most=1000)
    requester = accountable(actor)
    allocation: Allocation | None = None
    concerned: UUID | None = None
    if kind == RequestKind.QUOTA.value:
        if tenant is None:
            raise InvalidSpec("Say of which tenant.", field="tenant")
        allow(actor, tenant, OPERATION_OF[kind])
        if tenant.status in {TenantStatus.CLOSING.value, TenantStatus.CLOSED.value}:
            msg = f"{tenant.name} is {tenant.status}: nothing can be asked for it."
            raise Conflict(msg, code=f"tenant-{tenant.status}")
        grants.check_ancestors(tenant, body)
        concerned = tenant.pk
    elif kind == RequestKind.TENANT.value:
        allow(actor, None, OPERATION_OF[kind])
        check_name(body["name"])
        parent = _parent(actor, body["parent"]) if body["parent"] else None
        concerned = parent.pk if parent is not None else None
    elif kind == RequestKind.JOIN.value:
        allow(actor, None, OPERATION_OF[kind])
        concerned = _joinable(join, requester)
    elif kind == RequestKind.MODEL.value:
        concerned = _own_model(tenant, body, actor)
    else:
        allow(actor, None, OPERATION_OF[kind])
        allocation = access.find(Allocation.objects.select_related("boundary__provider"), body["allocation"])
        if not text:
            raise InvalidSpec("Say why it is lost.", field="reason")
        body["allocation"] = str(allocation.pk)
        grants.check_write_off(allocation)
        concerned = allocation.tenant_id
    return _open(
        kind, body, text, requester, concerned, allocation=allocation, actor=actor, now=now,
        auto=kind == RequestKind.QUOTA.value,
    )  # fmt: skip


def submit_for_shortage(
    allocation: Allocation, shortage: QuotaExceeded, *, actor: Actor, now: datetime, reason: str = ""
) -> Request:
    """File the ready-made request for what an allocation misses, in the caller's operation (`on_shortage`)."""
    ready = shortage.data["request"]
    return _open(
        ready["kind"], checked(ready["kind"], ready["payload"], now=now), reason or shortage.detail[:1000],
        accountable(actor), allocation.tenant_id, allocation=allocation, actor=actor, now=now, auto=True,
    )  # fmt: skip


def _open(
    kind: str,
    payload: dict[str, Any],
    reason: str,
    requester: UUID,
    tenant_id: UUID | None,
    *,
    allocation: Allocation | None,
    actor: Actor,
    now: datetime,
    auto: bool,
) -> Request:
    if tenant_id is not None:
        lock_path(tenant_id)
    mine = Request.objects.filter(requester_id=requester, state=RequestState.SUBMITTED.value)
    if mine.count() >= MOST_OPEN:
        msg = f"You have {MOST_OPEN} open requests; withdraw some."
        raise Conflict(msg, code="too-many-requests")
    same = mine.filter(kind=kind, payload=payload)
    same = same.filter(tenant_id=tenant_id) if tenant_id is not None else same.filter(tenant__isnull=True)
    if kind != RequestKind.QUOTA.value and same.exists():
        msg = "You have asked for this already; the request is open."
        raise Conflict(msg, code="asked-already")
    row = Request.objects.create(
        tenant_id=tenant_id,
        kind=kind,
        payload=payload,
        reason=reason,
        requester_id=requester,
        allocation=allocation if kind == RequestKind.QUOTA.value else None,
        created_at=now,
        expires_at=now + LASTS,
    )
    tenant = Tenant.objects.filter(pk=tenant_id).first() if tenant_id is not None else None
    for order, decider in enumerate(_stages(row, tenant, actor), start=1):
        RequestStage.objects.create(request=row, tenant_id=tenant_id, order=order, decider=decider)
    desired.created(row, "request.submitted", actor=actor, at=now, request_kind=kind, payload=payload)
    if auto and tenant is not None:
        _auto_approve(row, tenant, actor=actor, now=now)
    return row


def _stages(row: Request, tenant: Tenant | None, actor: Actor) -> tuple[str, ...]:
    """Work out the stages; ancestors' policies are read as far as the requester sees them (his own path)."""
    path = list(tenant.path) if tenant is not None else []
    policies = {t.pk: t.policy for t in Tenant.objects.filter(pk__in=path)}
    approvals = [policies.get(step, {}).get("approvals", {}) for step in path]
    about_parent = row.kind == RequestKind.TENANT.value  # the tenant it concerns is the new one's parent
    above = path if about_parent else path[:-1]
    return approval.stages_for(
        row.kind,
        approvals,
        has_parent=bool(above),
        owns_tenant=not about_parent and (actor.role_on(path) or 0) >= Role.OWNER,
        owns_parent=(actor.role_on(above) or 0) >= Role.OWNER,
    )


def _own_model(tenant: Tenant | None, body: Mapping[str, Any], actor: Actor) -> UUID:
    """Return the tenant whose own a model would be. Raises `InvalidSpec`, `Forbidden`, `Conflict`."""
    if tenant is None:
        raise InvalidSpec("Say of which tenant.", field="tenant")
    allow(actor, tenant, OPERATION_OF[RequestKind.MODEL.value])
    if tenant.status in {TenantStatus.CLOSING.value, TenantStatus.CLOSED.value}:
        msg = f"{tenant.name} is {tenant.status}: nothing can be asked for it."
        raise Conflict(msg, code=f"tenant-{tenant.status}")
    served_models.check_own_name(body["name"], tenant, field="payload.name")
    found: UUID = tenant.pk
    return found


def _parent(actor: Actor, name: str) -> Tenant:
    """Return the parent of a tenant that is asked for: the requester must be at home there."""
    parent = access.find(access.tenants(actor), name)
    allow(actor, parent, "requests.create")
    return parent


def _joinable(name: str, requester: UUID) -> UUID:
    """Return the tenant of this name, which he need not see. Raises `NotVisible`, `Conflict` for a member."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tenant_for_join(%s)", [name])
        row = cursor.fetchone()
    if row is None or row[0] is None:
        raise NotVisible
    found: UUID = row[0]
    if Membership.objects.filter(tenant_id=found, person_id=requester).exists():
        msg = "You are a member already."
        raise Conflict(msg, code="member-already")
    return found


@operation
def revise(
    *,
    request: Request,
    payload: Any,
    actor: Actor,
    now: datetime,
    reason: str | None = None,
    version: int | None = None,
) -> Request:
    """Ask for something else in the same request: a new version, whose stages all start again. Requester only."""
    allow(actor, None, "requests.revise")
    row = _mine(request, actor, version)
    body = checked(row.kind, payload, now=now)
    if row.kind == RequestKind.TENANT.value:
        check_name(body["name"])
        if body["parent"] != row.payload["parent"]:
            raise InvalidSpec("For another parent, make another request.", field="payload.parent")
    if row.kind == RequestKind.WRITE_OFF.value and body != row.payload:
        raise InvalidSpec("For another allocation, make another request.", field="payload.allocation")
    if row.kind == RequestKind.QUOTA.value and row.tenant is not None:
        grants.check_ancestors(row.tenant, body)
    if row.kind == RequestKind.MODEL.value and row.tenant is not None:
        served_models.check_own_name(body["name"], row.tenant, field="payload.name")
    row.payload = body
    if reason is not None:
        row.reason = clean_text(reason, "reason", most=1000)
    row.outcome = {}
    row.expires_at = now + LASTS
    row.save(update_fields=["payload", "reason", "outcome", "expires_at"])
    row.stages.update(done_at=None)
    desired.changed(row, "request.revised", actor=actor, at=now, payload=body)
    return row


@operation
def withdraw(*, request: Request, actor: Actor, now: datetime, version: int | None = None) -> Request:
    """Take a request back. Requester only; what waits for it stays, and says so."""
    allow(actor, None, "requests.withdraw")
    row = _mine(request, actor, version)
    _finish(row, RequestState.WITHDRAWN, {}, actor=actor, now=now)
    _tell_waiting(row, Reason.OVER_QUOTA, "The request was withdrawn.", now=now)
    return row


@operation
def comment(*, request: Request, text: str, actor: Actor, now: datetime) -> RequestComment:
    """Add a line to a request's thread: anybody who sees it."""
    allow(actor, None, "requests.comment")
    row = locked(request)
    made = RequestComment.objects.create(
        request=row,
        tenant_id=row.tenant_id,
        author_id=accountable(actor),
        text=clean_text(text, "text", most=2000, least=1),
        created_at=now,
    )
    desired.happened(row, "request.commented", actor=actor, at=now, comment=made.pk)
    return made


@operation
def expire_due(*, actor: Actor, now: datetime) -> int:
    """End the requests whose time is over or whose allocation is gone; returns how many. For the sweep."""
    allow(actor, None, "tenants.create")
    due = Request.objects.filter(state=RequestState.SUBMITTED.value).filter(
        Q(expires_at__lte=now) | Q(allocation__deletion_requested_at__isnull=False)
    )
    rows = list(
        Request.objects.select_for_update(no_key=True, of=("self",), skip_locked=True)
        .filter(pk__in=due.values("pk"), state=RequestState.SUBMITTED.value)
        .order_by("pk")
    )
    for row in rows:
        _finish(row, RequestState.EXPIRED, {}, actor=actor, now=now)
        _tell_waiting(row, Reason.OVER_QUOTA, "The request expired without a decision.", now=now)
    return len(rows)


def _mine(request: Request, actor: Actor, version: int | None) -> Request:
    if request.tenant_id is not None:
        lock_path(request.tenant_id)
    row = locked(request, version)
    if row.requester_id != actor.person_id:
        msg = "Only who asked can change or withdraw a request."
        raise Forbidden(msg, code="not-requester")
    _refuse_decided(row)
    return row


def _refuse_decided(row: Request) -> None:
    if row.state != RequestState.SUBMITTED.value:
        msg = f"This request is {row.state} already."
        raise Conflict(msg, code="decided", state=row.state)


# --- seeing -------------------------------------------------------------------------------------------


def visible(actor: Actor) -> QuerySet[Request]:
    """Return the requests an actor may see: of his tenants, and his own."""
    rows = Request.objects.all()
    if actor.kind is Kind.SYSTEM or actor.sees_all:
        return rows
    mine = Q(requester_id=actor.person_id) if actor.person_id and actor.only_tenant is None else Q(pk__in=[])
    return rows.filter(Q(tenant_id__in=access.tenants(actor).values("pk")) | mine)


def current_stage(request: Request) -> RequestStage | None:
    """Return the first stage that is not done, None when all are; no query where the stages are prefetched."""
    return min((s for s in request.stages.all() if s.done_at is None), key=lambda s: s.order, default=None)


def inbox(actor: Actor, *, now: datetime) -> list[Request]:
    """Return the open requests that the actor may decide now, oldest first; the number of queries is constant."""
    # No join to people: row-level security hides who shares no tenant, and an inner join would hide the request.
    rows = (
        visible(actor)
        .filter(state=RequestState.SUBMITTED.value)
        .exclude(requester_id=actor.person_id)
        .select_related("tenant")
        .prefetch_related("stages")
        .order_by("created_at", "pk")[:INBOX_ROWS]
    )
    absent = _stood_in_for(actor, now=now)
    return [row for row in rows if _standing(actor, row, absent) is not None]


def standing(actor: Actor, request: Request, *, now: datetime) -> Standing | None:
    """Return in whose place the actor may decide the request's present stage, None if he may not."""
    return _standing(actor, request, _stood_in_for(actor, now=now))


def _standing(actor: Actor, request: Request, absent: Sequence[Actor]) -> Standing | None:
    stage = current_stage(request)
    if stage is None or actor.kind is not Kind.PERSON or actor.person_id in {None, request.requester_id}:
        return None
    if _holds(actor, stage.decider, request):
        return Standing()
    for other in absent:
        if other.person_id != request.requester_id and _holds(other, stage.decider, request):
            return Standing(other.person_id)
    return None


def _holds(actor: Actor, decider: str, request: Request) -> bool:
    if decider == approval.PLATFORM_APPROVER:
        return actor.has(PlatformRole.APPROVER)
    if request.tenant is None:
        return False
    path: Sequence[UUID] = request.tenant.path
    if decider == approval.PARENT_OWNER and request.kind != RequestKind.TENANT.value:
        path = path[:-1]
    role = actor.role_on(path)
    return role is not None and role >= Role.OWNER


def _stood_in_for(actor: Actor, *, now: datetime) -> list[Actor]:
    """Return whom the actor stands in for now, as they would act."""
    delegations = (
        Delegation.objects.filter(delegate_id=actor.person_id, starts_at__lte=now, ends_at__gt=now)
        .select_related("person")
        .order_by("created_at", "pk")
    )
    found = (tokens.actor_of(delegation.person) for delegation in delegations)
    return [other for other in found if other is not None]


def proof(
    *, request: Request, actor: Actor, now: datetime, granted: Any = None, look: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Return what approving would do now: outcome, where, limits before and after, cost, whom it delays.

    Inside the caller's transaction: it is done and undone, so it is exact; `look` is called in between, to read
    what it would be like. Raises what the decision would.
    """
    payload, _ = reduced(request.kind, asked(request), granted, now=now)
    with transaction.atomic():
        seen = grants.apply(request, payload, actor=actor, now=now).proof
        if look is not None:
            look()
        transaction.set_rollback(True)
    return seen


def asked(request: Request) -> dict[str, Any]:
    """Return what is asked for, as reduced by the stages before."""
    return dict(request.outcome.get("granted") or request.payload)


# --- deciding -----------------------------------------------------------------------------------------


@operation
def decide(
    *,
    request: Request,
    version: int | None,
    verdict: str,
    actor: Actor,
    now: datetime,
    granted: Any = None,
    reason: str = "",
    expect_proof: Mapping[str, Any] | None = None,
) -> Decision:
    """Decide the present stage of one version of a request; the last stage applies it in this transaction.

    `granted` reduces what was asked; the requester never decides. With `expect_proof` (what the decider saw)
    a worse outcome changes nothing and raises `Conflict` (`outcome-worse`) with both proofs: decide again with
    the new one. Raises `Forbidden`, `Conflict` (`decided`), `PreconditionFailed` for another version.
    """
    allow(actor, None, "requests.decide")
    if verdict not in VERDICTS:
        raise InvalidSpec(f"A verdict is one of {', '.join(VERDICTS)}.", field="verdict")
    text = clean_text(reason, "reason", most=1000)
    if verdict != "approve" and not text:
        raise InvalidSpec("Give the requester a reason.", field="reason")
    if request.tenant_id is not None:
        lock_path(request.tenant_id)
    row = locked(request)
    _refuse_decided(row)
    expect_version(row, version)
    if actor.person_id == row.requester_id:
        msg = "You asked for this yourself; somebody else has to decide."
        raise Forbidden(msg, code="own-request")
    stage = current_stage(row)
    place = standing(actor, row, now=now)
    if stage is None or place is None:
        who = stage.decider if stage is not None else "nobody"
        msg = f"This stage is decided by a {who.replace('-', ' ')}."
        raise Forbidden(msg, code="not-your-stage", stage=who)
    payload, less = reduced(row.kind, asked(row), granted, now=now)
    if (verdict == "reduce") != less and verdict != "deny":
        msg = "Say `reduce` and grant less, or `approve` and grant all."
        raise InvalidSpec(msg, field="verdict")
    decision = Decision(
        request=row,
        tenant_id=row.tenant_id,
        request_version=row.version,
        stage=stage,
        requester_id=row.requester_id,
        decider_id=actor.person_id,
        on_behalf_of_id=place.on_behalf_of,
        verdict=verdict,
        granted=payload if verdict != "deny" else {},
        reason=text,
        created_at=now,
    )
    RequestStage.objects.filter(pk=stage.pk).update(done_at=now)
    if verdict == "deny":
        _record(decision)
        _finish(row, RequestState.DENIED, {"reason": text}, actor=actor, now=now)
        _tell_waiting(row, Reason.DENIED, f"The request was denied: {text}"[:500], now=now)
        return decision
    if current_stage(row) is not None:
        _record(decision)
        Request.objects.filter(pk=row.pk).update(outcome={"granted": payload})
        desired.happened(row, "request.stage-approved", actor=actor, at=now, stage=stage.decider, granted=payload)
        return decision
    _apply(row, payload, decision, expect_proof=expect_proof, actor=actor, now=now)
    return decision


def _apply(
    row: Request,
    payload: dict[str, Any],
    decision: Decision,
    *,
    expect_proof: Mapping[str, Any] | None,
    actor: Actor,
    now: datetime,
) -> None:
    done = grants.apply(row, payload, actor=actor, now=now)
    if expect_proof is not None:
        _refuse_worse(expect_proof, done.proof)
    decision.proof = done.proof
    _record(decision)
    state = RequestState.APPROVED if payload == row.payload else RequestState.REDUCED
    made = {"tenant_id": done.tenant_id, "allocation_id": done.allocation_id}
    outcome = {"granted": payload, **done.outcome}
    _finish(row, state, outcome, actor=actor, now=now, made={key: made_id for key, made_id in made.items() if made_id})


def _refuse_worse(seen: Mapping[str, Any], present: dict[str, Any]) -> None:
    try:
        worse = approval.differences(seen, present)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise InvalidSpec("Give the proof as it was shown.", field="expect_proof") from error
    if worse:
        msg = "The outcome would be worse than what you saw: " + " ".join(worse) + " Decide again if you still want it."
        raise Conflict(msg, code="outcome-worse", differences=worse, expected=dict(seen), proof=present)


def _record(decision: Decision) -> None:
    """Store a decision; the database refuses one's own and a second one of the same stage."""
    try:
        with transaction.atomic():
            decision.save(force_insert=True)
    except IntegrityError as error:
        msg = "This decision is not possible: it is one's own, or the stage is decided."
        raise Conflict(msg, code="decision-refused") from error


def _finish(
    row: Request,
    state: RequestState,
    outcome: dict[str, Any],
    *,
    actor: Actor,
    now: datetime,
    made: Mapping[str, UUID] | None = None,
) -> None:
    """Move a request to its end; zero rows means somebody else was faster. `made` names what it was about to make."""
    fields: dict[str, Any] = {"state": state.value, "decided_at": now, "outcome": outcome, **(made or {})}
    if not Request.objects.filter(pk=row.pk, state=RequestState.SUBMITTED.value).update(**fields):
        msg = "Somebody else decided this at the same time."
        raise Conflict(msg, code="decided")
    for name, value in fields.items():
        setattr(row, name, value)
    desired.happened(row, f"request.{state.value}", actor=actor, at=now, outcome=outcome)


def _tell_waiting(row: Request, reason: Reason, message: str, *, now: datetime) -> None:
    """Say on the allocation that waits for a request, and on its product, what became of it."""
    if row.allocation is None or row.allocation.deletion_requested_at is not None:
        return
    waiting: list[Any] = [row.allocation]
    for name in ("endpoint", "machine", "namespace"):
        product = getattr(row.allocation, name, None)
        waiting += [product] if product is not None else []
    for item in waiting:
        if not any(c["type"] == ConditionType.APPROVED and c["status"] == "False" for c in item.conditions):
            continue
        conditions = set_condition(
            item.conditions, ConditionType.APPROVED, "False", reason, message, now=now, generation=item.generation
        )
        type(item)._base_manager.filter(pk=item.pk).update(
            conditions=conditions, phase=phase_of(conditions, deleting=False, released=False).value
        )


def _auto_approve(row: Request, tenant: Tenant, *, actor: Actor, now: datetime) -> None:
    """Approve by the first rule that covers the request; what it may add in all is counted per tenant."""
    ask = grants.quota_ask(row.payload, now=now)
    if ask.mode != "add" or ask.ancestors:
        return
    for rule in AutoApprovalRule.objects.filter(kind=row.kind, enabled=True).order_by("created_at", "pk"):
        pure = approval.Rule(
            id=rule.pk,
            name=rule.name,
            kind=rule.kind,
            tenant=rule.tenant_id,
            limits=rule.limits,
            longest_s=rule.longest_s,
            granted=grants.granted_by_rule(rule, tenant, now=now),
        )
        if not pure.covers(row.kind, tenant.path, ask.limits, now=now, until=ask.until):
            continue
        decision = Decision(
            request=row, tenant_id=row.tenant_id, request_version=row.version, requester_id=row.requester_id,
            rule=rule, verdict="approve", granted=row.payload, reason=f"Rule: {rule.name}", created_at=now,
        )  # fmt: skip
        RequestStage.objects.filter(request=row).update(done_at=now)
        _apply(row, dict(row.payload), decision, expect_proof=None, actor=actor, now=now)
        return
