"""Requests and what is done with them; delegations; rules of automatic approval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db.models import OuterRef, QuerySet, Subquery

from tenants import access
from tenants.api.serializers.base import Out, Page, PageQuery, page_of
from tenants.api.serializers.requests import (
    CommentIn,
    DecideIn,
    DelegationIn,
    DelegationOut,
    InboxOut,
    JoinRequestIn,
    ModelRequestIn,
    ProofOut,
    RequestIn,
    RequestOut,
    RequestQuery,
    ReviseIn,
    RuleChangeIn,
    RuleIn,
    RuleOut,
    TenantRequestIn,
    WriteOffRequestIn,
)
from tenants.api.views.base import ApiView, Call, Declared, reads, writes
from tenants.api.views.filters import of_tenant
from tenants.errors import Forbidden, InvalidSpec
from tenants.models import Allocation, AutoApprovalRule, Decision, Delegation, Person, Request, RequestComment
from tenants.operations import auto_approval_rules, delegations, people, requests
from tenants.states import RequestKind
from tenants.transactions import acting

NOBODY = UUID(int=0)
RequestPage = page_of(RequestOut)
DelegationPage = page_of(DelegationOut)
RulePage = page_of(RuleOut)


class RequestView(ApiView):
    """Requests. Whoever sees one is told by `requests.visible`; who may act is the operation's to say."""

    def rows(self, call: Call) -> QuerySet[Request]:
        """Return the requests the actor may see, with all that hangs on them."""
        # No join to people: row-level security hides who shares no tenant, and an inner join would hide the request.
        name = Person.objects.filter(pk=OuterRef("requester_id")).values("display_name")[:1]
        rows = requests.visible(call.actor)
        if call.tenant is not None:
            rows = rows.filter(tenant=call.tenant)
        return (
            rows.select_related("tenant")
            .prefetch_related("stages", "decisions", "comments")
            .annotate(asked_by=Subquery(name))
        )

    def show(self, row: Any, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a request."""
        return RequestOut.of(row, requester_name=row.asked_by or "")

    def locate(self, declared: Declared, call: Call) -> None:
        """Find the request; one about no tenant yet, or one not visible yet, is its requester's own."""
        if "tenant" in call.path or not self.key:
            super().locate(declared, call)
        else:
            call.target = self.find(call)

    def again(self, row: Any, call: Call) -> Any:
        """Return the request, whatever row the operation returned."""
        key = row.request_id if isinstance(row, Decision | RequestComment) else row.pk
        return self.rows(call).get(pk=key)


class RequestsAnywhere(RequestView):
    """All requests that the caller sees."""

    @reads("requests.list", answers=RequestPage, query=RequestQuery)
    def get(self, call: Call) -> Page:
        """List requests."""
        query: RequestQuery = call.query
        rows = of_tenant(self.rows(call), call)
        if query.kind is not None:
            rows = rows.filter(kind=query.kind.value)
        if query.state is not None:
            rows = rows.filter(state=query.state.value)
        return self.page(call, rows, RequestPage)


class Requests(RequestsAnywhere):
    """Requests of one tenant."""

    @writes("requests.create", body=RequestIn, answers=RequestOut, status=201)
    def post(self, call: Call) -> Any:
        """Ask for more quota."""
        body: RequestIn = call.body
        if body.kind in {RequestKind.TENANT, RequestKind.JOIN, RequestKind.WRITE_OFF}:
            raise InvalidSpec(f"Ask at /api/v1/requests:{body.kind.value}.", field="kind")
        if body.kind is RequestKind.MODEL:
            raise InvalidSpec("Ask at /api/v1/tenants/{tenant}/requests:model.", field="kind")
        return requests.submit(
            kind=body.kind.value,
            payload=body.payload.model_dump(mode="json", exclude_unset=True),
            reason=body.reason,
            tenant=call.home,
            actor=call.actor,
            now=call.now,
        )


class RequestModel(RequestView):
    """Asking for a model of the tenant's own."""

    @writes("requests.create_model", body=ModelRequestIn, answers=RequestOut, status=201)
    def post(self, call: Call) -> Any:
        """Ask for a model of the tenant's own, at a pinned commit; it is checked at once and offered once approved."""
        return requests.submit(
            kind=RequestKind.MODEL.value,
            payload=call.body.payload.model_dump(mode="json", exclude_unset=True),
            reason=call.body.reason,
            tenant=call.home,
            actor=call.actor,
            now=call.now,
        )


class RequestTenant(RequestView):
    """Asking for a tenant."""

    @writes("requests.create_tenant", body=TenantRequestIn, answers=RequestOut, status=201)
    def post(self, call: Call) -> Any:
        """Ask for a new tenant."""
        _refuse_narrowed(call)
        return requests.submit(
            kind=RequestKind.TENANT.value,
            payload=call.body.payload.model_dump(mode="json", exclude_unset=True),
            reason=call.body.reason,
            actor=call.actor,
            now=call.now,
        )


def _refuse_narrowed(call: Call) -> None:
    """A proof that is narrowed to one tenant does not speak for its person elsewhere."""
    if call.actor.only_tenant is not None:
        raise Forbidden("This token is narrowed to one tenant.", code="token-narrowed")


class RequestJoin(RequestView):
    """Asking to join."""

    @writes("requests.create_join", body=JoinRequestIn, answers=RequestOut, status=201)
    def post(self, call: Call) -> Any:
        """Ask to join a tenant, named exactly; its owner decides."""
        _refuse_narrowed(call)
        body: JoinRequestIn = call.body
        return requests.submit(
            kind=RequestKind.JOIN.value,
            payload={"role": body.role},
            reason=body.reason,
            join=body.tenant,
            actor=call.actor,
            now=call.now,
        )


class RequestWriteOff(RequestView):
    """Asking to write off."""

    @writes("requests.create_write_off", body=WriteOffRequestIn, answers=RequestOut, status=201)
    def post(self, call: Call) -> Any:
        """Ask to write off an allocation on a provider that will not come back; a second person decides."""
        body: WriteOffRequestIn = call.body
        with acting(call.actor):
            tenant = access.find(access.tenants(call.actor), body.tenant)
            allocation = access.find(access.scoped(Allocation, call.actor, tenant=tenant), body.allocation)
        return requests.submit(
            kind=RequestKind.WRITE_OFF.value,
            payload={"allocation": str(allocation.pk)},
            reason=body.reason,
            tenant=tenant,
            actor=call.actor,
            now=call.now,
        )


class RequestItem(RequestView):
    """One request."""

    key = "name"

    @reads("requests.read", answers=RequestOut)
    def get(self, call: Call) -> Any:
        """Read a request with its stages, decisions and thread."""
        return call.target

    @writes("requests.revise", body=ReviseIn, answers=RequestOut, versioned=True)
    def put(self, call: Call) -> Any:
        """Ask for something else in the same request; all stages start again. Requester only."""
        return requests.revise(
            request=call.target,
            payload=call.body.payload,
            reason=call.body.reason,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )

    @writes("requests.withdraw", answers=RequestOut, versioned=True)
    def delete(self, call: Call) -> Any:
        """Withdraw a request. Requester only."""
        return requests.withdraw(request=call.target, actor=call.actor, now=call.now, version=call.version)


class RequestOfTenant(RequestView):
    """One request of one tenant."""

    key = "name"

    @reads("requests.read", answers=RequestOut)
    def get(self, call: Call) -> Any:
        """Read a request of this tenant."""
        return call.target


class RequestDecide(RequestView):
    """Deciding."""

    key = "name"

    @writes("requests.decide", body=DecideIn, answers=RequestOut)
    def post(self, call: Call) -> Any:
        """Decide the present stage of one version of a request; the last stage applies it. Never one's own."""
        body: DecideIn = call.body
        return requests.decide(
            request=call.target,
            version=body.version,
            verdict=body.verdict,
            granted=body.granted,
            reason=body.reason,
            expect_proof=body.expect_proof,
            actor=call.actor,
            now=call.now,
        )


class RequestProof(RequestView):
    """Proof of a request."""

    key = "name"

    @reads("requests.proof", answers=ProofOut, statuses=(409,))
    def get(self, call: Call) -> Out:
        """Say what approving would do now: where it would run, limits, cost, whom it delays."""
        found = requests.proof(request=call.target, actor=call.actor, now=call.now)
        return ProofOut(version=call.target.version, proof=found)


class RequestComments(RequestView):
    """Thread of a request."""

    key = "name"

    @writes("requests.comment", body=CommentIn, answers=RequestOut, status=201)
    def post(self, call: Call) -> Any:
        """Add a line to a request's thread."""
        return requests.comment(request=call.target, text=call.body.text, actor=call.actor, now=call.now)

    def replayed(self, replay: Any, call: Call) -> Any:  # noqa: ARG002
        """Return the request: the comment stands in it."""
        return call.target


class Inbox(RequestView):
    """What waits for the caller."""

    @reads("requests.inbox", answers=InboxOut)
    def get(self, call: Call) -> Out:
        """List the requests that you may decide now, oldest first."""
        keys = [row.pk for row in requests.inbox(call.actor, now=call.now)]
        found = {row.pk: row for row in self.rows(call).filter(pk__in=keys)}
        return InboxOut(items=[self.show(found[key], call, {}) for key in keys if key in found])  # type: ignore[misc]


class DelegationView(ApiView):
    """Delegations."""

    def rows(self, call: Call) -> QuerySet[Delegation]:
        """Return the caller's own delegations and those in which he stands in."""
        person = call.actor.person_id or NOBODY
        return Delegation.objects.filter(person_id=person) | Delegation.objects.filter(delegate_id=person)

    def show(self, row: Delegation, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a delegation."""
        return DelegationOut.of(row)


class Delegations(DelegationView):
    """The caller's delegations."""

    @reads("delegations.list", answers=DelegationPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List delegations from and to you."""
        return self.page(call, self.rows(call), DelegationPage)

    @writes("delegations.create", body=DelegationIn, answers=DelegationOut, status=201)
    def post(self, call: Call) -> Any:
        """Let somebody decide in your place between two dates."""
        body: DelegationIn = call.body
        with acting(call.actor):
            delegate = people.active_person_by_email(body.delegate)
        return delegations.create(
            delegate=delegate, starts_at=body.starts_at, ends_at=body.ends_at, actor=call.actor, now=call.now
        )


class DelegationItem(DelegationView):
    """One delegation."""

    key = "delegation"

    @writes("delegations.end", answers=None)
    def delete(self, call: Call) -> Any:
        """End a delegation of your own now."""
        return delegations.end(delegation=call.target, actor=call.actor, now=call.now)


class RuleView(ApiView):
    """Rules of automatic approval."""

    def rows(self, call: Call) -> QuerySet[AutoApprovalRule]:  # noqa: ARG002
        """Return all rules; the policy is for platform roles."""
        return AutoApprovalRule.objects.all()

    def show(self, row: AutoApprovalRule, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a rule."""
        return RuleOut.of(row)


class Rules(RuleView):
    """All rules of automatic approval."""

    @reads("auto-approval-rules.list", answers=RulePage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List rules of automatic approval."""
        return self.page(call, self.rows(call), RulePage)

    @writes("auto-approval-rules.create", body=RuleIn, answers=RuleOut, status=201)
    def post(self, call: Call) -> Any:
        """Add a rule of automatic approval."""
        body: RuleIn = call.body
        tenant = call.named(lambda: access.tenants(call.actor), body.tenant)
        return auto_approval_rules.create(
            name=body.name,
            limits=body.limits,
            tenant=tenant,
            longest_s=body.longest_s,
            actor=call.actor,
            now=call.now,
        )


class RuleItem(RuleView):
    """One rule of automatic approval."""

    key = "rule"

    @writes("auto-approval-rules.update", body=RuleChangeIn, answers=RuleOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Change a rule or switch it off; what it granted stands."""
        return auto_approval_rules.update(
            rule=call.target,
            enabled=call.body.enabled,
            limits=call.body.limits,
            longest_s=call.body.longest_s,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )
