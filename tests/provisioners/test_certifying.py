"""Certificates: when a boundary wants one, who makes it, where it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from provisioners import certifying, inventory_isolation
from provisioners.driver import Certificate, IsolationCheck, Ref, TransientDriverError
from tenants import certificates
from tenants.actor import SYSTEM
from tenants.errors import Conflict, Forbidden
from tenants.models import Boundary, Event
from tenants.operations import boundaries
from tenants.states import Role
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")
HELD = IsolationCheck("TEN-2-image", "Only pinned images", "passed", "Refused.")
HOLE = IsolationCheck("TEN-4-peer", "The network lets nobody in", "failed", "a pod of another reaches a gateway")


@dataclass
class Trying:
    """A driver that tries nothing and says what it is told to."""

    checks: tuple[IsolationCheck, ...] = (HELD,)
    error: TransientDriverError | None = None
    asked: list[UUID] = field(default_factory=list)

    def certify(self, boundary: Ref) -> Certificate:
        self.asked.append(boundary.uid)
        if self.error is not None:
            raise self.error
        return Certificate(boundary, NOW, "v1.36.3", self.checks, ("No packet was sent.",), simulated=True)


@pytest.fixture
def row(db: None) -> Boundary:
    provider = factories.provider(kind="kubernetes", capabilities={"features": {"certificate": True}})
    return Boundary.objects.create(
        tenant=factories.tenant(), provider=provider, kind="namespace", created_at=NOW, ready_at=NOW,
        conditions=[built(NOW)],
    )  # fmt: skip


def built(at: datetime, status: str = "True") -> dict[str, Any]:
    return {
        "type": "Provisioned", "status": status, "reason": "Done", "message": "",
        "last_transition_at": at.isoformat(), "observed_generation": 1,
    }  # fmt: skip


def make(driver: Trying, at: datetime, *, asked_only: bool = False) -> int:
    return certifying.answer(lambda: at, asked_only=asked_only, driver_of=lambda _provider: driver)  # type: ignore[arg-type,return-value]


def test_a_boundary_is_certified_once_it_is_ready_then_daily_and_after_every_repair(row: Boundary) -> None:
    driver = Trying()

    first = make(driver, NOW + timedelta(minutes=1))
    again = make(driver, NOW + timedelta(minutes=2))
    row.refresh_from_db()
    row.conditions = [built(NOW + timedelta(hours=1), "False")]
    row.save()
    while_it_is_repaired = make(driver, NOW + timedelta(hours=1))
    row.conditions = [built(NOW + timedelta(hours=2))]
    row.save()
    after_the_repair = make(driver, NOW + timedelta(hours=2, minutes=1))
    next_day = make(driver, NOW + timedelta(hours=27))

    assert (first, again, while_it_is_repaired, after_the_repair, next_day) == (1, 0, 0, 1, 1)
    assert driver.asked == [row.pk] * 3


def test_a_certificate_is_an_event_in_the_tenants_chain_and_reads_back_whole(row: Boundary) -> None:
    make(Trying((HELD, HOLE)), NOW)

    stored = certificates.latest(row.pk)
    event = Event.objects.get(kind="boundary.certified")
    assert stored is not None
    assert (stored.hash, stored.seq, event.tenant_id) == (event.hash, event.seq, row.tenant_id)
    assert (stored.passed, stored.count("failed"), stored.version) == (False, 1, "v1.36.3")
    assert [(check.key, check.seen) for check in stored.checks] == [(c.key, c.seen) for c in (HELD, HOLE)]
    row.refresh_from_db()
    assert row.observed["certificate"] == {"at": NOW.isoformat(), "passed": False, "failed": 1}


def test_one_that_is_asked_for_is_made_at_once_and_asked_for_once(row: Boundary) -> None:
    make(Trying(), NOW)
    member = factories.actor(factories.member(row.tenant))

    for _ in range(2):
        boundaries.certify(boundary=row, actor=member, now=NOW)
    made = make(Trying(), NOW + timedelta(seconds=2), asked_only=True)
    nothing_left = make(Trying(), NOW + timedelta(seconds=4), asked_only=True)

    assert (made, nothing_left) == (1, 0)
    assert Event.objects.filter(kind="boundary.certificate-asked").count() == 1
    assert len(certificates.history(row.pk)) == 2


def test_who_only_looks_asks_for_none_and_what_cannot_be_tried_is_refused(row: Boundary) -> None:
    viewer = factories.actor(factories.member(row.tenant, Role.VIEWER))
    member = factories.actor(factories.member(row.tenant))

    with pytest.raises(Forbidden):
        boundaries.certify(boundary=row, actor=viewer, now=NOW)
    row.provider.capabilities = {}
    with pytest.raises(Conflict) as error:
        boundaries.certify(boundary=row, actor=member, now=NOW)

    assert error.value.specific_code == "not-supported"
    row.refresh_from_db()
    assert row.observed == {}


def test_what_shook_all_namespaces_of_a_provider_makes_the_next_due_and_shaken_again_one_more(row: Boundary) -> None:
    def shake(minute: int) -> int:
        with acting(SYSTEM):
            return inventory_isolation.shake(row.provider_id, NOW + timedelta(minutes=minute))

    class Shaking(Trying):
        def certify(self, boundary: Ref) -> Certificate:
            shake(6)  # while it is tried
            return super().certify(boundary)

    elsewhere = Boundary.objects.create(
        tenant=row.tenant, provider=factories.provider(), kind="namespace", created_at=NOW, ready_at=NOW
    )
    make(Trying(), NOW)
    at_rest = make(Trying(), NOW + timedelta(minutes=1))
    shaken = shake(2)

    made = [make(Shaking(), NOW + timedelta(minutes=5))]
    made += [make(Trying(), NOW + timedelta(minutes=minute)) for minute in (7, 8)]

    assert (at_rest, shaken, made) == (0, 1, [1, 1, 0])
    elsewhere.refresh_from_db()
    assert elsewhere.observed == {}


def test_a_try_that_cannot_begin_leaves_the_boundary_alone_for_a_while(row: Boundary) -> None:
    driver = Trying(error=TransientDriverError("it does not answer"))

    tries = [make(driver, NOW + timedelta(minutes=minutes)) for minutes in (0, 5, 11)]

    assert tries == [0, 0, 0]
    assert len(driver.asked) == 2
    assert certificates.latest(row.pk) is None


def test_a_claim_of_a_process_that_died_is_taken_over(row: Boundary) -> None:
    claimed = certifying.claim(NOW, asked_only=False)
    meanwhile = make(Trying(), NOW + timedelta(seconds=30))
    later = make(Trying(), NOW + timedelta(minutes=3))

    assert claimed == row
    assert (meanwhile, later) == (0, 1)


@pytest.mark.parametrize("change", [{"ready_at": None}, {"kind": "vm"}, {"deletion_requested_at": NOW}])
def test_what_is_not_there_or_no_namespace_is_not_certified(row: Boundary, change: dict[str, Any]) -> None:
    Boundary.objects.filter(pk=row.pk).update(**change)

    assert make(Trying(), NOW) == 0
