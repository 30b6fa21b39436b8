"""Providers through Django's client: who may, what is shown, what a click does; no secret ever shows."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tenants import ledger
from tenants.models import Event, GpuDevice, Hold, Host, Provider, ProviderCredential
from tenants.operations import providers
from tenants.states import HoldKind, PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
SECRET = "hunter2-and-more"


@pytest.fixture
def world(db: None) -> World:
    made = build()
    Provider.objects.update(snapshot_at=timezone.now())
    return made


@pytest.fixture
def ole():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


@pytest.fixture
def aud():
    return factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def test_the_list_says_how_each_provider_is_and_what_it_has(world, browse, aud):
    factories.host(world.provider, state="cordoned")
    factories.provider(name="far", site="oslo", breaker_failures=6)
    Provider.objects.filter(name="far").update(healthy=False, snapshot_at=timezone.now())

    said = text(browse(aud).get("/ops/providers"))

    assert "estate Sandbox estate, berlin Simulated Answers 1 / 2 16 6 10 0 now" in said
    assert "far Sandbox estate, oslo Does not answer" in said
    assert "Connect provider" not in said


def test_the_filters_are_in_the_address_and_the_export_holds_what_they_show(world, browse, aud):
    factories.provider(name="far", site="oslo", enabled=False)
    browser = browse(aud)

    rows = json.loads(browser.get("/ops/providers?site=oslo&format=json").content)
    sheet = browser.get("/ops/providers?format=csv").content.decode()

    assert [(row["name"], row["health"], row["hosts"]) for row in rows] == [("far", "draft", 0)]
    assert sheet.splitlines()[0].startswith("name,short_id,kind,site,health,enabled,simulated,hosts,hosts_open")
    assert len(sheet.splitlines()) == 3
    assert "Nothing matches these filters" in text(browser.get("/ops/providers?site=nowhere"))


def test_one_provider_shows_gaps_with_their_remedy_hosts_and_the_age_of_its_secrets(world, browse, aud, ole):
    Provider.objects.update(
        capabilities={"simulated": True, "features": {"logs": True, "isolate": False},
                      "missing": {"isolate": "grant Network.Assign to the account"}}
    )  # fmt: skip
    providers.set_credential(
        provider=world.provider, name="token", secret=SECRET, actor=factories.actor(ole),
        now=timezone.now() - timedelta(days=3),
    )  # fmt: skip

    shown = browse(aud).get("/ops/providers/estate")

    said = text(shown)
    assert "Cut one tenant off the network and back Grant Network.Assign to the account gap" in said
    assert "Read logs yes" in said
    assert "Token set 3 days ago" in said
    assert SECRET not in shown.content.decode()
    assert "Test now" not in said
    assert "chat" in said  # an endpoint that is being built waits on it


def test_a_test_is_asked_for_and_its_answer_is_fetched(world, browse, ole):
    browser = browse(ole)

    asked = browser.post("/ops/providers/estate/test", headers={"HX-Request": "true"})
    row = Provider.objects.get(pk=world.provider.pk)
    row.observed = {
        "test": {"passed": False, "at": timezone.now().isoformat(), "asked_by": "Ole", "took_ms": 41,
                 "checks": [{"name": "connect", "passed": False, "seen": "the token is refused", "raw": "HTTP 401",
                             "needed": True}]}
    }  # fmt: skip
    row.save(update_fields=["observed"])
    answered = browser.get("/ops/providers/estate", headers={"HX-Request": "true"})

    assert "A worker is calling it now." in text(asked)
    assert 'hx-trigger="every 1s"' in asked.content.decode()
    assert "It does not work yet" in text(answered)
    assert "It answers and takes the credentials failed The token is refused What the provider said HTTP 401" in text(
        answered
    )
    assert "every 1s" not in answered.content.decode()
    assert Event.objects.filter(kind="provider.test-requested").count() == 1


def test_a_provider_is_switched_off_and_on_again(world, browse, ole):
    browser = browse(ole)

    browser.post("/ops/providers/estate/disable")
    off = Provider.objects.get(pk=world.provider.pk).enabled
    page = text(browser.get("/ops/providers/estate"))
    browser.post("/ops/providers/estate/enable")

    assert off is False
    assert "Nothing is built or changed there. What runs goes on." in page
    assert Provider.objects.get(pk=world.provider.pk).enabled is True


def test_settings_are_stored_and_their_errors_stand_at_their_field(world, browse, ole):
    browser = browse(ole)
    version = Provider.objects.get(pk=world.provider.pk).version
    body = {
        "version": version,
        "site": "berlin",
        "config.url": "http://127.0.0.1:1",
        "config.estate": "e",
        "config.make": "",
    }

    wrong = browser.post("/ops/providers/estate/settings", {**body, "config.address_ranges": "10.0.0.0/8\n10.1.2.3/8"})
    right = browser.post(
        "/ops/providers/estate/settings", {**body, "config.address_ranges": "10.0.0.0/8, 192.168.0.0/16"}
    )

    assert wrong.status_code == 422
    assert 'id="config.address_ranges-error"' in wrong.content.decode()
    assert right.status_code == 302
    assert Provider.objects.get(pk=world.provider.pk).config == {
        "url": "http://127.0.0.1:1", "estate": "e", "make": "", "address_ranges": ["10.0.0.0/8", "192.168.0.0/16"],
        "certificates": "", "dns_records": "", "endpoint_ca_pem": "", "zone": "",
    }  # fmt: skip


def test_an_entry_that_has_no_field_is_refused_in_words(world, browse, ole):
    row = Provider.objects.get(pk=world.provider.pk)
    Provider.objects.filter(pk=row.pk).update(config={**row.config, "deadline_s": "soon"})
    body = {"version": row.version, "site": "berlin", "config.url": "http://127.0.0.1:1", "config.estate": "e"}

    answer = browse(ole).post("/ops/providers/estate/settings", {**body, "config.make": ""})

    assert answer.status_code == 422
    assert "Give seconds above 0." in text(answer)


def test_a_secret_is_replaced_and_tested_and_stands_in_no_page(world, browse, ole):
    browser = browse(ole)

    sent = browser.post("/ops/providers/estate/credentials/token", {"secret": SECRET}, follow=True)

    row = ProviderCredential.objects.get(provider=world.provider)
    assert SECRET.encode() not in bytes(row.sealed)
    assert SECRET not in sent.content.decode()
    assert "It is being tested." in text(sent)
    assert "test_asked" in Provider.objects.get(pk=world.provider.pk).observed


def test_a_provider_in_use_says_who_is_in_the_way_and_stays(world, browse, ole):
    browser = browse(ole)

    shown = browser.get("/ops/providers/estate/delete")
    sent = browser.post("/ops/providers/estate/delete", {"confirm": "estate"})

    assert "It cannot be given up yet" in text(shown)
    assert 'href="/t/acme"' in shown.content.decode()
    assert sent.status_code == 409
    assert Provider.objects.get(pk=world.provider.pk).released_at is None


def test_an_unused_provider_goes_when_its_name_is_typed(browse, ole, db):
    row = factories.provider(name="spare", observed={"test_asked": {"at": timezone.now().isoformat(), "by": "Ole"}})
    factories.host(row, gpus=2)
    browser = browse(ole)

    plan = browser.get("/ops/providers/spare/delete")
    wrong = browser.post("/ops/providers/spare/delete", {"confirm": "other"})
    assert Provider.objects.get(pk=row.pk).released_at is None
    right = browser.post("/ops/providers/spare/delete", {"confirm": "spare"})

    assert "1 host is removed. 2 GPUs count no longer." in text(plan)
    assert (wrong.status_code, right.status_code) == (422, 302)
    gone = Provider.objects.get(pk=row.pk)
    assert (gone.released_at is not None, gone.observed) == (True, {})
    assert "Its hosts were removed" in text(browser.get("/ops/providers/spare"))
    assert "spare" not in text(browser.get("/ops/providers")).replace("spare was given up", "")


def test_giving_up_a_provider_with_many_hosts_takes_no_more_statements(browse, ole, db):
    counted, pages = [], []
    for name, number in (("few", 2), ("many", 30)):
        row = factories.provider(name=name)
        hosts = [factories.host(row, gpus=2) for _ in range(number)]
        gpu = GpuDevice.objects.filter(host=hosts[0]).earliest("index")
        ledger.put(HoldKind.FOREIGN, gpu.pk, 0, 4, from_at=timezone.now(), to_at=None, note="job", now=timezone.now())
        browser = browse(ole)
        for method, body in (("get", {}), ("post", {"confirm": name})):
            with CaptureQueriesContext(connection) as found:
                answer = getattr(browser, method)(f"/ops/providers/{name}/delete", body)
            counted.append(len(found))
            pages.append(text(answer))
        live = GpuDevice.objects.filter(provider=row, removed_at__isnull=True)
        assert (live.count(), Hold.objects.filter(host__provider=row).count()) == (0, 0)
        assert set(Host.objects.filter(provider=row).values_list("state", "gpu_count")) == {("removed", 0)}

    assert counted[:2] == counted[2:]
    assert "30 hosts are removed. 60 GPUs count no longer." in pages[2]


def test_the_number_of_queries_depends_neither_on_providers_nor_on_hosts(world, browse, aud):
    browser = browse(aud)
    for number in range(10):
        factories.host(factories.provider(name=f"p-{number}"), gpus=1)
    counted = []
    for more in (0, 30):
        for number in range(more):
            factories.host(world.provider, gpus=1)
            factories.host(factories.provider(name=f"q-{number}"), gpus=1)
        for address in ("/ops/providers", "/ops/providers/estate"):
            browser.get(address)
            with CaptureQueriesContext(connection) as found:
                assert browser.get(address).status_code == 200
            counted.append(len(found))

    assert counted[:2] == counted[2:]
