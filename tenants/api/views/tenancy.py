"""Tenants, their policy and suspension, members, service accounts and the tokens of those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import BooleanField, F, Func, OuterRef, Q, QuerySet

from tenants import access
from tenants.api.idempotency import Replay
from tenants.api.serializers.base import Out, Page, PageQuery, page_of
from tenants.api.serializers.people import (
    HandoverIn,
    HandoverOut,
    MemberIn,
    MemberOut,
    PolicyIn,
    RoleIn,
    ServiceAccountChangeIn,
    ServiceAccountIn,
    ServiceAccountOut,
    ServiceTokenIn,
    SshAuthorityOut,
    SuspensionIn,
    SuspensionOut,
    TenantChangeIn,
    TenantIn,
    TenantOut,
    TenantQuery,
    TokenOut,
    role_of,
)
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.api.views.filters import named
from tenants.errors import InvalidSpec, NotVisible
from tenants.models import ApiToken, Membership, Person, ServiceAccount, SshAuthority, Suspension, Tenant
from tenants.operations import machine_access, members, people, service_accounts, tenants
from tenants.states import DEPTH_ORDER, SuspensionDepth
from tenants.tokens import Issued

TenantPage = page_of(TenantOut)
SuspensionPage = page_of(SuspensionOut)
MemberPage = page_of(MemberOut)
ServiceAccountPage = page_of(ServiceAccountOut)
TokenPage = page_of(TokenOut)


class TenantView(ApiView):
    """Tenants."""

    def rows(self, call: Call) -> QuerySet[Tenant]:
        """Return the tenants the actor may see, with the suspensions on their path."""
        on_path = Func(
            F("tenant_id"),
            OuterRef("path"),
            template="(%(expressions)s))",
            arg_joiner=" = ANY (",
            output_field=BooleanField(),
        )
        live = Suspension.objects.filter(on_path, ended_at__isnull=True)
        return access.tenants(call.actor).select_related("parent").annotate(depths=ArraySubquery(live.values("depth")))

    def show(self, row: Any, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a tenant as the caller sees it."""
        depths = [SuspensionDepth(word) for word in row.depths]
        deepest = max(depths, key=DEPTH_ORDER.__getitem__, default=None)
        return TenantOut.of(row, role=access.role_word(call.actor, row), suspended=deepest)


class Tenants(TenantView):
    """All tenants that the caller sees."""

    @reads("tenants.list", answers=TenantPage, query=TenantQuery)
    def get(self, call: Call) -> Page:
        """List tenants."""
        query: TenantQuery = call.query
        rows = self.rows(call)
        if query.name:
            rows = rows.filter(name=query.name)
        if query.status is not None:
            rows = rows.filter(status=query.status.value)
        if query.managed_by is not None:
            rows = rows.filter(managed_by=query.managed_by)
        if query.parent:
            rows = rows.filter(parent__in=access.tenants(call.actor).filter(named(query.parent, "")))
        return self.page(call, rows, TenantPage)

    @writes("tenants.create", body=TenantIn, answers=TenantOut, status=201)
    def post(self, call: Call) -> Any:
        """Create a tenant at the root."""
        return _created(call, None)


class Children(TenantView):
    """Tenants below one."""

    @writes("tenants.create_child", body=TenantIn, answers=TenantOut, status=201)
    def post(self, call: Call) -> Any:
        """Create a tenant below this one; three levels at most."""
        return _created(call, call.home)


def _created(call: Call, parent: Tenant | None) -> Tenant:
    body: TenantIn = call.body
    return tenants.create(
        name=body.name,
        display_name=body.display_name,
        parent=parent,
        description=body.description,
        labels=body.labels,
        owner_email=body.owner_email or "",
        stock_visibility=body.stock_visibility,
        managed_by=body.managed_by,
        actor=call.actor,
        now=call.now,
    )


class TenantItem(TenantView):
    """One tenant."""

    key = "tenant"

    @reads("tenants.read", answers=TenantOut)
    def get(self, call: Call) -> Any:
        """Read a tenant."""
        return call.target

    @writes("tenants.update", body=TenantChangeIn, answers=TenantOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Change name for people, description, labels or how exactly free stock is seen."""
        body: TenantChangeIn = call.body
        return tenants.update(
            tenant=call.target,
            display_name=body.display_name,
            description=body.description,
            labels=body.labels,
            stock_visibility=body.stock_visibility,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )

    @writes("tenants.close", answers=TenantOut, versioned=True)
    def delete(self, call: Call) -> Any:
        """Close a tenant that holds nothing any more."""
        return tenants.close(tenant=call.target, actor=call.actor, now=call.now, version=call.version)


class TenantPolicy(TenantView):
    """Policy of one tenant."""

    key = "tenant"

    @writes("tenants.set_policy", body=PolicyIn, answers=TenantOut, versioned=True)
    def put(self, call: Call) -> Any:
        """Replace the policy; a child only narrows what its parents allow."""
        rules = {
            name: value
            for name, value in call.body.model_dump(mode="json", exclude_unset=True).items()
            if value is not None
        }
        return tenants.set_policy(
            tenant=call.target, policy=rules, actor=call.actor, now=call.now, version=call.version
        )


class SshAuthorityView(ApiView):
    """The authority that signs SSH certificates of one tenant."""

    key = "tenant"

    def rows(self, call: Call) -> QuerySet[Any]:
        """Return the tenant; its authority is made when it is needed."""
        return access.tenants(call.actor)

    def again(self, row: SshAuthority, call: Call) -> SshAuthority:  # noqa: ARG002
        """Return the authority that was made: nothing in it changes."""
        return row

    def replayed(self, replay: Replay, call: Call) -> SshAuthority:
        """Return the authority that an earlier request made."""
        return SshAuthority.objects.filter(pk__in=replay.ids, tenant=call.home).get()

    def show(self, row: SshAuthority, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return the public half."""
        return SshAuthorityOut.of(row)

    @writes("tenants.rotate_ssh_authority", answers=SshAuthorityOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Give the tenant a new authority for SSH certificates.

        Machines made from now on trust it and no older one; those that are there go on with theirs. Certificates that
        the one before has signed count no more.
        """
        return machine_access.rotate(tenant=call.home, actor=call.actor, now=call.now)


class SuspensionView(TenantView):
    """Suspension of one tenant."""

    key = "tenant"

    @writes("tenants.suspend", body=SuspensionIn, answers=TenantOut, versioned=True)
    def put(self, call: Call) -> Any:
        """Suspend a tenant and all below it: keys refused, or network cut, or power off. Holds are kept."""
        body: SuspensionIn = call.body
        return tenants.suspend(
            tenant=call.target,
            depth=body.depth,
            reason=body.reason,
            until=body.until,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )

    @writes("tenants.resume", answers=TenantOut, versioned=True)
    def delete(self, call: Call) -> Any:
        """End the suspension; everything goes back to what it was."""
        return tenants.resume(tenant=call.target, actor=call.actor, now=call.now, version=call.version)

    def again(self, row: Any, call: Call) -> Any:
        """Return the tenant, whatever row the operation returned."""
        return self.rows(call).get(pk=row.tenant_id if isinstance(row, Suspension) else row.pk)


class Suspensions(ApiView):
    """Suspensions of one tenant, past ones too."""

    def rows(self, call: Call) -> QuerySet[Suspension]:
        """Return the suspensions the actor may see."""
        return access.scoped(Suspension, call.actor, tenant=call.tenant).select_related("tenant")

    def show(self, row: Suspension, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a suspension."""
        return SuspensionOut.of(row)

    @reads("suspensions.list", answers=SuspensionPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List suspensions."""
        return self.page(call, self.rows(call), SuspensionPage)


class MemberView(ApiView):
    """Members."""

    def rows(self, call: Call) -> QuerySet[Membership]:
        """Return the memberships the actor may see."""
        return access.scoped(Membership, call.actor, tenant=call.tenant).select_related("tenant", "person")

    def show(self, row: Membership, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a membership."""
        return MemberOut.of(row)


class Members(MemberView):
    """Members of one tenant."""

    @reads("members.list", answers=MemberPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List members."""
        return self.page(call, self.rows(call), MemberPage)

    @writes("members.create", body=MemberIn, answers=MemberOut, status=201)
    def post(self, call: Call) -> Any:
        """Make a person a member."""
        return members.add(
            tenant=call.home, email=call.body.email, role=role_of(call.body.role), actor=call.actor, now=call.now
        )


class MemberItem(MemberView):
    """One member, named by the person's id."""

    key = "person"

    def find(self, call: Call) -> Any:
        """Return the membership of the person that the path names."""
        found = self.rows(call).filter(person_id=uuid_of(call.path["person"])).first()
        if found is None:
            raise NotVisible
        return found

    @writes("members.update", body=RoleIn, answers=MemberOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Give a member another role."""
        return members.change_role(
            membership=call.target,
            role=role_of(call.body.role),
            actor=call.actor,
            now=call.now,
            version=call.version,
        )

    @writes("members.delete", answers=HandoverOut, versioned=True)
    def delete(self, call: Call) -> Any:
        """Take a member out. What he owned is listed for handover."""
        return members.remove(membership=call.target, actor=call.actor, now=call.now, version=call.version)

    def unwrap(self, result: Any) -> Any:
        """Return what he left behind as its answer."""
        return handover_of(result) if isinstance(result, members.Handover) else result


class MemberHandover(MemberView):
    """Handing over what one member (or former member) owns."""

    @writes("members.hand_over", body=HandoverIn, answers=HandoverOut)
    def post(self, call: Call) -> Any:
        """Give what somebody owns in the tenant to another member."""
        return members.hand_over(
            tenant=call.home,
            person_id=uuid_of(call.path["person"]),
            to=Person(pk=uuid_of(call.body.to)),
            actor=call.actor,
            now=call.now,
        )

    def unwrap(self, result: Any) -> Any:
        """Return what changed hands as its answer."""
        return handover_of(result) if isinstance(result, members.Handover) else result


def handover_of(made: members.Handover) -> HandoverOut:
    """Return a handover as it is answered."""
    return HandoverOut(
        tenant=made.tenant,
        objects=[dict(each) for each in made.objects],
        service_accounts=list(made.service_accounts),
        disabled=list(made.disabled),
        to=str(made.to) if made.to else None,
    )


def uuid_of(word: str) -> UUID:
    """Return an id from a path. Raises `NotVisible`."""
    try:
        return UUID(word)
    except ValueError as error:
        raise NotVisible from error


class ServiceAccountView(ApiView):
    """Service accounts."""

    def rows(self, call: Call) -> QuerySet[ServiceAccount]:
        """Return the service accounts the actor may see."""
        return access.scoped(ServiceAccount, call.actor, tenant=call.tenant).select_related("tenant")

    def show(self, row: ServiceAccount, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a service account."""
        return ServiceAccountOut.of(row)

    def find(self, call: Call) -> Any:
        """Return the named account, the live one first."""
        word = call.path["name"]
        found = self.rows(call).filter(named_account(word)).order_by(F("disabled_at").desc(nulls_first=True)).first()
        if found is None:
            raise NotVisible
        return found


def named_account(word: str) -> Any:
    """Return the condition that an account has this name or id."""
    try:
        return Q(pk=UUID(word))
    except ValueError:
        return Q(name=word)


class ServiceAccounts(ServiceAccountView):
    """Service accounts of one tenant."""

    @reads("service-accounts.list", answers=ServiceAccountPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List service accounts."""
        return self.page(call, self.rows(call), ServiceAccountPage)

    @writes("service-accounts.create", body=ServiceAccountIn, answers=ServiceAccountOut, status=201)
    def post(self, call: Call) -> Any:
        """Create a service account; the caller answers for it."""
        body: ServiceAccountIn = call.body
        return service_accounts.create(
            tenant=call.home,
            name=body.name,
            role=role_of(body.role),
            expires_at=body.expires_at,
            actor=call.actor,
            now=call.now,
        )


class ServiceAccountItem(ServiceAccountView):
    """One service account."""

    key = "name"

    @reads("service-accounts.read", answers=ServiceAccountOut)
    def get(self, call: Call) -> Any:
        """Read a service account."""
        return call.target

    @writes("service-accounts.update", body=ServiceAccountChangeIn, answers=ServiceAccountOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Change role, accountable owner or end."""
        body: ServiceAccountChangeIn = call.body
        try:
            owner = Person(pk=UUID(body.owner)) if body.owner else None
        except ValueError as error:
            raise InvalidSpec("is no id", field="owner") from error
        return service_accounts.update(
            account=call.target,
            role=role_of(body.role) if "role" in body.model_fields_set else None,
            owner=owner,
            expires_at=body.expires_at,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )

    @writes("service-accounts.disable", answers=ServiceAccountOut, versioned=True)
    def delete(self, call: Call) -> Any:
        """End a service account and its tokens."""
        return service_accounts.disable(account=call.target, actor=call.actor, now=call.now, version=call.version)


class ServiceTokenView(ServiceAccountView):
    """Tokens of one service account."""

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant and account."""
        super().locate(declared, call)
        call.target = self.find(call)

    def rows(self, call: Call) -> QuerySet[Any]:
        """Return the account's tokens; before it is known, the accounts."""
        if call.target is None:
            return super().rows(call)
        return ApiToken.objects.filter(service_account=call.target).select_related("tenant", "service_account")

    def show(self, row: Any, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a token."""
        return TokenOut.of(row, token=secrets.get("token"))

    def unwrap(self, result: Any) -> Any:
        """Return the token's row."""
        return result.row if isinstance(result, Issued) else result

    def secrets_of(self, result: Any) -> Mapping[str, str]:
        """Return the plain text."""
        return {"token": result.plain} if isinstance(result, Issued) else {}


class ServiceTokens(ServiceTokenView):
    """Tokens of one service account."""

    @reads("service-account-tokens.list", answers=TokenPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List tokens, without their secrets."""
        return self.page(call, self.rows(call), TokenPage)

    @writes("service-account-tokens.create", body=ServiceTokenIn, answers=TokenOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Create a token; the answer holds its plain text, once."""
        body: ServiceTokenIn = call.body
        return service_accounts.issue_token(
            account=call.target,
            name=body.name,
            read_only=body.read_only,
            expires_at=body.expires_at,
            actor=call.actor,
            now=call.now,
        )


class ServiceTokenItem(ServiceTokenView):
    """One token of a service account."""

    found: ApiToken

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant, account and token."""
        super().locate(declared, call)
        found = self.rows(call).filter(public_id=call.path["token"]).first()
        if found is None:
            raise NotVisible
        self.found = found

    @writes("service-account-tokens.revoke", answers=TokenOut, plannable=False)
    def delete(self, call: Call) -> Any:
        """Revoke a token. Safe to repeat."""
        return people.revoke_token(token=self.found, actor=call.actor, now=call.now)
