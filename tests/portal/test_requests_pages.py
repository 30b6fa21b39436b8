"""Inbox, decisions, requests and quota through Django's client: who may, what is shown, what a click does."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tenants.models import Allocation, Decision, Endpoint, Quota, Request, RequestComment
from tenants.operations import endpoints, requests
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import OnShortage, PlatformRole, Role
from tests import factories
from tests.portal.world import CANARY, World, build

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]
GPU = "gpu.H100-80GB.slices"
INBOX = "/ops/inbox"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def ana():
    return factories.person(name="Ana", platform=(PlatformRole.APPROVER,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def ask(house, who, limits=None, *, now=None, **payload):
    return requests.submit(
        kind="quota", payload={"limits": limits or {GPU: 8}, **payload}, reason="growth", tenant=house.tenant,
        actor=factories.actor(who), now=now or timezone.now(),
    )  # fmt: skip


def deploy(house, who, name="big"):
    """Ask for an endpoint beyond the limit: it waits for a request of its own."""
    Quota.objects.filter(tenant=house.tenant, dimension=GPU).update(amount=6)
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "2g.20gb"), 4, 16),), on_shortage=OnShortage.REQUEST)
    endpoints.create(
        tenant=house.tenant, ask=EndpointAsk(name, RevisionAsk("llama-3-1-8b"), spec), actor=factories.actor(who),
        now=timezone.now(),
    )  # fmt: skip
    return Request.objects.get(allocation__name=name)


def form(browser, row):
    """Return what the page's Approve button sends."""
    body = browser.get(f"{INBOX}/{row.short_id}").content.decode()
    names = ("version", "proof")
    return {name: html.unescape(re.search(rf'name="{name}" value="([^"]*)"', body)[1]) for name in names}


def state(row) -> str:
    row.refresh_from_db()
    return row.state


# --- inbox ------------------------------------------------------------------------------------------------


def test_the_inbox_shows_who_asks_what_and_what_comes_of_it_oldest_first(world, browse, ana):
    late = ask(world.acme, world.acme.owner, {"vcpu": 8})
    early = ask(world.foreign, world.foreign.owner, {GPU: 4}, now=timezone.now() - timedelta(days=3))

    shown = browse(ana).get(INBOX)

    body = shown.content.decode()
    assert body.index(early.short_id) < body.index(late.short_id)
    assert f"{CANARY}-Owner {CANARY}-inc 4 slots of H100-80GB more Fits Within every limit above." in text(shown)
    assert "2 wait" in text(shown)


def test_an_empty_inbox_says_what_comes_next(browse, ana, db):
    assert "Nothing waits for you" in text(browse(ana).get(INBOX))


def test_the_verdicts_say_stale_impossible_over_and_waiting(world, browse, ana):
    now = timezone.now()
    stale = ask(world.acme, world.acme.owner, {"vcpu": 1}, until=(now + timedelta(days=1)).isoformat())
    Request.objects.filter(pk=stale.pk).update(
        payload={**stale.payload, "until": (now - timedelta(days=1)).isoformat()}
    )
    ask(world.acme, world.acme.owner, {GPU: 100_000})
    ask(world.acme, world.acme.owner, {"gpu.H200-141GB.slices": 8})
    child = factories.tenant(name="acme-lab", parent=world.acme.tenant)
    factories.set_limit(world.acme.tenant, "gpu.H100-80GB.1g.10gb", 2)
    boss = factories.member(child, Role.OWNER)
    requests.submit(
        kind="quota", payload={"limits": {"gpu.H100-80GB.1g.10gb": 5}}, reason="", tenant=child,
        actor=factories.actor(boss), now=now,
    )  # fmt: skip

    said = text(browse(ana).get(INBOX))

    assert "Stale The time it was asked for is over." in said
    assert "Impossible 100,000 slots of H100-80GB asked, all hosts together have 64." in said
    assert "Impossible No open host has a H200-141GB." in said
    assert "Over Over the limit of acme: 3 × H100-80GB 1g.10gb missing there." in said


def test_ones_own_requests_are_shown_with_the_reason_why_not(world, browse):
    both = factories.person(name="Both", platform=(PlatformRole.APPROVER,))
    factories.member(world.acme.tenant, Role.OWNER, who=both)
    row = ask(world.acme, both)

    browser = browse(both)
    listed, page = browser.get(INBOX), browser.get(f"{INBOX}/{row.short_id}")
    sent = browser.post(f"{INBOX}/{row.short_id}/decide", {"version": 1, "verdict": "approve"})

    assert "Nobody decides what he asked for himself." in text(listed)
    assert f'href="{INBOX}/{row.short_id}"' not in listed.content.decode()
    assert "You asked for this yourself" in text(page)
    assert 'value="approve"' not in page.content.decode()
    assert (sent.status_code, state(row), Decision.objects.count()) == (403, "submitted", 0)


def test_the_number_of_queries_of_the_inbox_does_not_depend_on_its_length(world, browse, ana):
    browser = browse(ana)
    ask(world.acme, world.acme.owner)
    deploy(world.acme, world.acme.owner, "first")
    browser.get(INBOX)
    with CaptureQueriesContext(connection) as few:
        browser.get(INBOX)
    for number in range(5):
        ask(world.acme, world.acme.owner, {"vcpu": 10 + number})
        ask(world.foreign, world.foreign.member, {"vcpu": 20 + number})
        deploy(world.foreign, world.foreign.owner, f"more-{number}")

    with CaptureQueriesContext(connection) as many:
        browser.get(INBOX)

    assert len(many) == len(few)


# --- deciding -----------------------------------------------------------------------------------------------


def test_one_click_approves_what_was_shown_and_leads_to_the_next(world, browse, ana):
    row = deploy(world.acme, world.acme.owner)
    other = ask(world.foreign, world.foreign.owner)
    browser = browse(ana)
    page = browser.get(f"{INBOX}/{row.short_id}")

    answer = browser.post(f"{INBOX}/{row.short_id}/decide", {**form(browser, row), "verdict": "approve"})

    said = text(page)
    assert "It starts at once." in said
    assert "GPUs it would take" in said
    assert re.search(r"Cost to the end €\d", said)
    assert (answer.status_code, answer["Location"]) == (302, f"{INBOX}/{other.short_id}")
    assert state(row) == "approved"
    assert Endpoint.objects.get(name="big").phase in {"Provisioning", "Ready"}
    assert "Approved: 2 slots of H100-80GB more." in text(browser.get(answer["Location"]))


def test_looking_at_a_decision_changes_nothing(world, browse, ana):
    row = deploy(world.acme, world.acme.owner)
    before = (Quota.objects.count(), Allocation.objects.filter(queued_at__isnull=False).count(), state(row))

    assert browse(ana).get(f"{INBOX}/{row.short_id}").status_code == 200

    assert (Quota.objects.count(), Allocation.objects.filter(queued_at__isnull=False).count(), state(row)) == before


def test_a_worse_outcome_is_shown_and_the_second_click_takes_it(world, browse, ana):
    row = deploy(world.acme, world.acme.owner)
    browser = browse(ana)
    sent = form(browser, row)
    sent["proof"] = json.dumps({**json.loads(sent["proof"]), "cost": {"total": "0.01"}})

    first = browser.post(f"{INBOX}/{row.short_id}/decide", {**sent, "verdict": "approve"})
    kept = state(row)
    second = browser.post(f"{INBOX}/{row.short_id}/decide", {**form(browser, row), "verdict": "approve"})

    assert first.status_code == 409
    assert "it got worse since you looked It cost 0.01; now it costs" in text(first)
    assert (kept, second.status_code, state(row)) == ("submitted", 302, "approved")


def test_granting_less_for_a_time_is_recorded_and_more_is_refused_at_its_field(world, browse, ana):
    row = ask(world.acme, world.acme.owner)
    browser = browse(ana)
    url = f"{INBOX}/{row.short_id}/decide"
    day = (timezone.localtime() + timedelta(days=10)).date()

    more = browser.post(url, {"version": 1, "verdict": "reduce", f"limits:{GPU}": 9, "reason": "no"})
    none = browser.post(url, {"version": 1, "verdict": "reduce", f"limits:{GPU}": 4, "reason": ""})
    less = browser.post(
        url, {"version": 1, "verdict": "reduce", f"limits:{GPU}": 4, "until": day.isoformat(), "reason": "half"}
    )

    assert more.status_code == 422
    assert re.search(rf'data-field="limits:{GPU}".*?field-error', more.content.decode(), re.DOTALL)
    assert re.search(r'data-field="reason".*?field-error', none.content.decode(), re.DOTALL)
    assert (less.status_code, less["Location"], state(row)) == (302, INBOX, "reduced")
    granted = Quota.objects.get(tenant=world.acme.tenant, dimension=GPU, until__isnull=False)
    assert (granted.amount, timezone.localtime(granted.until).date()) == (4, day)


def test_a_denial_needs_its_reason_and_tells_the_requester(world, browse, ana):
    row = ask(world.acme, world.acme.owner)
    browser = browse(ana)
    url = f"{INBOX}/{row.short_id}/decide"

    without = browser.post(url, {"version": 1, "verdict": "deny", "reason": ""})
    denied = browser.post(url, {"version": 1, "verdict": "deny", "reason": "No budget."})

    assert (without.status_code, denied.status_code, state(row)) == (422, 302, "denied")
    assert "No budget." in text(browse(world.acme.owner).get(f"/t/acme/requests/{row.short_id}"))


def test_an_owner_decides_his_stage_and_the_platform_the_next(world, browse, ana):
    row = ask(world.acme, world.acme.member)
    owner = browse(world.acme.owner)

    assert "Then the next stage decides." in text(owner.get(f"{INBOX}/{row.short_id}"))
    owner.post(f"{INBOX}/{row.short_id}/decide", {**form(owner, row), "verdict": "approve"})

    assert state(row) == "submitted"
    assert "Nothing waits for you" in text(owner.get(INBOX))
    assert row.short_id in browse(ana).get(INBOX).content.decode()


def test_what_somebody_else_decided_meanwhile_leads_on(world, browse, ana):
    row = ask(world.acme, world.acme.owner)
    browser = browse(ana)
    sent = form(browser, row)
    requests.withdraw(request=row, actor=factories.actor(world.acme.owner), now=timezone.now())

    answer = browser.post(f"{INBOX}/{row.short_id}/decide", {**sent, "verdict": "approve"})

    assert (answer.status_code, state(row)) == (302, "withdrawn")
    assert "Somebody else decided this in the meantime." in text(browser.get(answer["Location"]))


def test_a_changed_request_is_not_approved_by_the_old_page(world, browse, ana):
    row = ask(world.acme, world.acme.owner)
    browser = browse(ana)
    sent = form(browser, row)
    requests.revise(
        request=row, payload={"limits": {GPU: 60}}, actor=factories.actor(world.acme.owner), now=timezone.now()
    )

    answer = browser.post(f"{INBOX}/{row.short_id}/decide", {**sent, "verdict": "approve"})

    assert (answer.status_code, state(row)) == (412, "submitted")


def test_what_it_was_for_is_gone_and_the_page_says_so(world, browse, ana):
    row = deploy(world.acme, world.acme.owner)
    endpoints.delete(
        endpoint=Endpoint.objects.get(name="big"), actor=factories.actor(world.acme.owner), now=timezone.now()
    )

    page = text(browse(ana).get(f"{INBOX}/{row.short_id}"))

    assert "It cannot be approved" in page
    assert "What waited for this is gone" in page


def test_equal_requests_are_approved_together_each_by_its_own_decision(world, browse, ana):
    rows = [ask(world.acme, world.acme.owner), ask(world.foreign, world.foreign.owner)]
    odd = ask(world.acme, world.acme.owner, {GPU: 1})
    browser = browse(ana)
    link = html.unescape(re.search(r'href="(/ops/inbox/equal\?key=[^"]+)"', browser.get(INBOX).content.decode())[1])
    page = browser.get(link).content.decode()
    proofs = {
        f"proof:{row.short_id}": html.unescape(re.search(rf'name="proof:{row.short_id}" value="([^"]*)"', page)[1])
        for row in rows
    }
    versions = {f"version:{row.short_id}": 1 for row in [*rows, odd]}

    mixed = browser.post(
        f"{INBOX}/equal/approve", {"take": [row.short_id for row in [*rows, odd]], **versions, **proofs}
    )
    both = browser.post(f"{INBOX}/equal/approve", {"take": [row.short_id for row in rows], **versions, **proofs})

    assert (mixed.status_code, both.status_code) == (400, 302)
    assert [state(row) for row in [*rows, odd]] == ["approved", "approved", "submitted"]
    assert "2 requests approved." in text(browser.get(both["Location"]))


# --- requests of a tenant -----------------------------------------------------------------------------------


def test_a_request_shows_stages_next_cost_and_what_waits_for_it(world, browse):
    row = deploy(world.acme, world.acme.member)

    shown = text(browse(world.acme.member).get(f"/t/acme/requests/{row.short_id}"))

    assert "1 An owner of the tenant is next 2 A platform approver" in shown
    assert "An owner of the tenant is asked; you are told as soon as it is decided." in shown
    assert re.search(r"Cost to the end €\d", shown)
    assert "Endpoint: big" in shown


def test_the_list_filters_exports_and_says_what_to_do_when_empty(world, browse):
    browser = browse(world.acme.member)
    empty = text(browser.get("/t/acme/requests"))
    row = ask(world.acme, world.acme.member)

    found = browser.get("/t/acme/requests", {"state": "submitted"}).content.decode()
    nothing = text(browser.get("/t/acme/requests", {"state": "denied"}))
    rows = browser.get("/t/acme/requests", {"format": "json"}).json()

    assert "Nothing was asked for yet" in empty
    assert f"/t/acme/requests/{row.short_id}" in found
    assert "Nothing matches these filters" in nothing
    assert [(one["id"], one["what"]) for one in rows] == [(row.short_id, "8 slots of H100-80GB more")]


def test_the_thread_takes_lines_from_both_sides(world, browse, ana):
    row = ask(world.acme, world.acme.owner)

    browse(ana).post(f"{INBOX}/{row.short_id}/comment", {"text": "What for?"})
    browse(world.acme.owner).post(f"/t/acme/requests/{row.short_id}/comment", {"text": "A launch."})
    empty = browse(world.acme.owner).post(f"/t/acme/requests/{row.short_id}/comment", {"text": " "})

    shown = text(browse(world.acme.member).get(f"/t/acme/requests/{row.short_id}"))
    assert re.search(r"The platform \S.*What for\?.*Owner .*A launch\.", shown)
    assert (empty.status_code, RequestComment.objects.count()) == (422, 2)


def test_the_requester_changes_and_withdraws_others_do_not(world, browse):
    row = ask(world.acme, world.acme.member)
    url = f"/t/acme/requests/{row.short_id}"
    mine, owner = browse(world.acme.member), browse(world.acme.owner)

    foreign = owner.post(f"{url}/withdraw", {"version": 1})
    zero = mine.post(f"{url}/edit", {"version": 1, f"limits:{GPU}": 0})
    changed = mine.post(f"{url}/edit", {"version": 1, f"limits:{GPU}": 3, "reason": "less"})
    row.refresh_from_db()
    gone = mine.post(f"{url}/withdraw", {"version": row.version})

    assert "/withdraw" not in owner.get(url).content.decode()
    assert foreign.status_code == 403
    assert zero.status_code == 422
    assert (changed.status_code, row.payload["limits"], row.reason) == (302, {GPU: 3}, "less")
    assert (gone.status_code, state(row)) == (302, "withdrawn")


# --- quota ----------------------------------------------------------------------------------------------------


def test_quota_shows_limits_use_holders_and_what_ends(world, browse):
    factories.set_limit(world.acme.tenant, GPU, 4, until=timezone.now() + timedelta(days=5))
    ask(world.acme, world.acme.member, {GPU: 16})

    shown = text(browse(world.acme.member).get("/t/acme/quota"))

    assert re.search(r"H100-80GB 6 of 1,000,004 slots", shown)
    assert "16 requested" in shown
    assert "chat acme 2" in shown
    assert "4 slots of H100-80GB until" in shown


def test_quota_without_any_limit_says_what_to_do(browse, db):
    tenant = factories.tenant(name="bare")
    person = factories.member(tenant)

    assert "No limit is set here" in text(browse(person).get("/t/bare/quota"))


def test_asking_for_more_previews_who_decides_and_files_the_difference(world, browse):
    browser = browse(world.acme.member)
    day = (timezone.localtime() + timedelta(days=30)).date().isoformat()
    wish = {f"new:{GPU}": 1_000_008, "until": day, "reason": "launch"}

    preview = text(browser.get("/t/acme/quota/ask", wish, headers={"hx-request": "true"}))
    before = Request.objects.count()
    answer = browser.post("/t/acme/quota/ask", wish)

    row = Request.objects.get()
    assert "+8" in preview
    assert "1. an owner of the tenant 2. a platform approver" in preview
    assert before == 0
    assert (answer.status_code, answer["Location"]) == (302, f"/t/acme/requests/{row.short_id}")
    assert (row.payload["limits"], row.payload["until"][:10], row.reason) == ({GPU: 8}, day, "launch")


@pytest.mark.parametrize(
    ("given", "field"),
    [({f"new:{GPU}": "5"}, f"new:{GPU}"), ({f"new:{GPU}": "lots"}, f"new:{GPU}"),
     ({f"new:{GPU}": "2000000", "until": "2020-01-01"}, "until")],
)  # fmt: skip
def test_a_wish_that_makes_no_sense_comes_back_at_its_field(world, browse, given, field):
    answer = browse(world.acme.member).post("/t/acme/quota/ask", given)

    assert answer.status_code == 422
    assert re.search(rf'data-field="{re.escape(field)}"[^§]*?field-error', answer.content.decode())
    assert Request.objects.count() == 0


def test_what_is_inherited_is_asked_of_the_tenant_above(world, browse):
    child = factories.tenant(name="acme-lab", parent=world.acme.tenant)
    factories.set_limit(child, GPU, 0, inherit=True)
    person = factories.member(child)

    browse(person).post("/t/acme-lab/quota/ask", {f"new:{GPU}": 1_000_002})

    row = Request.objects.get()
    assert (row.payload["limits"], row.payload["ancestors"]) == ({}, {"acme": {GPU: 2}})


@pytest.mark.parametrize("address", ["/t/acme/quota", "/t/acme/requests"])
def test_the_number_of_queries_does_not_depend_on_the_number_of_things(world, browse, address):
    browser = browse(world.acme.member)
    ask(world.acme, world.acme.member)
    deploy(world.acme, world.acme.owner, "first")
    browser.get(address)
    with CaptureQueriesContext(connection) as few:
        browser.get(address)
    for number in range(5):
        ask(world.acme, world.acme.member, {"vcpu": 1 + number})
        deploy(world.acme, world.acme.owner, f"more-{number}")

    with CaptureQueriesContext(connection) as many:
        browser.get(address)

    assert len(many) == len(few)


# --- who may ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_route_lets_only_those_in_whom_it_concerns(world, browse, ana):
    row = ask(world.acme, world.acme.member)
    one, decide = f"/t/acme/requests/{row.short_id}", f"{INBOX}/{row.short_id}"
    people = {
        "visitor": browse(None), "stranger": browse(world.foreign.owner), "viewer": browse(world.acme.viewer),
        "member": browse(world.acme.member), "owner": browse(world.acme.owner), "approver": browse(ana),
    }  # fmt: skip
    expected = {
        ("GET", "/t/acme/quota"): (302, 404, 200, 200, 200, 200),
        ("GET", "/t/acme/quota/ask"): (302, 404, 403, 200, 200, 403),
        ("GET", "/t/acme/requests"): (302, 404, 200, 200, 200, 200),
        ("GET", one): (302, 404, 200, 200, 200, 200),
        ("GET", INBOX): (302, 200, 200, 200, 200, 200),
        ("GET", decide): (302, 404, 200, 200, 200, 200),
        ("GET", f"{INBOX}/equal"): (302, 302, 302, 302, 302, 302),
        ("POST", f"{decide}/decide"): (302, 404, 422, 422, 422, 422),
        ("POST", f"{one}/withdraw"): (302, 404, 422, 422, 422, 422),
    }

    found = {
        (method, url): tuple(client.generic(method, url).status_code for client in people.values())
        for method, url in expected
    }

    found = {key: tuple(422 if status == 400 else status for status in statuses) for key, statuses in found.items()}
    assert found == expected
    assert state(row) == "submitted"


def test_strangers_and_viewers_decide_nothing(world, browse):
    row = ask(world.acme, world.acme.member)

    tries = [
        browse(who).post(f"{INBOX}/{row.short_id}/decide", {"version": 1, "verdict": "approve"}).status_code
        for who in (world.foreign.owner, world.acme.viewer, world.acme.member)
    ]

    assert (tries, state(row)) == ([404, 403, 403], "submitted")


def test_every_change_needs_the_form_token(world):
    from django.test import Client

    row = ask(world.acme, world.acme.member)
    browser = Client(headers={"accept": "text/html"}, enforce_csrf_checks=True)
    browser.force_login(world.acme.owner, backend="tenants.login.PersonBackend")
    urls = [
        f"{INBOX}/{row.short_id}/decide", f"{INBOX}/{row.short_id}/comment", f"{INBOX}/equal/approve",
        "/t/acme/quota/ask", *(f"/t/acme/requests/{row.short_id}/{verb}" for verb in ("edit", "comment", "withdraw")),
    ]  # fmt: skip

    assert [browser.post(url).status_code for url in urls] == [403] * len(urls)


def test_pages_of_a_tenant_name_nobody_else_and_use_no_words_of_the_ledger(world, browse):
    ask(world.foreign, world.foreign.member)
    row = deploy(world.acme, world.acme.member)
    browser = browse(world.acme.owner)
    words = re.compile(r"\b(boundary|boundaries|ledger|mask|claim|allocation|hold)s?\b", re.IGNORECASE)

    pages = [
        "/t/acme/quota", "/t/acme/quota?of=boundaries", "/t/acme/quota?format=csv", "/t/acme/quota/ask",
        "/t/acme/requests", "/t/acme/requests?format=json", f"/t/acme/requests/{row.short_id}", INBOX,
        f"{INBOX}/{row.short_id}",
    ]  # fmt: skip
    wrong = []
    for url in pages:
        answer = browser.get(url)
        said = text(answer)
        hits = words.findall(said) if "format" not in url else []
        if answer.status_code != 200 or CANARY in answer.content.decode() or hits:
            wrong.append((url, answer.status_code, CANARY in answer.content.decode(), hits))

    assert wrong == []


def test_an_owner_asks_for_more_in_his_tenants_and_those_below_and_a_platform_role_alone_does_not(world, browse, ana):
    child = factories.tenant(name="acme-lab", parent=world.acme.tenant)
    factories.set_limit(child, GPU, 4)
    owner, approver = browse(world.acme.owner), browse(ana)

    found = [
        (name, owner.get(f"/t/{name}/quota/ask").status_code, approver.get(f"/t/{name}/quota/ask").status_code)
        for name in ("acme", "acme-lab")
    ]
    preview = owner.get("/t/acme-lab/quota/ask", {f"new:{GPU}": 6}, headers={"hx-request": "true"})

    assert found == [("acme", 200, 403), ("acme-lab", 200, 403)]
    assert (preview.status_code, "+2" in text(preview)) == (200, True)


def test_equal_wishes_of_one_tenant_are_approved_at_once_and_both_start(world, browse, ana):
    rows = [deploy(world.acme, world.acme.owner, name) for name in ("first", "second")]
    browser = browse(ana)
    link = html.unescape(re.search(r'href="(/ops/inbox/equal\?key=[^"]+)"', browser.get(INBOX).content.decode())[1])
    page = browser.get(link).content.decode()
    sent = {
        f"{name}:{row.short_id}": html.unescape(re.search(rf'name="{name}:{row.short_id}" value="([^"]*)"', page)[1])
        for row in rows
        for name in ("version", "proof")
    }

    browser.post(f"{INBOX}/equal/approve", {"take": [row.short_id for row in rows], **sent})

    assert [state(row) for row in rows] == ["approved", "approved"]
    assert set(Allocation.objects.filter(name__in=["first", "second"]).values_list("queued_at", flat=True)) == {None}
