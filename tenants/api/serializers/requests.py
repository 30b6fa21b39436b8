"""Shapes of requests, decisions, comments, delegations and rules of automatic approval."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from tenants.api.serializers.base import Change, In, Moment, Name, Out, PageQuery, absent, line, text, word
from tenants.api.serializers.capacity import Dimension
from tenants.api.serializers.models import ModelPayload
from tenants.api.serializers.people import Email, RoleWord
from tenants.models import AutoApprovalRule, Delegation, Request
from tenants.states import RequestKind, RequestState

Limits = Annotated[
    dict[Dimension, Annotated[int, Field(ge=0, le=1_000_000_000)]],
    Field(max_length=50),
]
SomeLimits = Annotated[
    dict[Dimension, Annotated[int, Field(ge=1, le=1_000_000_000)]],
    Field(min_length=1, max_length=50),
]


class QuotaPayload(In):
    """More quota: what to add (or set), for how long, and what is missing further up."""

    mode: Literal["add", "set"] = "add"
    limits: Limits = {}
    ancestors: Annotated[dict[Name, Limits], Field(max_length=3)] = {}
    until: Moment | None = None


class RequestIn(In):
    """A request about this tenant: `quota`."""

    kind: RequestKind = RequestKind.QUOTA
    payload: QuotaPayload
    reason: text(1000) = ""  # type: ignore[valid-type]


WISH: Final = (
    'What runs first, for deciders to see. `{"endpoint": {name, model, product, profile, vcpu, memory_gib, days}}` is '
    "started by the approval, and its limits are asked for with it."
)


class TenantPayload(In):
    """A tenant that is to be made."""

    name: Name
    display_name: line(0, 120) = ""  # type: ignore[valid-type]
    description: text(500) = ""  # type: ignore[valid-type]
    parent: Annotated[str, StringConstraints(pattern=r"^([a-z]([a-z0-9-]{0,38}[a-z0-9])?)?$")] = ""
    limits: Limits = {}
    until: Moment | None = None
    wish: dict[str, Any] = Field({}, description=WISH)


class TenantRequestIn(In):
    """A request for a new tenant."""

    payload: TenantPayload
    reason: text(1000) = ""  # type: ignore[valid-type]


class JoinRequestIn(In):
    """A request to join a tenant."""

    tenant: Name
    role: RoleWord = "member"
    reason: text(1000) = ""  # type: ignore[valid-type]


class WriteOffRequestIn(In):
    """A request to write off what a lost provider holds."""

    tenant: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,40}$")]
    allocation: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,40}$")]
    reason: text(1000) = ""  # type: ignore[valid-type]


class ModelRequestIn(In):
    """A request for a model of the tenant's own."""

    payload: ModelPayload
    reason: text(1000) = ""  # type: ignore[valid-type]


class ReviseIn(In):
    """What is asked for instead; all stages start again."""

    payload: dict[str, Any]
    reason: text(1000) | None = None  # type: ignore[valid-type]


class CommentIn(In):
    """One line in the thread."""

    text: text(2000, least=1)  # type: ignore[valid-type]


class DecideIn(In):
    """A verdict on one version of a request."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(description="The version that was read.")
    verdict: Literal["approve", "reduce", "deny"]
    granted: dict[str, Any] | None = Field(None, description="With `reduce`: what is granted instead.")
    reason: text(1000) = ""  # type: ignore[valid-type]
    expect_proof: dict[str, Any] | None = Field(
        None, description="The proof as it was shown: a worse outcome changes nothing and is answered with both."
    )


class StageOut(Out):
    """One stage a request must pass."""

    order: int
    decider: str
    done_at: datetime | None


class DecisionOut(Out):
    """One verdict."""

    version: int
    decider: str | None
    on_behalf_of: str | None
    rule: str | None
    verdict: str
    granted: dict[str, Any]
    reason: str
    proof: dict[str, Any]
    created_at: datetime


class CommentOut(Out):
    """One line in the thread."""

    author: str
    text: str
    created_at: datetime


class RequestOut(Out):
    """A tenant's ask of some kind, its stages, decisions and thread."""

    id: str
    short_id: str
    kind: RequestKind
    state: RequestState
    tenant: str | None
    tenant_id: str | None
    payload: dict[str, Any]
    reason: str
    requester: str
    requester_name: str
    allocation: str | None
    stages: list[StageOut]
    decisions: list[DecisionOut]
    comments: list[CommentOut]
    outcome: dict[str, Any]
    created_at: datetime
    expires_at: datetime | None
    decided_at: datetime | None
    version: int

    @classmethod
    def of(cls, row: Request, *, requester_name: str) -> RequestOut:
        """Return a request; tenant, stages, decisions and comments must be loaded."""
        return cls(
            id=str(row.pk),
            short_id=row.short_id,
            kind=RequestKind(row.kind),
            state=RequestState(row.state),
            tenant=row.tenant.name if row.tenant is not None else None,
            tenant_id=str(row.tenant_id) if row.tenant_id else None,
            payload=row.payload,
            reason=row.reason,
            requester=str(row.requester_id),
            requester_name=requester_name,
            allocation=str(row.allocation_id) if row.allocation_id else None,
            stages=[
                StageOut(order=stage.order, decider=stage.decider, done_at=stage.done_at)
                for stage in sorted(row.stages.all(), key=lambda s: s.order)
            ],
            decisions=[
                DecisionOut(
                    version=decision.request_version,
                    decider=str(decision.decider_id) if decision.decider_id else None,
                    on_behalf_of=str(decision.on_behalf_of_id) if decision.on_behalf_of_id else None,
                    rule=str(decision.rule_id) if decision.rule_id else None,
                    verdict=decision.verdict,
                    granted=decision.granted,
                    reason=decision.reason,
                    proof=decision.proof,
                    created_at=decision.created_at,
                )
                for decision in sorted(row.decisions.all(), key=lambda d: d.created_at)
            ],
            comments=[
                CommentOut(author=str(comment.author_id), text=comment.text, created_at=comment.created_at)
                for comment in sorted(row.comments.all(), key=lambda c: c.created_at)
            ],
            outcome=row.outcome,
            created_at=row.created_at,
            expires_at=row.expires_at,
            decided_at=row.decided_at,
            version=row.version,
        )


class RequestQuery(PageQuery):
    """Filters of requests."""

    kind: RequestKind | None = None
    state: RequestState | None = None
    tenant: word() = ""  # type: ignore[valid-type]


class InboxOut(Out):
    """What the caller may decide now, oldest first."""

    items: list[RequestOut]


class ProofOut(Out):
    """What approving would do now."""

    version: int
    """Version of the request that the proof is about."""
    proof: dict[str, Any]


class DelegationIn(In):
    """Who decides in the caller's place, and when."""

    delegate: Email
    starts_at: Moment
    ends_at: Moment


class DelegationOut(Out):
    """Somebody decides in another's place between two dates."""

    id: str
    person: str
    delegate: str
    starts_at: datetime
    ends_at: datetime
    created_at: datetime

    @classmethod
    def of(cls, row: Delegation) -> DelegationOut:
        """Return a delegation."""
        return cls(
            id=str(row.pk),
            person=str(row.person_id),
            delegate=str(row.delegate_id),
            starts_at=row.starts_at,
            ends_at=row.ends_at,
            created_at=row.created_at,
        )


class RuleIn(In):
    """A rule of automatic approval."""

    name: line(most=80)  # type: ignore[valid-type]
    limits: SomeLimits = Field(description="Dimension → the most it adds to one tenant in all.")
    tenant: Name | None = None
    longest_s: Annotated[int, Field(ge=60, le=5 * 366 * 86400)] | None = None


class RuleChangeIn(Change):
    """What to change of a rule."""

    enabled: bool = absent()
    limits: SomeLimits = absent()
    longest_s: Annotated[int, Field(ge=60, le=5 * 366 * 86400)] = absent()


class RuleOut(Out):
    """Approves small requests by itself."""

    id: str
    name: str
    kind: str
    tenant_id: str | None
    limits: dict[str, int]
    longest_s: int | None
    enabled: bool
    created_at: datetime
    version: int

    @classmethod
    def of(cls, row: AutoApprovalRule) -> RuleOut:
        """Return a rule."""
        return cls(
            id=str(row.pk),
            name=row.name,
            kind=row.kind,
            tenant_id=str(row.tenant_id) if row.tenant_id else None,
            limits=row.limits,
            longest_s=row.longest_s,
            enabled=row.enabled,
            created_at=row.created_at,
            version=row.version,
        )
