"""The portal's errands by keyboard alone, on a real web process with the workers' passes beside it: what each costs."""

from __future__ import annotations

import pytest
from django.utils import timezone

from tenants.models import Allocation, Endpoint, EndpointKey, Machine, Namespace, Provider, Request
from tenants.operations import endpoints
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import PlatformRole, Role
from tests import drive, factories
from tests.portal.browser.hands import Hands
from tests.portal.world import SSH

pytestmark = pytest.mark.timeout(180)

GPU = "gpu.H100-80GB.slices"


@pytest.fixture
def world(db):
    """An estate whose passes the test runs, at the time that the web process has."""
    there = drive.world()
    there.clock.now = timezone.now()
    Provider.objects.update(capabilities={**there.provider.capabilities, "simulated": True})
    factories.served_model()
    return there


@pytest.fixture
def acme(world):
    tenant = factories.tenant(name="acme", display_name="Acme Works")
    factories.generous(tenant, "H100-80GB", "A100-80GB")
    return tenant


@pytest.fixture
def chat(world, acme):
    """A ready endpoint, made by somebody else."""
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 2, 8),))
    made = endpoints.create(
        tenant=acme, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec),
        actor=factories.actor(factories.member(acme)), now=world.clock.now,
    ).endpoint  # fmt: skip
    world.drive(drive.is_ready(made))
    return made


def test_deploy_one_decision_and_an_answer_without_a_mouse(visit, world, answering):
    acme = factories.tenant(name="acme", display_name="Acme Works")
    factories.generous(acme, amount=4096)
    acme.quotas.filter(dimension=GPU).update(amount=0)
    ana = factories.person(name="Ana", platform=(PlatformRole.APPROVER, PlatformRole.OPERATOR))

    mia = Hands(visit("/t/acme", factories.member(acme, Role.OWNER)))
    mia.press("link", "New", lands="**/t/acme/new")
    mia.press("link", "Deploy a model", lands="**/new/endpoint")
    mia.page.locator("[data-outlook=decision]").wait_for()
    mia.press("button", "Deploy", lands="**/t/acme/endpoints/*")
    row = Endpoint.objects.get(tenant=acme)

    assert (mia.fields, mia.submits, mia.presses) == ([], ["/t/acme/new/endpoint"], 3)
    assert row.phase == "AwaitingApproval"

    decider = Hands(visit("/", ana))
    decider.press("link", "Inbox", lands="**/ops/inbox")
    decider.key("j")
    decider.key("Enter", lands="**/ops/inbox/*")
    decider.press("button", "Approve", lands="**/ops/inbox**")

    assert decider.fields == []
    assert decider.submits == [f"/ops/inbox/{Request.objects.get().short_id}/decide"]
    assert Request.objects.get().state == "approved"

    world.drive(drive.is_ready(row))
    mia.page.locator("#badge [data-phase=Ready]").wait_for(timeout=20000)
    Endpoint.objects.filter(pk=row.pk).update(address=answering)
    mia.press("link", "Open playground", lands="**/playground")
    mia.press("button", "Send")
    mia.page.locator("[data-done=true]").wait_for(timeout=15000)

    assert mia.page.locator(".bubble.is-assistant .bubble-text").inner_text() == "Hello from the stand-in."
    assert mia.submits == ["/t/acme/new/endpoint"]


def test_a_machine_takes_no_field_and_one_submit(visit, acme):
    hands = Hands(visit("/t/acme/new", factories.member(acme)))

    hands.press("link", "Make a machine", lands="**/new/machine")
    hands.press("button", "Make it", lands="**/t/acme/machines/*")

    assert (hands.fields, hands.submits, hands.presses) == ([], ["/t/acme/new/machine"], 2)


def test_a_machine_takes_a_key_and_one_submit_where_keys_may_stay(visit, acme):
    factories.allow_keys(acme)
    hands = Hands(visit("/t/acme/new", factories.member(acme)))

    hands.press("link", "Make a machine", lands="**/new/machine")
    hands.fill("Public SSH key", SSH)
    hands.press("button", "Make it", lands="**/t/acme/machines/*")

    made = Machine.objects.get()
    assert made.ssh_keys == [SSH]
    assert (hands.fields, hands.submits, hands.presses) == (["ssh_key"], ["/t/acme/new/machine"], 2)


def test_a_namespace_takes_no_field_and_one_submit(visit, acme):
    hands = Hands(visit("/t/acme/new", factories.member(acme)))

    hands.press("link", "Make a namespace", lands="**/new/namespace")
    hands.press("button", "Make it", lands="**/t/acme/namespaces/*")

    assert Namespace.objects.count() == 1
    assert (hands.fields, hands.submits, hands.presses) == ([], ["/t/acme/new/namespace"], 2)


def test_a_renewal_is_a_dialog_that_gives_the_focus_back(visit, acme, chat):
    before = Allocation.objects.get(pk=chat.allocation_id).duration_s
    hands = Hands(visit("/t/acme/endpoints/chat", factories.member(acme)))

    hands.press("button", "Renew")
    dialog = hands.page.locator("dialog#renew")
    hands.key("Escape")
    assert hands.at() == "Renew"
    hands.key("Enter")
    hands.choose("Days from now", "90", within=dialog)
    hands.press("button", "Renew", within=dialog, lands="**/t/acme/endpoints/*")

    assert (hands.fields, len(hands.submits)) == (["days"], 1)
    assert Allocation.objects.get(pk=chat.allocation_id).duration_s != before


def test_a_leaked_key_is_pasted_found_and_rolled(visit, acme, chat):
    other = EndpointKey.objects.get()
    mia = factories.member(acme)
    key, plain = endpoints.create_key(
        endpoint=chat, name="laptop", expires_at=None, actor=factories.actor(mia), now=timezone.now()
    )
    hands = Hands(visit("/me", mia))

    hands.press("link", "Something leaked?", lands="**/leaked")
    hands.fill("What you found", f"OPENAI_API_KEY={plain}")
    hands.press("button", "Whose is it?", lands="**/leaked")
    hands.press("link", "Open its keys", lands="**/keys**")
    rolled = hands.page.locator(f"dialog#roll-{key.public_id}")
    hands.to(hands.page.locator(f"[data-opens=roll-{key.public_id}]"))
    hands.key("Enter")
    hands.to(rolled.get_by_role("button", name="Roll", exact=True))
    hands.key("Enter", lands="**/keys**")

    assert plain not in hands.page.content()
    assert hands.page.locator(".secret-text").inner_text().startswith("tnt_")
    assert (EndpointKey.objects.count(), EndpointKey.objects.get(pk=other.pk).replaced_by) == (3, None)
    assert EndpointKey.objects.get(pk=key.pk).replaced_by is not None
    assert [path.rsplit("/", 1)[-1] for path in hands.submits] == ["leaked", "roll"]
