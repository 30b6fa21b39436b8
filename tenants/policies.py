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


ANY_PLATFORM: Final = frozenset(P)
OPERATOR: Final = frozenset({P.OPERATOR})
APPROVER: Final = frozenset({P.APPROVER})


def tenant(role: Role, *platform: P, persons_only: bool = False) -> Policy:
    """Return a policy on a tenant's objects."""
    return Policy(Scope.TENANT, role, frozenset(platform), persons_only)


def view(role: Role = Role.VIEWER) -> Policy:
    """Return a read policy: the role on the tenant, or any platform role."""
    return Policy(Scope.TENANT, role, ANY_PLATFORM)


def platform(*roles: P) -> Policy:
    """Return a policy on platform objects."""
    return Policy(Scope.PLATFORM, None, frozenset(roles), persons_only=True)
