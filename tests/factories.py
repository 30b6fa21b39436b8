"""One factory per model, with the least that makes a valid row. They write as cp_worker, outside operations."""

from __future__ import annotations

import itertools
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

from django.db import connection

from tenants.actor import Actor, Kind
from tenants.models import (
    Boundary,
    GatewayReplica,
    GpuDevice,
    Host,
    Membership,
    Person,
    PlatformMembership,
    Price,
    PriceList,
    Provider,
    Quota,
    ServedModel,
    ServiceAccount,
    Tenant,
)
from tenants.states import PlatformRole, Role
from tests.conftest import NOW

_numbers = itertools.count(1)


def person(*, name: str = "", platform: tuple[PlatformRole, ...] = (), password: str = "") -> Person:
    """Make a person, with platform roles."""
    n = next(_numbers)
    row = Person(email=f"p{n}@example.org", display_name=name or f"Person {n}", created_at=NOW)
    if password:
        row.set_password(password)
    else:
        row.set_unusable_password()
    row.save()
    for role in platform:
        PlatformMembership.objects.create(person=row, role=role.value, created_at=NOW)
    return row


def tenant(*, name: str = "", parent: Tenant | None = None, **values: Any) -> Tenant:
    """Make a tenant."""
    key = uuid4()
    return Tenant.objects.create(
        id=key,
        name=name or f"tenant-{next(_numbers)}",
        display_name=values.pop("display_name", "A tenant"),
        parent=parent,
        path=[*(parent.path if parent else []), key],
        created_at=NOW,
        **values,
    )


def member(of: Tenant, role: Role = Role.MEMBER, *, who: Person | None = None) -> Person:
    """Make somebody a member of a tenant."""
    row = who or person()
    Membership.objects.create(tenant=of, person=row, role=int(role), created_at=NOW)
    return row


def service_account(of: Tenant, role: Role = Role.MEMBER, *, owner: Person | None = None) -> ServiceAccount:
    """Make a service account."""
    return ServiceAccount.objects.create(
        tenant=of,
        name=f"robot-{next(_numbers)}",
        role=int(role),
        owner=owner or member(of, Role.OWNER),
        created_at=NOW,
    )


def actor(who: Person) -> Actor:
    """Return the actor a log-in of this person would give."""
    return Actor(
        Kind.PERSON,
        who.pk,
        who.pk,
        tenant_roles={m.tenant_id: Role(m.role) for m in who.memberships.all()},
        platform_roles=frozenset(PlatformRole(m.role) for m in who.platform_memberships.all()),
        name=who.display_name,
    )


def quota(of: Tenant, **limits: int) -> None:
    """Set limits; `__` stands for the dots and dashes that keywords cannot hold: use `limits` for those."""
    for dimension, amount in limits.items():
        set_limit(of, dimension, amount)


def set_limit(
    of: Tenant, dimension: str, amount: int, *, until: datetime | None = None, inherit: bool = False
) -> Quota:
    """Set one limit."""
    return Quota.objects.create(
        tenant=of, dimension=dimension, amount=amount, until=until, inherit=inherit, created_at=NOW
    )


def generous(of: Tenant, *products: str, amount: int = 1_000_000) -> None:
    """Give a tenant so much of everything that quota is not what a test is about."""
    for dimension in ("vcpu", "memory_gib", "storage_gib", "machines", "boundaries", "endpoints"):
        set_limit(of, dimension, amount)
    for product in products or ("H100-80GB",):
        set_limit(of, f"gpu.{product}.slices", amount)


def allow_keys(of: Tenant, *ways: str) -> None:
    """Let a tenant's policy allow keys that stay on machines, or only such ways in."""
    of.policy = {**of.policy, "logins": list(ways or ("certificate", "key"))}
    of.save(update_fields=["policy"])


def provider(*, name: str = "", kind: str = "sandbox", site: str = "berlin", **values: Any) -> Provider:
    """Make a provider that works."""
    return Provider.objects.create(
        name=name or f"provider-{next(_numbers)}", kind=kind, site=site, healthy=True, created_at=NOW, **values
    )


def host(
    of: Provider,
    *,
    gpus: int = 8,
    product: str = "H100-80GB",
    slots: int = 8,
    binding: str = "device",
    vcpu: int = 128,
    memory_gib: int = 1024,
    state: str = "open",
) -> Host:
    """Make a host with GPUs, open and placeable."""
    n = next(_numbers)
    row = Host.objects.create(
        provider=of,
        provider_ref=f"host-{n}",
        name=f"host-{n}",
        state=state,
        binding=binding,
        gpu_product=product if gpus else "",
        total_vcpu=vcpu,
        total_memory_gib=memory_gib,
        free_vcpu=vcpu,
        free_memory_gib=memory_gib,
        gpu_count=gpus,
        empty_gpus=gpus,
        created_at=NOW,
    )
    GpuDevice.objects.bulk_create(
        GpuDevice(
            host=row,
            provider=of,
            provider_ref=f"host-{n}-gpu-{i}",
            index=i,
            product=product,
            slots=slots,
            free=(1 << slots) - 1,
            mode="empty",
            layout_change="dynamic",
            created_at=NOW,
        )
        for i in range(gpus)
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT ledger_refresh_placeable(%s)", [of.pk])
    row.refresh_from_db()
    return row


def served_model(name: str = "llama-3-1-8b") -> ServedModel:
    """Make a pinned served model."""
    return ServedModel.objects.create(
        name=name, repository="meta-llama/Llama-3.1-8B-Instruct", commit="0" * 39 + "1", created_at=NOW
    )


def gateway(of: Tenant, **values: Any) -> GatewayReplica:
    """Make one more gateway of a tenant, in a boundary of its own at a provider of its own."""
    boundary = Boundary.objects.create(tenant=of, provider=provider(), kind="namespace", tier="shared", created_at=NOW)
    return GatewayReplica.objects.create(tenant=of, boundary=boundary, created_at=NOW, **values)


def token_price(amount: Decimal, *, valid_from: datetime) -> None:
    """Publish what a token costs everywhere from a moment on, whatever came before."""
    row = PriceList.objects.create(name=f"prices-{next(_numbers)}", valid_from=valid_from, created_at=valid_from)
    Price.objects.create(price_list=row, item="token", amount=amount)
