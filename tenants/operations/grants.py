"""What approving a request does, and the proof of it: limits, a tenant, a membership, a write-off. Plain.

`apply` changes the rows and returns what came of it as seen in the same transaction; undone by a savepoint it
is a forecast, committed it is the decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from tenants import desired, served_facts
from tenants.actor import Actor, Kind
from tenants.errors import Conflict, Forbidden, InvalidSpec
from tenants.models import (
    Allocation,
    AutoApprovalRule,
    Decision,
    Membership,
    Person,
    Quota,
    Request,
    Tenant,
    Unit,
)
from tenants.operations import first_wishes, members, pricing, quotas, served_models
from tenants.operations.guards import lock_path
from tenants.operations.payloads import QuotaAsk, read_moment
from tenants.operations.tenants import make
from tenants.pricing import is_priced
from tenants.specs import AllocationSpec
from tenants.states import ROLE_BY_WORD, RequestKind, Role

COST_DAYS: Final = 30
"""A lasting limit is priced as full use over this many days."""
DELAYS_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Applied:
    """What an approval did."""

    proof: dict[str, Any]
    outcome: dict[str, Any]
    """Ids made and limits granted, for the request's row."""
    tenant_id: UUID | None = None
    """The tenant that was made."""
    allocation_id: UUID | None = None
    """The capacity of the first wish that was started."""


def apply(request: Request, payload: Mapping[str, Any], *, actor: Actor, now: datetime) -> Applied:
    """Do what a request asks for, as reduced, and return the proof. The caller holds the tenant path's locks."""
    if request.kind == RequestKind.QUOTA.value:
        return _quota(request, payload, actor=actor, now=now)
    if request.kind == RequestKind.TENANT.value:
        return _tenant(request, payload, actor=actor, now=now)
    if request.kind == RequestKind.JOIN.value:
        return _join(request, payload, actor=actor, now=now)
    if request.kind == RequestKind.MODEL.value:
        return _model(request, payload, actor=actor, now=now)
    return _write_off(payload, actor=actor, now=now)


# --- quota --------------------------------------------------------------------------------------------


def quota_ask(payload: Mapping[str, Any], *, now: datetime) -> QuotaAsk:
    """Return a stored quota payload as what it means. Raises `InvalidSpec` once its end is over."""
    return QuotaAsk.read(payload, now=now)


def check_ancestors(tenant: Tenant, payload: Mapping[str, Any]) -> None:
    """Raise `InvalidSpec` where a payload names a tenant that is not above, or a dimension that is inherited."""
    above = set(Tenant.objects.filter(pk__in=tenant.path[:-1]).values_list("name", flat=True))
    for name in payload["ancestors"]:
        if name not in above:
            raise InvalidSpec(f"There is no tenant {name} above.", field="payload.ancestors", code="not-above")
    inherited = Quota.objects.filter(tenant=tenant, dimension__in=payload["limits"], inherit=True).first()
    if inherited is not None:
        msg = f"{tenant.name} inherits {inherited.dimension}: ask for it under `ancestors`."
        raise InvalidSpec(msg, field=f"payload.limits.{inherited.dimension}", code="inherits")


def _quota(request: Request, payload: Mapping[str, Any], *, actor: Actor, now: datetime) -> Applied:
    tenant = request.tenant
    assert tenant is not None  # a quota request always concerns a tenant
    if tenant.status in {"closing", "closed"}:
        raise Conflict(f"{tenant.name} is {tenant.status}.", code=f"tenant-{tenant.status}")
    ask = quota_ask(payload, now=now)
    until = _lasting_for(request, ask, payload, now=now)
    above = {t.name: t for t in Tenant.objects.filter(pk__in=tenant.path[:-1])}
    wanted = [(above[name], amounts) for name, amounts in ask.ancestors.items()] + [(tenant, ask.limits)]
    wanted = [(owner, amounts) for owner, amounts in wanted if amounts]
    _refuse_above(actor, [owner for owner, _ in wanted])
    lines, granted = [], []
    for owner, amounts in wanted:
        before = _limits(owner, list(amounts), now=now)
        for dimension, amount in amounts.items():
            row = quotas.raise_limit(
                owner, dimension, amount, mode=ask.mode, until=until, request=request, actor=actor, now=now
            )
            granted.append(str(row.pk))
        after = _limits(owner, list(amounts), now=now)
        lines += [
            {"tenant": owner.name, "dimension": d, "before": before[d][0], "after": after[d][0], "used": after[d][1]}
            for d in amounts
        ]
    proof: dict[str, Any] = {"outcome": "grants", "where": [], "quota": lines, "delays": [], "at": now.isoformat()}
    waiting = request.allocation
    if waiting is not None:
        proof |= _take_up(waiting, actor=actor, now=now)
    else:
        priced = {d: a for d, a in ask.limits.items() if is_priced(d)}
        proof["cost"] = pricing.cost_of(priced, now, until or now + timedelta(days=COST_DAYS))
    return Applied(proof, {"quotas": granted, "outcome": proof["outcome"]})


def _refuse_above(actor: Actor, owners: list[Tenant]) -> None:
    """Raise `Forbidden` where limits above what the actor is at home in would change, even as a forecast."""
    if actor.kind is Kind.SYSTEM or actor.sees_all:
        return
    for owner in owners:
        if actor.role_on(owner.path) is None:
            msg = f"Limits of {owner.name} are raised by the platform's approvers only."
            raise Forbidden(msg, code="above-you", tenant=owner.name)


def _lasting_for(request: Request, ask: QuotaAsk, payload: Mapping[str, Any], *, now: datetime) -> datetime | None:
    """Return the end of what is granted: a decision that comes late must still cover what waits for it."""
    if ask.until is None or request.allocation is None or payload.get("until") != request.payload.get("until"):
        return ask.until
    return max(ask.until, AllocationSpec.from_json(request.allocation.spec).term.ends_at(now))


def _limits(tenant: Tenant, dimensions: list[str], *, now: datetime) -> dict[str, tuple[int, int]]:
    """Return dimension → (limit in force, use) of one tenant itself."""
    from tenants import quota

    level = quotas.path_limits(tenant, dimensions)[-1]
    return {d: (int(quota.limit_at(level, d, now)), int(level.usage.of(d))) for d in dimensions}


def _take_up(allocation: Allocation, *, actor: Actor, now: datetime) -> dict[str, Any]:
    """Let in what waits for the request, and say where it runs, what it costs and who waits for the same."""
    from tenants.operations import admissions

    if allocation.deletion_requested_at is not None or allocation.released_at is not None:
        msg = "What waited for this is gone; deny it or let its requester withdraw it."
        raise Conflict(msg, code="no-longer-needed")
    runs = admissions.admit(allocation, actor=actor, now=now)
    return _taken_up(Allocation.objects.select_related("tenant").get(pk=allocation.pk), runs=runs, now=now)


def _taken_up(row: Allocation, *, runs: bool, now: datetime) -> dict[str, Any]:
    """Return the part of a proof that tells where something runs, what it costs and whom it delays."""
    units = list(
        Unit.objects.filter(allocation=row, host__isnull=False).select_related("host__provider").order_by("index")
    )
    provider = units[0].host.provider if units and units[0].host is not None else None
    spec = AllocationSpec.from_json(row.spec)
    priced = {d: int(a) for d, a in row.demand.items() if is_priced(d)}
    where = [
        {
            "unit": unit.index,
            "provider": unit.host.provider.name,
            "site": unit.host.provider.site,
            "host": unit.host.name,
            "product": unit.product,
            "profile": unit.profile,
        }
        for unit in units
        if unit.host is not None
    ]
    return {
        "outcome": "runs" if runs else "waits",
        "why": next((c["message"] for c in row.conditions if c["type"] == "Placed" and c["status"] != "True"), ""),
        "where": where,
        "cost": pricing.cost_of(
            priced,
            now,
            spec.term.ends_at(now),
            provider=provider.name if provider is not None else "",
            site=provider.site if provider is not None else spec.where.site,
        ),
        "delays": _delays(row) if runs else [],
    }


def _delays(allocation: Allocation) -> list[dict[str, Any]]:
    """Return who waits for the same GPUs, oldest first: what is taken here is not there for them."""
    products = Unit.objects.filter(allocation=allocation).values("product")
    rows = (
        Allocation.objects.filter(
            queued_at__isnull=False, released_at__isnull=True, deletion_requested_at__isnull=True,
            units__product__in=products,
        )
        .exclude(pk=allocation.pk)
        .select_related("tenant")
        .order_by("queued_at", "pk")
        .distinct()
    )  # fmt: skip
    return [
        {"tenant": row.tenant.name, "name": row.name, "since": row.queued_at.isoformat() if row.queued_at else ""}
        for row in rows[:DELAYS_SHOWN]
    ]


def granted_by_rule(rule: AutoApprovalRule, tenant: Tenant, *, now: datetime) -> dict[str, int]:
    """Return dimension → what a rule has added to a tenant already and still stands."""
    total: dict[str, int] = {}
    for granted in Decision.objects.filter(rule=rule, tenant=tenant).values_list("granted", flat=True):
        until = read_moment(granted.get("until"), "until", now=None)
        if until is not None and until <= now:
            continue
        for dimension, amount in granted.get("limits", {}).items():
            total[dimension] = total.get(dimension, 0) + int(amount)
    return total


# --- tenant, join, write-off --------------------------------------------------------------------------


def _tenant(request: Request, payload: Mapping[str, Any], *, actor: Actor, now: datetime) -> Applied:
    requester = _still_here(request)
    tenant = make(
        name=payload["name"],
        display_name=payload["display_name"],
        description=payload["description"],
        parent=request.tenant,
        actor=actor,
        now=now,
    )
    lock_path(tenant.pk)
    membership = members.join(tenant, requester, Role.OWNER, actor=actor, now=now)
    wish = first_wishes.read(payload["wish"])
    as_asked = payload["until"] == request.payload["until"]
    until = read_moment(payload["until"], "payload.until", now=None if wish is not None and as_asked else now)
    shorter = None if as_asked else until
    if wish is not None and until is not None and as_asked:  # decided late, it must still cover the wish
        until = max(until, wish.allocation.term.ends_at(now))
    lines = []
    for dimension, amount in payload["limits"].items():
        end = None if wish is not None and dimension == "boundaries" else until  # an isolation has no term of its own
        quotas.raise_limit(tenant, dimension, amount, mode="add", until=end, request=request, actor=actor, now=now)
        lines.append({"tenant": tenant.name, "dimension": dimension, "before": 0, "after": amount, "used": 0})
    priced = {d: a for d, a in payload["limits"].items() if is_priced(d)}
    proof: dict[str, Any] = {
        "outcome": "grants",
        "where": [],
        "quota": lines,
        "cost": pricing.cost_of(priced, now, until or now + timedelta(days=COST_DAYS)) if priced else None,
        "delays": [],
        "tenant": {"name": tenant.name, "parent": request.tenant.name if request.tenant is not None else ""},
        "at": now.isoformat(),
    }
    outcome = {"tenant": str(tenant.pk), "membership": str(membership.pk), "wish": payload["wish"]}
    if wish is None:
        return Applied(proof, outcome, tenant.pk)
    started = first_wishes.start(wish, tenant, requester.pk, actor=actor, now=now, until=shorter)
    if started.endpoint is None:
        proof["wish"] = {"name": wish.name, "model": wish.revision.model, "starts": False, "why": started.why}
        return Applied(proof, outcome, tenant.pk)
    allocation = Allocation.objects.select_related("tenant").get(pk=started.endpoint.allocation_id)
    proof |= _taken_up(allocation, runs=allocation.queued_at is None, now=now)
    proof["wish"] = {"name": wish.name, "model": wish.revision.model, "starts": True, "why": ""}
    return Applied(proof, {**outcome, "endpoint": str(started.endpoint.pk)}, tenant.pk, allocation.pk)


def _join(request: Request, payload: Mapping[str, Any], *, actor: Actor, now: datetime) -> Applied:
    tenant = request.tenant
    assert tenant is not None  # a join always concerns a tenant
    requester = _still_here(request)
    role = ROLE_BY_WORD[payload["role"]]
    row = Membership.objects.select_for_update(no_key=True).filter(tenant=tenant, person=requester).first()
    if row is None:
        row = members.join(tenant, requester, role, actor=actor, now=now)
    elif row.role < int(role):
        before, row.role = Role(row.role), int(role)
        row.save(update_fields=["role"])
        desired.changed(
            row, "member.changed", actor=actor, at=now, person=requester.pk, role=role.word, before=before.word
        )
    proof: dict[str, Any] = {
        "outcome": "grants", "where": [], "quota": [], "cost": None, "delays": [],
        "membership": {"tenant": tenant.name, "role": Role(row.role).word}, "at": now.isoformat(),
    }  # fmt: skip
    return Applied(proof, {"membership": str(row.pk)})


def _model(request: Request, payload: Mapping[str, Any], *, actor: Actor, now: datetime) -> Applied:
    tenant = request.tenant
    assert tenant is not None  # a model of one's own always belongs to a tenant
    if tenant.status in {"closing", "closed"}:
        raise Conflict(f"{tenant.name} is {tenant.status}.", code=f"tenant-{tenant.status}")
    found = served_models.Pinned.from_json(payload)
    row = served_models.offer(found, tenant=tenant, actor=actor, now=now)
    facts = served_facts.of(row)
    model = {
        "name": row.name, "repository": row.repository, "commit": row.commit, "source": row.source,
        "licence": row.licence, "gating": row.gating, "task": row.task, "notes": list(found.notes),
        "weights_bytes": None if facts is None else facts.weights.get(served_facts.quantisation_of(row)),
    }  # fmt: skip
    proof: dict[str, Any] = {
        "outcome": "grants", "where": [], "quota": [], "cost": None, "delays": [], "model": model,
        "at": now.isoformat(),
    }  # fmt: skip
    return Applied(proof, {"model": str(row.pk)})


def check_write_off(allocation: Allocation) -> None:
    """Raise `Conflict` where nothing is lost."""
    from tenants.operations import write_offs

    write_offs.check(allocation)


def _write_off(payload: Mapping[str, Any], *, actor: Actor, now: datetime) -> Applied:
    from tenants.operations import write_offs

    allocation = Allocation.objects.select_related("boundary__provider").get(pk=payload["allocation"])
    lost = [
        {"unit": u.index, "host": u.host.name if u.host is not None else "", "product": u.product, "profile": u.profile}
        for u in Unit.objects.filter(allocation=allocation, host__isnull=False).select_related("host").order_by("index")
    ]
    outcome = write_offs.apply(allocation, actor=actor, now=now)
    proof: dict[str, Any] = {
        "outcome": "grants", "where": [], "quota": [], "cost": None, "delays": [], "written_off": lost,
        "at": now.isoformat(),
    }  # fmt: skip
    return Applied(proof, outcome)


def _still_here(request: Request) -> Person:
    """Return the requester, whom the decider need not see otherwise. Raises `Conflict` if he left."""
    person = Person.objects.filter(pk=request.requester_id).first()
    if person is not None and not person.is_active:
        raise Conflict("Who asked for this has left or is suspended.", code="requester-gone")
    return person if person is not None else Person(pk=request.requester_id)
