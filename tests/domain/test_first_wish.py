"""A request for a tenant that carries its first wish: one click makes tenant, owner, limits, and starts it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from controlplane.demo.cast import TRIALS
from tenants.errors import InvalidSpec
from tenants.models import Allocation, Boundary, Decision, Endpoint, EndpointKey, Event, Membership, Quota, Tenant
from tenants.operations import auto_approval_rules, endpoints, first_wishes, requests
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, Term, UnitAsk
from tenants.states import OnShortage, PlatformRole, Role, ServiceClass
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

GPU = "gpu.H100-80GB.slices"
LATER = NOW + timedelta(days=2)
CHAT = {
    "name": "chat", "model": "llama-3-1-8b", "product": "H100-80GB", "profile": "1g.10gb", "vcpu": 4,
    "memory_gib": 16, "days": 7,
}  # fmt: skip
COVERS = {GPU: 1, "vcpu": 4, "memory_gib": 16, "endpoints": 1, "boundaries": 1}


@pytest.fixture
def site():
    provider = factories.provider(name="site", capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=1)
    factories.served_model()
    return provider


@pytest.fixture
def approver():
    return factories.actor(factories.person(platform=(PlatformRole.APPROVER,)))


@pytest.fixture
def nia():
    return factories.actor(factories.person(name="Nia"))


def ask(actor, **payload):
    body = {"name": "vision", "wish": {"endpoint": CHAT}, "until": (NOW + timedelta(days=7)).isoformat(), **payload}
    return requests.submit(kind="tenant", payload=body, reason="a first try", actor=actor, now=NOW)


def approve(request, actor, **values):
    values = {"version": 1, "now": LATER, "verdict": "approve"} | values
    return requests.decide(request=request, actor=actor, **values)


def ends():
    return set(Quota.objects.exclude(dimension="boundaries").values_list("until", flat=True))


def test_one_click_makes_tenant_owner_and_limits_and_starts_the_wish(site, nia, approver):
    request = ask(nia)

    decision = approve(request, approver)

    made, row = Tenant.objects.get(), Endpoint.objects.get()
    assert (made.name, row.name, row.tenant_id, row.owner_id) == ("vision", "chat", made.pk, nia.person_id)
    assert list(Membership.objects.values_list("person_id", "role")) == [(nia.person_id, int(Role.OWNER))]
    assert dict(Quota.objects.values_list("dimension", "amount")) == COVERS
    assert ends() == {LATER + timedelta(days=7)}
    assert Quota.objects.get(dimension="boundaries").until is None
    assert (row.allocation.requester_id, row.allocation.service_class) == (nia.person_id, ServiceClass.TRIAL.value)
    assert Boundary.objects.filter(tenant=made).count() == 1
    request.refresh_from_db()
    assert (request.state, request.tenant_id, request.allocation_id) == ("approved", made.pk, row.allocation_id)
    assert request.outcome["endpoint"] == str(row.pk)
    assert (decision.proof["outcome"], decision.proof["where"][0]["provider"]) == ("runs", "site")
    assert decision.proof["wish"] == {"name": "chat", "model": "llama-3-1-8b", "starts": True, "why": ""}


def test_the_approver_gets_no_key_and_the_owner_makes_the_first(site, nia, approver):
    approve(ask(nia), approver)
    row = Endpoint.objects.get()
    assert not EndpointKey.objects.exists()

    owner = factories.actor(Membership.objects.get().person)
    _key, secret = endpoints.create_key(endpoint=row, name="first", expires_at=None, actor=owner, now=LATER)

    assert secret.startswith("tnt_")
    assert EndpointKey.objects.get().author_id == nia.person_id


def test_events_name_who_decided_and_who_asked(site, nia, approver):
    approve(ask(nia), approver)

    event = Event.objects.get(kind="endpoint.requested")
    assert (event.actor, event.person_id) == (f"person:{approver.id}", nia.person_id)


def test_the_proof_starts_it_and_leaves_no_trace(site, nia, approver):
    request = ask(nia)
    events = Event.objects.count()

    with acting(approver):
        seen = requests.proof(request=request, actor=approver, now=LATER)

    assert (seen["outcome"], seen["wish"]["starts"]) == ("runs", True)
    assert (Tenant.objects.count(), Endpoint.objects.count(), Allocation.objects.count()) == (0, 0, 0)
    assert Event.objects.count() == events


def test_without_room_it_waits_in_its_new_tenant(site, nia, approver):
    other = factories.tenant(name="other")
    factories.generous(other)
    full = AllocationSpec((UnitAsk(GpuAsk("H100-80GB"), 4, 16),), term=Term(duration_s=30 * 86400))
    endpoints.create(
        tenant=other, ask=EndpointAsk("big", RevisionAsk("llama-3-1-8b"), full),
        actor=factories.actor(factories.member(other)), now=NOW,
    )  # fmt: skip

    decision = approve(ask(nia), approver)

    row = Endpoint.objects.get(name="chat")
    assert (decision.proof["outcome"], row.phase) == ("waits", "Waiting")
    assert row.allocation.queued_at == LATER


def test_less_than_the_wish_needs_makes_the_tenant_and_says_why_it_does_not_start(site, nia, approver):
    request = ask(nia)

    decision = approve(
        request, approver, verdict="reduce", reason="no GPUs yet", granted={"limits": {**COVERS, GPU: 0}}
    )

    assert Tenant.objects.get().name == "vision"
    assert not Endpoint.objects.exists()
    assert decision.proof["wish"]["starts"] is False
    assert GPU in decision.proof["wish"]["why"]


def test_a_shorter_time_ends_the_endpoint_with_its_limit(site, nia, approver):
    end = NOW + timedelta(days=4)

    approve(ask(nia), approver, verdict="reduce", reason="less", granted={"until": end.isoformat()})

    row = Endpoint.objects.get()
    assert row.allocation.not_after == end
    assert ends() == {end}


def test_a_model_that_is_gone_meanwhile_does_not_keep_the_tenant_from_being_made(site, nia, approver):
    request = ask(nia, wish={"endpoint": {**CHAT, "model": "gone"}})

    decision = approve(request, approver)

    assert (Tenant.objects.count(), Endpoint.objects.count()) == (1, 0)
    assert "gone" in decision.proof["wish"]["why"]


def test_wider_limits_than_the_wish_needs_may_be_asked_with_it(site, nia, approver):
    approve(ask(nia, limits={**COVERS, GPU: 8}), approver)

    assert Quota.objects.get(dimension=GPU).amount == 8
    assert Endpoint.objects.count() == 1


def test_limits_of_the_tenant_above_keep_the_wish_from_starting_and_are_named(site, approver):
    parent = factories.tenant(name="acme")
    owner = factories.actor(factories.member(parent, Role.OWNER))

    decision = approve(ask(owner, parent="acme"), approver)

    assert Tenant.objects.get(name="vision").parent == parent
    assert decision.proof["wish"]["starts"] is False
    assert "acme" in decision.proof["wish"]["why"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "No Label"}, "name"),
        ({"days": 0}, "days"),
        ({"days": "7"}, "days"),
        ({"product": "H100"}, "product"),
        ({"profile": "9g.90gb"}, "product"),
        ({"count": 2}, "count"),
        ({"colour": "red"}, "colour"),
        ({"model": 7}, "model"),
    ],
)
def test_a_bad_wish_names_its_field(nia, change, field):
    with pytest.raises(InvalidSpec) as refusal:
        ask(nia, wish={"endpoint": {**CHAT, **change}})

    assert refusal.value.field == f"payload.wish.endpoint.{field}"


def test_what_is_stored_of_an_ask_reads_back_as_the_same():
    spec = AllocationSpec(
        (UnitAsk(GpuAsk("H100-80GB", "2g.20gb"), 4, 16),), term=Term(duration_s=30 * 86400), on_shortage=OnShortage.FAIL
    )
    asked = EndpointAsk("chat", RevisionAsk("llama-3-1-8b", {"max_model_len": 8192}), spec)

    assert first_wishes.read(first_wishes.stored(asked, days=30)) == asked


def test_in_the_demo_a_trial_of_one_slot_and_seven_days_needs_no_second_person(site):
    tenant = factories.tenant(name="aurora")
    factories.set_limit(tenant, "boundaries", 5)
    mia = factories.actor(factories.member(tenant))
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    auto_approval_rules.create(**TRIALS, actor=operator, now=NOW)

    def deploy(name, profile, days):
        term = Term(duration_s=days * 86400, service_class=ServiceClass.TRIAL)
        unit = UnitAsk(GpuAsk("H100-80GB", profile), 4, 16)
        spec = AllocationSpec((unit,), term=term, on_shortage=OnShortage.REQUEST)
        return endpoints.create(
            tenant=tenant, ask=EndpointAsk(name, RevisionAsk("llama-3-1-8b"), spec), actor=mia, now=NOW
        ).endpoint

    bigger, longer = deploy("bigger", "2g.20gb", 7), deploy("longer", "1g.10gb", 8)
    trial = deploy("trial", "1g.10gb", 7)

    for row in (bigger, longer, trial):
        row.refresh_from_db()
    assert (bigger.phase, longer.phase, trial.phase) == ("AwaitingApproval", "AwaitingApproval", "Provisioning")
    assert (trial.boundary_id, trial.due_at) == (Boundary.objects.get().pk, NOW)
    assert list(Decision.objects.values_list("decider_id", "rule__name", "verdict")) == [
        (None, TRIALS["name"], "approve")
    ]
