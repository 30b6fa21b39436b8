"""Log-in, who the caller is, his tokens; people for operators; any object by its short id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from django.db.models import QuerySet

from tenants import access, login, tokens
from tenants.api.serializers.base import NoQuery, Out, Page, PageQuery, page_of
from tenants.api.serializers.people import (
    DepartureOut,
    FindTokenIn,
    FoundSecretOut,
    LeaveIn,
    LoginIn,
    PasswordIn,
    PersonChangeIn,
    PersonIn,
    PersonOut,
    PersonQuery,
    ReasonIn,
    RolesIn,
    TokenIn,
    TokenOut,
    WhoOut,
    WhoTenant,
)
from tenants.api.serializers.records import FoundOut
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.api.views.tenancy import handover_of
from tenants.desired import kind_of
from tenants.errors import Conflict, NotVisible
from tenants.models import (
    Allocation,
    ApiToken,
    Boundary,
    Endpoint,
    EndpointKey,
    Machine,
    Namespace,
    Person,
    Request,
    Tenant,
)
from tenants.operations import leavers, people
from tenants.transactions import acting

NOBODY: Final = UUID(int=0)
TokenPage = page_of(TokenOut)
PersonPage = page_of(PersonOut)

FINDABLE: Final[Mapping[str, type[Any]]] = {
    "al": Allocation,
    "bd": Boundary,
    "ep": Endpoint,
    "vm": Machine,
    "ns": Namespace,
    "rq": Request,
    "tn": Tenant,
}


class TokenView(ApiView):
    """The caller's own tokens."""

    def rows(self, call: Call) -> QuerySet[ApiToken]:
        """Return the caller's tokens."""
        rows = ApiToken.objects.select_related("tenant", "service_account")
        if call.actor.token_id is not None and call.actor.kind == "service-account":
            return rows.filter(service_account_id=call.actor.id)
        return rows.filter(person_id=call.actor.person_id or NOBODY)

    def show(self, row: ApiToken, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a token."""
        return TokenOut.of(row, token=secrets.get("token"))

    def unwrap(self, result: Any) -> Any:
        """Return the token's row."""
        return result.row if isinstance(result, tokens.Issued) else result

    def secrets_of(self, result: Any) -> Mapping[str, str]:
        """Return the plain text."""
        return {"token": result.plain} if isinstance(result, tokens.Issued) else {}


class Login(TokenView):
    """Log-in and log-out."""

    def unwrap(self, result: Any) -> Any:
        """Return the answer itself: whoever logs in is nobody yet and could not read the row."""
        return TokenOut.of(result.row, token=result.plain) if isinstance(result, tokens.Issued) else result

    @writes("login.create", body=LoginIn, answers=TokenOut, status=201, plannable=False, statuses=(401, 429))
    def post(self, call: Call) -> Any:
        """Log in: a token for 30 days, for e-mail and password. Attempts are counted."""
        body: LoginIn = call.body
        address = str(call.request.META.get("REMOTE_ADDR", ""))
        return login.log_in(body.email, body.password, name=body.name, address=address, now=call.now)

    @writes("login.delete", answers=None, plannable=False)
    def delete(self, call: Call) -> Any:
        """Log out: revoke the token that this request was sent with."""
        if call.actor.token_id is None:
            raise Conflict("This request came without a token.", code="no-token")
        with acting(call.actor):
            row = self.rows(call).filter(pk=call.actor.token_id).first()
        if row is None:
            raise NotVisible
        return people.revoke_token(token=row, actor=call.actor, now=call.now, why="log-out")


class Tokens(TokenView):
    """The caller's own tokens."""

    @reads("tokens.list", answers=TokenPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List your own tokens, without their secrets."""
        return self.page(call, self.rows(call), TokenPage)

    @writes("tokens.create", body=TokenIn, answers=TokenOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Create a token of your own; the answer holds its plain text, once."""
        body: TokenIn = call.body
        tenant = call.named(lambda: access.tenants(call.actor), body.tenant)
        return people.issue_token(
            name=body.name,
            tenant=tenant,
            read_only=body.read_only,
            expires_at=body.expires_at,
            actor=call.actor,
            now=call.now,
        )


class TokenItem(TokenView):
    """One token."""

    key = "token"

    def find(self, call: Call) -> Any:
        """Return the token, by its public id or id."""
        return tokens.named(self.rows(call), call.path["token"])

    @writes("tokens.revoke", answers=TokenOut, plannable=False)
    def delete(self, call: Call) -> Any:
        """Revoke a token of your own. Safe to repeat."""
        return people.revoke_token(token=call.target, actor=call.actor, now=call.now)


class FindToken(ApiView):
    """Whose a leaked secret is."""

    @writes("tokens.find", body=FindTokenIn, answers=FoundSecretOut, plannable=False)
    def post(self, call: Call) -> Any:
        """Leaked? Paste it: whose token or key it is and when it was last used, if you may see it."""
        public_id = tokens.of_text(call.body.text)
        with acting(call.actor):
            found = _found_secret(public_id, call) if public_id else None
        if found is None:
            raise NotVisible("No token or key that you may see is in this text.")
        return found


def _found_secret(public_id: str, call: Call) -> FoundSecretOut | None:
    token = ApiToken.objects.select_related("tenant", "person", "service_account").filter(public_id=public_id).first()
    if token is not None:
        owner = token.person.display_name if token.person else getattr(token.service_account, "name", "")
        return FoundSecretOut(
            kind="token",
            id=token.public_id,
            name=token.name,
            belongs_to=owner,
            tenant=token.tenant.name if token.tenant else None,
            revoked=token.revoked_at is not None,
            last_used_at=token.last_used_at,
        )
    key = (
        access.scoped(EndpointKey, call.actor).select_related("endpoint", "tenant").filter(public_id=public_id).first()
    )
    if key is None:
        return None
    return FoundSecretOut(
        kind="endpoint-key",
        id=key.public_id,
        name=key.name,
        belongs_to=key.endpoint.name,
        tenant=key.tenant.name,
        revoked=key.revoked_at is not None,
        last_used_at=key.last_used_at,
    )


class Who(ApiView):
    """The caller."""

    @reads("who.read", answers=WhoOut)
    def get(self, call: Call) -> Out:
        """Say who you are and what you may do."""
        mine = Tenant.objects.filter(pk__in=call.actor.tenant_roles).order_by("name")
        seen = [WhoTenant(id=str(t.pk), name=t.name, role=call.actor.tenant_roles[t.pk].word) for t in mine]
        return WhoOut(**access.people_data(call.actor), tenants=seen)


class Password(ApiView):
    """The caller's own password."""

    @writes("people.set_password", body=PasswordIn, answers=None, plannable=False)
    def put(self, call: Call) -> Any:
        """Set your own password; every session ends."""
        with acting(call.actor):
            me = Person.objects.get(pk=call.actor.person_id or NOBODY)
        return people.set_password(person=me, new=call.body.new, old=call.body.old, actor=call.actor, now=call.now)


class PersonView(ApiView):
    """People."""

    def rows(self, call: Call) -> QuerySet[Person]:  # noqa: ARG002
        """Return the people that the policy shows: all of them, to platform roles."""
        return Person.objects.prefetch_related("platform_memberships")

    def show(self, row: Person, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a person."""
        return PersonOut.of(row)

    def find(self, call: Call) -> Any:
        """Return the person with this id."""
        return access.find(self.rows(call), call.path["person"])


class People(PersonView):
    """All people."""

    @reads("people.list", answers=PersonPage, query=PersonQuery)
    def get(self, call: Call) -> Page:
        """List people."""
        rows = self.rows(call)
        if call.query.email:
            rows = rows.filter(email__iexact=call.query.email)
        if call.query.active is not None:
            rows = rows.filter(is_active=call.query.active)
        return self.page(call, rows, PersonPage)

    @writes("people.create", body=PersonIn, answers=PersonOut, status=201)
    def post(self, call: Call) -> Any:
        """Add a person."""
        body: PersonIn = call.body
        return people.create(
            email=body.email,
            display_name=body.display_name,
            password=body.password if "password" in body.model_fields_set else "",
            roles=body.roles,
            actor=call.actor,
            now=call.now,
        )


class PersonItem(PersonView):
    """One person."""

    key = "person"

    @reads("people.read", answers=PersonOut, query=NoQuery)
    def get(self, call: Call) -> Any:
        """Read a person."""
        return call.target

    @writes("people.update", body=PersonChangeIn, answers=PersonOut)
    def patch(self, call: Call) -> Any:
        """Change name or e-mail."""
        body: PersonChangeIn = call.body
        return people.update(
            person=call.target, display_name=body.display_name, email=body.email, actor=call.actor, now=call.now
        )

    @writes("people.erase", answers=PersonOut)
    def delete(self, call: Call) -> Any:
        """Forget name and e-mail of somebody who left; events go on naming the id."""
        return people.erase(person=call.target, actor=call.actor, now=call.now)


class PersonSuspend(PersonView):
    """Keeping a person out."""

    key = "person"

    @writes("people.suspend", body=ReasonIn, answers=PersonOut)
    def post(self, call: Call) -> Any:
        """Suspend a person: nothing of his opens, nothing of his is taken away."""
        return people.suspend(person=call.target, reason=call.body.reason, actor=call.actor, now=call.now)


class PersonResume(PersonView):
    """Letting a person in again."""

    key = "person"

    @writes("people.resume", answers=PersonOut)
    def post(self, call: Call) -> Any:
        """Resume a suspended person."""
        return people.resume(person=call.target, actor=call.actor, now=call.now)


class PersonRoles(PersonView):
    """Platform roles of a person."""

    key = "person"

    @writes("people.set_roles", body=RolesIn, answers=PersonOut)
    def put(self, call: Call) -> Any:
        """Set the platform roles of a person."""
        return people.set_roles(person=call.target, roles=call.body.roles, actor=call.actor, now=call.now)


class PersonLeave(PersonView):
    """A leaver."""

    key = "person"

    @writes("people.leave", body=LeaveIn, answers=DepartureOut)
    def post(self, call: Call) -> Any:
        """Let a person go: sessions, tokens and memberships end now; what he owned is handed over or listed."""
        successor = None
        if call.body.successor is not None:
            with acting(call.actor):
                successor = people.active_person_by_email(call.body.successor)
        return leavers.leave(person=call.target, successor=successor, actor=call.actor, now=call.now)

    def unwrap(self, result: Any) -> Any:
        """Return what ended as its answer."""
        if not isinstance(result, leavers.Departure):
            return result
        return DepartureOut(
            person=str(result.person.pk),
            handovers=[handover_of(each) for each in result.handovers],
            sessions=result.sessions,
            tokens=result.tokens,
            delegations=result.delegations,
            requests_withdrawn=result.requests_withdrawn,
        )


class Objects(ApiView):
    """Any object by its short id."""

    @reads("objects.find", answers=FoundOut)
    def get(self, call: Call) -> Out:
        """Find an object by its short id, such as `ep-7k2m`."""
        word = call.path["short_id"]
        model = FINDABLE.get(word.partition("-")[0])
        if model is None:
            raise NotVisible
        row: Any
        if model is Tenant:
            row = access.tenants(call.actor).filter(short_id=word).first()
        else:
            row = access.scoped(model, call.actor).select_related("tenant").filter(short_id=word).first()
        if row is None:
            raise NotVisible
        tenant: Tenant | None = row if isinstance(row, Tenant) else row.tenant
        kind = kind_of(row)
        noun = "boundaries" if kind == "boundary" else f"{kind}s"
        home = f"/api/v1/tenants/{tenant.name}" if tenant is not None else "/api/v1"
        address = home if isinstance(row, Tenant) else f"{home}/{noun}/{row.pk}"
        return FoundOut(
            kind=kind,
            id=str(row.pk),
            short_id=row.short_id,
            name=getattr(row, "name", ""),
            tenant=tenant.name if tenant is not None else None,
            address=f"/api/v1/requests/{row.pk}" if isinstance(row, Request) else address,
        )
