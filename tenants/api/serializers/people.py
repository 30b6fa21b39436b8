"""Shapes of people, tenants, memberships, service accounts, tokens and log-in."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from tenants.api.serializers.base import (
    ID_PATTERN,
    Change,
    In,
    Labels,
    ManagedBy,
    Moment,
    Name,
    Out,
    PageQuery,
    absent,
    line,
    text,
    word,
)
from tenants.models import ApiToken, Membership, Person, ServiceAccount, SshAuthority, Suspension, Tenant
from tenants.states import (
    ROLE_BY_WORD,
    Login,
    PlatformRole,
    Role,
    StockVisibility,
    SuspensionDepth,
    TenantStatus,
    Tier,
)

RoleWord = Literal["viewer", "member", "owner"]
ServiceRole = Literal["viewer", "member"]
Email = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9._%+'-]{1,64}@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}$",
        max_length=254,
    ),
]
NewPassword = text(200, least=10)
Password = text(200, least=1)


def role_of(word: str) -> Role:
    """Return a role by its word."""
    return ROLE_BY_WORD[word]


class LoginIn(In):
    """E-mail and password."""

    email: Email
    password: Password  # type: ignore[valid-type]
    name: line(most=80) = "log-in"  # type: ignore[valid-type]


class TokenOut(Out):
    """A token; its plain text only in the answer that makes it."""

    id: str
    name: str
    read_only: bool
    tenant: str | None
    service_account: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    token: str | None = Field(None, description="Plain text: only in the answer to its creation.")

    @classmethod
    def of(cls, row: ApiToken, *, token: str | None = None) -> TokenOut:
        """Return a token; tenant and service account must be loaded."""
        return cls(
            id=row.public_id,
            name=row.name,
            read_only=row.read_only,
            tenant=row.tenant.name if row.tenant is not None else None,
            service_account=row.service_account.name if row.service_account is not None else None,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
            token=token,
        )


class TokenIn(In):
    """A new token of one's own."""

    name: line(most=80)  # type: ignore[valid-type]
    tenant: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,40}$")] | None = Field(
        None, description="Narrow it to one tenant and its children."
    )
    read_only: bool = False
    expires_at: Moment | None = None


class ServiceTokenIn(In):
    """A new token of a service account."""

    name: line(most=80)  # type: ignore[valid-type]
    read_only: bool = False
    expires_at: Moment | None = None


class FindTokenIn(In):
    """A text somebody pasted; the first token or key in it is looked up. The text is stored nowhere."""

    text: text(4000, least=1)  # type: ignore[valid-type]


class FoundSecretOut(Out):
    """Whose a leaked token or key is."""

    kind: Literal["token", "endpoint-key"]
    id: str
    name: str
    belongs_to: str
    tenant: str | None
    revoked: bool
    last_used_at: datetime | None


class PersonOut(Out):
    """A person."""

    id: str
    email: str
    display_name: str
    platform_roles: list[PlatformRole]
    is_active: bool
    created_at: datetime
    left_at: datetime | None

    @classmethod
    def of(cls, row: Person) -> PersonOut:
        """Return a person; platform memberships must be loaded."""
        return cls(
            id=str(row.pk),
            email=row.email,
            display_name=row.display_name,
            platform_roles=sorted(PlatformRole(m.role) for m in row.platform_memberships.all()),
            is_active=row.is_active,
            created_at=row.created_at,
            left_at=row.left_at,
        )


class PersonQuery(PageQuery):
    """Filters of people."""

    email: word(254) = ""  # type: ignore[valid-type]
    active: bool | None = None


class PersonIn(In):
    """A new person."""

    email: Email
    display_name: line(most=120)  # type: ignore[valid-type]
    password: NewPassword = absent()  # type: ignore[valid-type]
    roles: Annotated[list[PlatformRole], Field(max_length=3)] = []


class PersonChangeIn(Change):
    """What to change of a person."""

    email: Email = absent()
    display_name: line(most=120) = absent()  # type: ignore[valid-type]


class RolesIn(In):
    """The platform roles a person should have."""

    roles: Annotated[list[PlatformRole], Field(max_length=3)]


class ReasonIn(In):
    """Why."""

    reason: line(most=500)  # type: ignore[valid-type]


class PasswordIn(In):
    """A new password of one's own."""

    old: Password | None = None  # type: ignore[valid-type]
    new: NewPassword  # type: ignore[valid-type]


class LeaveIn(In):
    """Who takes over what a leaver owned."""

    successor: Email | None = None


class WhoOut(Out):
    """Who the caller is and what he may do."""

    kind: str
    id: str | None
    person: str | None
    name: str
    platform_roles: list[str]
    read_only: bool
    tenants: list[WhoTenant]


class WhoTenant(Out):
    """One tenant of the caller and his role there."""

    id: str
    name: str
    role: str


class TenantOut(Out):
    """The unit of isolation, quota and membership."""

    id: str
    short_id: str
    name: str
    display_name: str
    description: str
    parent: str | None
    status: TenantStatus
    policy: dict[str, Any]
    stock_visibility: StockVisibility
    labels: dict[str, str]
    managed_by: str
    role: str
    """The caller's role on it, empty without one."""
    suspended: SuspensionDepth | None
    created_at: datetime
    closed_at: datetime | None
    version: int

    @classmethod
    def of(cls, row: Tenant, *, role: str, suspended: str | None) -> TenantOut:
        """Return a tenant; its parent must be loaded."""
        return cls(
            id=str(row.pk),
            short_id=row.short_id,
            name=row.name,
            display_name=row.display_name,
            description=row.description,
            parent=row.parent.name if row.parent is not None else None,
            status=TenantStatus(row.status),
            policy=row.policy,
            stock_visibility=StockVisibility(row.stock_visibility),
            labels=row.labels,
            managed_by=row.managed_by,
            role=role,
            suspended=SuspensionDepth(suspended) if suspended else None,
            created_at=row.created_at,
            closed_at=row.closed_at,
            version=row.version,
        )


class TenantQuery(PageQuery):
    """Filters of tenants."""

    name: word(40) = ""  # type: ignore[valid-type]
    status: TenantStatus | None = None
    parent: word() = ""  # type: ignore[valid-type]
    managed_by: ManagedBy | None = None


class TenantIn(In):
    """A new tenant at the root."""

    name: Name
    display_name: line(most=120)  # type: ignore[valid-type]
    description: text(500) = ""  # type: ignore[valid-type]
    labels: Labels = {}
    owner_email: Email | None = None
    stock_visibility: StockVisibility = StockVisibility.BANDS
    managed_by: ManagedBy = "api"


class TenantChangeIn(Change):
    """What to change of a tenant; what is left out stays."""

    display_name: line(most=120) = absent()  # type: ignore[valid-type]
    description: text(500) = absent()  # type: ignore[valid-type]
    labels: Labels = absent()
    stock_visibility: StockVisibility = absent()


PolicyWords = Annotated[
    list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]], Field(max_length=200)
]


class PolicyIn(In):
    """Rules of a tenant; a rule that is left out is inherited."""

    sites: PolicyWords | None = None
    tiers: Annotated[list[Tier], Field(max_length=4)] | None = None
    products: PolicyWords | None = None
    models: PolicyWords | None = None
    runtimes: PolicyWords | None = None
    logins: Annotated[list[Login], Field(max_length=2)] | None = None
    longest_s: Annotated[int, Field(ge=60, le=10 * 366 * 86400)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=10**9)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=10**12)] | None = None
    approvals: (
        Annotated[
            dict[
                Literal["quota", "tenant", "join", "write-off", "model"],
                Annotated[
                    list[Literal["tenant-owner", "parent-owner", "platform-approver"]],
                    Field(min_length=1, max_length=5),
                ],
            ],
            Field(max_length=8),
        ]
        | None
    ) = None


class SshAuthorityOut(Out):
    """Who signs SSH certificates for machines of a tenant made from now on."""

    id: str
    public_key: str
    created_at: datetime

    @classmethod
    def of(cls, row: SshAuthority) -> SshAuthorityOut:
        """Return the public half of an authority."""
        return cls(id=str(row.pk), public_key=row.public_key, created_at=row.created_at)


class SuspensionIn(In):
    """How deep and why."""

    depth: SuspensionDepth
    reason: line(most=500)  # type: ignore[valid-type]
    until: Moment | None = None


class SuspensionOut(Out):
    """A suspension of a tenant."""

    id: str
    tenant: str
    depth: SuspensionDepth
    reason: str
    author: str
    created_at: datetime
    until: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, row: Suspension) -> SuspensionOut:
        """Return a suspension; its tenant must be loaded."""
        return cls(
            id=str(row.pk),
            tenant=row.tenant.name,
            depth=SuspensionDepth(row.depth),
            reason=row.reason,
            author=str(row.author),
            created_at=row.created_at,
            until=row.until,
            ended_at=row.ended_at,
        )


class MemberOut(Out):
    """One person's role in a tenant."""

    id: str
    tenant: str
    person: str
    email: str
    display_name: str
    role: str
    created_at: datetime
    version: int

    @classmethod
    def of(cls, row: Membership) -> MemberOut:
        """Return a membership; tenant and person must be loaded."""
        return cls(
            id=str(row.pk),
            tenant=row.tenant.name,
            person=str(row.person_id),
            email=row.person.email,
            display_name=row.person.display_name,
            role=Role(row.role).word,
            created_at=row.created_at,
            version=row.version,
        )


class MemberIn(In):
    """A new member."""

    email: Email
    role: RoleWord


class RoleIn(In):
    """The role a member should have."""

    role: RoleWord


class HandoverIn(In):
    """To whom."""

    to: Annotated[str, StringConstraints(pattern=ID_PATTERN)] = Field(description="Id of a member.")


class HandoverOut(Out):
    """What somebody owned in a tenant and who has it now."""

    tenant: str
    objects: list[dict[str, str]]
    service_accounts: list[str]
    disabled: list[str]
    to: str | None


class DepartureOut(Out):
    """What ended with a person."""

    person: str
    handovers: list[HandoverOut]
    sessions: int
    tokens: int
    delegations: int
    requests_withdrawn: int


class ServiceAccountOut(Out):
    """A machine's principal inside one tenant."""

    id: str
    tenant: str
    name: str
    role: str
    owner: str
    created_at: datetime
    expires_at: datetime | None
    disabled_at: datetime | None
    version: int

    @classmethod
    def of(cls, row: ServiceAccount) -> ServiceAccountOut:
        """Return a service account; its tenant must be loaded."""
        return cls(
            id=str(row.pk),
            tenant=row.tenant.name,
            name=row.name,
            role=Role(row.role).word,
            owner=str(row.owner_id),
            created_at=row.created_at,
            expires_at=row.expires_at,
            disabled_at=row.disabled_at,
            version=row.version,
        )


class ServiceAccountIn(In):
    """A new service account; the caller answers for it."""

    name: Name
    role: ServiceRole
    expires_at: Moment | None = None


class ServiceAccountChangeIn(Change):
    """What to change of a service account."""

    role: ServiceRole = absent()
    owner: Annotated[str, StringConstraints(pattern=ID_PATTERN)] = absent("Id of the member who answers for it.")
    expires_at: Moment = absent()


WhoOut.model_rebuild()
