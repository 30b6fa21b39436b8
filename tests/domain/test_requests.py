"""Requests: stages, who may decide, decisions with proof, what an approval does, delegates, rules, races."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from threading import Barrier, Thread

import pytest
from django.db import connections

from tenants import usage
from tenants.actor import SYSTEM, Actor, Kind
from tenants.errors import Conflict, Forbidden, InvalidSpec, NotVisible, PreconditionFailed
from tenants.models import (
    Allocation,
    Boundary,
    Decision,
    Event,
    Hold,
    Membership,
    Provider,
    Quota,
    QuotaCharge,
    Request,
    RequestStage,
    Tenant,
)
from tenants.operations import (
    allocations,
    auto_approval_rules,
    delegations,
    people,
    pricing,
    quotas,
    requests,
)
from tenants.specs import AllocationSpec, BareAsk, GpuAsk, Term, UnitAsk
from tenants.states import OnShortage, PlatformRole, Role
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

GPU = "gpu.H100-80GB.slices"
LATER = NOW + timedelta(hours=2)


def staff(*roles):
    return factories.actor(factories.person(platform=roles))


@pytest.fixture
def approver():
    return staff(PlatformRole.APPROVER)


@pytest.fixture
def tenant():
    return factories.tenant(name="acme")


@pytest.fixture
def owner(tenant):
    return factories.actor(factories.member(tenant, Role.OWNER))


@pytest.fixture
def member(tenant):
    return factories.actor(factories.member(tenant, Role.MEMBER))


def ask(tenant, actor, limits=None, **payload):
    return requests.submit(
        kind="quota", payload={"limits": limits or {"vcpu": 8}, **payload}, reason="growth", tenant=tenant,
        actor=actor, now=NOW,
    )  # fmt: skip


def decide(request, actor, verdict="approve", **values):
    values = {"version": 1, "reason": "" if verdict == "approve" else "too much", "now": LATER} | values
    return requests.decide(request=request, verdict=verdict, actor=actor, **values)


def state(request):
    request.refresh_from_db()
    return request.state


def limits(tenant):
    return dict(Quota.objects.filter(tenant=tenant).values_list("dimension", "amount"))


# --- stages -----------------------------------------------------------------------------------------


def test_a_members_request_passes_the_owner_and_then_the_platform(tenant, owner, member, approver):
    request = ask(tenant, member)

    with pytest.raises(Forbidden) as refusal:
        decide(request, approver)
    decide(request, owner)

    assert refusal.value.specific_code == "not-your-stage"
    assert (state(request), limits(tenant)) == ("submitted", {})
    decide(request, approver)
    assert (state(request), limits(tenant), request.decided_at) == ("approved", {"vcpu": 8}, LATER)
    assert list(Decision.objects.order_by("created_at").values_list("stage__decider", "verdict")) == [
        ("tenant-owner", "approve"),
        ("platform-approver", "approve"),
    ]
    assert Quota.objects.get().granted_by_id == request.pk


def test_a_tenants_policy_adds_the_cost_owner_of_the_parent(approver):
    parent = factories.tenant()
    child = factories.tenant(
        parent=parent, policy={"approvals": {"quota": ["tenant-owner", "parent-owner", "platform-approver"]}}
    )
    request = ask(child, factories.actor(factories.member(child, Role.OWNER)))
    cost_owner = factories.actor(factories.member(parent, Role.OWNER))

    assert list(RequestStage.objects.order_by("order").values_list("decider", flat=True)) == [
        "parent-owner",
        "platform-approver",
    ]
    with pytest.raises(Forbidden):
        decide(request, approver)
    decide(request, cost_owner)
    decide(request, approver)
    assert state(request) == "approved"


def test_the_inbox_holds_what_one_may_decide_now(tenant, owner, member, approver):
    first = ask(tenant, member)
    second = ask(tenant, owner)

    def inbox(actor):
        with acting(actor):
            return {row.pk for row in requests.inbox(actor, now=LATER)}

    assert (inbox(owner), inbox(approver), inbox(member)) == ({first.pk}, {second.pk}, set())
    decide(first, owner)
    assert (inbox(owner), inbox(approver)) == (set(), {first.pk, second.pk})


# --- who may not ------------------------------------------------------------------------------------


def test_nobody_decides_his_own_request_whatever_his_roles(tenant):
    who = factories.person(platform=(PlatformRole.APPROVER, PlatformRole.OPERATOR))
    factories.member(tenant, Role.OWNER, who=who)
    request = ask(tenant, factories.actor(who))

    with pytest.raises(Forbidden) as refusal:
        decide(request, factories.actor(who))

    assert refusal.value.specific_code == "own-request"
    assert (state(request), Decision.objects.count()) == ("submitted", 0)


def test_the_owner_of_a_service_account_does_not_decide_what_it_asked(tenant, approver):
    who = factories.person(platform=(PlatformRole.APPROVER,))
    factories.member(tenant, Role.OWNER, who=who)
    account = factories.service_account(tenant, owner=who)
    robot = Actor(Kind.SERVICE_ACCOUNT, account.pk, who.pk, {tenant.pk: Role.MEMBER}, only_tenant=tenant.pk)
    request = ask(tenant, robot)

    assert request.requester_id == who.pk
    with pytest.raises(Forbidden):
        decide(request, factories.actor(who))
    with pytest.raises(Forbidden):
        decide(request, robot)


def test_operators_and_auditors_decide_nothing(tenant, owner):
    request = ask(tenant, owner)

    for actor in (staff(PlatformRole.OPERATOR), staff(PlatformRole.AUDITOR)):
        with pytest.raises(Forbidden):
            decide(request, actor)


def test_a_stranger_does_not_even_lock_a_request(tenant, owner):
    request = ask(tenant, owner)
    stranger = factories.actor(factories.member(factories.tenant(), Role.OWNER))

    with pytest.raises(NotVisible):
        decide(request, stranger)
    with pytest.raises(NotVisible):
        requests.comment(request=request, text="hello", actor=stranger, now=NOW)


def test_viewers_ask_for_nothing(tenant):
    with pytest.raises(Forbidden):
        ask(tenant, factories.actor(factories.member(tenant, Role.VIEWER)))


def test_nothing_is_asked_for_a_closed_tenant(tenant, owner):
    Tenant.objects.update(status="closed", closed_at=NOW)
    tenant.refresh_from_db()

    with pytest.raises(Conflict) as refusal:
        ask(tenant, owner)

    assert (refusal.value.specific_code, Request.objects.count()) == ("tenant-closed", 0)


# --- delegates --------------------------------------------------------------------------------------


def delegate(frm, to, start=NOW, end=NOW + timedelta(days=1)):
    who = people.Person.objects.get(pk=to.person_id)
    return delegations.create(delegate=who, starts_at=start, ends_at=end, actor=frm, now=NOW)


def test_a_delegate_decides_between_the_dates_and_it_is_written_down(tenant, owner, approver):
    request = ask(tenant, owner)
    deputy = staff(PlatformRole.AUDITOR)
    with pytest.raises(Forbidden):
        decide(request, deputy)
    delegate(approver, deputy)
    with pytest.raises(Forbidden):
        decide(request, deputy, now=NOW + timedelta(days=1))

    decision = decide(request, deputy)

    assert (decision.decider_id, decision.on_behalf_of_id) == (deputy.person_id, approver.person_id)
    assert state(request) == "approved"


def test_a_delegate_of_the_requester_does_not_decide_for_him(tenant):
    who = factories.person(platform=(PlatformRole.APPROVER,))
    factories.member(tenant, Role.OWNER, who=who)
    deputy = staff(PlatformRole.AUDITOR)
    delegate(factories.actor(who), deputy)

    with pytest.raises(Forbidden):
        decide(ask(tenant, factories.actor(who)), deputy)


def test_a_requester_does_not_decide_as_anothers_delegate(tenant, owner, approver):
    request = ask(tenant, owner)
    delegations.create(
        delegate=people.Person.objects.get(pk=owner.person_id), starts_at=NOW, ends_at=LATER + timedelta(days=1),
        actor=staff(PlatformRole.OPERATOR, PlatformRole.APPROVER), now=NOW,
    )  # fmt: skip

    with pytest.raises(Forbidden) as refusal:
        decide(request, owner)

    assert refusal.value.specific_code == "own-request"


def test_an_ended_delegation_opens_nothing(tenant, owner, approver):
    request = ask(tenant, owner)
    deputy = staff(PlatformRole.AUDITOR)
    row = delegate(approver, deputy)
    delegations.end(delegation=row, actor=approver, now=NOW + timedelta(minutes=1))

    with pytest.raises(Forbidden):
        decide(request, deputy)


# --- versions, reductions, ends ---------------------------------------------------------------------


def test_a_decision_binds_to_the_version_it_names(tenant, owner, approver):
    request = ask(tenant, owner)
    requests.revise(request=request, payload={"limits": {"vcpu": 800}}, actor=owner, now=NOW)

    with pytest.raises(PreconditionFailed):
        decide(request, approver, version=1)

    assert limits(tenant) == {}
    decide(request, approver, version=2)
    assert limits(tenant) == {"vcpu": 800}


def test_a_revision_starts_all_stages_again(tenant, owner, member, approver):
    request = ask(tenant, member)
    decide(request, owner)
    requests.revise(request=request, payload={"limits": {"vcpu": 9}}, actor=member, now=NOW)

    with pytest.raises(Forbidden):
        decide(request, approver, version=2)
    decide(request, owner, version=2)
    decide(request, approver, version=2)

    assert (state(request), limits(tenant), Decision.objects.count()) == ("approved", {"vcpu": 9}, 3)


def test_only_the_requester_revises_and_withdraws(tenant, owner, member):
    request = ask(tenant, member)

    for change in (
        lambda: requests.revise(request=request, payload={"limits": {"vcpu": 9}}, actor=owner, now=NOW),
        lambda: requests.withdraw(request=request, actor=owner, now=NOW),
    ):
        with pytest.raises(Forbidden):
            change()

    requests.withdraw(request=request, actor=member, now=NOW)
    assert state(request) == "withdrawn"
    with pytest.raises(Conflict):
        decide(request, owner)


def test_a_reduction_holds_for_the_stages_after_it(tenant, owner, member, approver):
    end = NOW + timedelta(days=7)
    request = ask(tenant, member, {"vcpu": 8, "memory_gib": 8})
    decide(request, owner, "reduce", granted={"limits": {"vcpu": 4}, "until": end.isoformat()})
    with pytest.raises(InvalidSpec) as refusal:
        decide(request, approver, "reduce", granted={"limits": {"vcpu": 5}})

    decide(request, approver)

    assert refusal.value.specific_code == "more-than-asked"
    assert state(request) == "reduced"
    assert list(Quota.objects.values_list("dimension", "amount", "until")) == [("vcpu", 4, end)]


def test_a_reduction_must_be_one(tenant, owner, approver):
    request = ask(tenant, owner)

    for verdict, granted in (
        ("reduce", None),
        ("reduce", {"limits": {"vcpu": 8}}),
        ("reduce", {"limits": {"vcpu": 0}}),
        ("approve", {"limits": {"vcpu": 1}}),
    ):
        with pytest.raises(InvalidSpec):
            decide(request, approver, verdict, granted=granted)

    assert (state(request), limits(tenant)) == ("submitted", {})


def test_a_denial_needs_a_reason_and_grants_nothing(tenant, owner, approver):
    request = ask(tenant, owner)
    with pytest.raises(InvalidSpec):
        decide(request, approver, "deny", reason=" ")

    decide(request, approver, "deny", reason="no budget")

    assert (state(request), request.outcome, limits(tenant)) == ("denied", {"reason": "no budget"}, {})


def test_what_nobody_decides_expires(tenant, owner):
    request = ask(tenant, owner)

    assert requests.expire_due(actor=SYSTEM, now=NOW + timedelta(days=29)) == 0
    assert requests.expire_due(actor=SYSTEM, now=NOW + timedelta(days=30)) == 1
    assert state(request) == "expired"


def test_two_approvals_at_once_grant_once(tenant, owner):
    request = ask(tenant, owner)
    start, outcomes = Barrier(2), []

    def approve(actor):
        start.wait()
        try:
            decide(request, actor)
            outcomes.append("approved")
        except Conflict as error:
            outcomes.append(error.specific_code)
        finally:
            connections.close_all()

    threads = [Thread(target=approve, args=[staff(PlatformRole.APPROVER)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["approved", "decided"]
    assert (limits(tenant), Decision.objects.count()) == ({"vcpu": 8}, 1)


# --- payloads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload", "field", "code"),
    [
        ("exception", {}, "kind", "not-supported"),
        ("layout", {}, "kind", "not-supported"),
        ("rubbish", {}, "kind", "not-supported"),
        ("quota", [], "payload", "invalid"),
        ("quota", {}, "payload.limits", "invalid"),
        ("quota", {"limits": {"vcpu": 1}, "granted_by": "x"}, "payload.granted_by", "unknown-field"),
        ("quota", {"limits": {"cpu": 1}}, "payload.limits", "unknown-dimension"),
        ("quota", {"limits": {"vcpu": 0}}, "payload.limits.vcpu", "out-of-range"),
        ("quota", {"limits": {"vcpu": 1.5}}, "payload.limits.vcpu", "out-of-range"),
        ("quota", {"limits": {"vcpu": True}}, "payload.limits.vcpu", "out-of-range"),
        ("quota", {"limits": {"vcpu": 10**13}}, "payload.limits.vcpu", "out-of-range"),
        ("quota", {"limits": {"vcpu": 1}, "until": "tomorrow"}, "payload.until", "invalid"),
        ("quota", {"limits": {"vcpu": 1}, "until": "2030-01-01T00:00:00"}, "payload.until", "invalid"),
        ("quota", {"limits": {"vcpu": 1}, "until": "2020-01-01T00:00:00Z"}, "payload.until", "invalid"),
        ("quota", {"limits": {"vcpu": 1}, "ancestors": {"nobody": {"vcpu": 1}}}, "payload.ancestors", "not-above"),
        ("quota", {"limits": {"vcpu": 1}, "mode": "set", "until": "2030-01-01T00:00:00Z"}, "payload.mode", "invalid"),
        ("tenant", {"name": "admin"}, "name", "reserved"),
        ("tenant", {"name": "x", "wish": {"a": "\x00"}}, "payload.wish", "invalid"),
        ("tenant", {"name": "x", "wish": {"a": float("nan")}}, "payload.wish", "invalid"),
        ("join", {"role": "king"}, "payload.role", "invalid"),
    ],
)  # fmt: skip
def test_a_bad_payload_names_its_field_and_stores_nothing(tenant, owner, kind, payload, field, code):
    with pytest.raises(InvalidSpec) as refusal:
        requests.submit(kind=kind, payload=payload, reason="", tenant=tenant, join="acme", actor=owner, now=NOW)

    assert (refusal.value.field, refusal.value.specific_code) == (field, code)
    assert Request.objects.count() == 0


def test_a_tenant_that_inherits_asks_above_it(tenant):
    child = factories.tenant(parent=tenant)
    factories.set_limit(child, "vcpu", 0, inherit=True)
    owner = factories.actor(factories.member(child, Role.OWNER))

    with pytest.raises(InvalidSpec) as refusal:
        ask(child, owner)

    assert refusal.value.specific_code == "inherits"


# --- the other kinds --------------------------------------------------------------------------------


def test_one_click_makes_tenant_membership_and_quota(approver):
    who = factories.actor(factories.person())
    payload = {"name": "vision", "display_name": "Vision", "limits": {GPU: 1}, "wish": {"model": "llama-3-1-8b"}}
    request = requests.submit(kind="tenant", payload=payload, reason="new team", actor=who, now=NOW)

    decide(request, approver)

    made = Tenant.objects.get()
    assert (made.name, state(request), request.tenant_id) == ("vision", "approved", made.pk)
    assert list(Membership.objects.values_list("person_id", "role")) == [(who.person_id, 3)]
    assert limits(made) == {GPU: 1}
    assert request.outcome["wish"] == {"model": "llama-3-1-8b"}


def test_a_tenant_below_a_parent_passes_its_owner_first(tenant, owner, member, approver):
    request = requests.submit(
        kind="tenant", payload={"name": "child", "parent": "acme"}, reason="", actor=member, now=NOW
    )

    decide(request, owner)
    decide(request, approver)

    assert Tenant.objects.get(name="child").parent == tenant


def test_a_name_taken_meanwhile_is_said_to_the_approver(approver):
    who = factories.actor(factories.person())
    request = requests.submit(kind="tenant", payload={"name": "vision"}, reason="", actor=who, now=NOW)
    factories.tenant(name="vision")

    with pytest.raises(Conflict) as refusal:
        decide(request, approver)

    assert (refusal.value.specific_code, state(request)) == ("name-taken", "submitted")


def test_who_asks_to_join_cannot_see_the_tenant_and_its_owner_lets_him_in(tenant, owner, approver):
    who = factories.actor(factories.person())
    request = requests.submit(kind="join", payload={"role": "owner"}, reason="", join="acme", actor=who, now=NOW)

    with acting(who):
        assert not Tenant.objects.exists()
    with pytest.raises(Forbidden):
        decide(request, approver)
    decide(request, owner, "reduce", granted={"role": "viewer"})

    assert state(request) == "reduced"
    assert Membership.objects.get(person_id=who.person_id).role == int(Role.VIEWER)


@pytest.mark.parametrize("name", ["nowhere", "closed-one"])
def test_nobody_joins_what_is_not_there(name):
    factories.tenant(name="closed-one", status="closed")

    with pytest.raises(NotVisible):
        requests.submit(
            kind="join", payload={}, reason="", join=name, actor=factories.actor(factories.person()), now=NOW
        )


# --- what waits for a request -----------------------------------------------------------------------


@pytest.fixture
def site():
    provider = factories.provider(name="site", capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=1)
    return provider


PLAIN = ("vcpu", "memory_gib", "boundaries")


def small(tenant):
    for dimension in PLAIN:
        factories.set_limit(tenant, dimension, 1000)


def deploy(tenant, actor, name="chat", *, profile="", on_shortage=OnShortage.REQUEST):
    unit = UnitAsk(GpuAsk("H100-80GB", profile), vcpu=4, memory_gib=16)
    spec = AllocationSpec(units=(unit,), term=Term(duration_s=86400), on_shortage=on_shortage)
    return allocations.create(tenant=tenant, ask=BareAsk(name, spec), actor=actor, now=NOW)


def test_over_quota_asks_for_exactly_the_missing_amount_and_runs_when_granted(tenant, owner, approver, site):
    small(tenant)
    factories.set_limit(tenant, GPU, 2)
    row = deploy(tenant, owner)
    request = Request.objects.get()
    assert (row.phase, request.allocation_id, request.payload["limits"]) == ("AwaitingApproval", row.pk, {GPU: 6})
    assert QuotaCharge.objects.count() == 0

    decision = decide(request, approver)

    row.refresh_from_db()
    assert (state(request), request.outcome["outcome"], row.queued_at) == ("approved", "runs", None)
    assert Hold.objects.get().unit.allocation_id == row.pk
    assert decision.proof["where"][0]["provider"] == "site"
    assert decision.proof["quota"] == [{"tenant": "acme", "dimension": GPU, "before": 2, "after": 8, "used": 0}]
    late = Quota.objects.get(dimension=GPU, until__isnull=False)
    assert (late.amount, late.until) == (6, LATER + timedelta(days=1))


def test_two_asks_filed_side_by_side_both_run_once_both_are_granted(tenant, owner, approver, site):
    small(tenant)
    first = deploy(tenant, owner, "first", profile="3g.40gb")
    second = deploy(tenant, owner, "second", profile="3g.40gb")
    asked = {row.allocation_id: row for row in Request.objects.all()}

    decide(asked[first.pk], approver, now=LATER)
    built = LATER + timedelta(seconds=90)
    with acting(SYSTEM):
        usage.first_ready(Allocation.objects.get(pk=first.pk), now=built)
    decide(asked[second.pk], approver, now=built + timedelta(seconds=5))

    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.queued_at, second.queued_at) == (None, None)
    assert Hold.objects.count() == 2
    granted = Quota.objects.get(dimension=GPU, granted_by=asked[first.pk])
    assert granted.until == first.expires_at == built + timedelta(days=1)


def test_the_second_of_two_asks_runs_while_the_first_is_still_being_built(tenant, owner, approver, site):
    small(tenant)
    first = deploy(tenant, owner, "first", profile="3g.40gb")
    second = deploy(tenant, owner, "second", profile="3g.40gb")
    asked = {row.allocation_id: row for row in Request.objects.all()}

    decide(asked[first.pk], approver, now=LATER)
    decide(asked[second.pk], approver, now=LATER + timedelta(seconds=5))
    with acting(SYSTEM):
        usage.first_ready(Allocation.objects.get(pk=first.pk), now=LATER + timedelta(minutes=5))
        usage.first_ready(Allocation.objects.get(pk=second.pk), now=LATER + timedelta(minutes=6))

    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.queued_at, second.queued_at) == (None, None)
    assert Hold.objects.count() == 2
    ends = {row.granted_by_id: row.until for row in Quota.objects.filter(dimension=GPU, until__isnull=False)}
    assert ends == {asked[row.pk].pk: row.expires_at for row in (first, second)}


def test_what_production_holds_is_not_promised_to_end_with_a_dated_limit(tenant, owner, approver, site):
    small(tenant)
    first = deploy(tenant, owner, "first", profile="3g.40gb")
    with acting(SYSTEM):
        Allocation.objects.filter(pk=first.pk).update(service_class="production")
    second = deploy(tenant, owner, "second", profile="3g.40gb")
    asked = {row.allocation_id: row for row in Request.objects.all()}

    decide(asked[first.pk], approver, now=LATER)
    with acting(SYSTEM):
        usage.first_ready(Allocation.objects.get(pk=first.pk), now=LATER + timedelta(seconds=90))
    decide(asked[second.pk], approver, now=LATER + timedelta(seconds=95))

    second.refresh_from_db()
    assert second.queued_at is not None


def test_a_proof_is_a_forecast_that_leaves_no_trace(tenant, owner, approver, site):
    small(tenant)
    row = deploy(tenant, owner)
    before = (Quota.objects.count(), Event.objects.count(), Boundary.objects.count())

    with acting(approver):
        seen = requests.proof(request=Request.objects.get(), actor=approver, now=LATER)

    row.refresh_from_db()
    assert (seen["outcome"], len(seen["where"]), seen["cost"], seen["delays"]) == ("runs", 1, None, [])
    assert (Quota.objects.count(), Event.objects.count(), Boundary.objects.count()) == before
    assert (row.phase, Hold.objects.count()) == ("AwaitingApproval", 0)


def test_a_proof_tells_cost_and_whom_it_delays(tenant, owner, approver, site):
    small(tenant)
    pricing.publish(
        name="2026", prices={GPU: Decimal("0.5"), "vcpu": Decimal("0.01"), "memory_gib": Decimal("0.001")},
        valid_from=NOW - timedelta(days=1), actor=staff(PlatformRole.OPERATOR), now=NOW,
    )  # fmt: skip
    deploy(tenant, owner)
    other = factories.tenant(name="other")
    factories.generous(other)
    waiting = deploy(other, factories.actor(factories.member(other)), "first")
    Allocation.objects.filter(pk=waiting.pk).update(queued_at=NOW, name="first")
    allocations.ledger.release(waiting.units.get(), now=NOW)

    with acting(approver):
        seen = requests.proof(request=Request.objects.get(), actor=approver, now=LATER)

    assert seen["cost"] == {
        "total": "97.344000", "currency": "EUR", "until": (LATER + timedelta(days=1)).isoformat(),
    }  # fmt: skip
    assert [item["tenant"] for item in seen["delays"]] == ["other"]


def test_a_worse_outcome_changes_nothing_and_is_asked_once_more(tenant, owner, approver, site):
    small(tenant)
    row = deploy(tenant, owner)
    request = Request.objects.get()
    with acting(approver):
        seen = requests.proof(request=request, actor=approver, now=LATER)
    other = factories.tenant()
    factories.generous(other)
    deploy(other, factories.actor(factories.member(other)), "faster")

    with pytest.raises(Conflict) as refusal:
        decide(request, approver, expect_proof=seen)

    assert refusal.value.specific_code == "outcome-worse"
    assert refusal.value.data["differences"] == ["It would have been running at once; now it waits for room."]
    assert (state(request), Decision.objects.count()) == ("submitted", 0)
    decide(request, approver, expect_proof=refusal.value.data["proof"])
    row.refresh_from_db()
    assert (state(request), row.phase, row.queued_at is not None) == ("approved", "Waiting", True)


@pytest.mark.parametrize("seen", [{"cost": {}}, {"cost": {"total": "x"}}, {"quota": [1]}, {"delays": 3}])
def test_a_proof_that_is_none_is_refused(tenant, owner, approver, seen):
    request = ask(tenant, owner)

    with pytest.raises(InvalidSpec) as refusal:
        decide(request, approver, expect_proof=seen)

    assert (refusal.value.field, limits(tenant)) == ("expect_proof", {})


def test_a_denied_request_says_so_where_it_is_waited_for(tenant, owner, approver, site):
    small(tenant)
    row = deploy(tenant, owner)

    decide(Request.objects.get(), approver, "deny", reason="no budget")

    row.refresh_from_db()
    approved = next(c for c in row.conditions if c["type"] == "Approved")
    assert (row.phase, approved["reason"], approved["message"]) == (
        "AwaitingApproval", "Denied", "The request was denied: no budget",
    )  # fmt: skip


def test_what_is_deleted_meanwhile_needs_no_quota(tenant, owner, approver, site):
    small(tenant)
    row = deploy(tenant, owner)
    allocations.release(allocation=row, actor=owner, now=NOW)

    with pytest.raises(Conflict) as refusal:
        decide(Request.objects.get(), approver)

    assert refusal.value.specific_code == "no-longer-needed"
    assert requests.expire_due(actor=SYSTEM, now=LATER) == 1
    assert Request.objects.get().state == "expired"


def test_missing_limits_of_a_parent_are_raised_by_the_platform_only(tenant, owner, approver, site):
    child = factories.tenant(parent=tenant, name="child")
    for each in (tenant, child):
        small(each)
    factories.set_limit(child, GPU, 8)
    requester = factories.actor(factories.member(child, Role.OWNER))
    deploy(child, requester)
    request = Request.objects.get()
    assert request.payload["ancestors"] == {"acme": {GPU: 8}}

    with acting(requester), pytest.raises(Forbidden):
        requests.proof(request=request, actor=requester, now=LATER)
    decide(request, approver)

    assert (state(request), request.outcome["outcome"]) == ("approved", "runs")
    assert Quota.objects.get(tenant=tenant, dimension=GPU).amount == 8


# --- rules ------------------------------------------------------------------------------------------


def rule(limit=8, **values):
    return auto_approval_rules.create(
        name="small", limits={"vcpu": limit}, actor=staff(PlatformRole.OPERATOR), now=NOW, **values
    )


def test_a_rule_approves_small_requests_at_once_up_to_its_sum(tenant, member):
    made = rule(8)

    states = [ask(tenant, member, {"vcpu": amount}).state for amount in (5, 3, 1)]

    assert states == ["approved", "approved", "submitted"]
    assert limits(tenant) == {"vcpu": 8}
    assert set(Decision.objects.values_list("decider", "rule", "verdict")) == {(None, made.pk, "approve")}


def test_a_rule_that_is_off_or_of_another_tenant_approves_nothing(tenant, member):
    made = rule(8, tenant=factories.tenant())
    assert ask(tenant, member).state == "submitted"
    auto_approval_rules.update(rule=made, enabled=False, actor=staff(PlatformRole.OPERATOR), now=NOW)

    assert ask(made.tenant, factories.actor(factories.member(made.tenant))).state == "submitted"


def test_tenants_make_no_rules(owner):
    with pytest.raises(Forbidden):
        auto_approval_rules.create(name="mine", limits={"vcpu": 10**9}, actor=owner, now=NOW)


# --- write-off --------------------------------------------------------------------------------------


def test_a_lost_provider_is_written_off_by_two_people(tenant, owner, approver, site):
    factories.generous(tenant)
    row = deploy(tenant, owner)
    operator = staff(PlatformRole.OPERATOR, PlatformRole.APPROVER)

    def lose():
        return requests.submit(
            kind="write-off", payload={"allocation": row.short_id}, reason="site burnt", actor=operator, now=NOW
        )

    with pytest.raises(Conflict) as refusal:
        lose()
    Provider.objects.update(enabled=False)
    request = lose()
    with pytest.raises(Forbidden):
        decide(request, operator)
    assert (refusal.value.specific_code, Hold.objects.count()) == ("provider-enabled", 1)

    decide(request, approver)

    row.refresh_from_db()
    assert (state(request), row.phase, row.released_at) == ("approved", "Released", LATER)
    assert (Hold.objects.count(), QuotaCharge.objects.count()) == (0, 0)
    assert Boundary.objects.get().released_at == LATER
    assert Event.objects.filter(kind="allocation.written-off").count() == 1


def test_only_operators_ask_for_a_write_off(tenant, owner, site):
    factories.generous(tenant)
    row = deploy(tenant, owner)

    with pytest.raises(Forbidden):
        requests.submit(kind="write-off", payload={"allocation": str(row.pk)}, reason="mine", actor=owner, now=NOW)


def test_quota_rows_of_a_position_follow_the_grant(tenant, owner, approver):
    decide(ask(tenant, owner, {"vcpu": 8}), approver)
    decide(ask(tenant, owner, {"vcpu": 3}, mode="set"), approver)

    with acting(owner):
        (level,) = quotas.position(tenant, ["vcpu"])

    assert [limit.amount for limit in level.limits] == [3]
