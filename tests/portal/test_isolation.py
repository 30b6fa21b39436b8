"""The page of isolation: what was tried and held, what did not, and asking for another try."""

from __future__ import annotations

import html
import re

import pytest

from tenants.actor import SYSTEM
from tenants.models import Boundary
from tenants.operations import boundaries
from tenants.states import Role
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")
CHECKS = [
    ("TEN-2-image", "Only pinned images", "passed", "Refused: its image is not pinned."),
    ("TEN-4-peer", "The network lets nobody in", "failed", "a pod of another reaches a model server"),
    ("MTB-PL2-BC-OPS-3", "People make role bindings", "withheld", "Withheld on purpose."),
    ("TEN-5-token", "A token is refused", "unknown", "It could not be tried."),
]


@pytest.fixture
def row(db: None) -> Boundary:
    provider = factories.provider(name="east", kind="kubernetes", capabilities={"features": {"certificate": True}})
    return Boundary.objects.create(
        tenant=factories.tenant(name="acme"), provider=provider, kind="namespace", created_at=NOW, ready_at=NOW
    )


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def certified(row: Boundary, checks) -> None:
    boundaries.certified(
        boundary=row, checks=checks, passed=all(each[2] in {"passed", "withheld"} for each in checks), actor=SYSTEM,
        now=NOW, facts={"version": "v1.36.3", "took_ms": 5, "unshown": ["No packet was sent."], "simulated": False},
    )  # fmt: skip


def test_what_did_not_hold_comes_first_with_what_cannot_be_shown_and_its_hash(row, browse):
    certified(row, CHECKS[:1])
    certified(row, CHECKS)

    shown = text(browse(factories.member(row.tenant, Role.VIEWER)).get("/t/acme/isolation"))

    assert "1 check did not hold" in shown
    order = [shown.index(title) for _key, title, _outcome, _seen in (CHECKS[1], CHECKS[3], CHECKS[0], CHECKS[2])]
    assert order == sorted(order)
    assert "a pod of another reaches a model server" in shown
    assert "No packet was sent." in shown
    assert re.search(r"Kept as event \d+ of this tenant's chain, with the hash [0-9a-f]{64}", shown)
    assert "1 check held" in shown
    assert "Try it now" not in shown


def test_a_member_asks_for_another_try_and_sees_that_it_is_under_way(row, browse):
    browser = browse(factories.member(row.tenant))

    before = text(browser.get("/t/acme/isolation"))
    answer = browser.post(f"/t/acme/isolation/{row.short_id}/certify", follow=True)

    assert "It was not tried yet" in before
    assert "A worker is trying it now." in text(answer)
    row.refresh_from_db()
    assert "certificate_asked" in row.observed


def test_what_cannot_be_tried_says_so(row, browse):
    type(row.provider).objects.update(capabilities={})
    browser = browse(factories.member(row.tenant))

    shown = text(browser.get("/t/acme/isolation"))
    refused = text(browser.post(f"/t/acme/isolation/{row.short_id}/certify", follow=True))

    assert "only namespaces of connected clusters can" in shown
    assert "Only a namespace that stays" in refused


def test_a_tenant_with_nothing_has_nothing_to_isolate(browse, db):
    tenant = factories.tenant(name="empty")

    assert "Nothing to isolate yet" in text(browse(factories.member(tenant)).get("/t/empty/isolation"))
