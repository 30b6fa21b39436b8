"""One host: who has it, why it is as it is, and what a click of an operator does to it."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from frontend import urls
from frontend.kernel.page import routes
from tenants import ledger
from tenants.models import Allocation, GpuDevice, Hold, Host, HostPlan
from tenants.operations import inventory
from tenants.states import HoldKind, PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
CHANGING = [
    path
    for path, declared in routes(urls.urlpatterns)
    if declared and "POST" in declared.methods and re.match(r"^ops/(hosts|gpus)/", path)
]

LOOKING = [
    (path, declared)
    for path, declared in routes(urls.urlpatterns)
    if declared and "GET" in declared.methods and re.match(r"^ops/(estate|hosts|gpus)(/|$)", path)
]


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def ole():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


@pytest.fixture
def aud():
    return factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def of(host, step="") -> str:
    return f"/ops/hosts/{host.short_id}{step}"


def state(host) -> str:
    host.refresh_from_db()
    return host.state


def offered(answer) -> set[str]:
    """Return the steps that a page offers: buttons and links."""
    found = re.findall(r'(?:action|href)="/ops/hosts/[\w-]+/([a-z]+)"', answer.content.decode())
    return set(found)


# --- the page ---------------------------------------------------------------------------------------------


def test_the_page_says_who_is_here_until_when_and_what_is_free(world, browse, aud):
    host = Host.objects.get()
    ends = timezone.now() + timedelta(days=9)
    Allocation.objects.filter(name="chat").update(expires_at=ends)
    gpu = GpuDevice.objects.order_by("-number").first()
    ledger.put(
        HoldKind.FOREIGN, gpu.pk, 0, 8, from_at=timezone.now(), to_at=None, note="slurm-8812", now=timezone.now()
    )

    shown = browse(aud).get(of(host))

    said, body = text(shown), shown.content.decode()
    assert "Acme Works 6 slots" in said
    assert 'href="/t/acme/endpoints/chat"' in body
    assert f'<time datetime="{ends.isoformat(timespec="seconds")}"' in body
    assert "Used past this portal slurm-8812 8 slots" in said
    assert body.count('class="strip-row"') == 8
    assert body.count('class="time-band"') == 8


def test_the_page_is_found_by_short_id_and_by_name(world, browse, aud):
    host = Host.objects.get()

    assert browse(aud).get(f"/ops/hosts/{host.name}").status_code == 200
    assert browse(aud).get(f"/ops/hosts/{host.pk}").status_code == 200


def test_a_host_out_of_use_says_why_and_what_comes_next(world, browse, aud):
    host = Host.objects.get()
    Host.objects.filter(pk=host.pk).update(healthy=False, message="no heartbeat", placeable=False)

    said = text(browse(aud).get(of(host)))

    assert "Takes new things no" in said
    assert "It is not healthy." in said
    assert "no heartbeat" in said


def test_a_failed_acceptance_names_the_checks(world, browse, aud):
    host = factories.host(world.provider, state="joining")
    record = {
        "passed": False,
        "at": timezone.now().isoformat(),
        "message": "",
        "checks": [
            {"name": "host responds", "passed": True, "seen": "it does"},
            {"name": "workload on gpu-3", "passed": False, "seen": "Xid 79"},
        ],
    }
    Host.objects.filter(pk=host.pk).update(acceptance=record)

    said = text(browse(aud).get(of(host)))

    assert "It was not accepted" in said
    assert "1 of 2 checks failed." in said
    assert "workload on gpu-3 failed" in said
    assert "Xid 79" in said


def test_the_history_names_who_did_what_and_why(world, browse, ole):
    host = factories.host(world.provider)
    browser = browse(ole)
    browser.post(of(host, "/cordon"))
    browser.post(of(host, "/drain/start"), {"reason": "new firmware"})

    said = text(browser.get(of(host)))

    assert "Cordoned by Ole" in said
    assert "A drain began by Ole" in said
    assert "new firmware" in said


def test_the_number_of_queries_does_not_grow_with_what_is_on_it(world, browse, aud):
    small, large = factories.host(world.provider, gpus=1), factories.host(world.provider, gpus=16)
    for gpu in GpuDevice.objects.filter(host=large):
        for slot in range(8):
            ledger.put(
                HoldKind.FOREIGN, gpu.pk, slot, 1, from_at=timezone.now(), to_at=None, note="job", now=timezone.now()
            )
    browser = browse(aud)
    browser.get(of(small))

    with CaptureQueriesContext(connection) as few:
        browser.get(of(small))
    with CaptureQueriesContext(connection) as many:
        browser.get(of(large))

    assert len(many) == len(few)
    assert len(few) <= 30


# --- steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "steps"),
    [
        ("joining", {"accept", "remove"}),
        ("accepted", {"open", "remove"}),
        ("open", {"cordon", "drain", "maintenance"}),
        ("cordoned", {"uncordon", "drain", "maintenance", "remove"}),
        ("draining", set()),
        ("maintenance", {"return", "accept", "remove"}),
        ("removed", set()),
    ],
)
def test_operators_are_offered_what_the_state_allows_and_others_nothing(world, browse, ole, aud, present, steps):
    host = factories.host(world.provider, state=present)

    assert offered(browse(ole).get(of(host))) == steps
    assert offered(browse(aud).get(of(host))) == set()


def test_a_host_goes_the_whole_way_by_clicks(world, browse, ole):
    host = factories.host(world.provider, state="joining")
    browser = browse(ole)

    browser.post(of(host, "/accept"))
    assert state(host) == "joining"  # accepted once its provider has run the checks
    assert "requested_at" in host.acceptance
    Host.objects.filter(pk=host.pk).update(state="accepted")
    browser.post(of(host, "/open"))
    assert state(host) == "open"
    browser.post(of(host, "/cordon"))
    assert state(host) == "cordoned"
    browser.post(of(host, "/uncordon"))
    assert state(host) == "open"
    browser.post(of(host, "/maintenance"), {"reason": "a fan"})
    assert state(host) == "draining"
    assert HostPlan.objects.get(host=host).reason == "a fan"


def test_a_step_that_came_too_late_changes_nothing_and_says_so(world, browse, ole):
    host = factories.host(world.provider)
    browser = browse(ole)
    stale = host.version
    inventory.cordon(host=host, actor=factories.actor(ole), now=timezone.now())

    answer = browser.post(of(host, "/cordon"), {"version": stale}, follow=True)

    assert state(host) == "cordoned"
    assert answer.status_code == 200
    assert "cordon" in text(answer).lower()
    again = browser.post(of(host, "/open"), follow=True)
    assert "this needs a host that is accepted" in text(again)
    assert state(host) == "cordoned"


def test_every_address_of_the_estate_is_held_to_the_roles(world, browse, ole, aud):
    host, gpu = Host.objects.get(), GpuDevice.objects.earliest("number")
    clients = {
        "operator": browse(ole), "auditor": browse(aud), "member": browse(world.acme.member), "visitor": browse(None),
    }  # fmt: skip
    for_operators = {"hosts.preview_drain", "hosts.preview_layout", "hosts.maintenance", "hosts.return", "hosts.remove"}
    wrong = []

    for path, declared in LOOKING:
        url = "/" + path.replace("<str:key>", (gpu if "gpus" in path else host).short_id)
        expected = {"operator": 200, "auditor": 200, "member": 403, "visitor": 302}
        expected |= {"auditor": 403} if declared.operation_id in for_operators else {}
        statuses = {who: client.get(url).status_code for who, client in clients.items()}
        wrong += [(url, statuses)] if statuses != expected else []

    assert wrong == []
    assert len(LOOKING) == 9


@pytest.mark.parametrize("path", CHANGING)
def test_nobody_but_operators_changes_a_host(world, browse, aud, path):
    host = Host.objects.get()
    gpu = GpuDevice.objects.earliest("number")
    url = "/" + path.replace("<str:key>", host.short_id if "hosts" in path else gpu.short_id)
    before = (host.version, host.state, Hold.objects.count(), HostPlan.objects.count())

    statuses = {
        "auditor": browse(aud).post(url, {"reason": "because"}).status_code,
        "approver": browse(factories.person(platform=(PlatformRole.APPROVER,))).post(url).status_code,
        "owner": browse(world.acme.owner).post(url, {"reason": "because"}).status_code,
        "visitor": browse(None).post(url).status_code,
    }

    host.refresh_from_db()
    assert statuses == {"auditor": 403, "approver": 403, "owner": 403, "visitor": 302}
    assert (host.version, host.state, Hold.objects.count(), HostPlan.objects.count()) == before


def test_every_change_needs_the_form_token(world, ole):
    host, gpu = Host.objects.get(), GpuDevice.objects.earliest("number")
    browser = Client(headers={"accept": "text/html"}, enforce_csrf_checks=True)
    browser.force_login(ole, backend="tenants.login.PersonBackend")

    answers = {
        browser.post("/" + path.replace("<str:key>", (host if "hosts" in path else gpu).short_id)).status_code
        for path in CHANGING
    }

    assert len(CHANGING) == 10
    assert answers == {403}
    assert state(host) == "open"


# --- drain ------------------------------------------------------------------------------------------------


def test_the_plan_of_a_drain_says_who_moves_where_and_changes_nothing(world, browse, ole):
    host = Host.objects.get()
    target = factories.host(world.provider)
    before = sorted(Hold.objects.values_list("pk", "host_id"))

    shown = browse(ole).get(of(host, "/drain"))

    said = text(shown)
    assert f"chat Endpoint acme moves to {target.name}" in said
    assert "space Namespace acme stays until its tenant gives it back" in said
    assert "Moves elsewhere 4" in said
    assert "Stays until given back 2" in said
    assert "Tenants told 2" in said
    assert sorted(Hold.objects.values_list("pk", "host_id")) == before
    assert state(host) == "open"


def test_a_drain_without_room_elsewhere_says_so(world, browse, ole):
    said = text(browse(ole).get(of(Host.objects.get(), "/drain")))

    assert "Has nowhere to go now 4" in said
    assert "has nowhere to go now; waits for room" in said


def test_a_drain_begins_with_reason_and_notice_in_the_persons_zone(world, browse, ole):
    host = Host.objects.get()
    begins = (timezone.now() + timedelta(days=2)).replace(second=0, microsecond=0)

    answer = browse(ole).post(
        of(host, "/drain/start"), {"reason": "new firmware", "starts_at": begins.strftime("%Y-%m-%dT%H:%M")}
    )

    plan = HostPlan.objects.get(host=host)
    assert answer.status_code == 302
    assert state(host) == "draining"
    assert (plan.reason, plan.starts_at) == ("new firmware", begins)
    assert "A plan empties this host" in text(browse(ole).get(of(host)))


def test_mistakes_of_a_drain_come_back_at_their_field(world, browse, ole):
    host = Host.objects.get()
    browser = browse(ole)
    yesterday = (timezone.now() - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")

    short = browser.post(of(host, "/drain/start"), {"reason": "x"})
    past = browser.post(of(host, "/drain/start"), {"reason": "new firmware", "starts_at": yesterday})
    odd = browser.post(of(host, "/drain/start"), {"reason": "new firmware", "ends_at": "soon"})

    assert [short.status_code, past.status_code, odd.status_code] == [422, 422, 422]
    assert 'id="reason-error"' in short.content.decode()
    assert 'id="starts_at-error"' in past.content.decode()
    assert 'value="' + yesterday in past.content.decode()
    assert 'id="ends_at-error"' in odd.content.decode()
    assert state(host) == "open"


def test_a_drain_under_production_wants_the_hosts_name(world, browse, ole):
    host = Host.objects.get()
    Allocation.objects.filter(name="chat").update(service_class="production")
    browser = browse(ole)

    asked = browser.get(of(host, "/drain"))
    without = browser.post(of(host, "/drain/start"), {"reason": "new firmware"})
    then = state(host)
    done = browser.post(of(host, "/drain/start"), {"reason": "new firmware", "confirm": host.name})

    assert "Production runs here" in text(asked)
    assert (without.status_code, then) == (422, "open")
    assert 'id="confirm-error"' in without.content.decode()
    assert (done.status_code, state(host)) == (302, "draining")


# --- maintenance, return, remove ----------------------------------------------------------------------------


def test_maintenance_under_tenants_is_refused_with_the_way_out(world, browse, ole):
    host = Host.objects.get()

    asked = browse(ole).get(of(host, "/maintenance"))
    done = browse(ole).post(of(host, "/maintenance"), {"reason": "a fan"})

    assert "Drain it with a notice first." in text(asked)
    assert done.status_code == 409
    assert "drain it with a notice" in text(done)
    assert state(host) == "open"


def test_a_host_comes_back_by_a_plan(world, browse, ole):
    host = factories.host(world.provider, state="maintenance")

    asked = browse(ole).get(of(host, "/return"))
    done = browse(ole).post(of(host, "/return"), {"reason": "the fan is new"})

    assert asked.status_code == 200
    assert done.status_code == 302
    assert HostPlan.objects.get(host=host).kind == "return"


def test_removing_wants_the_name_and_takes_the_gpus_off_the_stock(world, browse, ole):
    host = factories.host(world.provider, gpus=2, state="cordoned")
    browser = browse(ole)

    asked = browser.get(of(host, "/remove"))
    wrong = browser.post(of(host, "/remove"), {"confirm": "another"})
    then = state(host)
    done = browser.post(of(host, "/remove"), {"confirm": host.name})

    assert "2 GPUs leave the stock" in text(asked)
    assert (wrong.status_code, then) == (422, "cordoned")
    assert (done.status_code, state(host)) == (302, "removed")
    assert not GpuDevice.objects.filter(host=host, removed_at__isnull=True).exists()
    browser.get(of(host))  # the message is shown here, once
    assert host.name not in browser.get("/ops/hosts").content.decode()
    assert host.name in browser.get("/ops/hosts?state=removed").content.decode()
    assert browser.get(of(host)).status_code == 200
