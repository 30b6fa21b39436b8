"""Every operation × every principal × {own, foreign, missing}: as declared in `tenants.policies.ROUTES`.

The expectation is worked out here from the declared policy alone. Changes are sent with `plan=true`, so the
world stays as it is; a route without an example of its parameters or its body fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tenants.actor import Kind
from tenants.api.scoping import routes
from tenants.api.urls import urlpatterns
from tenants.models import ApiToken, Event, Person
from tenants.policies import ROUTES, Policy, Scope
from tenants.states import PlatformRole, Role
from tests.api.client import Api, token_of
from tests.api.world import BODIES, Home, World, build
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

# Whoever logs out or changes his password is somebody else afterwards: those come last.
LAST = {"people.set_password": 1, "login.delete": 2}
ALL = sorted(
    ((path, method, operation or "") for path, method, operation in routes(urlpatterns)),
    key=lambda route: (LAST.get(route[2], 0), *route),
)
DENIED = {401, 403, 404}
# What these answer depends on more than the policy: whose object it is, which stage it is at, who asks.
BY_CONTENT = {
    "delegations.end", "login.create", "login.delete", "objects.find", "people.leave", "people.set_roles",
    "requests.comment", "requests.create_join", "requests.create_tenant", "requests.create_write_off",
    "requests.decide", "requests.proof", "requests.read", "requests.revise", "requests.withdraw", "tokens.find",
    "tokens.revoke", "people.erase", "people.resume", "members.hand_over", "tenants.resume",
}  # fmt: skip
UNSENDABLE = {"events.stream"}
"""An answer without end; tests/api/test_stream.py has it."""


@dataclass(frozen=True)
class Principal:
    """Who asks, and what the oracle may know about him."""

    name: str
    kind: Kind
    role: Role | None = None
    """On acme."""
    parent_role: Role | None = None
    platform: frozenset[PlatformRole] = frozenset()
    proven: bool = True


PRINCIPALS = [
    Principal("owner", Kind.PERSON, Role.OWNER),
    Principal("member", Kind.PERSON, Role.MEMBER),
    Principal("viewer", Kind.PERSON, Role.VIEWER),
    Principal("parent-owner", Kind.PERSON, Role.OWNER, Role.OWNER),
    Principal("operator", Kind.PERSON, platform=frozenset({PlatformRole.OPERATOR})),
    Principal("approver", Kind.PERSON, platform=frozenset({PlatformRole.APPROVER})),
    Principal("auditor", Kind.PERSON, platform=frozenset({PlatformRole.AUDITOR})),
    Principal("service-account", Kind.SERVICE_ACCOUNT, Role.MEMBER),
    Principal("outsider", Kind.PERSON),
    Principal("agent", Kind.AGENT, proven=False),
    Principal("anonymous", Kind.ANONYMOUS, proven=False),
    Principal("revoked", Kind.PERSON, Role.OWNER, proven=False),
    Principal("suspended", Kind.PERSON, Role.OWNER, proven=False),
    Principal("read-only", Kind.PERSON, Role.OWNER),
]


def caller(who: Principal, world: World) -> Api:
    acme = world.acme
    if who.name == "anonymous":
        return Api(None)
    if who.name == "agent":
        from provisioners.gateway import keys

        return Api(keys.make_agent_credential(acme.tenant.pk).plain)
    if who.name == "read-only":
        return Api(token_of(acme.owner, read_only=True))
    person: Any = {
        "owner": acme.owner,
        "member": acme.member,
        "viewer": acme.viewer,
        "parent-owner": world.parent_owner,
        "operator": world.operator,
        "approver": world.approver,
        "auditor": world.auditor,
        "service-account": acme.account,
        "outsider": Person.objects.get(email="joiner@example.org"),
        "revoked": acme.owner,
        "suspended": acme.owner,
    }[who.name]
    api = Api(token_of(person))
    if who.name == "revoked":
        ApiToken.objects.filter(person=acme.owner).update(revoked_at=NOW)
    if who.name == "suspended":
        Person.objects.filter(pk=acme.owner.pk).update(is_active=False)
    return api


def expected(who: Principal, policy: Policy, method: str, target: str, *, in_tenant: bool) -> set[int] | None:  # noqa: PLR0911 - a table reads best flat
    """Return the only statuses allowed, None for "anything but a denial"."""
    if policy.scope is Scope.PUBLIC:
        return None
    if not who.proven:
        return {401}
    if policy.persons_only and who.kind is Kind.SERVICE_ACCOUNT:
        return {403}
    if who.name == "read-only" and method != "GET":
        return {403}
    if policy.scope is Scope.PLATFORM:
        return None if who.platform & policy.platform else {403}
    if policy.scope is Scope.SELF or not in_tenant:
        return None
    if target == "missing":
        return {404}
    if target == "foreign" and not who.platform:
        return {404}
    if who.platform & policy.platform:
        return None
    if who.platform:
        return {403}
    if target == "own" and who.role is None:
        return {404}
    held = who.parent_role if policy.above else who.role
    return None if held is not None and policy.tenant_role is not None and held >= policy.tenant_role else {403}


def send(api: Api, world: World, path: str, method: str, operation: str, home: Home | None) -> Any:
    body = BODIES.get(operation)
    if operation == "members.hand_over":
        body = {"to": str((home or world.acme).owner.pk)}
    address = world.fill(path, home)
    view = _view(path)
    declared = view.declarations[method]
    assert (body is None) == (declared.body is None), f"{operation}: tests/api/world.py has no body for it"
    if declared.writes and declared.plannable:
        address += "?plan=true"
    return api(method, address, body)


def _view(path: str) -> Any:
    return next(p.callback.cls for p in urlpatterns if str(p.pattern) == path)  # type: ignore[attr-defined]


@pytest.mark.parametrize("who", PRINCIPALS, ids=lambda p: p.name)
def test_every_route_answers_each_principal_as_declared(who):
    world = build()
    api = caller(who, world)
    before = Event.objects.count()
    wrong: list[str] = []

    for path, method, operation in ALL:
        if operation in UNSENDABLE or (operation == "login.create" and who.name != "anonymous"):
            continue
        policy = ROUTES[operation]
        in_tenant = "<str:tenant>" in path
        answers: dict[str, Any] = {}
        for target, home in (("own", world.acme), ("foreign", world.globex), ("missing", None)):
            if not in_tenant and target != "own":
                continue
            answer = answers[target] = send(api, world, path, method, operation, home)
            wanted = expected(who, policy, method, target, in_tenant=in_tenant)
            line = f"{who.name} {method} {path} ({operation}, {target}): {answer}"
            if answer.status >= 500:
                wrong.append(line)
            elif wanted is not None and answer.status not in wanted:
                wrong.append(f"{line}, expected {wanted}")
            elif wanted is None and answer.status in DENIED and operation not in BY_CONTENT:
                wrong.append(f"{line}, expected to be let in")
            elif answer.status >= 400 and answer.headers["Content-Type"] != "application/problem+json":
                wrong.append(f"{line}: no problem+json")
        if in_tenant and not who.platform and answers["foreign"].status == 404:
            same = answers["foreign"].raw == answers["missing"].raw
            if not same:
                wrong.append(f"{who.name} {method} {path}: foreign {answers['foreign']} missing {answers['missing']}")

    assert wrong == []
    if not who.proven or who.name == "read-only":
        assert Event.objects.count() == before, "a denied request changed something"


def test_every_rest_policy_has_a_route_and_every_route_a_policy():
    reached = {operation for _, _, operation in ALL}
    elsewhere = {
        "schema.read", "docs.read", "errors.read", "health.read",  # outside /api/v1
        "agents.enrol", "agents.config", "agents.usage", "agents.report",  # /agent/v1
        "people.update_own",  # a person may name himself through people.update's operation
        "members.leave", "hosts.inventory",
    }  # fmt: skip

    assert reached - set(ROUTES) == set()
    assert set(ROUTES) - reached - elsewhere == set()


def test_a_route_without_an_operation_stops_the_process():
    from django.core.exceptions import ImproperlyConfigured
    from django.urls import path
    from rest_framework.views import APIView

    from tenants.api.scoping import verify

    class Open(APIView):
        def get(self, request):  # noqa: ARG002
            return None

    class Unknown(Open):
        operations = {"GET": "nothing.read"}

    with pytest.raises(ImproperlyConfigured, match="names no operation"):
        verify([path("open", Open.as_view())])
    with pytest.raises(ImproperlyConfigured, match="has no policy"):
        verify([path("unknown", Unknown.as_view())])
