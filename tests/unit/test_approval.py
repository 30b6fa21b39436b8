"""Stages, auto-approval rules and the comparison of proofs."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tenants import approval
from tenants.approval import (
    PARENT_OWNER,
    PLATFORM_APPROVER,
    TENANT_OWNER,
    PastAsk,
    Refusal,
    Refused,
    Rule,
    replay,
)

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
GPU = "gpu.H100-80GB.slices"


def stages(kind="quota", approvals=(), **facts):
    known = {"has_parent": True, "owns_tenant": False, "owns_parent": False} | facts
    return approval.stages_for(kind, approvals, **known)


def test_a_member_needs_the_owner_and_the_platform_for_quota():
    assert stages() == (TENANT_OWNER, PLATFORM_APPROVER)


def test_an_owner_skips_his_own_stage():
    assert stages(owns_tenant=True) == (PLATFORM_APPROVER,)


def test_the_deepest_policy_that_names_the_kind_holds():
    above = {"quota": [TENANT_OWNER, PLATFORM_APPROVER]}
    below = {"quota": [TENANT_OWNER, PARENT_OWNER, PLATFORM_APPROVER]}

    assert stages(approvals=[above, {}, below]) == (TENANT_OWNER, PARENT_OWNER, PLATFORM_APPROVER)


def test_a_parents_stage_is_left_out_where_there_is_no_parent():
    assert stages("tenant", has_parent=False) == (PLATFORM_APPROVER,)


def test_somebody_always_decides():
    assert stages("join", owns_tenant=True) == (PLATFORM_APPROVER,)


def test_a_policy_may_add_stages_and_drop_none():
    assert approval.narrows("quota", [TENANT_OWNER, PARENT_OWNER, PLATFORM_APPROVER], {}) is True
    assert approval.narrows("quota", [TENANT_OWNER], {}) is False
    assert approval.narrows("quota", [PLATFORM_APPROVER, TENANT_OWNER], {}) is False


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ([], "each kind"),
        ({"exception": [PLATFORM_APPROVER]}, "no requests of kind"),
        ({"quota": []}, "1 to 5"),
        ({"quota": ["anybody"]}, "each stage"),
        ({"quota": [TENANT_OWNER, TENANT_OWNER]}, "none stands twice"),
        ({"quota": [TENANT_OWNER]}, "keep tenant-owner, platform-approver"),
    ],
)
def test_a_bad_policy_is_told_what_is_wrong(value, word):
    assert word in approval.approvals_error(value)


def rule(**facts):
    known = {"id": uuid4(), "name": "small", "kind": "quota", "tenant": None, "limits": {GPU: 8}, "longest_s": None}
    return Rule(**(known | facts))


def covers(of, adds, until=None, path=()):
    return of.covers("quota", path, adds, now=NOW, until=until)


def test_a_rule_covers_up_to_its_limit_in_all():
    assert covers(rule(), {GPU: 8}) is True
    assert covers(rule(), {GPU: 9}) is False
    assert covers(rule(granted={GPU: 6}), {GPU: 2}) is True
    assert covers(rule(granted={GPU: 6}), {GPU: 3}) is False


def test_a_rule_covers_only_dimensions_that_it_names():
    assert covers(rule(), {GPU: 1, "vcpu": 1}) is False
    assert covers(rule(), {}) is False


def test_a_rule_with_a_longest_time_refuses_what_lasts():
    week = rule(longest_s=7 * 86400)

    assert covers(week, {GPU: 1}) is False
    assert covers(week, {GPU: 1}, until=NOW + timedelta(days=7)) is True
    assert covers(week, {GPU: 1}, until=NOW + timedelta(days=7, seconds=1)) is False


def test_a_rule_of_a_tenant_holds_for_its_children_and_nobody_else():
    tenant, child = uuid4(), uuid4()

    assert covers(rule(tenant=tenant), {GPU: 1}, path=(tenant, child)) is True
    assert covers(rule(tenant=tenant), {GPU: 1}, path=(child,)) is False


def proof(outcome="runs", total="10.000000", delays=(), after=8):
    return {
        "outcome": outcome,
        "cost": {"total": total},
        "delays": list(delays),
        "quota": [{"tenant": "t", "dimension": GPU, "after": after}],
    }


def test_the_same_or_a_better_outcome_is_no_difference():
    assert approval.differences(proof(), proof()) == []
    assert approval.differences(proof("waits"), proof("runs", total="9")) == []


def test_what_got_worse_is_said_in_sentences():
    worse = approval.differences(proof(), proof("waits", total="11", delays=[{}], after=16))

    assert worse == [
        "It would have been running at once; now it waits for room.",
        "It cost 10.000000; now it costs 11.",
        "1 more would have to wait for it.",
        f"{GPU} of t would have become 8; now it becomes 16.",
    ]


def test_a_replay_counts_what_it_would_have_granted_while_that_stands():
    rule = Rule(id=uuid4(), name="small", kind="quota", tenant=None, limits={"vcpu": 4}, longest_s=10 * 86400)
    tenant, other = uuid4(), uuid4()

    def past(day: int, of: UUID, amount: int, lasts: int = 2) -> PastAsk:
        at = NOW + timedelta(days=day)
        return PastAsk(uuid4(), "quota", of, (of,), {"vcpu": amount}, at, at + timedelta(days=lasts))

    first, during, elsewhere, after, long = (
        past(0, tenant, 3), past(1, tenant, 2), past(1, other, 4), past(3, tenant, 4), past(4, other, 1, lasts=11)
    )  # fmt: skip

    done = replay(rule, [long, after, elsewhere, during, first])

    assert done.approved == (first, *sorted((elsewhere,), key=lambda ask: ask.id), after)
    assert done.refused == ((during, Refusal(Refused.AMOUNT, "vcpu")), (long, Refusal(Refused.TIME)))


def test_what_a_rule_had_granted_before_counts_in_a_replay():
    rule = Rule(id=uuid4(), name="small", kind="quota", tenant=None, limits={"vcpu": 4}, longest_s=None)
    tenant = uuid4()
    ask = PastAsk(uuid4(), "quota", tenant, (tenant,), {"vcpu": 2}, NOW, None)

    ended = {tenant: [({"vcpu": 3}, NOW)]}
    standing = {tenant: [({"vcpu": 3}, None)]}

    assert replay(rule, [ask], ended).approved == (ask,)
    assert replay(rule, [ask], standing).approved == ()
