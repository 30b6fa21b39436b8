"""Approving while other tenants claim all the time: one click does, unless the outcome got worse; never one's own."""

from __future__ import annotations

import html
import itertools
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from django.db import connections
from django.utils import timezone

from tenants.models import Allocation, Decision, Hold, Quota, Request
from tenants.operations import allocations, endpoints, people, requests, service_accounts
from tenants.specs import AllocationSpec, BareAsk, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import OnShortage, PlatformRole, Role
from tests import factories
from tests.api.client import Api

pytestmark = pytest.mark.usefixtures("db")
INBOX = "/ops/inbox"
GPU = "gpu.H100-80GB.slices"
APPROVALS = int(os.environ.get("TENANTRY_RACE_ROUNDS", "4")) // 2
"""10 in `make test-ci`."""
BETWEEN = 50
"""Claims of others that are committed between looking and clicking: a second's worth at 50 a second."""
CLAIMERS = 3


class Claims:
    """Claims of other tenants that are going on."""

    def __init__(self) -> None:
        """None yet."""
        self.done = 0
        self.errors: list[Exception] = []
        self.changed = threading.Condition()
        self.ended = threading.Event()

    def add(self) -> None:
        """Count one that is committed."""
        with self.changed:
            self.done += 1
            self.changed.notify_all()

    def wait_for(self, more: int) -> None:
        """Wait until so many more are committed."""
        with self.changed:
            wanted = self.done + more
            assert self.changed.wait_for(lambda: self.done >= wanted or self.errors, timeout=90), self.done
        assert self.errors == []


@contextmanager
def claiming(tenants, *, every: float) -> Iterator[Claims]:
    """Let other tenants claim windows and give them back, each claimer one every so many seconds at most."""
    claims, names = Claims(), itertools.count()
    spec = AllocationSpec((UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 1, 1),))

    def run(tenant, actor) -> None:
        try:
            due = time.monotonic()
            while not claims.ended.wait(max(0.0, due - time.monotonic())):
                due += every
                now = timezone.now()
                allocations.create(tenant=tenant, ask=BareAsk(f"c{next(names)}", spec), actor=actor, now=now)
                claims.add()
        except Exception as error:  # noqa: BLE001 - shown by the test
            with claims.changed:
                claims.errors.append(error)
                claims.changed.notify_all()
        finally:
            connections.close_all()

    threads = []
    for tenant in tenants:
        actor = factories.actor(factories.member(tenant))
        threads.append(threading.Thread(target=run, args=(tenant, actor)))
    for thread in threads:
        thread.start()
    try:
        yield claims
    finally:
        claims.ended.set()
        for thread in threads:
            thread.join(timeout=60)


def estate(hosts: int, gpus: int = 8):
    """Make hosts, a tenant that asks, and its owner."""
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"]})
    for _ in range(hosts):
        factories.host(provider, gpus=gpus, vcpu=10_000, memory_gib=100_000)
    factories.served_model()
    return asking("acme")


def asking(name: str):
    """Make a tenant without GPUs, and its owner."""
    tenant = factories.tenant(name=name)
    factories.generous(tenant)
    Quota.objects.filter(tenant=tenant, dimension=GPU).update(amount=0)
    return tenant, factories.member(tenant, Role.OWNER)


def others(count: int):
    found = [factories.tenant() for _ in range(count)]
    for tenant in found:
        factories.generous(tenant)
    return found


def wish(tenant, owner, name: str, profile: str = "2g.20gb") -> Request:
    """Deploy beyond the limit: it waits for a request of its own."""
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", profile), 4, 16),), on_shortage=OnShortage.REQUEST)
    endpoints.create(
        tenant=tenant, ask=EndpointAsk(name, RevisionAsk("llama-3-1-8b"), spec), actor=factories.actor(owner),
        now=timezone.now(),
    )  # fmt: skip
    return Request.objects.get(allocation__name=name)


def looked_at(browser, row):
    """Open the page of a decision; return it and what its Approve button sends."""
    answer = browser.get(f"{INBOX}/{row.short_id}")
    assert answer.status_code == 200, text(answer)
    body = answer.content.decode()
    sent = {name: html.unescape(re.search(rf'name="{name}" value="([^"]*)"', body)[1]) for name in ("version", "proof")}
    return text(answer), {**sent, "verdict": "approve"}


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


@pytest.mark.slow
def test_the_first_click_approves_while_others_claim_fifty_windows_in_between(browse):
    estate(hosts=2 + 2 * APPROVALS)
    browser = browse(factories.person(platform=(PlatformRole.APPROVER,)))
    rows = [wish(*asking(f"team-{number}"), f"wish-{number}") for number in range(APPROVALS)]
    answers = []

    with claiming(others(CLAIMERS), every=CLAIMERS / 50) as claims:
        claims.wait_for(5)
        for row in rows:
            seen, click = looked_at(browser, row)
            claims.wait_for(BETWEEN)
            answers.append(
                (browser.post(f"{INBOX}/{row.short_id}/decide", click).status_code, "It starts at once." in seen)
            )

    assert answers == [(302, True)] * APPROVALS
    assert set(Request.objects.values_list("state", flat=True)) == {"approved"}
    held = Hold.objects.filter(unit__allocation__in=[row.allocation_id for row in rows])
    assert held.count() == APPROVALS
    assert claims.done >= APPROVALS * BETWEEN


def test_a_worse_outcome_changes_nothing_and_shows_what_got_worse(browse):
    tenant, owner = estate(hosts=1, gpus=2)
    browser = browse(factories.person(platform=(PlatformRole.APPROVER,)))
    row = wish(tenant, owner, "last-room", "7g.80gb")

    seen, click = looked_at(browser, row)
    with claiming(others(2), every=0.02) as claims:
        claims.wait_for(14)
        answer = browser.post(f"{INBOX}/{row.short_id}/decide", click)
        said = text(answer)
        left = Request.objects.get(pk=row.pk).state
        again = looked_at(browser, row)[1]
        second = browser.post(f"{INBOX}/{row.short_id}/decide", again)

    assert "It starts at once." in seen
    assert (answer.status_code, left) == (409, "submitted")
    assert "Nothing was changed: it got worse since you looked" in said
    assert "It would have been running at once; now it waits for room." in said
    assert (second.status_code, Request.objects.get(pk=row.pk).state) == (302, "approved")
    assert Allocation.objects.get(pk=row.allocation_id).queued_at is not None


def test_ones_own_request_is_refused_everywhere(browse, superuser):
    tenant, owner = estate(hosts=1)
    approver = factories.person(platform=(PlatformRole.APPROVER,))
    factories.member(tenant, Role.OWNER, who=approver)
    own = requests.submit(
        kind="quota", payload={"limits": {GPU: 2}}, reason="", tenant=tenant, actor=factories.actor(approver),
        now=timezone.now(),
    )  # fmt: skip
    browser = browse(approver)
    account = service_accounts.create(
        tenant=tenant, name="robot", role=Role.MEMBER, owner=approver, actor=factories.actor(approver),
        now=timezone.now(),
    )  # fmt: skip
    robot = service_accounts.issue_token(account=account, name="t", actor=factories.actor(approver), now=timezone.now())
    token = people.issue_token(name="mine", actor=factories.actor(approver), now=timezone.now())
    body = {"version": 1, "verdict": "approve"}

    portal = browser.post(f"{INBOX}/{own.short_id}/decide", body)
    bulk = browser.post(
        f"{INBOX}/equal/approve", {"take": [own.short_id], f"version:{own.short_id}": 1, f"proof:{own.short_id}": ""}
    )
    told = text(browser.get(INBOX))
    by_token = Api(token.plain).post(f"requests/{own.short_id}/decide", body)
    by_robot = Api(robot.plain).post(f"requests/{own.short_id}/decide", body)

    assert (portal.status_code, bulk.status_code, by_token.status, by_robot.status) == (403, 302, 403, 403)
    assert "You asked for this yourself; somebody else has to decide." in told
    assert (Request.objects.get(pk=own.pk).state, Decision.objects.count()) == ("submitted", 0)
    stage = own.stages.get().pk
    insert = (
        "INSERT INTO tenants_decision (id, request_id, tenant_id, request_version, stage_id, requester_id, decider_id,"
        " verdict, granted, reason, proof, created_at) VALUES (gen_random_uuid(), %s, %s, 1, %s, %s, %s, 'approve',"
        " '{}', '', '{}', now())"
    )
    with pytest.raises(psycopg.errors.CheckViolation, match="decision_not_own"):
        superuser.execute(insert, [own.pk, tenant.pk, stage, approver.pk, approver.pk])
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="decision_requester_fk"):
        superuser.execute(insert, [own.pk, tenant.pk, stage, owner.pk, approver.pk])
