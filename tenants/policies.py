"""Who may do what: one policy per operation id, looked up by every interface.

A route without an entry fails at start-up (`tenants.api.scoping`). The route matrix test walks this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tenants.states import PlatformRole as P
from tenants.states import Role


class Scope(StrEnum):
    """What an operation is about."""

    TENANT = "tenant"
    """Objects of one tenant: the caller's role on it counts."""
    PLATFORM = "platform"
    """Platform objects: platform roles count."""
    SELF = "self"
    """The caller's own things; any person or service account."""
    PUBLIC = "public"
    """No principal needed."""
    AGENT = "agent"
    """Gateways only."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may call one operation."""

    scope: Scope
    tenant_role: Role | None = None
    """Least role on the tenant; None: no tenant role suffices."""
    platform: frozenset[P] = frozenset()
    """Platform roles that suffice, whatever the tenant."""
    persons_only: bool = False
    """A service account is refused: decisions, roles, tokens of people."""
    idempotency: bool = True
    """Whether a POST by token needs Idempotency-Key."""
    above: bool = False
    """The role must be held above the tenant, on an ancestor: what a parent decides about its child."""


ANY_PLATFORM: Final = frozenset(P)
OPERATOR: Final = frozenset({P.OPERATOR})
APPROVER: Final = frozenset({P.APPROVER})


def tenant(role: Role, *platform: P, persons_only: bool = False, above: bool = False) -> Policy:
    """Return a policy on a tenant's objects."""
    return Policy(Scope.TENANT, role, frozenset(platform), persons_only, above=above)


def view(role: Role = Role.VIEWER) -> Policy:
    """Return a read policy: the role on the tenant, or any platform role."""
    return Policy(Scope.TENANT, role, ANY_PLATFORM)


def platform(*roles: P) -> Policy:
    """Return a policy on platform objects."""
    return Policy(Scope.PLATFORM, None, frozenset(roles), persons_only=True)


def own(*, persons_only: bool = False, idempotency: bool = True) -> Policy:
    """Return a policy on the caller's own things."""
    return Policy(Scope.SELF, persons_only=persons_only, idempotency=idempotency)


PUBLIC: Final = Policy(Scope.PUBLIC, idempotency=False)

ROUTES: dict[str, Policy] = {}
"""Operation id (`<noun>.<verb>`) → policy. Each noun adds its own block below."""

# Reads that every tenant noun has, and what belongs to the caller himself (REST).
ROUTES |= {
    f"{noun}.{verb}": view()
    for noun in ("allocations", "boundaries", "endpoints", "machines", "namespaces")
    for verb in ("list", "read", "explain")
}
ROUTES |= {
    "costs.list": view(),
    "endpoint-calls.list": view(Role.MEMBER),
    "endpoint-keys.list": view(Role.MEMBER),
    "endpoint-minutes.list": view(),
    "endpoint-addresses.read": view(),
    "events.list": view(),
    "members.list": view(),
    "notices.list": view(),
    "quotas.list": view(),
    "requests.list": view(),
    "requests.read": view(),
    "revisions.list": view(),
    "revisions.diff": view(),
    "rollouts.list": view(),
    "moves.list": view(),
    "service-accounts.list": view(),
    "service-accounts.read": view(),
    "service-account-tokens.list": view(Role.OWNER),
    "suspensions.list": view(),
    "tenants.list": view(),
    "tenants.read": view(),
    "usage.list": view(),
    "objects.find": own(),
    "events.stream": own(),
    "who.read": own(),
    "catalogue.list": own(),
    "machine-images.list": own(),
    "prices.list": own(),
    "providers.list": own(),
    "providers.read": own(),
    "served-models.list": own(),
    "served-models.read": own(),
    "tokens.list": own(),
    "people.list": platform(*P),
    "people.read": platform(*P),
    "hosts.list": platform(*P),
    "hosts.read": platform(*P),
    "devices.list": platform(*P),
    "devices.read": platform(*P),
    "findings.list": platform(*P),
    "findings.read": platform(*P),
    "plans.list": platform(*P),
    "plans.read": platform(*P),
    "checkpoints.list": platform(*P),
    "platform.read": platform(*P),
    "system.read": platform(*P),
    "system.check": platform(*P),
    "evidence.make": platform(*P),
    "evidence.as_of": view(Role.OWNER),
    "schema.read": PUBLIC,
    "docs.read": PUBLIC,
}

# Allocations and the three products (writes).
ROUTES |= {
    "allocations.create": tenant(Role.MEMBER),
    "allocations.create_batch": tenant(Role.MEMBER),
    "allocations.delete": tenant(Role.MEMBER, P.OPERATOR),
    "allocations.renew": tenant(Role.MEMBER, P.OPERATOR),
    "namespaces.credential": tenant(Role.VIEWER, persons_only=True),
    "namespaces.read_credential": tenant(Role.VIEWER, persons_only=True),
    "benchmarks.list": view(),
    "benchmarks.read": view(),
    "boundaries.certificate": view(),
    "boundaries.certify": tenant(Role.MEMBER, P.OPERATOR),
    "endpoints.create": tenant(Role.MEMBER),
    "endpoints.update": tenant(Role.MEMBER),
    "endpoints.delete": tenant(Role.MEMBER, P.OPERATOR),
    "endpoints.revise": tenant(Role.MEMBER),
    "endpoints.sleep": tenant(Role.MEMBER),
    "endpoints.wake": tenant(Role.MEMBER),
    "endpoints.set_idle": tenant(Role.MEMBER),
    "endpoints.promote": tenant(Role.MEMBER),
    "endpoints.hold": tenant(Role.MEMBER),
    "endpoints.resume": tenant(Role.MEMBER),
    "endpoints.abort": tenant(Role.MEMBER, P.OPERATOR),
    "endpoints.rollback": tenant(Role.MEMBER, P.OPERATOR),
    "endpoints.move": tenant(Role.MEMBER),
    "endpoints.cut_over": tenant(Role.MEMBER),
    "endpoints.finish_move": tenant(Role.MEMBER),
    "endpoints.undo_move": tenant(Role.MEMBER, P.OPERATOR),
    "endpoints.benchmark": tenant(Role.MEMBER),
    "endpoints.cancel_benchmark": tenant(Role.MEMBER, P.OPERATOR),
    "endpoints.log": tenant(Role.MEMBER),
    "endpoints.read_log": tenant(Role.MEMBER),
    "endpoints.create_key": tenant(Role.MEMBER),
    "endpoints.roll_key": tenant(Role.MEMBER),
    "endpoints.limit_key": tenant(Role.MEMBER),
    "endpoints.revoke_key": tenant(Role.MEMBER, P.OPERATOR),
    "machines.create": tenant(Role.MEMBER),
    "machines.update": tenant(Role.MEMBER),
    "machines.power": tenant(Role.MEMBER, P.OPERATOR),
    "machines.rebuild": tenant(Role.MEMBER),
    "machines.resize": tenant(Role.MEMBER),
    "machines.delete": tenant(Role.MEMBER, P.OPERATOR),
    "machines.ssh_certificate": tenant(Role.MEMBER),
    "machines.console": tenant(Role.MEMBER, persons_only=True),
    "machines.read_console": tenant(Role.MEMBER, persons_only=True),
    "namespaces.create": tenant(Role.MEMBER),
    "namespaces.update": tenant(Role.MEMBER),
    "namespaces.delete": tenant(Role.MEMBER, P.OPERATOR),
}

# People, tenants, quotas, requests, prices, served models (writes).
ROUTES |= {
    "login.create": PUBLIC,
    "login.delete": own(),
    "tokens.create": own(persons_only=True),
    "tokens.revoke": own(persons_only=True),
    "tokens.find": own(persons_only=True),
    "people.create": platform(P.OPERATOR),
    "people.update": platform(P.OPERATOR),
    "people.suspend": platform(P.OPERATOR),
    "people.resume": platform(P.OPERATOR),
    "people.leave": platform(P.OPERATOR),
    "people.erase": platform(P.OPERATOR),
    "people.set_roles": platform(P.OPERATOR),
    "people.set_password": own(persons_only=True),
    "people.update_own": own(persons_only=True),
    "tenants.create": platform(P.OPERATOR),
    "tenants.create_child": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "tenants.update": tenant(Role.OWNER, P.OPERATOR),
    "tenants.set_policy": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "tenants.close": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "tenants.rotate_ssh_authority": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "tenants.suspend": tenant(Role.OWNER, P.OPERATOR, persons_only=True, above=True),
    "tenants.resume": tenant(Role.OWNER, P.OPERATOR, persons_only=True, above=True),
    "members.create": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "members.update": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "members.delete": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "members.leave": tenant(Role.VIEWER, persons_only=True),
    "members.hand_over": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "service-accounts.create": tenant(Role.OWNER, persons_only=True),
    "service-accounts.update": tenant(Role.OWNER, persons_only=True),
    "service-accounts.disable": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "service-account-tokens.create": tenant(Role.OWNER, persons_only=True),
    "service-account-tokens.revoke": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "quotas.read": view(),
    "quotas.position": view(),
    "quotas.set": tenant(Role.OWNER, P.OPERATOR, persons_only=True, above=True),
    "quotas.remove": tenant(Role.OWNER, P.OPERATOR, persons_only=True, above=True),
    "requests.create": tenant(Role.MEMBER),
    "requests.create_tenant": own(),
    "requests.create_join": own(),
    "requests.create_write_off": platform(P.OPERATOR),
    "requests.create_model": tenant(Role.MEMBER),
    "requests.inbox": own(),
    "requests.proof": own(),
    "requests.comment": own(),
    "requests.revise": own(),
    "requests.withdraw": own(),
    "requests.decide": own(persons_only=True),
    "delegations.list": own(),
    "delegations.create": own(persons_only=True),
    "delegations.end": own(persons_only=True),
    "auto-approval-rules.list": platform(*P),
    "auto-approval-rules.create": platform(P.OPERATOR),
    "auto-approval-rules.update": platform(P.OPERATOR),
    "prices.read": own(),
    "prices.create": platform(P.OPERATOR),
    "served-models.create": platform(P.OPERATOR),
    "served-models.update": platform(P.OPERATOR),
}

# What real starts have taught about estimates; files of models at providers.
ROUTES |= {
    "model-stages.list": platform(*P),
    "model-stages.read": platform(*P),
    "model-stages.create": platform(P.OPERATOR),
    "model-stages.remove": platform(P.OPERATOR),
    "fit-corrections.list": platform(*P),
    "fit-corrections.read": platform(*P),
    "fit-corrections.reset": platform(P.OPERATOR),
}

# What REST adds to the operations above.
ROUTES |= {
    "endpoints.put": tenant(Role.MEMBER),
    "machines.put": tenant(Role.MEMBER),
    "namespaces.put": tenant(Role.MEMBER),
    "errors.read": PUBLIC,
    "health.read": PUBLIC,
}

# Notifications: a person's own bell and wishes; a tenant's webhooks, whose addresses may hold tokens.
ROUTES |= {
    "notifications.list": own(persons_only=True),
    "notifications.count": own(persons_only=True),
    "notifications.mark_read": own(persons_only=True, idempotency=False),
    "notification-kinds.list": own(),
    "notification-preferences.list": own(persons_only=True),
    "notification-preferences.set": own(persons_only=True),
    "webhooks.list": view(Role.OWNER),
    "webhooks.read": view(Role.OWNER),
    "webhooks.create": tenant(Role.OWNER, persons_only=True),
    "webhooks.update": tenant(Role.OWNER, persons_only=True),
    "webhooks.roll": tenant(Role.OWNER, persons_only=True),
    "webhooks.enable": tenant(Role.OWNER, persons_only=True),
    "webhooks.disable": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "webhooks.delete": tenant(Role.OWNER, P.OPERATOR, persons_only=True),
    "webhooks.test": tenant(Role.OWNER, persons_only=True),
    "webhooks.send_again": tenant(Role.OWNER, persons_only=True),
    "webhook-deliveries.list": view(Role.OWNER),
    "webhook-deliveries.read": view(Role.OWNER),
}

# What a tenant means to spend in a month.
ROUTES |= {
    "budgets.read": view(),
    "budgets.set": tenant(Role.OWNER, P.OPERATOR),
    "budgets.remove": tenant(Role.OWNER, P.OPERATOR),
}

# Gateways, over `/agent/v1/`. Enrolment proves itself by its one-time token.
AGENT: Final = Policy(Scope.AGENT, idempotency=False)
ROUTES |= {
    "agents.enrol": PUBLIC,
    "agents.config": AGENT,
    "agents.ssh_revoked": PUBLIC,
    "agents.serving": AGENT,
    "agents.lease": AGENT,
    "agents.usage": AGENT,
    "agents.report": AGENT,
    "agents.wake": AGENT,
    "agents.certificate": AGENT,
}

# Providers, hosts, plans over hosts, findings.
ROUTES |= {
    "providers.create": platform(P.OPERATOR),
    "providers.update": platform(P.OPERATOR),
    "providers.enable": platform(P.OPERATOR),
    "providers.disable": platform(P.OPERATOR),
    "providers.delete": platform(P.OPERATOR),
    "providers.test": platform(P.OPERATOR),
    "providers.set_credential": platform(P.OPERATOR),
    "providers.remove_credential": platform(P.OPERATOR),
    "hosts.accept": platform(P.OPERATOR),
    "hosts.open": platform(P.OPERATOR),
    "hosts.cordon": platform(P.OPERATOR),
    "hosts.uncordon": platform(P.OPERATOR),
    "hosts.drain": platform(P.OPERATOR),
    "hosts.preview_drain": platform(P.OPERATOR),
    "hosts.layout": platform(P.OPERATOR),
    "hosts.preview_layout": platform(P.OPERATOR),
    "hosts.maintenance": platform(P.OPERATOR),
    "hosts.return": platform(P.OPERATOR),
    "hosts.remove": platform(P.OPERATOR),
    "devices.repair": platform(P.OPERATOR),
    "plans.cancel": platform(P.OPERATOR),
    "plans.start": platform(P.OPERATOR),
    "findings.resolve": platform(P.OPERATOR),
}
