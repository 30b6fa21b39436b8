"""Persons, members and leavers: nothing stays open, nothing is left without an owner."""

from __future__ import annotations

from datetime import timedelta
from threading import Barrier, Thread

import pytest
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import connections

from tenants import tokens
from tenants.actor import Kind
from tenants.errors import Conflict, Forbidden, InvalidSpec, NotVisible, Unauthenticated
from tenants.models import (
    Allocation,
    ApiToken,
    Delegation,
    Endpoint,
    Event,
    Membership,
    Notice,
    Person,
    PlatformMembership,
    Request,
    ServiceAccount,
)
from tenants.operations import access_reviews, delegations, leavers, members, people, requests, service_accounts
from tenants.states import PlatformRole, Role
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def operator():
    return factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))


def endpoint(tenant, owner, name):
    allocation = Allocation.objects.create(
        tenant=tenant, name=name, product_kind="endpoint", spec={}, demand={}, duration_s=60, created_at=NOW
    )
    return Endpoint.objects.create(tenant=tenant, name=name, allocation=allocation, owner=owner, created_at=NOW)


def session_of(person):
    store = SessionStore()
    store[SESSION_KEY] = str(person.pk)
    store.create()
    return store.session_key


# --- persons ----------------------------------------------------------------------------------------


def test_an_e_mail_belongs_to_one_person_whatever_its_case(operator):
    people.create(email="mia@example.org", display_name="Mia", actor=operator, now=NOW)

    with pytest.raises(Conflict) as refusal:
        people.create(email="MIA@example.org", display_name="Mia", actor=operator, now=NOW)

    assert refusal.value.specific_code == "email-taken"


def test_events_hold_neither_name_nor_e_mail(operator):
    row = people.create(email="mia@example.org", display_name="Mia Muster", actor=operator, now=NOW)
    people.update(person=row, display_name="Mia Maier", actor=operator, now=NOW)

    told = str(list(Event.objects.values("data", "actor", "kind")))

    assert "mia" not in told.lower()
    assert Event.objects.filter(object_id=row.pk).count() == 2


def test_a_weak_password_is_refused(operator):
    with pytest.raises(InvalidSpec) as refusal:
        people.create(email="a@example.org", display_name="A", password="password12", actor=operator, now=NOW)

    assert refusal.value.specific_code == "weak-password"
    assert not Person.objects.filter(email="a@example.org").exists()


def test_nobody_but_an_operator_adds_people():
    owner = factories.actor(factories.member(factories.tenant(), Role.OWNER))
    approver = factories.actor(factories.person(platform=(PlatformRole.APPROVER,)))

    for actor in (owner, approver):
        with pytest.raises(Forbidden):
            people.create(email="a@example.org", display_name="A", actor=actor, now=NOW)


def test_nobody_changes_his_own_platform_roles(operator):
    me = Person.objects.get(pk=operator.person_id)

    with pytest.raises(Forbidden) as refusal:
        people.set_roles(person=me, roles=[PlatformRole.OPERATOR, PlatformRole.APPROVER], actor=operator, now=NOW)

    assert refusal.value.specific_code == "own-roles"
    assert PlatformMembership.objects.count() == 1


def test_the_last_operator_stays(operator):
    other = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    first = Person.objects.get(pk=operator.person_id)
    people.set_roles(person=first, roles=[], actor=other, now=NOW)

    with pytest.raises(Conflict) as refusal:
        leavers.leave(person=Person.objects.get(pk=other.person_id), actor=other, now=NOW)

    assert refusal.value.specific_code == "last-operator"


def test_a_suspended_person_is_kept_out_until_he_is_resumed(operator):
    who = factories.member(factories.tenant())
    made = people.issue_token(name="t", actor=factories.actor(who), now=NOW)
    people.suspend(person=who, reason="lost laptop", actor=operator, now=NOW)
    with pytest.raises(Unauthenticated):
        tokens.resolve(f"Bearer {made.plain}", now=NOW)

    people.resume(person=who, actor=operator, now=NOW)

    assert tokens.resolve(f"Bearer {made.plain}", now=NOW).person_id == who.pk


def test_a_suspension_ends_the_sessions_of_that_person_alone(operator):
    who, other = factories.member(factories.tenant()), factories.member(factories.tenant())
    mine, others = session_of(who), session_of(other)

    people.suspend(person=who, reason="lost laptop", actor=operator, now=NOW)
    people.resume(person=who, actor=operator, now=NOW)

    assert set(Session.objects.values_list("session_key", flat=True)) == {others}
    assert mine != others
    assert Event.objects.get(kind="person.suspended").data["sessions"] == 1


def test_ownership_is_passed_on_in_one_step():
    tenant = factories.tenant()
    owner, heir = factories.member(tenant, Role.OWNER), factories.member(tenant)
    to = Membership.objects.get(person=heir)

    members.pass_ownership(to=to, actor=factories.actor(owner), now=NOW)

    assert dict(Membership.objects.values_list("person_id", "role")) == {heir.pk: 3, owner.pk: 2}
    with pytest.raises(Forbidden):
        members.pass_ownership(to=to, actor=factories.actor(owner), now=NOW)


def test_who_owns_from_above_or_names_himself_passes_nothing_on():
    parent = factories.tenant()
    child = factories.tenant(parent=parent)
    above, own = factories.member(parent, Role.OWNER), factories.member(child, Role.OWNER)
    to = Membership.objects.get(person=own)

    with pytest.raises(Conflict) as from_above:
        members.pass_ownership(to=to, actor=factories.actor(above), now=NOW)
    with pytest.raises(Conflict) as himself:
        members.pass_ownership(to=to, actor=factories.actor(own), now=NOW)

    assert (from_above.value.specific_code, himself.value.specific_code) == ("not-owner", "own-account")


def test_a_review_is_written_down_for_ways_into_this_tenant_only():
    tenant = factories.tenant()
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    own = Membership.objects.get(tenant=tenant)
    foreign = factories.service_account(factories.tenant())

    count = access_reviews.keep(tenant=tenant, ways=[own], actor=owner, now=NOW)

    assert count == 1
    event = Event.objects.get(kind="access.reviewed")
    assert (event.object_id, event.tenant_id, event.data) == (own.pk, tenant.pk, {"verdict": "keep"})
    with pytest.raises(InvalidSpec):
        access_reviews.keep(tenant=tenant, ways=[foreign], actor=owner, now=NOW)


def test_who_left_can_be_erased_and_the_events_still_hold(operator):
    who = factories.member(factories.tenant())
    with pytest.raises(Conflict):
        people.erase(person=who, actor=operator, now=NOW)
    leavers.leave(person=who, actor=operator, now=NOW)

    people.erase(person=who, actor=operator, now=NOW)

    who.refresh_from_db()
    assert (who.display_name, who.email) == ("(erased)", f"erased-{who.pk}@erased.invalid")
    assert Event.objects.filter(object_id=who.pk, kind="person.left").count() == 1


# --- members ----------------------------------------------------------------------------------------


def test_an_owner_adds_somebody_he_could_not_see():
    tenant = factories.tenant()
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    who = factories.person()

    row = members.add(tenant=tenant, email=who.email, role=Role.VIEWER, actor=owner, now=NOW)

    assert (row.person_id, row.role) == (who.pk, int(Role.VIEWER))
    with pytest.raises(Conflict):
        members.add(tenant=tenant, email=who.email, role=Role.OWNER, actor=owner, now=NOW)
    with pytest.raises(InvalidSpec):
        members.add(tenant=tenant, email="nobody@example.org", role=Role.VIEWER, actor=owner, now=NOW)


def test_members_and_service_accounts_manage_no_members():
    tenant = factories.tenant()
    owner = factories.member(tenant, Role.OWNER)
    member = factories.actor(factories.member(tenant, Role.MEMBER))
    account = factories.service_account(tenant, owner=owner)
    robot = factories.Actor(Kind.SERVICE_ACCOUNT, account.pk, owner.pk, {tenant.pk: Role.OWNER})

    for actor in (member, robot):
        with pytest.raises(Forbidden):
            members.add(tenant=tenant, email=factories.person().email, role=Role.VIEWER, actor=actor, now=NOW)

    assert Membership.objects.count() == 2


GOING = {
    "removed": lambda row, by: members.remove(membership=row, actor=by, now=NOW),
    "demoted": lambda row, by: members.change_role(membership=row, role=Role.MEMBER, actor=by, now=NOW),
    "leaves": lambda row, by: leavers.leave(person=row.person, actor=by, now=NOW),
    "leaves by himself": lambda row, _: leavers.leave(person=row.person, actor=factories.actor(row.person), now=NOW),
}


@pytest.mark.parametrize("how", GOING)
def test_the_last_owner_cannot_go(how, operator):
    tenant = factories.tenant(name="acme")
    owner = factories.member(tenant, Role.OWNER)
    factories.member(tenant, Role.MEMBER)
    row = Membership.objects.get(person=owner)

    with pytest.raises(Conflict) as refusal:
        GOING[how](row, operator)

    assert refusal.value.specific_code == "last-owner"
    owner.refresh_from_db()
    assert (Membership.objects.get(person=owner).role, owner.is_active) == (3, True)


def test_an_owner_of_the_parent_is_an_owner_of_the_child():
    root = factories.tenant()
    child = factories.tenant(parent=root)
    factories.member(root, Role.OWNER)
    owner = factories.member(child, Role.OWNER)

    leavers.leave(person=owner, actor=factories.actor(owner), now=NOW)

    assert not Membership.objects.filter(tenant=child).exists()


def test_two_owners_who_remove_each_other_at_once_leave_one():
    tenant = factories.tenant()
    first, second = factories.member(tenant, Role.OWNER), factories.member(tenant, Role.OWNER)
    start, outcomes = Barrier(2), []

    def remove(actor, membership):
        start.wait()
        try:
            members.remove(membership=membership, actor=actor, now=NOW)
            outcomes.append("removed")
        except Conflict as error:
            outcomes.append(error.specific_code)
        except NotVisible:  # the other one was through before this one began
            outcomes.append("last-owner")
        finally:
            connections.close_all()

    pairs = [
        (factories.actor(first), Membership.objects.get(person=second)),
        (factories.actor(second), Membership.objects.get(person=first)),
    ]
    threads = [Thread(target=remove, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["last-owner", "removed"]
    assert Membership.objects.count() == 1


def test_what_a_removed_member_owned_waits_for_somebody():
    tenant = factories.tenant()
    owner = factories.member(tenant, Role.OWNER)
    who = factories.member(tenant)
    thing = endpoint(tenant, who, "chat")
    account = factories.service_account(tenant, owner=who)
    row = Membership.objects.get(person=who)

    left = members.remove(membership=row, actor=factories.actor(owner), now=NOW)

    account.refresh_from_db()
    assert [item["name"] for item in left.objects] == ["chat"]
    assert (left.to, account.owner_id) == (None, owner.pk)
    assert Notice.objects.get().text == "A member left. Give what he owned to somebody else: endpoint chat."
    members.hand_over(tenant=tenant, person_id=who.pk, to=owner, actor=factories.actor(owner), now=NOW)
    thing.refresh_from_db()
    assert thing.owner_id == owner.pk


def test_a_member_takes_himself_out():
    tenant = factories.tenant()
    factories.member(tenant, Role.OWNER)
    who = factories.member(tenant, Role.VIEWER)

    members.remove(membership=Membership.objects.get(person=who), actor=factories.actor(who), now=NOW)

    assert not Membership.objects.filter(person=who).exists()


# --- leavers ----------------------------------------------------------------------------------------


@pytest.fixture
def leaver():
    """Four endpoints, two tokens, a session, a service account with a token, requests, a delegation."""
    tenant = factories.tenant(name="acme")
    owner, who = factories.member(tenant, Role.OWNER), factories.member(tenant, Role.OWNER)
    actor = factories.actor(who)
    for number in range(4):
        endpoint(tenant, who, f"chat-{number}")
    for name in ("laptop", "phone"):
        people.issue_token(name=name, actor=actor, now=NOW)
    account = service_accounts.create(tenant=tenant, name="ci", role=Role.MEMBER, actor=actor, now=NOW)
    robot = service_accounts.issue_token(account=account, name="ci", actor=actor, now=NOW)
    session_of(who)
    session_of(owner)
    delegations.create(delegate=owner, starts_at=NOW - timedelta(days=1), ends_at=NOW + timedelta(days=9),
                       actor=actor, now=NOW)  # fmt: skip
    requests.submit(kind="quota", payload={"limits": {"vcpu": 1}}, reason="", tenant=tenant, actor=actor, now=NOW)
    factories.tenant(name="other")
    requests.submit(kind="join", payload={"role": "member"}, reason="", join="other", actor=actor, now=NOW)
    return {"tenant": tenant, "owner": owner, "who": who, "account": account, "robot": robot}


@pytest.mark.parametrize("by", ["himself", "operator"])
def test_everything_of_a_leaver_ends_in_one_transaction(leaver, operator, by):
    who, owner = leaver["who"], leaver["owner"]
    actor = operator if by == "operator" else factories.actor(who)

    done = leavers.leave(person=who, actor=actor, now=NOW)

    who.refresh_from_db()
    assert (who.is_active, who.left_at) == (False, NOW)
    assert (done.sessions, done.tokens, done.delegations, done.requests_withdrawn) == (1, 2, 1, 1)
    assert Session.objects.count() == 1
    assert not Membership.objects.filter(person=who).exists()
    assert not ApiToken.objects.filter(person=who, revoked_at=None).exists()
    assert list(Delegation.objects.values_list("ends_at", flat=True)) == [NOW]
    assert dict(Request.objects.values_list("kind", "state")) == {"quota": "submitted", "join": "withdrawn"}
    assert [len(h.objects) for h in done.handovers] == [4]
    assert Notice.objects.filter(kind="handover", tenant=leaver["tenant"]).count() == 1
    assert ServiceAccount.objects.get().owner_id == owner.pk
    assert tokens.resolve(f"Bearer {leaver['robot'].plain}", now=NOW).person_id == owner.pk
    assert Endpoint.objects.filter(released_at=None, deletion_requested_at=None).count() == 4


def test_a_successor_takes_what_a_leaver_owned(leaver, operator):
    who = leaver["who"]
    heir = factories.member(leaver["tenant"])

    leavers.leave(person=who, successor=heir, actor=operator, now=NOW)

    assert set(Endpoint.objects.values_list("owner_id", flat=True)) == {heir.pk}
    assert ServiceAccount.objects.get().owner_id == heir.pk
    assert Notice.objects.count() == 0


def test_a_successor_becomes_owner_where_nobody_else_is(operator):
    tenant = factories.tenant()
    owner = factories.member(tenant, Role.OWNER)
    heir = factories.person()

    leavers.leave(person=owner, successor=heir, actor=operator, now=NOW)

    assert list(Membership.objects.values_list("person_id", "role")) == [(heir.pk, int(Role.OWNER))]


def test_an_account_that_nobody_can_take_over_is_disabled(operator):
    tenant = factories.tenant()
    who = factories.member(tenant)
    account = factories.service_account(tenant, owner=who)

    leavers.leave(person=who, actor=operator, now=NOW)

    account.refresh_from_db()
    assert account.disabled_at == NOW


def test_a_failure_on_the_way_leaves_everything_as_it_was(leaver, operator, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("killed here")

    monkeypatch.setattr(leavers, "_withdraw_requests", fails)

    with pytest.raises(RuntimeError):
        leavers.leave(person=leaver["who"], actor=operator, now=NOW)

    leaver["who"].refresh_from_db()
    assert (leaver["who"].is_active, Session.objects.count()) == (True, 2)
    assert Membership.objects.filter(person=leaver["who"]).count() == 1
    assert ApiToken.objects.filter(person=leaver["who"], revoked_at=None).count() == 2
    assert not Event.objects.filter(kind="person.left").exists()


def test_nobody_sends_another_away_but_an_operator(leaver):
    with pytest.raises(Forbidden):
        leavers.leave(person=leaver["who"], actor=factories.actor(leaver["owner"]), now=NOW)


def test_who_has_left_does_not_leave_twice(leaver, operator):
    leavers.leave(person=leaver["who"], actor=operator, now=NOW)

    with pytest.raises(Conflict) as refusal:
        leavers.leave(person=leaver["who"], actor=operator, now=NOW)

    assert refusal.value.specific_code == "left"


# --- service accounts -------------------------------------------------------------------------------


def test_a_service_account_is_never_an_owner():
    tenant = factories.tenant()
    owner = factories.actor(factories.member(tenant, Role.OWNER))

    with pytest.raises(InvalidSpec):
        service_accounts.create(tenant=tenant, name="ci", role=Role.OWNER, actor=owner, now=NOW)


def test_a_name_is_free_again_once_its_account_is_disabled():
    tenant = factories.tenant()
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    first = service_accounts.create(tenant=tenant, name="ci", role=Role.MEMBER, actor=owner, now=NOW)
    with pytest.raises(Conflict):
        service_accounts.create(tenant=tenant, name="ci", role=Role.MEMBER, actor=owner, now=NOW)

    service_accounts.disable(account=first, actor=owner, now=NOW)

    assert service_accounts.create(tenant=tenant, name="ci", role=Role.MEMBER, actor=owner, now=NOW).pk != first.pk


def test_a_token_never_outlives_its_account():
    tenant = factories.tenant()
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    end = NOW + timedelta(days=1)
    account = service_accounts.create(tenant=tenant, name="ci", role=Role.MEMBER, expires_at=end, actor=owner, now=NOW)

    made = service_accounts.issue_token(
        account=account, name="t", expires_at=end + timedelta(days=9), actor=owner, now=NOW
    )

    assert made.row.expires_at == end
