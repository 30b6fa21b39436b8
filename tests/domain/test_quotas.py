"""Quotas: limits over the whole tree, the answer to a shortage, who may set what."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tenants import quota
from tenants.errors import Forbidden, InvalidSpec, PreconditionFailed, QuotaExceeded
from tenants.models import Allocation, Event, Quota, QuotaCharge
from tenants.operations import quotas
from tenants.states import PlatformRole, Role
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

GPU = "gpu.H100-80GB.slices"
MONTH = quota.Span(NOW, NOW + timedelta(days=30))


@pytest.fixture
def operator():
    return factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))


def held(tenant, amount, dimension=GPU, *, name="held", until=None, pending=False, **values):
    row = Allocation.objects.create(
        tenant=tenant, name=name, product_kind="endpoint", spec={}, demand={dimension: amount}, duration_s=60,
        expires_at=until, created_at=NOW, **values,
    )  # fmt: skip
    QuotaCharge.objects.create(
        tenant=tenant, allocation=row, dimension=dimension, amount=amount, pending=pending, created_at=NOW
    )
    return row


def check(tenant, actor, demand, during=MONTH, **values):
    with acting(actor):
        return quotas.check_demand(tenant, demand, during=during, now=NOW, actor=actor, **values)


def shortage(tenant, actor, demand, during=MONTH, **values):
    with pytest.raises(QuotaExceeded) as refusal:
        check(tenant, actor, demand, during, **values)
    return refusal.value


# --- checking ---------------------------------------------------------------------------------------


def test_a_demand_up_to_the_limit_passes_and_one_more_does_not():
    tenant = factories.tenant()
    actor = factories.actor(factories.member(tenant))
    factories.set_limit(tenant, GPU, 8)
    held(tenant, 3)
    held(tenant, 2, name="waits", pending=True)

    assert check(tenant, actor, {GPU: 3}).fits is True
    assert shortage(tenant, actor, {GPU: 4}).data["shortages"][0]["missing"] == 1


def test_the_answer_names_limit_use_holders_time_and_a_ready_made_request():
    tenant = factories.tenant(name="acme")
    actor = factories.actor(factories.member(tenant))
    factories.set_limit(tenant, GPU, 8)
    end = NOW + timedelta(days=5)
    held(tenant, 6, name="chat", until=end)

    error = shortage(tenant, actor, {GPU: 4})

    assert error.detail == f"{GPU} of acme: limit 8, 6 in use, 4 asked, 2 missing."
    assert error.data["shortages"] == [
        {
            "tenant": "acme",
            "dimension": GPU,
            "limit": 8,
            "used": 6,
            "asked": 4,
            "missing": 2,
            "since": NOW.isoformat(),
            "earliest": end.isoformat(),
            "held_by": [{"tenant": "acme", "name": "chat", "kind": "endpoint", "amount": 6}],
        }
    ]
    assert error.data["earliest"] == end.isoformat()
    assert error.data["request"] == {
        "kind": "quota",
        "tenant": "acme",
        "payload": {"mode": "add", "limits": {GPU: 2}, "ancestors": {}, "until": MONTH.end.isoformat()},
    }


def test_a_limit_of_the_parent_binds_its_children_together():
    parent = factories.tenant(name="parent")
    one, two = factories.tenant(parent=parent, name="one"), factories.tenant(parent=parent, name="two")
    factories.set_limit(parent, GPU, 8)
    factories.set_limit(one, GPU, 8)
    held(two, 6)
    actor = factories.actor(factories.member(one))

    error = shortage(one, actor, {GPU: 4})

    assert error.data["shortages"][0]["tenant"] == "parent"
    assert error.data["shortages"][0]["held_by"] == [{"tenant": "another tenant", "name": "", "kind": "", "amount": 6}]
    assert error.data["request"]["payload"]["limits"] == {}
    assert error.data["request"]["payload"]["ancestors"] == {"parent": {GPU: 2}}
    assert "two" not in str(error.data)


def test_an_owner_of_the_parent_sees_who_holds_it():
    parent = factories.tenant()
    one, two = factories.tenant(parent=parent), factories.tenant(parent=parent, name="two")
    factories.set_limit(parent, GPU, 8)
    factories.set_limit(one, GPU, 8)
    held(two, 6, name="chat")
    actor = factories.actor(factories.member(parent, Role.OWNER))

    error = shortage(one, actor, {GPU: 4})

    assert error.data["shortages"][0]["held_by"][0] == {
        "tenant": "two", "name": "chat", "kind": "endpoint", "amount": 6,
    }  # fmt: skip


def test_a_limit_that_ends_sooner_shortens_the_offer_and_says_so():
    tenant = factories.tenant(name="acme")
    actor = factories.actor(factories.member(tenant))
    end = NOW + timedelta(days=10)
    factories.set_limit(tenant, GPU, 8, until=end)

    error = shortage(tenant, actor, {GPU: 8})

    assert error.data["offered_until"] == end.isoformat()
    assert error.detail.startswith(f"The limit of {GPU} of acme ends on {end.isoformat()}")
    assert check(tenant, actor, {GPU: 8}, quota.Span(NOW, end)).fits is True


def test_what_is_renewed_is_not_counted_twice():
    tenant = factories.tenant()
    actor = factories.actor(factories.member(tenant))
    factories.set_limit(tenant, GPU, 8)
    held(tenant, 8)

    assert check(tenant, actor, {GPU: 0}, renewing={GPU: 8}).fits is True
    assert shortage(tenant, actor, {GPU: 1}, renewing={GPU: 8}).data["shortages"][0]["missing"] == 1


def test_the_end_of_what_is_renewed_makes_no_room_for_its_own_renewal():
    tenant = factories.tenant()
    actor = factories.actor(factories.member(tenant))
    factories.set_limit(tenant, GPU, 4)
    factories.set_limit(tenant, GPU, 4, until=NOW + timedelta(days=10))
    held(tenant, 4, name="mine", until=NOW + timedelta(days=5))
    held(tenant, 4, name="another", service_class="production")

    error = shortage(tenant, actor, {GPU: 0}, renewing={GPU: 4})

    assert error.data["offered_until"] == (NOW + timedelta(days=10)).isoformat()
    assert error.data["shortages"][0]["missing"] == 4


def test_no_limit_means_zero_except_for_counts_per_profile():
    tenant = factories.tenant()
    actor = factories.actor(factories.member(tenant))

    assert shortage(tenant, actor, {"vcpu": 1}).data["shortages"][0]["limit"] == 0
    assert check(tenant, actor, {"gpu.H100-80GB.1g.10gb": 4}).fits is True


def test_a_child_that_inherits_uses_what_the_parent_has():
    parent = factories.tenant()
    child = factories.tenant(parent=parent)
    factories.set_limit(parent, GPU, 8)
    factories.set_limit(child, GPU, 0, inherit=True)
    actor = factories.actor(factories.member(child))

    assert check(child, actor, {GPU: 8}).fits is True
    assert shortage(child, actor, {GPU: 9}).data["request"]["payload"]["ancestors"] == {parent.name: {GPU: 1}}


def test_a_position_shows_the_path_by_name():
    parent = factories.tenant(name="parent")
    child = factories.tenant(parent=parent, name="child")
    factories.set_limit(parent, GPU, 8)
    held(child, 2, pending=True)

    with acting(factories.actor(factories.member(child))):
        levels = quotas.position(child)

    assert [level.tenant for level in levels] == ["parent", "child"]
    assert [(dict(level.usage.held), dict(level.usage.pending)) for level in levels] == [({}, {GPU: 2})] * 2


def test_the_largest_holders_come_first_with_the_sum_of_all():
    tenant = factories.tenant(name="parent")
    child = factories.tenant(parent=tenant, name="child")
    for of, amounts in ((tenant, (3, 1)), (child, (5, 2, 2))):
        for n, amount in enumerate(amounts):
            held(of, amount, name=f"held-{n}")
    stranger = factories.tenant()

    with acting(factories.actor(factories.member(tenant))):
        most, whole = quotas.largest(tenant.pk, GPU, most=2)
        everybody, _whole = quotas.largest(tenant.pk, GPU, most=50)
    with acting(factories.actor(factories.member(stranger))):
        nothing = quotas.largest(tenant.pk, GPU, most=2)

    assert ([(one.tenant, one.amount) for one in most], whole) == ([("child", 5), ("parent", 3)], 13)
    assert [one.amount for one in everybody] == [5, 3, 2, 2, 1]
    assert nothing == ([], 0)


# --- setting ----------------------------------------------------------------------------------------


def set_limit(tenant, actor, amount=8, dimension=GPU, **values):
    return quotas.set_limit(tenant=tenant, dimension=dimension, amount=amount, actor=actor, now=NOW, **values)


def test_an_operator_sets_a_limit_and_sets_it_again(operator):
    tenant = factories.tenant()

    first = set_limit(tenant, operator, 8)
    second = set_limit(tenant, operator, 4, version=1)

    assert (first.pk, second.amount, second.version) == (second.pk, 4, 2)
    assert list(Event.objects.filter(kind="quota.set").order_by("seq").values_list("data__amount", flat=True)) == [8, 4]
    with pytest.raises(PreconditionFailed):
        set_limit(tenant, operator, 2, version=1)


def test_an_owner_of_the_parent_gives_a_child_no_more_than_the_parent_has():
    parent = factories.tenant()
    child = factories.tenant(parent=parent)
    factories.set_limit(parent, GPU, 8)
    owner = factories.actor(factories.member(parent, Role.OWNER))

    set_limit(child, owner, 8)
    with pytest.raises(InvalidSpec) as refusal:
        set_limit(child, owner, 9)

    assert (refusal.value.specific_code, refusal.value.data["limit"]) == ("beyond-parent", 8)
    assert Quota.objects.get(tenant=child).amount == 8


def test_an_owner_sets_no_limits_of_his_own_tenant():
    parent = factories.tenant()
    child = factories.tenant(parent=parent)

    for tenant in (parent, child):
        with pytest.raises(Forbidden):
            set_limit(tenant, factories.actor(factories.member(tenant, Role.OWNER)))

    assert Quota.objects.count() == 0


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"dimension": "gpu.H100.slices"}, "dimension"),
        ({"dimension": "gpu"}, "dimension"),
        ({"dimension": "cpu"}, "dimension"),
        ({"amount": -1}, "amount"),
        ({"amount": 10**13}, "amount"),
        ({"amount": True}, "amount"),
        ({"until": NOW}, "until"),
        ({"inherit": True}, "inherit"),
    ],
)
def test_a_bad_limit_names_its_field(operator, values, field):
    with pytest.raises(InvalidSpec) as refusal:
        set_limit(factories.tenant(), operator, **values)

    assert refusal.value.field == field
    assert Quota.objects.count() == 0


def test_a_smaller_limit_takes_nothing_away(operator):
    tenant = factories.tenant()
    held(tenant, 8)

    set_limit(tenant, operator, 0)

    assert QuotaCharge.objects.get().amount == 8


def test_a_removed_limit_is_zero_again(operator):
    tenant = factories.tenant()
    row = set_limit(tenant, operator, 8)

    quotas.remove(row=row, actor=operator, now=NOW)

    assert shortage(tenant, operator, {GPU: 1}).data["shortages"][0]["limit"] == 0
    assert Event.objects.filter(kind="quota.removed", data__amount=8).count() == 1
