"""Somebody leaves who owns four endpoints, two tokens, a service account, and owes a decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session

from provisioners.boundary import people_of
from provisioners.sandbox import views
from tenants import tokens
from tenants.actor import Actor
from tenants.errors import Conflict, Unauthenticated
from tenants.models import Event, Hold, Membership, Person, Quota, Request, ServiceAccount, Tenant
from tenants.operations import leavers, people, requests, service_accounts
from tenants.states import PlatformRole, Role
from tenants.transactions import acting
from tests import factories
from tests.drive import fresh, is_ready
from tests.scenarios.story import Customer, Deaths, Killed, Story, endpoint, namespace, node, story

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

NAMES = ("chat", "code", "search", "summaries")


@dataclass
class Company:
    """Leo owns acme alone; Hera is a member; a request of Max waits for Leo."""

    told: Story
    tenant: Tenant
    leo: Person
    hera: Person
    endpoints: list[Any]
    play: Any
    tokens: list[str]
    account: ServiceAccount
    account_token: str
    pending: Request
    own: Request

    def leave(self, by: Actor, **more: Any) -> leavers.Departure:
        return leavers.leave(person=self.leo, actor=by, now=self.told.now, **more)


@pytest.fixture
def company(deaths: Deaths | None) -> Company:
    told = story(node("node-1"), deaths=deaths)
    tenant = factories.tenant(name="acme")
    factories.generous(tenant)
    leo = factories.member(tenant, Role.OWNER)
    hera, maxi = factories.member(tenant), factories.member(tenant)
    actor = factories.actor(leo)
    customer = Customer(tenant, actor)
    rows = [endpoint(customer, told.now, name) for name in NAMES]
    play = namespace(customer, told.now)
    issued = [people.issue_token(name=name, actor=actor, now=told.now).plain for name in ("laptop", "script")]
    account = service_accounts.create(tenant=tenant, name="robot", role=Role.MEMBER, actor=actor, now=told.now)
    robot = service_accounts.issue_token(account=account, name="ci", actor=actor, now=told.now).plain
    session = SessionStore()
    session[SESSION_KEY] = str(leo.pk)
    session.create()
    asked = [
        requests.submit(
            kind="quota", payload={"limits": {"vcpu": amount}}, reason="growth", tenant=tenant, actor=who, now=told.now
        )
        for who, amount in ((factories.actor(maxi), 8), (actor, 4))
    ]
    told.drive(lambda: all(is_ready(row)() for row in (*rows, play)))
    return Company(told, tenant, leo, hera, rows, play, issued, account, robot, *asked)


def resolve(company: Company, plain: str) -> Actor:
    return tokens.resolve(f"Bearer {plain}", now=company.told.now)


def test_a_leaver_loses_everything_that_opens_and_nothing_of_the_tenant_stops(
    company: Company, deaths: Deaths | None
) -> None:
    told, operator = company.told, company.told.operator
    people_before = len(people_of(company.play.allocation.boundary))
    access_before = told.here.estate.state.objects[str(company.play.pk)].parts["access.accounts"].have
    holds = sorted(Hold.objects.values_list("pk", flat=True))
    running = {use.unit for use in views.truth(told.here.estate.state)}

    with pytest.raises(Conflict) as refused:
        company.leave(operator)
    assert (refused.value.specific_code, refused.value.data["tenants"]) == ("last-owner", ["acme"])
    assert [resolve(company, plain).person_id for plain in company.tokens] == [company.leo.pk] * 2

    done = _leave(company, deaths)

    # What opens something has ended in the same transaction.
    for plain in company.tokens:
        with pytest.raises(Unauthenticated):
            resolve(company, plain)
    assert Session.objects.count() == 0
    assert not fresh(company.leo).is_active
    assert not Membership.objects.filter(person=company.leo).exists()
    if done is not None:
        assert (done.sessions, done.tokens, done.requests_withdrawn) == (1, 2, 0)
        assert sorted(entry["name"] for entry in done.handovers[0].objects) == sorted([*NAMES, "play"])

    # What lasts belongs to the tenant: the successor answers for it.
    hera = factories.actor(company.hera)
    assert hera.tenant_roles[company.tenant.pk] is Role.OWNER
    assert {fresh(row).owner_id for row in (*company.endpoints, company.play)} == {company.hera.pk}
    assert (fresh(company.account).owner_id, fresh(company.account).disabled_at) == (company.hera.pk, None)
    robot = resolve(company, company.account_token)
    assert (robot.person_id, robot.tenant_roles) == (company.hera.pk, {company.tenant.pk: Role.MEMBER})

    # Direct access to the namespace ends with the next sweeps; workloads go on.
    told.drive(lambda: len(people_of(fresh(company.play).allocation.boundary)) == people_before - 1)
    told.drive(
        lambda: (
            told.here.estate.state.objects[str(company.play.pk)].parts["access.accounts"].have != access_before
            and all(is_ready(row)() for row in (*company.endpoints, company.play))
        )
    )
    assert sorted(Hold.objects.values_list("pk", flat=True)) == holds
    assert {use.unit for use in views.truth(told.here.estate.state)} == running

    # The decision that waited for him waits for her; what he asked for the tenant stays, and is not hers to wave on
    # as his: the requester is still he.
    with acting(hera):
        assert company.pending.pk in {row.pk for row in requests.inbox(hera, now=told.now)}
    requests.decide(request=company.pending, version=1, verdict="approve", actor=hera, now=told.now)
    approver = factories.actor(factories.person(platform=(PlatformRole.APPROVER,)))
    requests.decide(request=fresh(company.pending), version=1, verdict="approve", actor=approver, now=told.now)
    assert (fresh(company.pending).state, fresh(company.own).state) == ("approved", "submitted")
    assert Quota.objects.get(tenant=company.tenant, dimension="vcpu").amount == 1_000_008
    assert Event.objects.filter(kind="person.left", object_id=company.leo.pk).count() == 1
    told.at_rest()


def _leave(company: Company, deaths: Deaths | None) -> leavers.Departure | None:
    """Let Leo go, with a kill at the commit where the story has one; None where the answer was lost with it."""
    operator = company.told.operator
    if deaths is None:
        return company.leave(operator, successor=company.hera)
    with pytest.raises(Killed), Deaths(before=deaths.before).threatening():
        company.leave(operator, successor=company.hera)
    if deaths.before:
        assert [resolve(company, plain).person_id for plain in company.tokens] == [company.leo.pk] * 2
        assert Membership.objects.get(person=company.leo).role == int(Role.OWNER)
        assert Session.objects.count() == 1
        return company.leave(operator, successor=company.hera)
    with pytest.raises(Conflict) as again:
        company.leave(operator, successor=company.hera)
    assert again.value.specific_code == "left"
    return None
