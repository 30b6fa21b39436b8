"""The only querysets scoped to an actor, and the one question "may he?".

Invisible is `NotVisible` (404), visible but forbidden is `Forbidden` (403). Foreign and missing look the
same. Row-level security stands behind all of it.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar
from uuid import UUID

from django.db import models
from django.db.models import Q, QuerySet

from tenants.actor import Actor, Kind
from tenants.errors import Forbidden, NotVisible, Unauthenticated
from tenants.models import Tenant
from tenants.policies import Policy, Scope
from tenants.states import Role

SHORT_ID: Final = re.compile(r"[a-z]{1,4}-[0-9a-z]{4,}\Z")
"""What short ids look like: a prefix of the kind, then what `app_short_id` drew."""
M = TypeVar("M", bound=models.Model)


def visible_tenants(actor: Actor) -> Q:
    """Return the condition on `Tenant` of what the actor may see: his tenants and their children."""
    if actor.kind is Kind.SYSTEM or actor.sees_all:
        return Q()
    roots = list(actor.tenant_roles)
    if actor.only_tenant is not None:
        return Q(path__contains=[actor.only_tenant]) & (Q(path__overlap=roots) if not actor.platform_roles else Q())
    return Q(path__overlap=roots) if roots else Q(pk__in=[])


def tenants(actor: Actor) -> QuerySet[Tenant]:
    """Return the tenants the actor may see."""
    return Tenant.objects.filter(visible_tenants(actor))


def scoped(model: type[M], actor: Actor, *, tenant: Tenant | None = None) -> QuerySet[M]:
    """Return the rows of a tenant-owned model the actor may see, of one tenant if given.

    The model has a `tenant` column. Only a caller that has been told `tenant` by `tenant_for` passes it.
    """
    rows = model._default_manager.all()
    if tenant is not None:
        return rows.filter(tenant_id=tenant.pk)
    if actor.kind is Kind.SYSTEM or actor.sees_all:
        return rows
    return rows.filter(tenant_id__in=tenants(actor).values("pk"))


def tenant_for(actor: Actor, key: str | UUID, policy: Policy) -> Tenant:
    """Return the tenant named by name, short id or id, if the policy lets the actor at it.

    Raises `Unauthenticated`, `NotVisible`, `Forbidden`.
    """
    require_principal(actor, policy)
    tenant = find(tenants(actor), key)
    check(actor, tenant, policy)
    return tenant


def find(rows: QuerySet[M], key: str | UUID) -> M:
    """Return the row of `rows` with this id, short id or name. Raises `NotVisible`."""
    text = str(key)
    try:
        row = rows.filter(pk=UUID(text)).first()
    except ValueError:
        row = _named(rows, text)
    if row is None:
        raise NotVisible
    return row


def _named(rows: QuerySet[M], text: str) -> M | None:
    """Return the row with this short id, else the one that has the name now, else one that had it.

    One after the other: with both in one condition no index serves, and names may look like short ids.
    """
    fields = {f.name for f in rows.model._meta.get_fields()}
    row = rows.filter(short_id=text).first() if "short_id" in fields and SHORT_ID.match(text) else None
    if row is not None or "name" not in fields:
        return row
    found = rows.filter(name=text)
    if "released_at" in fields:
        found = found.order_by(models.F("released_at").desc(nulls_first=True))
    return found.first()


def require_principal(actor: Actor, policy: Policy) -> None:
    """Raise `Unauthenticated` unless the policy is satisfied with this kind of principal; agents only for agents."""
    if policy.scope is Scope.PUBLIC:
        return
    if actor.kind in {Kind.ANONYMOUS, Kind.AUTH}:
        raise Unauthenticated
    if (actor.kind is Kind.AGENT) != (policy.scope is Scope.AGENT):
        raise Unauthenticated
    if policy.persons_only and actor.kind is Kind.SERVICE_ACCOUNT:
        msg = "This needs a person: a service account may not do it."
        raise Forbidden(msg)


def allowed(actor: Actor, tenant: Tenant | None, policy: Policy) -> bool:
    """Whether the policy lets the actor do it to objects of `tenant` (None: platform objects)."""
    if actor.kind is Kind.SYSTEM:
        return True
    if actor.has(*policy.platform):
        return True
    if tenant is None or policy.tenant_role is None:
        return policy.scope in {Scope.SELF, Scope.PUBLIC, Scope.AGENT}
    role = actor.role_on(tenant.path[:-1] if policy.above else tenant.path)
    return role is not None and role >= policy.tenant_role


def check(actor: Actor, tenant: Tenant | None, policy: Policy) -> None:
    """Raise `Forbidden` unless allowed."""
    if not allowed(actor, tenant, policy):
        needed = policy.tenant_role.word if policy.tenant_role else ", ".join(sorted(policy.platform))
        msg = f"This needs the role {needed}." if needed else "Your role does not allow this."
        raise Forbidden(msg, needed=needed)


def role_word(actor: Actor, tenant: Tenant) -> str:
    """Return the actor's role on a tenant for people to read, `""` without one."""
    role = actor.role_on(tenant.path)
    return Role(role).word if role else ""


def people_data(actor: Actor) -> dict[str, Any]:
    """Return what `who` shows of a principal."""
    return {
        "kind": str(actor.kind),
        "id": str(actor.id) if actor.id else None,
        "person": str(actor.person_id) if actor.person_id else None,
        "name": actor.name,
        "platform_roles": sorted(actor.platform_roles),
        "read_only": actor.read_only,
    }
