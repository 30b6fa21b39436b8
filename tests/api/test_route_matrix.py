"""Every operation × every principal × {own, foreign, missing}: as declared in `tenants.policies.ROUTES`.

The expectation is worked out here from the declared policy alone. Changes are sent with `plan=true`, so the
world stays as it is; a route without an example of its parameters or its body fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from tenants.actor import Kind
from tenants.api.scoping import routes
from tenants.api.urls import urlpatterns
from tenants.models import Allocation, ApiToken, Endpoint, Event, Machine, Namespace, Person
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
    "requests.comment", "requests.create_join", "requests.create_model", "requests.create_tenant",
    "requests.create_write_off",
    "requests.decide", "requests.proof", "requests.read", "requests.revise", "requests.withdraw", "tokens.find",
    "tokens.revoke", "people.erase", "people.resume", "members.hand_over", "tenants.resume",
    "namespaces.read_credential",
    "machines.read_console", "endpoints.read_log",
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


# Changes are only planned, so principals share a world; who takes the owner's proof away comes last in his.
NAMES = (
    ("outsider",),
    ("owner", "anonymous"),
    ("operator", "viewer", "member", "parent-owner", "approver", "auditor", "service-account"),
    ("agent", "read-only", "revoked", "suspended"),
)
GROUPS = [[who for name in names for who in PRINCIPALS if who.name == name] for names in NAMES]


@pytest.mark.parametrize(
    "group",
    [  # the first group runs by default, CI runs them all
        pytest.param(group, id="+".join(names), marks=[] if index == 0 else [pytest.mark.slow])
        for index, (names, group) in enumerate(zip(NAMES, GROUPS, strict=True))
    ],
)
def test_every_route_answers_each_principal_as_declared(group):
    world = build()
    wrong: list[str] = []

    for who in group:
        api = caller(who, world)
        before = Event.objects.count()
        for path, method, operation in ALL:
            if operation not in UNSENDABLE and (operation != "login.create" or who.name == "anonymous"):
                wrong += faults(who, api, world, path, method, operation)
        if (not who.proven or who.name == "read-only") and Event.objects.count() != before:
            wrong.append(f"{who.name}: a denied request changed something")

    assert wrong == []


def faults(who: Principal, api: Api, world: World, path: str, method: str, operation: str) -> list[str]:
    """Send one operation to its targets; return what is not as declared."""
    policy = ROUTES[operation]
    in_tenant = "<str:tenant>" in path
    wrong: list[str] = []
    answers: dict[str, Any] = {}
    for target, home in (("own", world.acme), ("foreign", world.globex), ("missing", None)):
        if target != "own" and (not in_tenant or not who.proven):
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
    if "foreign" in answers and answers["foreign"].status == 404 and answers["foreign"].raw != answers["missing"].raw:
        wrong.append(f"{who.name} {method} {path}: foreign {answers['foreign']} missing {answers['missing']}")
    return wrong


def test_no_principal_is_left_out_of_the_matrix():
    assert sorted(name for names in NAMES for name in names) == sorted(who.name for who in PRINCIPALS)


def test_every_rest_policy_has_a_route_and_every_route_a_policy():
    reached = {operation for _, _, operation in ALL}
    elsewhere = {
        "schema.read", "docs.read", "errors.read", "health.read",  # outside /api/v1
        "agents.enrol", "agents.config", "agents.serving", "agents.usage", "agents.report",
        "agents.lease", "agents.wake", "agents.certificate",
        "agents.ssh_revoked",  # /agent/v1
        "people.update_own",  # a person may name himself through people.update's operation
        "members.leave", "hosts.inventory",
        "platform.read",  # pages of the portal for everybody with a platform role
        "evidence.make",  # a file for a person, by the portal
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


def test_a_foreign_object_below_ones_own_tenant_looks_like_a_missing_one():
    world = build()
    me = Api(token_of(world.acme.owner))
    theirs = world.globex
    foreign = {
        "endpoints": Endpoint.objects.get(tenant=theirs.tenant).pk,
        "machines": Machine.objects.get(tenant=theirs.tenant).pk,
        "namespaces": Namespace.objects.get(tenant=theirs.tenant).pk,
        "allocations": Allocation.objects.get(tenant=theirs.tenant, name="bare").pk,
        "boundaries": theirs.boundary,
        "requests": theirs.request.pk,
        "service-accounts": theirs.account.pk,
        "quotas": theirs.quota.pk,
    }

    for noun, key in foreign.items():
        theirs_answer = me.get(f"tenants/acme/{noun}/{key}")
        missing = me.get(f"tenants/acme/{noun}/{uuid4()}")
        assert (theirs_answer.status, missing.status) == (404, 404), noun
        assert theirs_answer.raw == missing.raw
    for path in (f"requests/{theirs.request.pk}", f"objects/{theirs.tenant.short_id}"):
        assert me.get(path).status == 404


def test_without_the_querysets_filter_row_level_security_alone_shows_nothing(monkeypatch):
    from django.db.models import Q

    from tenants import access

    world = build()
    me = Api(token_of(world.acme.member))
    monkeypatch.setattr(access, "visible_tenants", lambda _: Q())
    monkeypatch.setattr(access, "scoped", lambda model, *_, **__: model.objects.all())

    for noun in ("endpoints", "machines", "namespaces", "allocations", "boundaries", "usage", "notices", "events"):
        rows = me.get(f"{noun}?limit=200").body["items"]
        assert {row.get("tenant", row.get("tenant_id")) for row in rows} <= {"acme", str(world.acme.tenant.pk)}, noun
        assert rows or noun == "notices"
