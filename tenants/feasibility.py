"""What a tenant may ask for and where: the locked path, effective policy, validation, candidate providers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import Exists, OuterRef

from tenants import gpu_catalogue
from tenants.errors import Conflict, InvalidSpec
from tenants.ledger import Option
from tenants.machine_images import images_of
from tenants.models import Boundary, Provider, Suspension, Tenant
from tenants.policy import EffectivePolicy, effective_policy
from tenants.specs import AllocationSpec
from tenants.states import BoundaryKind, Tier

MAX_UNITS = 64
MAX_TERM_S = 5 * 366 * 86400
MAX_GPUS_PER_UNIT = 16


@dataclass(frozen=True, slots=True)
class LockedPath:
    """The locked tenants from the root down, and the policy they add up to."""

    tenants: tuple[tuple[UUID, str, str], ...]
    """(id, name, status)."""
    policy: EffectivePolicy


def locked_path(tenant: Tenant, *, spending: bool = True) -> LockedPath:
    """Lock a tenant's path, root first: always the first lock. With `spending`, refuse a tenant that may not.

    Raises `Conflict` (`tenant-suspended`, `tenant-closing`).
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, name, status, policy::text FROM tenant_lock_path(%s)", [tenant.pk])
        rows = cursor.fetchall()
    levels: list[tuple[str, Mapping[str, Any]]] = [(row[1], json.loads(row[3])) for row in rows]
    path = LockedPath(tuple((row[0], row[1], row[2]) for row in rows), effective_policy(levels))
    if spending:
        for _, name, status in path.tenants:
            if status != "active":
                msg = f"{name} is {status}: nothing new can be asked for until it is active again."
                raise Conflict(msg, code=f"tenant-{status}", tenant=name)
        if Suspension.objects.filter(tenant_id__in=[row[0] for row in rows], ended_at__isnull=True).exists():
            msg = "This tenant is suspended: nothing new can be asked for until it is resumed."
            raise Conflict(msg, code="tenant-suspended")
    return path


def policy_of(tenant: Tenant) -> EffectivePolicy:
    """Return the policy that a tenant's path adds up to now; locks nothing."""
    rows = Tenant.objects.in_bulk(tenant.path)
    return effective_policy([(rows[key].name, rows[key].policy) for key in tenant.path if key in rows])


def validate(
    spec: AllocationSpec,
    *,
    path: LockedPath,
    kinds: Sequence[BoundaryKind],
    now: datetime,
    field_prefix: str = "",
) -> None:
    """Check a spec against catalogue and policy. Raises `InvalidSpec` naming the field and the rule."""

    def refuse(detail: str, field: str, **extra: Any) -> None:
        raise InvalidSpec(detail, field=field_prefix + field, **extra)

    if not 1 <= len(spec.units) <= MAX_UNITS:
        refuse(f"An allocation has 1 to {MAX_UNITS} units.", "units")
    if spec.where.kind is BoundaryKind.CLUSTER or spec.where.tier is Tier.CONFIDENTIAL:
        field = "where.kind" if spec.where.kind is BoundaryKind.CLUSTER else "where.tier"
        refuse("This is not offered yet.", field, code="not-supported")
    if spec.where.kind is not None and spec.where.kind not in kinds:
        words = " or ".join(k.value for k in kinds)
        refuse(f"This kind of product runs in a {words} boundary only.", "where.kind", code="not-supported")
    if not 60 <= spec.term.duration_s <= MAX_TERM_S:
        refuse(f"A term lasts 60 to {MAX_TERM_S} seconds.", "term.duration_s")
    if spec.term.not_after is not None and spec.term.not_after <= now:
        refuse("This time is over already.", "term.not_after")
    for number, unit in enumerate(spec.units):
        _validate_gpu(spec, number, refuse)
        if unit.vcpu < 1 or unit.memory_gib < 1:
            refuse("A unit needs at least 1 vCPU and 1 GiB of memory.", f"units[{number}].vcpu")
    policy = path.policy
    checks: list[tuple[str, str, str]] = [("tiers", spec.where.tier.value, "where.tier")]
    if spec.where.site:
        checks.append(("sites", spec.where.site, "where.site"))
    checks += [("products", u.gpu.product, f"units[{n}].gpu.product") for n, u in enumerate(spec.units) if u.gpu]
    for key, value, field in checks:
        rule = policy.forbids(key, value)
        if rule is not None:
            refuse(rule.sentence, field, code="policy-forbids", rule=rule.key, tenant=rule.tenant, allowed=rule.allowed)
    if policy.longest_s is not None and spec.term.duration_s > policy.longest_s:
        refuse(
            f"The longest term allowed here is {policy.longest_s} s.",
            "term.duration_s", code="policy-forbids", rule="longest_s", longest_s=policy.longest_s,
        )  # fmt: skip


def _validate_gpu(spec: AllocationSpec, number: int, refuse: Any) -> None:
    gpu = spec.units[number].gpu
    field = f"units[{number}].gpu"
    if gpu is None:
        refuse("Every unit needs a GPU or a part of one.", field, code="not-supported")
        return
    try:
        product = gpu_catalogue.product(gpu.product)
        profile = gpu_catalogue.profile(product, gpu.profile)
    except gpu_catalogue.UnknownProduct as error:
        refuse(str(error), f"{field}.product", code="unknown-product")
        return
    except gpu_catalogue.UnknownProfile as error:
        refuse(str(error), f"{field}.profile", code="unknown-profile")
        return
    if gpu.profile and not profile.starts:
        refuse(f"{product.id} is sold whole: where {gpu.profile} may lie is not known.", f"{field}.profile")
    if gpu.profile and product.sold_by_window is gpu_catalogue.SoldByWindow.NEVER:
        refuse(f"{product.id} is sold whole only.", f"{field}.profile")
    if gpu.profile and gpu.count != 1:
        refuse("A MIG window is one; use more units for more windows.", f"{field}.count")
    if not 1 <= gpu.count <= MAX_GPUS_PER_UNIT:
        refuse(f"A unit has 1 to {MAX_GPUS_PER_UNIT} GPUs of one host.", f"{field}.count")
    if gpu.profile and spec.where.tier is not Tier.SHARED:
        refuse(f"The tier {spec.where.tier.value} needs whole GPUs.", f"{field}.profile", code="tier-needs-whole-gpu")


def options(
    tenant: Tenant, spec: AllocationSpec, *, kinds: Sequence[BoundaryKind], policy: EffectivePolicy
) -> tuple[Option, ...]:
    """Return where a spec may go: per kind of boundary the providers that offer it, those known to the tenant first."""
    own = Boundary.objects.filter(tenant=tenant, provider=OuterRef("pk"), deletion_requested_at__isnull=True)
    rows = (
        Provider.objects.filter(enabled=True, deletion_requested_at__isnull=True)
        .annotate(has_boundary=Exists(own))
        .order_by("-has_boundary", "name")
    )
    if spec.where.provider:
        rows = rows.filter(name=spec.where.provider)
    if spec.where.site:
        rows = rows.filter(site=spec.where.site)
    allowed = [row for row in rows if policy.forbids("sites", row.site) is None]
    if spec.where.image:
        allowed = [row for row in allowed if spec.where.image in images_of(row)]
    return tuple(
        Option(kind, providers)
        for kind in kinds
        if (providers := tuple(row.pk for row in allowed if kind.value in row.capabilities.get("boundary_kinds", [])))
    )
