"""Tenants: depth, names, policy that only narrows, suspension, closing."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tenants.actor import SYSTEM
from tenants.errors import Conflict, Forbidden, InvalidSpec, PreconditionFailed
from tenants.models import Boundary, Event, Membership, Outbox, Request, ServiceAccount, Suspension, Tenant
from tenants.operations import requests, service_accounts
from tenants.operations import tenants as operations
from tenants.states import PlatformRole, Role, StockVisibility, SuspensionDepth
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def operator():
    return factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))


def create(actor, name="acme", **values):
    return operations.create(name=name, display_name="Acme", actor=actor, now=NOW, **values)


# --- making -----------------------------------------------------------------------------------------


def test_an_operator_makes_a_tenant_with_an_owner(operator):
    who = factories.person()

    row = create(operator, owner_email=who.email.upper())

    assert (row.path, row.status, row.version) == ([row.pk], "active", 1)
    assert list(Membership.objects.values_list("tenant_id", "person_id", "role")) == [(row.pk, who.pk, 3)]
    assert list(Event.objects.order_by("seq").values_list("kind", flat=True)) == ["tenant.created", "member.added"]


def test_an_owner_makes_children_down_to_the_third_level_and_no_further():
    root = factories.tenant()
    owner = factories.actor(factories.member(root, Role.OWNER))
    child = create(owner, "second", parent=root)
    grandchild = create(owner, "third", parent=child)

    with pytest.raises(InvalidSpec) as refusal:
        create(owner, "fourth", parent=grandchild)

    assert (refusal.value.field, refusal.value.specific_code) == ("parent", "too-deep")
    assert grandchild.path == [root.pk, child.pk, grandchild.pk]
    assert Tenant.objects.count() == 3


@pytest.mark.parametrize("role", [Role.VIEWER, Role.MEMBER])
def test_only_an_owner_makes_children(role):
    root = factories.tenant()

    with pytest.raises(Forbidden):
        create(factories.actor(factories.member(root, role)), parent=root)

    assert Tenant.objects.count() == 1


def test_an_owner_makes_no_tenant_at_the_root():
    owner = factories.actor(factories.member(factories.tenant(), Role.OWNER))

    with pytest.raises(Forbidden):
        create(owner)


@pytest.mark.parametrize("name", ["", "A", "1a", "a_b", "a.b", "a-", "ä", "a" * 41, "a\n", "a b"])
def test_a_name_that_is_no_dns_label_is_refused(operator, name):
    with pytest.raises(InvalidSpec) as refusal:
        create(operator, name)

    assert refusal.value.field == "name"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("xn--80ak6aa92e", "look-alike"),
        ("admin", "reserved"),
        ("adm1n", "reserved"),
        ("adrnin", "reserved"),
        ("p0rtal", "reserved"),
        ("kube-system", "reserved"),
    ],
)
def test_a_name_that_looks_like_something_else_is_refused(operator, name, code):
    with pytest.raises(InvalidSpec) as refusal:
        create(operator, name)

    assert refusal.value.specific_code == code


def test_a_taken_name_is_a_conflict_even_where_it_is_not_seen(operator):
    create(operator)
    owner = factories.actor(factories.member(parent := factories.tenant(), Role.OWNER))

    with pytest.raises(Conflict) as refusal:
        create(owner, parent=parent)

    assert refusal.value.specific_code == "name-taken"
    assert Tenant.objects.filter(name="acme").count() == 1


def test_a_change_for_another_version_is_refused(operator):
    row = create(operator)
    operations.update(tenant=row, description="one", actor=operator, now=NOW, version=1)

    with pytest.raises(PreconditionFailed):
        operations.update(tenant=row, description="two", actor=operator, now=NOW, version=1)

    row.refresh_from_db()
    assert (row.description, row.version) == ("one", 2)


def test_an_owner_does_not_widen_what_his_tenant_sees_of_the_stock():
    row = factories.tenant()
    owner = factories.actor(factories.member(row, Role.OWNER))

    with pytest.raises(Forbidden):
        operations.update(tenant=row, stock_visibility=StockVisibility.EXACT, actor=owner, now=NOW)


# --- policy -----------------------------------------------------------------------------------------


def set_policy(row, actor, **policy):
    return operations.set_policy(tenant=row, policy=policy, actor=actor, now=NOW)


def test_a_child_narrows_its_parent_and_never_widens_it(operator):
    root = factories.tenant(name="root-tenant")
    child = factories.tenant(parent=root)
    set_policy(root, operator, products=["A100-80GB", "H100-80GB"], longest_s=86400)

    narrow = set_policy(child, operator, products=["H100-80GB"], longest_s=3600)

    assert narrow.policy == {"products": ["H100-80GB"], "longest_s": 3600}
    with pytest.raises(InvalidSpec) as refusal:
        set_policy(child, operator, products=["L40S-48GB"])
    assert refusal.value.specific_code == "policy-widens"
    assert (refusal.value.data["rule"], refusal.value.data["tenant"]) == ("products", "root-tenant")
    with pytest.raises(InvalidSpec, match="at most 86400 s"):
        set_policy(child, operator, longest_s=86401)
    child.refresh_from_db()
    assert child.policy == narrow.policy


def test_an_owner_narrows_his_own_policy_and_cannot_take_it_back(operator):
    row = factories.tenant()
    owner = factories.actor(factories.member(row, Role.OWNER))
    set_policy(row, owner, tiers=["shared", "exclusive-gpu"])
    set_policy(row, owner, tiers=["shared"])

    with pytest.raises(InvalidSpec, match="only narrow"):
        set_policy(row, owner, tiers=["shared", "exclusive-gpu"])
    with pytest.raises(InvalidSpec, match="drop a rule"):
        set_policy(row, owner)

    assert set_policy(row, operator).policy == {}


def test_an_owner_above_may_widen_a_child_within_his_own(operator):
    root = factories.tenant()
    child = factories.tenant(parent=root)
    set_policy(child, operator, tiers=["shared"])

    row = set_policy(child, factories.actor(factories.member(root, Role.OWNER)), tiers=["exclusive-gpu", "shared"])

    assert row.policy == {"tiers": ["exclusive-gpu", "shared"]}


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"colour": ["red"]}, "policy.colour"),
        ({"tiers": ["golden"]}, "policy.tiers"),
        ({"products": ["H100"]}, "policy.products"),
        ({"models": ["unheard-of"]}, "policy.models"),
        ({"sites": "berlin"}, "policy.sites"),
        ({"sites": ["Berlin!"]}, "policy.sites"),
        ({"longest_s": "1"}, "policy.longest_s"),
        ({"longest_s": True}, "policy.longest_s"),
        ({"approvals": {"quota": ["tenant-owner"]}}, "policy.approvals"),
    ],
)
def test_a_bad_policy_names_its_field(operator, policy, field):
    with pytest.raises(InvalidSpec) as refusal:
        set_policy(factories.tenant(), operator, **policy)

    assert refusal.value.field == field


def test_a_child_adds_stages_and_drops_none(operator):
    root = factories.tenant()
    child = factories.tenant(parent=root)
    more = ["tenant-owner", "parent-owner", "platform-approver"]
    set_policy(root, operator, approvals={"quota": more})

    with pytest.raises(InvalidSpec, match="only add stages"):
        set_policy(child, operator, approvals={"quota": ["tenant-owner", "platform-approver"]})

    assert set_policy(child, operator, approvals={"quota": more}).policy == {"approvals": {"quota": more}}


# --- suspension -------------------------------------------------------------------------------------


def suspend(row, actor, depth=SuspensionDepth.KEYS, **values):
    return operations.suspend(tenant=row, depth=depth, reason="unpaid", actor=actor, now=NOW, **values)


def test_a_suspension_holds_for_the_children_and_wakes_what_they_have(operator):
    root = factories.tenant()
    child = factories.tenant(parent=root)
    boundary = Boundary.objects.create(
        tenant=child, provider=factories.provider(), kind="namespace", created_at=NOW, finalizers=["provider"]
    )

    suspend(root, operator, SuspensionDepth.NETWORK)

    root.refresh_from_db()
    boundary.refresh_from_db()
    assert (root.status, boundary.due_at) == ("suspended", NOW)
    assert Outbox.objects.filter(object_id=boundary.pk, object_kind="boundary").count() == 1
    with acting(operator):
        assert operations.depth_of(child) is SuspensionDepth.NETWORK


def test_a_second_suspension_replaces_the_first(operator):
    row = factories.tenant()
    suspend(row, operator, SuspensionDepth.KEYS)
    suspend(row, operator, SuspensionDepth.POWER)

    assert list(Suspension.objects.order_by("depth").values_list("depth", "ended_at")) == [
        ("keys", NOW),
        ("power", None),
    ]


def test_an_owner_suspends_a_child_and_not_his_own_tenant():
    root = factories.tenant()
    child = factories.tenant(parent=root)
    owner = factories.actor(factories.member(root, Role.OWNER))
    own = factories.actor(factories.member(child, Role.OWNER))

    suspend(child, owner)

    for actor, row in ((owner, root), (own, child)):
        with pytest.raises(Forbidden):
            suspend(row, actor)
    with pytest.raises(Forbidden):
        operations.resume(tenant=child, actor=own, now=NOW)
    assert operations.resume(tenant=child, actor=owner, now=NOW).status == "active"
    assert Suspension.objects.filter(ended_at=None).count() == 0


def test_a_suspension_with_an_end_ends_by_itself(operator):
    row = factories.tenant()
    suspend(row, operator, until=NOW + timedelta(hours=1))

    assert operations.resume_due(actor=SYSTEM, now=NOW + timedelta(minutes=59)) == 0
    assert operations.resume_due(actor=SYSTEM, now=NOW + timedelta(hours=1)) == 1

    row.refresh_from_db()
    assert row.status == "active"


def test_what_is_not_suspended_cannot_be_resumed(operator):
    with pytest.raises(Conflict):
        operations.resume(tenant=factories.tenant(), actor=operator, now=NOW)


# --- closing ----------------------------------------------------------------------------------------


def test_a_tenant_with_live_objects_is_not_closed(operator):
    row = factories.tenant()
    factories.tenant(parent=row)
    Boundary.objects.create(tenant=row, provider=factories.provider(), kind="vm", created_at=NOW)

    with pytest.raises(Conflict) as refusal:
        operations.close(tenant=row, actor=operator, now=NOW)

    assert refusal.value.data["objects"] == {"boundary": 1, "tenant": 1}
    row.refresh_from_db()
    assert row.status == "active"


def test_closing_ends_service_accounts_tokens_and_requests():
    row = factories.tenant()
    owner = factories.actor(factories.member(row, Role.OWNER))
    account = service_accounts.create(tenant=row, name="ci", role=Role.MEMBER, actor=owner, now=NOW)
    token = service_accounts.issue_token(account=account, name="ci", actor=owner, now=NOW).row
    requests.submit(kind="quota", payload={"limits": {"vcpu": 1}}, reason="", tenant=row, actor=owner, now=NOW)

    operations.close(tenant=row, actor=owner, now=NOW)

    row.refresh_from_db()
    token.refresh_from_db()
    assert (row.status, row.closed_at, token.revoked_at) == ("closed", NOW, NOW)
    assert ServiceAccount.objects.get().disabled_at == NOW
    assert Request.objects.get().state == "expired"
    with pytest.raises(Conflict):
        operations.update(tenant=row, description="x", actor=owner, now=NOW)
