"""Errands of owners, operators and newcomers by keyboard alone: what each costs in fields and submits, what it did."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from provisioners import sweep
from provisioners.passes import Engine
from provisioners.sandbox import connection, control, files
from provisioners.sandbox.driver import InProcessSandbox
from provisioners.sandbox.estate import Estate
from tenants.actor import SYSTEM
from tenants.models import (
    Allocation,
    Endpoint,
    Host,
    HostPlan,
    Machine,
    Membership,
    Person,
    Provider,
    Request,
    Suspension,
    Tenant,
)
from tenants.operations import accounts
from tenants.states import PlatformRole
from tests import factories
from tests.portal.browser.hands import Hands
from tests.portal.world import build

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def world(db):
    return build()


@pytest.fixture
def ole(db):
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


def test_a_newcomer_asks_for_a_tenant_and_one_click_makes_it_with_its_first_model(visit, world):
    nia = Hands(visit("/", factories.person(name="Nia")))

    nia.press("link", "Ask for a tenant", lands="**/first/tenant")
    nia.fill("Title", "Computer Vision")
    nia.press("button", "Ask", lands="**/first/asked/*")
    request = Request.objects.get()

    assert (nia.fields, nia.submits) == (["title"], ["/first/tenant"])

    ana = Hands(visit(f"/ops/inbox/{request.short_id}", factories.person(platform=(PlatformRole.APPROVER,))))
    ana.press("button", "Approve", lands="**/ops/inbox**")
    nia.page.goto("/")
    nia.press("button", "Open it", lands="**/t/computer-vision/endpoints/*")

    assert (ana.fields, len(ana.submits), ana.presses) == ([], 1, 1)
    assert nia.page.locator(".secret-text").inner_text().startswith("tnt_")
    assert Endpoint.objects.filter(tenant__name="computer-vision").count() == 1


def test_what_ends_soon_is_renewed_together(visit, world):
    now = timezone.now()
    Allocation.objects.filter(tenant=world.acme.tenant).update(
        phase="Ready", ready_at=now, expires_at=now + timedelta(days=2)
    )
    for model in (Endpoint, Machine):
        model.objects.filter(tenant=world.acme.tenant).update(phase="Ready", ready_at=now)
    hands = Hands(visit("/t/acme", world.acme.member))

    hands.to(hands.page.locator("main a[href*='/renew']"))
    hands.key("Enter", lands="**/t/acme/renew**")
    hands.to(hands.page.locator("main form[method=post] button[type=submit]"))
    hands.key("Enter", lands="**/t/acme/renew/done**")

    assert (hands.fields, hands.submits) == ([], ["/t/acme/renew"])
    ends = Allocation.objects.filter(tenant=world.acme.tenant).values_list("expires_at", flat=True)
    assert all(end > now + timedelta(days=20) for end in ends)


def test_an_operator_drains_a_host_after_seeing_who_moves(visit, world, ole):
    host = Host.objects.get()
    hands = Hands(visit(f"/ops/hosts/{host.short_id}", ole))

    hands.press("link", "Drain", lands="**/drain")
    hands.fill("Reason", "New firmware on all GPUs.")
    hands.press("button", "Start the drain", lands="**/ops/**")

    assert (hands.fields, [path.rsplit("/", 2)[-2:] for path in hands.submits]) == (["reason"], [["drain", "start"]])
    assert HostPlan.objects.get().kind == "drain"
    host.refresh_from_db()
    assert host.state == "draining"


def test_an_operator_suspends_a_tenant_and_resumes_it(visit, world, ole):
    hands = Hands(visit("/ops/tenants/acme", ole))

    hands.press("link", "Suspend", lands="**/suspend")
    hands.to(hands.page.locator("input[name=depth]:checked"))
    hands.key("ArrowRight")
    hands.fill("Reason", "The invoice of September is open.")
    hands.press("button", "Suspend", lands="**/ops/tenants/acme")

    assert Suspension.objects.get().depth == "network"
    assert Tenant.objects.get(name="acme").status == "suspended"
    hands.press("button", "Resume")
    hands.press("button", "Resume", within=hands.page.locator("dialog#resume"), lands="**/ops/tenants/acme")

    assert Tenant.objects.get(name="acme").status == "active"
    assert (hands.fields, len(hands.submits)) == (["reason"], 2)


def test_an_owner_takes_out_somebody_who_leaves_and_hands_his_things_on(visit, world):
    member = Membership.objects.get(tenant=world.acme.tenant, person=world.acme.member)
    hands = Hands(visit("/t/acme/people", world.acme.owner))

    hands.to(hands.page.locator(f"a[href$='/people/{member.pk}/remove']"))
    hands.key("Enter", lands="**/remove")
    hands.choose("Hand over to", world.acme.owner.display_name)
    hands.press("button", "Show what happens then", lands="**/remove?**")
    hands.press("button", "Take out", lands="**/t/acme/people**")

    assert not Membership.objects.filter(pk=member.pk).exists()
    assert Endpoint.objects.get(tenant=world.acme.tenant).owner_id == world.acme.owner.pk
    assert (hands.fields, len(hands.submits)) == (["successor"], 1)


def test_a_provider_is_connected_in_five_steps(visit, ole):
    document = connection.document("kubernetes")
    estate = Estate(files.build(document), clock=lambda: timezone.now().timestamp(), url="http://x.invalid")
    control.no_delays(estate)

    def work() -> None:
        engine = Engine(clock=timezone.now, driver_of=lambda _provider: InProcessSandbox(estate))
        sweep.look_at(Provider.objects.get().pk, engine=engine)

    hands = Hands(visit("/ops/providers", ole))
    hands.press("link", "Connect provider", lands="**/ops/providers/connect")
    hands.to(hands.page.locator("input[name=kind][type=radio]"))
    sandbox = hands.page.locator("input[name=kind][value=sandbox]")
    for _ in range(hands.page.locator("input[name=kind]").count()):
        if sandbox.is_checked():
            break
        hands.key("ArrowDown")
    hands.press("button", "Go on", lands="**/connect?kind=sandbox")
    hands.fill("Name", "oslo-lab")
    hands.fill("Site", "oslo")
    hands.fill("Address of the sandbox", "http://127.0.0.1:9")
    hands.fill("Estate", "second")
    hands.fill("Token", "a-token-of-the-sandbox")
    hands.press("button", "Store and test", lands="**/connect/check")
    work()
    hands.page.goto(hands.page.url)
    hands.press("link", "What was found", lands="**/connect/found")
    hands.press("link", "Choose what to hand over", lands="**/connect/hand-over")
    hands.to(hands.page.locator("main form[method=post] button[type=submit]"))
    hands.key("Enter", lands="**/connect/acceptance")
    work()
    hands.page.goto(hands.page.url)
    hands.to(hands.page.locator("form[action$='/open'] button[type=submit]"))
    hands.key("Enter", lands="**/ops/providers/**")

    assert set(Host.objects.values_list("state", flat=True)) == {"open"}
    assert len(hands.fields) <= 6
    assert len(hands.submits) == 3


def test_a_first_run_is_set_up_from_its_one_link(visit, db):
    made = accounts.first_link(actor=SYSTEM, now=timezone.now())
    hands = Hands(visit(f"/accounts/link/{made.secret}/"))

    hands.fill("E-mail", "ole@example.org")
    hands.fill("Your name", "Ole")
    hands.fill("Password", "a-good-long-password")
    hands.press("button", "Make the account", lands="**/ops/setup")

    assert Person.objects.get().platform_memberships.get().role == "operator"
    assert hands.page.get_by_text("First operator").is_visible()
    assert len(hands.submits) == 1
