"""Who acts: the principal of a request or a pass, and what its roles are. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from uuid import UUID

from tenants.states import PlatformRole, Role


class Kind(StrEnum):
    """Kinds of principals; the words of `app.actor`."""

    PERSON = "person"
    SERVICE_ACCOUNT = "service-account"
    AGENT = "agent"
    ANONYMOUS = "anonymous"
    AUTH = "auth"
    """The look-up of principals by e-mail or token, before an actor is known."""
    SYSTEM = "system"
    """Workers and commands, as cp_worker."""


@dataclass(frozen=True, slots=True)
class Actor:
    """A principal with its roles as read when it was authenticated."""

    kind: Kind
    id: UUID | None = None
    person_id: UUID | None = None
    """The accountable person: himself, or a service account's owner."""
    tenant_roles: Mapping[UUID, Role] = field(default_factory=dict)
    """Direct memberships; roles go up the tree, so an ancestor's role counts for a child."""
    platform_roles: frozenset[PlatformRole] = frozenset()
    token_id: UUID | None = None
    """Set when the proof is a token; such a caller must send Idempotency-Key on POST."""
    only_tenant: UUID | None = None
    """A token narrowed to one tenant (and its children)."""
    read_only: bool = False
    name: str = ""

    @property
    def word(self) -> str:
        """The value of `app.actor`, and how events name the actor."""
        return f"{self.kind}:{self.id}" if self.id else str(self.kind)

    @property
    def sees_all(self) -> bool:
        """Whether any platform role is there and the token is not narrowed to a tenant."""
        return bool(self.platform_roles) and self.only_tenant is None

    def has(self, *roles: PlatformRole) -> bool:
        """Whether one of these platform roles is there; the system has them all."""
        if self.kind is Kind.SYSTEM:
            return True
        return self.only_tenant is None and not self.platform_roles.isdisjoint(roles)

    def role_on(self, path: Sequence[UUID]) -> Role | None:
        """Return the strongest role on a tenant given its path (root first), None without any."""
        if self.only_tenant is not None and self.only_tenant not in path:
            return None
        return max((self.tenant_roles[t] for t in path if t in self.tenant_roles), default=None)


ANONYMOUS: Final = Actor(Kind.ANONYMOUS)
AUTH: Final = Actor(Kind.AUTH)
SYSTEM: Final = Actor(Kind.SYSTEM, name="system")
