"""First steps: a person without a tenant asks for one with its first model, or to join; one click makes all of it."""

from __future__ import annotations

import html
import re

import pytest
from django.utils import timezone

from tenants import demo
from tenants.models import Endpoint, EndpointKey, Membership, Request, Tenant
from tenants.operations import served_models
from tenants.states import PlatformRole, Role
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
TEAM = {"title": "Computer Vision", "reason": "A chat over our manuals", "days": "7"}


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def nia():
    return factories.person(name="Nia")


@pytest.fixture
def ana():
    return factories.person(name="Ana", platform=(PlatformRole.APPROVER,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def approve(browser, row):
    page = browser.get(f"/ops/inbox/{row.short_id}")
    body = page.content.decode()
    fields = {
        name: html.unescape(re.search(rf'name="{name}" value="([^"]*)"', body)[1]) for name in ("version", "proof")
    }
    return page, browser.post(f"/ops/inbox/{row.short_id}/decide", {**fields, "verdict": "approve"})


def test_a_person_without_a_tenant_lands_on_first_steps(world, browse, nia):
    answer = browse(nia).get("/", follow=True)

    assert answer.redirect_chain == [("/first", 302)]
    assert "Ask for a tenant" in text(answer)
    assert "Ask to join" in text(answer)


def test_one_form_one_click_and_the_member_opens_a_page_that_builds_itself_with_its_key(world, browse, nia, ana):
    browser = browse(nia)

    asked = browser.post("/first/tenant", TEAM)
    row = Request.objects.get()
    waiting = browser.get(asked["Location"])
    _page, decided = approve(browse(ana), row)
    landed = browser.get("/")
    news = browser.get(landed["Location"])
    opened = browser.post(f"{landed['Location']}/open", follow=True)
    later = browser.get(opened.redirect_chain[-1][0])

    assert (asked.status_code, decided.status_code) == (302, 302)
    assert "A platform approver is asked" in text(waiting)
    made = Tenant.objects.get(name="computer-vision")
    assert Membership.objects.get(tenant=made).person_id == nia.pk
    endpoint = Endpoint.objects.get(tenant=made)
    assert endpoint.owner_id == nia.pk
    assert landed["Location"] == f"/first/asked/{row.short_id}"
    assert "Approved: it is being built" in text(news)
    secret = re.search(r"tnt_\w+", opened.content.decode())
    assert secret is not None
    assert opened.redirect_chain == [(f"/t/computer-vision/endpoints/{endpoint.name}", 302)]
    assert secret[0] not in later.content.decode()
    assert EndpointKey.objects.get(endpoint=endpoint).author_id == nia.pk
    assert browser.get("/")["Location"] == "/t/computer-vision"


def test_opening_it_twice_makes_one_key(world, browse, nia, ana):
    browser = browse(nia)
    browser.post("/first/tenant", TEAM)
    row = Request.objects.get()
    approve(browse(ana), row)

    for _ in range(2):
        browser.post(f"/first/asked/{row.short_id}/open")

    assert EndpointKey.objects.filter(endpoint__tenant__name="computer-vision").count() == 1


def test_the_approver_sees_what_starts_and_where_before_the_click_and_never_the_key(world, browse, nia, ana):
    browse(nia).post("/first/tenant", TEAM)

    page, decided = approve(browse(ana), Request.objects.get())

    assert "It starts at once." in text(page)
    assert "The tenant computer-vision, first llama-3-1-8b" in text(page)
    assert "With it the endpoint llama-3-1-8b is made, which serves llama-3-1-8b." in text(page)
    assert "GPUs it would take" in text(page)
    assert "tnt_" not in page.content.decode() + decided.content.decode()


def test_only_the_tenant_may_be_asked_for(world, browse, nia, ana):
    browse(nia).post("/first/tenant", {**TEAM, "first": "nothing"})
    row = Request.objects.get()

    approve(browse(ana), row)

    assert row.payload["wish"] == {}
    assert not Endpoint.objects.filter(tenant__name="computer-vision").exists()
    assert browse(nia).get("/")["Location"] == "/t/computer-vision"


def test_the_preview_says_who_decides_and_files_nothing(world, browse, nia):
    answer = browse(nia).get("/first/tenant", TEAM)

    assert "a platform approver" in text(answer)
    assert 'value="computer-vision"' in answer.content.decode()
    assert not Request.objects.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tenant_name": "Bad Name"}, "Use a DNS label"),
        ({"tenant_name": "admin"}, "reserved"),
        ({"reason": "x" * 1001}, "Use at most 1000 characters."),
    ],
)
def test_what_is_wrong_is_said_at_its_field(world, browse, nia, change, sentence):
    answer = browse(nia).post("/first/tenant", {**TEAM, **change})

    assert answer.status_code == 422
    assert sentence in text(answer)
    assert not Request.objects.exists()


def test_a_wish_that_cannot_start_any_more_still_makes_the_tenant_and_says_why(world, browse, nia, ana):
    browse(nia).post("/first/tenant", TEAM)
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    served_models.update(model=_model(), enabled=False, actor=operator, now=timezone.now())

    approve(browse(ana), Request.objects.get())

    page = browse(nia).get(f"/first/asked/{Request.objects.get().short_id}")
    assert "the tenant is there, its first model was not started" in text(page)
    assert "No served model is called llama-3-1-8b" in text(page)


def _model():
    from tenants.models import ServedModel

    return ServedModel.objects.get()


def test_who_asks_to_join_is_let_in_by_an_owner(world, browse, nia):
    browser = browse(nia)

    asked = browser.post("/first/join", {"tenant_name": "acme", "role": "viewer", "reason": "new here"})
    row = Request.objects.get()
    approve(browse(world.acme.owner), row)
    page = browser.get(asked["Location"])

    assert Membership.objects.get(person=nia).role == int(Role.VIEWER)
    assert "You are in." in text(page)
    assert 'href="/t/acme"' in page.content.decode()


def test_a_tenant_that_is_not_there_is_said_at_its_field(world, browse, nia):
    answer = browse(nia).post("/first/join", {"tenant_name": "nowhere", "role": "viewer"})

    assert answer.status_code == 422
    assert "No tenant has this name." in text(answer)


def test_a_request_is_withdrawn_and_seen_by_nobody_else(world, browse, nia):
    browse(nia).post("/first/tenant", TEAM)
    row = Request.objects.get()
    url = f"/first/asked/{row.short_id}"

    foreign = [browse(world.acme.owner).get(url).status_code, browse(world.acme.owner).post(f"{url}/open").status_code]
    browse(nia).post(f"{url}/withdraw", {"version": str(row.version)})

    row.refresh_from_db()
    assert foreign == [404, 404]
    assert row.state == "withdrawn"


def test_first_steps_are_for_people_who_are_logged_in(browse):
    visitor = browse(None)

    answers = [visitor.get(path) for path in ("/first", "/first/tenant", "/first/join", "/first/asked/rq-1")]

    assert [answer.status_code for answer in answers] == [302] * 4


def test_the_log_in_of_a_demo_leads_to_its_personas_and_any_other_does_not(browse, settings):
    plain = browse(None).get("/accounts/login/").content.decode()
    settings.TENANTRY_DEMO = True
    who = factories.person(name="Mia")
    who.email = demo.PERSONAS[0].email
    who.save(update_fields=["email"])

    shown = browse(None).get("/accounts/login/").content.decode()

    assert "/personas" not in plain
    assert 'href="/personas"' in shown
