"""One question "may he?": roles go up the tree, invisible is 404, visible and forbidden is 403."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tenants import access
from tenants.actor import ANONYMOUS, AUTH, SYSTEM, Actor, Kind
from tenants.errors import Forbidden, NotVisible, Unauthenticated
from tenants.models import Tenant
from tenants.operations import members, people, tenants
from tenants.operations.guards import allow
from tenants.policies import ROUTES, Policy, Scope
from tenants.states import PlatformRole, Role
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

UPDATE = ROUTES["tenants.update"]
READ = ROUTES["tenants.read"]


@pytest.fixture
def tree():
    root = factories.tenant(name="root-tenant")
    child = factories.tenant(parent=root, name="child")
    return root, child, factories.tenant(parent=root, name="sibling"), factories.tenant(name="elsewhere")


def names(actor):
    with acting(actor):
        return sorted(access.tenants(actor).values_list("name", flat=True))


def test_roles_go_down_the_tree_and_never_sideways_or_up(tree):
    root, child, _, _ = tree

    assert names(factories.actor(factories.member(root))) == ["child", "root-tenant", "sibling"]
    assert names(factories.actor(factories.member(child))) == ["child"]
    assert names(factories.actor(factories.person())) == []
    assert names(factories.actor(factories.person(platform=(PlatformRole.AUDITOR,)))) == [
        "child",
        "elsewhere",
        "root-tenant",
        "sibling",
    ]


def test_foreign_and_missing_are_the_same(tree):
    actor = factories.actor(factories.member(tree[1], Role.OWNER))
    told = []

    for key in ("elsewhere", "nowhere", tree[3].pk, tree[3].short_id, "00000000-0000-0000-0000-000000000000"):
        with acting(actor), pytest.raises(NotVisible) as refusal:
            access.tenant_for(actor, key, READ)
        told.append((refusal.value.detail, refusal.value.data))

    assert told == [told[0]] * 5


def test_visible_and_forbidden_says_the_role_it_needs(tree):
    actor = factories.actor(factories.member(tree[1], Role.MEMBER))

    with acting(actor), pytest.raises(Forbidden) as refusal:
        access.tenant_for(actor, "child", UPDATE)

    assert refusal.value.data == {"needed": "owner"}


def test_a_tenant_is_found_by_name_short_id_and_id(tree):
    child = tree[1]
    actor = factories.actor(factories.member(child))

    with acting(actor):
        found = {
            access.tenant_for(actor, key, READ).pk for key in (child.name, child.short_id, child.pk, str(child.pk))
        }

    assert found == {child.pk}


def test_a_narrowed_token_sees_its_tenant_and_what_is_below(tree):
    root, child, _, elsewhere = tree
    who = factories.member(root, Role.OWNER)
    factories.member(elsewhere, Role.OWNER, who=who)
    wide = factories.actor(who)

    assert names(wide) == ["child", "elsewhere", "root-tenant", "sibling"]
    assert names(replace(wide, only_tenant=child.pk)) == ["child"]
    assert names(replace(wide, only_tenant=root.pk)) == ["child", "root-tenant", "sibling"]


def test_a_narrowed_token_of_an_operator_is_no_operators(tree):
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    narrow = replace(operator, only_tenant=tree[1].pk)

    with pytest.raises(Forbidden):
        people.create(email="a@example.org", display_name="A", actor=narrow, now=NOW)
    assert names(narrow) == ["child"]


def test_a_role_held_above_is_not_held_on_the_tenant_itself(tree):
    root, child, _, _ = tree
    policy = ROUTES["tenants.suspend"]
    above, own = (factories.actor(factories.member(t, Role.OWNER)) for t in (root, child))

    assert [access.allowed(actor, child, policy) for actor in (above, own)] == [True, False]
    assert access.allowed(above, root, policy) is False


@pytest.mark.parametrize("actor", [ANONYMOUS, AUTH, Actor(Kind.AGENT)], ids=["anonymous", "auth", "agent"])
def test_who_is_no_principal_of_people_gets_nowhere(actor, tree):
    with pytest.raises(Unauthenticated):
        tenants.update(tenant=tree[0], description="x", actor=actor, now=NOW)

    assert Tenant.objects.filter(description="x").count() == 0


def test_a_read_only_actor_changes_nothing(tree):
    actor = replace(factories.actor(factories.member(tree[0], Role.OWNER)), read_only=True)

    with pytest.raises(Forbidden) as refusal:
        tenants.update(tenant=tree[0], description="x", actor=actor, now=NOW)

    assert refusal.value.specific_code == "token-read-only"


def test_an_auditor_reads_and_changes_nothing(tree):
    actor = factories.actor(factories.person(platform=(PlatformRole.AUDITOR,)))

    with pytest.raises(Forbidden):
        tenants.update(tenant=tree[0], description="x", actor=actor, now=NOW)
    with pytest.raises(Forbidden):
        members.add(tenant=tree[0], email=factories.person().email, role=Role.OWNER, actor=actor, now=NOW)
    assert access.allowed(actor, tree[0], READ) is True


def test_the_system_may_what_operations_ask_of_it(tree):
    allow(SYSTEM, tree[0], "tenants.update")


def test_every_policy_that_changes_a_tenant_names_a_role_or_a_platform_role():
    loose = [
        name
        for name, policy in ROUTES.items()
        if policy.scope in {Scope.TENANT, Scope.PLATFORM} and policy.tenant_role is None and not policy.platform
    ]

    assert loose == []
    assert ROUTES["tenants.suspend"] == Policy(
        Scope.TENANT, Role.OWNER, frozenset({PlatformRole.OPERATOR}), persons_only=True, above=True
    )
