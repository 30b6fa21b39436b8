"""Tenants: made (by an operator, or by the owner of a parent), changed, narrowed by policy, suspended, closed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

from django.db import IntegrityError, connection, transaction

from tenants import desired, gpu_catalogue, tokens
from tenants.actor import Actor
from tenants.approval import approvals_error, narrows
from tenants.errors import Conflict, Forbidden, InvalidSpec
from tenants.models import (
    Allocation,
    ApiToken,
    Boundary,
    Endpoint,
    Machine,
    Namespace,
    Request,
    ServedModel,
    ServiceAccount,
    Suspension,
    Tenant,
)
from tenants.models.fields import SLUG_PATTERN
from tenants.models.tenant import MAX_DEPTH
from tenants.operations.guards import allow, clean_labels, clean_text, lock_path, locked
from tenants.operations.members import join
from tenants.operations.people import active_person_by_email
from tenants.policy import LIST_KEYS, NUMBER_KEYS, RATE_KEYS, STANDARD, effective_policy
from tenants.states import (
    DEPTH_ORDER,
    Login,
    PlatformRole,
    RequestState,
    Role,
    StockVisibility,
    SuspensionDepth,
    TenantStatus,
    Tier,
)
from tenants.transactions import operation, refresh_visibility

# fmt: off
RESERVED: Final = frozenset(
    {
        "admin", "agent", "all", "api", "app", "auth", "default", "docs", "health", "help", "internal", "kube",
        "localhost", "login", "logout", "me", "metrics", "mine", "new", "none", "null", "operator", "platform",
        "portal", "public", "root", "sandbox", "self", "static", "status", "support", "system", "tenant",
        "tenantry", "tenants", "test", "undefined", "www",
    }
)
# fmt: on
"""Names that would be read as something of ours."""
_FOLDS: Final = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", "8": "b", "-": ""})
_SLUG: Final = re.compile(SLUG_PATTERN)
LONGEST_S: Final = 5 * 366 * 86400
NUMBERS: Final[Mapping[str, tuple[int, int, str]]] = {
    "longest_s": (60, LONGEST_S, "The longest term, in seconds,"),
    "requests_per_minute": (1, 10**9, "A rate of requests"),
    "tokens_per_minute": (1, 10**12, "A rate of tokens"),
}
"""Rule of a policy → least and most, and what it is called."""
LIVE: Final = (Endpoint, Machine, Namespace, Allocation, Boundary)


# --- making and changing -----------------------------------------------------------------------------


@operation
def create(
    *,
    name: str,
    display_name: str,
    actor: Actor,
    now: datetime,
    parent: Tenant | None = None,
    description: str = "",
    labels: Mapping[str, str] | None = None,
    owner_email: str = "",
    stock_visibility: StockVisibility = StockVisibility.BANDS,
    managed_by: str = "api",
) -> Tenant:
    """Make a tenant: at the root by an operator, below a parent by its owner too; `owner_email` owns it.

    Raises `InvalidSpec` for a name or depth that cannot be, `Conflict` for a name that is taken.
    """
    if parent is None:
        allow(actor, None, "tenants.create")
    else:
        allow(actor, parent, "tenants.create_child")
    tenant = make(
        name=name,
        display_name=display_name,
        parent=parent,
        description=description,
        labels=labels,
        stock_visibility=stock_visibility,
        managed_by=managed_by,
        actor=actor,
        now=now,
    )
    if owner_email:
        join(tenant, active_person_by_email(owner_email), Role.OWNER, actor=actor, now=now)
    return tenant


def make(
    *,
    name: str,
    display_name: str,
    actor: Actor,
    now: datetime,
    parent: Tenant | None = None,
    description: str = "",
    labels: Mapping[str, str] | None = None,
    stock_visibility: StockVisibility = StockVisibility.BANDS,
    managed_by: str = "api",
) -> Tenant:
    """Make a tenant in the caller's transaction, which has checked that the actor may. Raises as `create`."""
    check_name(name)
    title = clean_text(display_name or name, "display_name", most=120, least=1)
    above: list[UUID] = []
    if parent is not None:
        lock_path(parent.pk)
        parent = Tenant.objects.get(pk=parent.pk)
        if parent.status != TenantStatus.ACTIVE.value:
            msg = f"{parent.name} is {parent.status}: nothing can be made below it."
            raise Conflict(msg, code=f"tenant-{parent.status}")
        above = list(parent.path)
    if len(above) >= MAX_DEPTH:
        msg = f"Tenants are at most {MAX_DEPTH} levels deep."
        raise InvalidSpec(msg, field="parent", code="too-deep")
    key = uuid4()
    tenant = Tenant(
        id=key,
        name=name,
        display_name=title,
        description=clean_text(description, "description", most=500),
        parent=parent,
        path=[*above, key],
        stock_visibility=stock_visibility.value,
        labels=clean_labels(labels or {}),
        managed_by=managed_by,
        created_at=now,
    )
    try:
        with transaction.atomic():
            tenant.save(force_insert=True)
    except IntegrityError as error:
        msg = f"The name {name} is taken."
        raise Conflict(msg, code="name-taken", name=name) from error
    refresh_visibility()
    desired.created(
        tenant, "tenant.created", actor=actor, at=now, name=name, parent=parent.pk if parent is not None else None
    )
    return tenant


def check_name(name: str) -> None:
    """Raise `InvalidSpec` unless a tenant may have this name: a DNS label that looks like nothing else."""
    if not _SLUG.fullmatch(name):
        msg = "Use a DNS label: a-z, 0-9, '-', at most 40 characters, a letter first."
        raise InvalidSpec(msg, field="name")
    if name[2:4] == "--":
        msg = "Names with '--' after two letters are encoded names of other scripts and may look like others."
        raise InvalidSpec(msg, field="name", code="look-alike")
    if skeleton(name) in {skeleton(word) for word in RESERVED} or name.startswith(("kube-", "tenantry-")):
        msg = f"{name} is reserved or looks like a reserved name."
        raise InvalidSpec(msg, field="name", code="reserved")


def skeleton(name: str) -> str:
    """Return what a name looks like: characters that are easily confused are folded into one."""
    return name.translate(_FOLDS).replace("rn", "m").replace("vv", "w")


@operation
def update(
    *,
    tenant: Tenant,
    actor: Actor,
    now: datetime,
    version: int | None = None,
    display_name: str | None = None,
    description: str | None = None,
    labels: Mapping[str, str] | None = None,
    stock_visibility: StockVisibility | None = None,
) -> Tenant:
    """Change what is given. How exactly free stock is seen is an operator's to say."""
    allow(actor, tenant, "tenants.update")
    lock_path(tenant.pk)
    row = locked(tenant, version)
    _refuse_closed(row)
    fields = []
    if display_name is not None:
        row.display_name = clean_text(display_name, "display_name", most=120, least=1)
        fields.append("display_name")
    if description is not None:
        row.description = clean_text(description, "description", most=500)
        fields.append("description")
    if labels is not None:
        row.labels = clean_labels(labels)
        fields.append("labels")
    if stock_visibility is not None and stock_visibility.value != row.stock_visibility:
        if not actor.has(PlatformRole.OPERATOR):
            msg = "An operator says how exactly a tenant sees free stock."
            raise Forbidden(msg)
        row.stock_visibility = stock_visibility.value
        fields.append("stock_visibility")
    row.save(update_fields=fields)
    desired.changed(row, "tenant.changed", actor=actor, at=now, fields=fields)
    return row


# --- policy ------------------------------------------------------------------------------------------


@operation
def set_policy(
    *, tenant: Tenant, policy: Mapping[str, Any], actor: Actor, now: datetime, version: int | None = None
) -> Tenant:
    """Replace a tenant's policy: the lists and numbers of `tenants.policy`, `approvals`.

    A child narrows what its parents allow. An owner of the tenant itself may only narrow what stands; an
    operator or an owner above may widen it within the parents'. What runs already is left alone. Raises
    `InvalidSpec` with the rule and the tenant that set it.
    """
    allow(actor, tenant, "tenants.set_policy")
    lock_path(tenant.pk)
    row = locked(tenant, version)
    _refuse_closed(row)
    checked = _checked_policy(policy)
    parents = {t.pk: t for t in Tenant.objects.filter(pk__in=row.path[:-1])}
    levels = [(parents[pk].name, parents[pk].policy) for pk in row.path[:-1]]
    is_operator = actor.has(PlatformRole.OPERATOR)
    _refuse_wider(levels, checked)
    if not is_operator:
        _refuse_beyond_standard(levels, row.policy, checked)
    above = actor.role_on(row.path[:-1])
    if not is_operator and (above is None or above < Role.OWNER):
        dropped = sorted(set(row.policy) - set(checked))
        if dropped:
            msg = f"Only an operator or an owner above may drop a rule: {', '.join(dropped)}."
            raise InvalidSpec(msg, field=f"policy.{dropped[0]}", code="policy-widens", rule=dropped[0], tenant=row.name)
        _refuse_wider([(row.name, row.policy)], checked)
    before, row.policy = row.policy, checked
    row.save(update_fields=["policy"])
    desired.changed(row, "tenant.policy-set", actor=actor, at=now, policy=checked, before=before)
    if any(before.get(key) != checked.get(key) for key in RATE_KEYS):
        bump_gateways_below(row, now=now)
    return row


def _checked_policy(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the policy as stored. Raises `InvalidSpec` naming the key."""
    known: dict[str, frozenset[str] | None] = {
        "sites": None,
        "tiers": frozenset(t.value for t in Tier),
        "products": frozenset(p.id for p in gpu_catalogue.products()),
        "models": frozenset(ServedModel.objects.values_list("name", flat=True)),
        "runtimes": None,
        "logins": frozenset(way.value for way in Login),
    }
    checked: dict[str, Any] = {}
    for key, value in policy.items():
        field = f"policy.{key}"
        if key in LIST_KEYS:
            checked[key] = _checked_list(value, known[key], field)
        elif key in NUMBERS:
            least, most, words = NUMBERS[key]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                msg = f"{words} is a whole number from {least} to {most}."
                raise InvalidSpec(msg, field=field, code="out-of-range")
            checked[key] = value
        elif key == "approvals":
            wrong = approvals_error(value)
            if wrong:
                raise InvalidSpec(wrong, field=field)
            checked[key] = {kind: list(stages) for kind, stages in value.items()}
        else:
            msg = f"A policy has no rule {key!r}."
            raise InvalidSpec(msg, field=field, code="unknown-rule")
    return checked


def _checked_list(value: Any, known: frozenset[str] | None, field: str) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        msg = "Give a list of names."
        raise InvalidSpec(msg, field=field)
    for item in value:
        if (known is not None and item not in known) or (known is None and not _SLUG.fullmatch(item)):
            msg = f"There is no {item!r} here."
            raise InvalidSpec(msg, field=field, code="unknown-value", value=item[:80])
    return sorted(set(value))


def _refuse_beyond_standard(
    levels: Sequence[tuple[str, Mapping[str, Any]]], before: Mapping[str, Any], policy: Mapping[str, Any]
) -> None:
    """Raise `InvalidSpec` where a policy newly allows what the platform allows only by an operator's word."""
    limits = effective_policy(levels)
    for key in STANDARD:
        for value in policy.get(key, ()):
            rule = None if value in before.get(key, ()) else limits.forbids(key, value)
            if rule is not None:
                raise InvalidSpec(
                    f"{rule.sentence} Ask an operator to allow {value!r} here.",
                    field=f"policy.{key}", code="policy-widens", rule=key, tenant=rule.tenant, allowed=rule.allowed,
                )  # fmt: skip


def _refuse_wider(levels: Sequence[tuple[str, Mapping[str, Any]]], policy: Mapping[str, Any]) -> None:
    """Raise `InvalidSpec` where a policy allows more than the levels above it."""
    limits = effective_policy(levels)
    for key in LIST_KEYS:
        for value in policy.get(key, ()):
            rule = limits.bars(key, value)
            if rule is not None:
                raise InvalidSpec(
                    f"{rule.sentence} A policy below it can only narrow that.",
                    field=f"policy.{key}", code="policy-widens", rule=key, tenant=rule.tenant, allowed=rule.allowed,
                )  # fmt: skip
    for key in NUMBER_KEYS:
        number, limit = policy.get(key), limits.most.get(key)
        if limit is not None and number is not None and number > limit.number:
            unit = " s" if key == "longest_s" else ""
            msg = f"{limit.tenant} allows at most {limit.number}{unit}. A policy below it can only narrow that."
            raise InvalidSpec(msg, field=f"policy.{key}", code="policy-widens", rule=key, tenant=limit.tenant)
    for name, level in levels:
        for kind, stages in policy.get("approvals", {}).items():
            if not narrows(kind, stages, level.get("approvals", {})):
                msg = f"{name} asks for more people to approve a {kind}; a policy below it can only add stages."
                raise InvalidSpec(msg, field="policy.approvals", code="policy-widens", rule="approvals", tenant=name)


# --- suspension --------------------------------------------------------------------------------------


@operation
def suspend(
    *,
    tenant: Tenant,
    depth: SuspensionDepth,
    reason: str,
    actor: Actor,
    now: datetime,
    until: datetime | None = None,
    version: int | None = None,
) -> Suspension:
    """Suspend a tenant and all below it: keys refused, or network cut, or power off. Holds are kept.

    A suspension that stands is replaced: deeper or lighter. Raises `InvalidSpec`, `Conflict`.
    """
    allow(actor, tenant, "tenants.suspend")
    text = clean_text(reason, "reason", most=500, least=1)
    if until is not None and until <= now:
        msg = "This time is over already."
        raise InvalidSpec(msg, field="until")
    lock_path(tenant.pk)
    row = locked(tenant, version)
    _refuse_closed(row)
    before = Suspension.objects.filter(tenant=row, ended_at__isnull=True).first()
    if before is not None:
        Suspension.objects.filter(pk=before.pk).update(ended_at=now)
    made = Suspension.objects.create(
        tenant=row, depth=depth.value, reason=text, author=actor.person_id or UUID(int=0), created_at=now, until=until
    )
    row.status = TenantStatus.SUSPENDED.value
    row.save(update_fields=["status"])
    desired.changed(
        row, "tenant.suspended", actor=actor, at=now, depth=depth.value, reason=text, until=until,
        before=before.depth if before is not None else None,
    )  # fmt: skip
    wake_subtree(row, now=now)
    return made


@operation
def resume(*, tenant: Tenant, actor: Actor, now: datetime, version: int | None = None) -> Tenant:
    """End a suspension: everything goes back to what it was. Who suspended from above must resume from above."""
    allow(actor, tenant, "tenants.resume")
    lock_path(tenant.pk)
    row = locked(tenant, version)
    if not _end_suspension(row, actor=actor, now=now, why="asked"):
        msg = "This tenant is not suspended."
        raise Conflict(msg, code="not-suspended")
    return row


@operation
def resume_due(*, actor: Actor, now: datetime) -> int:
    """End the suspensions whose time is over; returns how many. Called by the sweep as the system."""
    allow(actor, None, "tenants.create")
    due = (
        Suspension.objects.filter(ended_at__isnull=True, until__lte=now).select_related("tenant").order_by("tenant_id")
    )
    ended = 0
    for suspension in due:
        lock_path(suspension.tenant_id)
        ended += _end_suspension(locked(suspension.tenant), actor=actor, now=now, why="its time is over")
    return ended


def depth_of(tenant: Tenant) -> SuspensionDepth | None:
    """Return the deepest live suspension on a tenant's path, as far as the reader may see; None without one."""
    words = Suspension.objects.filter(tenant_id__in=tenant.path, ended_at__isnull=True).values_list("depth", flat=True)
    return max((SuspensionDepth(w) for w in words), key=DEPTH_ORDER.__getitem__, default=None)


def _end_suspension(row: Tenant, *, actor: Actor, now: datetime, why: str) -> bool:
    if not Suspension.objects.filter(tenant=row, ended_at__isnull=True).update(ended_at=now):
        return False
    row.status = TenantStatus.ACTIVE.value
    row.save(update_fields=["status"])
    desired.changed(row, "tenant.resumed", actor=actor, at=now, why=why)
    wake_subtree(row, now=now)
    return True


def wake_subtree(tenant: Tenant, *, now: datetime) -> None:
    """Make every live product, boundary and allocation of a tenant and its children due, and their gateways too."""
    below = list(Tenant.objects.filter(path__contains=[tenant.pk]).values_list("pk", flat=True))
    for model in LIVE:
        model._base_manager.filter(tenant_id__in=below, released_at__isnull=True).update(due_at=now)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT outbox_put(%s, id, tenant_id, %s) "  # noqa: S608 - the table's name is the model's own
                f"FROM {model._meta.db_table} WHERE tenant_id = ANY (%s) AND released_at IS NULL ORDER BY id",
                [desired.kind_of(model()), now, below],
            )
    _bump_gateways(below, now=now)


def bump_gateways_below(tenant: Tenant, *, now: datetime) -> None:
    """Have the gateways of a tenant and of all below it look for another configuration."""
    below = Tenant.objects.filter(path__contains=[tenant.pk]).values_list("pk", flat=True)
    _bump_gateways(list(below), now=now)


def _bump_gateways(tenant_ids: Sequence[UUID], *, now: datetime) -> None:
    from tenants import gateway_config

    boundaries = Boundary.objects.filter(tenant_id__in=tenant_ids, released_at__isnull=True).values_list(
        "pk", flat=True
    )
    gateway_config.bump(list(boundaries), now=now)


# --- closing -----------------------------------------------------------------------------------------


@operation
def close(*, tenant: Tenant, actor: Actor, now: datetime, version: int | None = None) -> Tenant:
    """Close a tenant that holds nothing any more: its service accounts, tokens and open requests end.

    Raises `Conflict` (`not-empty`) with what is still there. Its name stays taken, its events stay.
    """
    allow(actor, tenant, "tenants.close")
    lock_path(tenant.pk)
    row = locked(tenant, version)
    _refuse_closed(row)
    left = {desired.kind_of(m()): m._base_manager.filter(tenant=row, released_at__isnull=True).count() for m in LIVE}
    left["tenant"] = row.children.exclude(status=TenantStatus.CLOSED.value).count()
    there = {kind: count for kind, count in left.items() if count}
    if there:
        words = ", ".join(f"{kind}: {count}" for kind, count in sorted(there.items()))
        msg = f"{row.name} is not empty: {words}."
        raise Conflict(msg, code="not-empty", objects=there)
    for account in ServiceAccount.objects.filter(tenant=row, disabled_at__isnull=True).order_by("pk"):
        account.disabled_at = now
        account.save(update_fields=["disabled_at"])
        desired.changed(account, "service-account.disabled", actor=actor, at=now, why="its tenant closed")
    tokens.revoke_rows(ApiToken.objects.filter(tenant=row), actor=actor, now=now, why="its tenant closed")
    for request in Request.objects.filter(tenant=row, state=RequestState.SUBMITTED.value).order_by("pk"):
        Request.objects.filter(pk=request.pk, state=RequestState.SUBMITTED.value).update(
            state=RequestState.EXPIRED.value, decided_at=now, outcome={"why": "its tenant closed"}
        )
        desired.changed(request, "request.expired", actor=actor, at=now, why="its tenant closed")
    Suspension.objects.filter(tenant=row, ended_at__isnull=True).update(ended_at=now)
    row.status, row.closed_at = TenantStatus.CLOSED.value, now
    row.save(update_fields=["status", "closed_at"])
    desired.changed(row, "tenant.closed", actor=actor, at=now)
    return row


def _refuse_closed(tenant: Tenant) -> None:
    if tenant.status in {TenantStatus.CLOSING.value, TenantStatus.CLOSED.value}:
        msg = f"{tenant.name} is {tenant.status}."
        raise Conflict(msg, code=f"tenant-{tenant.status}")
