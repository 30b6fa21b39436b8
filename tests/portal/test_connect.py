"""Connecting a second simulated provider from the first form to open hosts; leaving, coming back, and what fails."""

from __future__ import annotations

import html
import re
from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from frontend.views import handing_over
from provisioners import connections, sweep
from provisioners.passes import Engine
from provisioners.sandbox import connection as sandbox
from provisioners.sandbox import control, files
from provisioners.sandbox.driver import InProcessSandbox
from provisioners.sandbox.estate import Estate
from tenants import vault
from tenants.models import Host, Price, Provider, ProviderCredential
from tenants.states import PlatformRole
from tests import factories

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]
NEW = "/ops/providers/connect"
HOME = "/ops/providers/oslo-lab"
FORM = {
    "kind": "sandbox", "name": "oslo-lab", "site": "oslo", "config.url": "http://127.0.0.1:9",
    "config.estate": "second", "config.make": "kubernetes", "secret.token": "a-token-of-the-sandbox",
}  # fmt: skip


class Worker:
    """A worker with an estate in this process behind whatever provider it is asked about."""

    def __init__(self) -> None:
        document = sandbox.document("kubernetes")
        assert document is not None
        self.estate = Estate(files.build(document), clock=lambda: timezone.now().timestamp(), url="http://x.invalid")
        control.no_delays(self.estate)

    def run(self) -> None:
        engine = Engine(clock=timezone.now, driver_of=lambda _provider: InProcessSandbox(self.estate))
        sweep.look_at(Provider.objects.get(name="oslo-lab").pk, engine=engine)


@pytest.fixture
def ole(db: None):
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


@pytest.fixture
def worker(db: None) -> Worker:
    return Worker()


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def states() -> list[str]:
    return list(Host.objects.filter(provider__name="oslo-lab").order_by("name").values_list("state", flat=True))


def test_a_second_simulated_provider_is_connected_in_five_steps(browse, ole, worker):
    browser = browse(ole)

    first = browser.get(NEW)
    assert "Step" not in text(first)
    stored = browser.post(NEW, FORM)
    assert stored.headers["Location"] == f"{HOME}/connect/check"
    assert (Provider.objects.get().enabled, states()) == (False, [])
    assert "A worker is calling it now." in text(browser.get(f"{HOME}/connect/check"))

    worker.run()
    checked = text(browser.get(f"{HOME}/connect/check"))
    assert "It works Simulated" in checked
    assert "3 hosts, 16 GPUs, 1 use" in checked

    shown = text(browser.get(f"{HOME}/connect/found"))
    assert "H100-80GB 8 1" in shown
    assert "nightly-training node-b.berlin.example" in shown
    assert states() == ["joining"] * 3

    keys = list(Host.objects.order_by("name").values_list("short_id", flat=True))
    handed = browser.post(
        f"{HOME}/connect/hand-over",
        {"host": keys[:2], "site": "oslo", "ranges": "10.20.0.0/16", "price:gpu.H100-80GB.slices": "0.35"},
    )
    assert handed.headers["Location"] == f"{HOME}/connect/acceptance"
    row = Provider.objects.get()
    assert (row.enabled, row.config["address_ranges"]) == (True, ["10.20.0.0/16"])
    assert Price.objects.get().amount == Decimal("0.35")
    assert "0 of 2 passed" in text(browser.get(f"{HOME}/connect/acceptance"))

    worker.run()
    assert "2 of 2 passed" in text(browser.get(f"{HOME}/connect/acceptance"))
    assert states() == ["accepted", "accepted", "joining"]
    opened = browser.post(f"{HOME}/connect/open", follow=True)

    assert states() == ["open", "open", "joining"]
    assert "2 hosts are in use" in text(opened)
    assert Host.objects.filter(placeable=True).count() == 2


def test_one_goes_on_where_one_left_off(browse, ole, worker):
    browser = browse(ole)
    browser.post(NEW, FORM)

    assert browser.get(f"{HOME}/connect").headers["Location"] == f"{HOME}/connect/check"
    worker.run()
    assert browser.get(f"{HOME}/connect").headers["Location"] == f"{HOME}/connect/found"
    assert "Being connected" in text(browser.get("/ops/providers"))
    ProviderCredential.objects.all().delete()
    assert browser.get(f"{HOME}/connect").headers["Location"] == f"{HOME}/connect/credentials"


def test_the_secret_is_sealed_and_stands_on_no_page(browse, ole, worker):
    browser = browse(ole)
    browser.post(NEW, FORM)
    worker.run()

    row = ProviderCredential.objects.get()
    assert vault.unseal(row.sealed, table=row._meta.db_table, column="sealed", row=row.pk) == FORM["secret.token"]
    for path in ("", "/connect/credentials", "/connect/check", "/connect/found", "/connect/hand-over", "/settings"):
        assert FORM["secret.token"] not in browser.get(f"{HOME}{path}").content.decode()


def test_this_installations_own_secret_is_used_at_its_own_address_only(browse, ole, settings):
    settings.TENANTRY_SANDBOX_URL, settings.TENANTRY_SANDBOX_TOKEN = "http://127.0.0.1:8430", "its-own-token"
    browser = browse(ole)
    form = {**FORM, "secret.token": ""}

    elsewhere = browser.post(NEW, {**form, "config.url": "http://203.0.113.9:8430"})
    here = browser.post(NEW, {**form, "config.url": "http://127.0.0.1:8430/"})

    assert (elsewhere.status_code, here.status_code) == (422, 302)
    assert 'id="secret.token-error"' in elsewhere.content.decode()
    row = ProviderCredential.objects.get()
    assert vault.unseal(row.sealed, table=row._meta.db_table, column="sealed", row=row.pk) == "its-own-token"


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "Not A Slug"), ("site", ""), ("config.estate", ""), ("config.make", "a-palace"), ("secret.token", "")],
)
def test_what_is_wrong_is_said_at_its_field_and_nothing_is_made(browse, ole, settings, field, value):
    settings.TENANTRY_SANDBOX_TOKEN = ""

    answer = browse(ole).post(NEW, {**FORM, field: value})

    assert answer.status_code == 422
    assert f'id="{field}-error"' in answer.content.decode()
    assert Provider.objects.count() == 0


def test_a_name_that_is_taken_is_said_at_the_name(browse, ole):
    factories.provider(name="oslo-lab")

    answer = browse(ole).post(NEW, FORM)

    assert answer.status_code == 409
    assert 'id="name-error"' in answer.content.decode()


def test_what_does_not_work_is_named_and_mended_in_place(browse, ole, worker):
    browser = browse(ole)
    browser.post(NEW, FORM)
    control.add_fault(worker.estate, "capabilities", "fail", error="rejected", times=-1)
    worker.run()

    failed = text(browser.get(f"{HOME}/connect/check"))
    control.clear_faults(worker.estate)
    again = browser.post(f"{HOME}/connect/credentials", {**FORM, "secret.token": ""})
    worker.run()

    assert "It does not work yet" in failed
    assert "What was found" not in failed.partition("It does not work yet")[2]
    assert again.headers["Location"] == f"{HOME}/connect/check"
    assert "It works" in text(browser.get(f"{HOME}/connect/check"))
    assert ProviderCredential.objects.count() == 1


def test_a_host_that_fails_its_acceptance_says_why_and_is_tested_again(browse, ole, worker):
    browser = browse(ole)
    browser.post(NEW, FORM)
    worker.run()
    host = Host.objects.order_by("name").first()
    assert host is not None
    control.set_gpu_health(worker.estate, f"{host.provider_ref}-gpu-0", healthy=False, message="fell off the bus")
    browser.post(f"{HOME}/connect/hand-over", {"host": host.short_id, "site": "oslo", "ranges": ""})
    worker.run()

    failed = text(browser.get(f"{HOME}/connect/acceptance"))
    control.set_gpu_health(worker.estate, f"{host.provider_ref}-gpu-0", healthy=True, message="")
    browser.post(f"{HOME}/connect/accept", {"host": host.short_id})
    Provider.objects.update(due_at=timezone.now())
    worker.run()

    assert "Did not pass" in failed
    assert "fell off the bus" in failed
    assert states()[0] == "accepted"
    assert "address_ranges" not in Provider.objects.get().config


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"host": []}, "Choose at least one host."),
        ({"ranges": "10.0.0.1/8"}, 'id="ranges-error"'),
        ({"price:gpu.H100-80GB.slices": "cheap"}, 'id="price:gpu.H100-80GB.slices-error"'),
        ({"site": "?"}, 'id="site-error"'),
    ],
)
def test_nothing_is_handed_over_by_a_form_with_a_mistake(browse, ole, worker, given, field):
    browser = browse(ole)
    browser.post(NEW, FORM)
    worker.run()
    key = Host.objects.order_by("name").values_list("short_id", flat=True)[0]

    answer = browser.post(f"{HOME}/connect/hand-over", {"host": [key], "site": "oslo", "ranges": "", **given})

    assert answer.status_code == 422
    assert field in answer.content.decode()
    assert (Provider.objects.get().enabled, Price.objects.count()) == (False, 0)


# --- a cluster ---------------------------------------------------------------------------------------------

CLUSTER = {
    "kind": "kubernetes", "name": "oslo-k8s", "site": "oslo", "config.access": "lab",
    "config.url": "https://127.0.0.1:6443", "secret.token": "the-token-of-the-account",
}  # fmt: skip
KUBECONFIG = """kind: Config
current-context: it
contexts: [{name: it, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443"}}]
users: [{name: u, user: {USER}}]
"""


def test_the_form_of_a_cluster_shows_the_file_of_its_least_rights(browse, ole):
    answer = browse(ole).get(f"{NEW}?kind=kubernetes")

    shown = answer.content.decode()
    assert "Copy the file" in shown
    assert "name: tenantry-viewer" in html.unescape(shown)
    assert '<textarea class="input mono" name="secret.kubeconfig"' in shown


def test_a_cluster_is_stored_with_a_token_or_a_kubeconfig(browse, ole):
    browser = browse(ole)

    by_token = browser.post(NEW, CLUSTER)
    by_file = browser.post(
        NEW,
        {**CLUSTER, "name": "other", "config.url": "", "secret.token": "",
         "secret.kubeconfig": KUBECONFIG.replace("USER", "token: abc")},
    )  # fmt: skip

    assert (by_token.status_code, by_file.status_code) == (302, 302)
    assert sorted(ProviderCredential.objects.values_list("provider__name", "name")) == [
        ("oslo-k8s", "token"), ("other", "kubeconfig")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"secret.token": ""}, "secret.kubeconfig", "Paste a kubeconfig"),
        ({"config.url": ""}, "config.url", "address is needed"),
        ({"config.url": "http://127.0.0.1"}, "config.url", "https://"),
        ({"config.ca_pem": "nonsense"}, "config.ca_pem", "BEGIN CERTIFICATE"),
        (
            {"config.ca_pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
            "config.ca_pem",
            "once more",
        ),
        ({"config.access": "cluster"}, "config.gateway_image", "pinned by digest"),
        ({"config.access": "route"}, "config.zone", "need a zone"),
        ({"config.access": "route", "config.zone": "a.example"}, "config.route_parent", "the Gateway"),
        ({"config.control_plane_cidrs": "10.30.0.1/24"}, "config.control_plane_cidrs", "no network such as"),
        ({"config.proxy": "a b"}, "config.proxy", "label=value"),
        ({"config.read_only_root": "maybe"}, "config.read_only_root", "Choose one of these"),
        (
            {"secret.kubeconfig": KUBECONFIG.replace("USER", "exec: {command: rm}")},
            "secret.kubeconfig",
            "would run a program (rm)",
        ),
    ],
)
def test_what_cannot_be_used_of_a_cluster_is_said_at_its_field_and_nothing_is_made(browse, ole, change, field, words):
    answer = browse(ole).post(NEW, {**CLUSTER, **change})

    assert answer.status_code == 422
    assert f'id="{field}-error"' in answer.content.decode()
    assert words in text(answer)
    assert Provider.objects.count() == 0


def test_settings_that_few_need_are_folded_away_until_one_of_them_is_wrong(browse, ole):
    browser = browse(ole)

    first = browser.get(f"{NEW}?kind=kubernetes").content.decode()
    wrong = browser.post(NEW, {**CLUSTER, "config.dns_cidrs": "here", "config.vm_network": "there"})
    plain = browser.get(f"{NEW}?kind=sandbox").content.decode()

    usual, folded = first.split("Settings that few need")
    assert 'name="config.control_plane_cidrs"' in usual
    assert 'name="config.dns_cidrs"' in folded
    assert '<details class="more"><summary>Settings that few need' in first
    assert '<details class="more" open><summary>Settings that few need' in wrong.content.decode()
    assert 'id="config.dns_cidrs-error"' in wrong.content.decode()
    assert 'name="config.zone"' in plain.split("Settings that few need")[1]


def test_settings_of_a_cluster_are_stored_with_the_first_of_each_choice(browse, ole):
    sent = {"config.control_plane_cidrs": "10.30.0.0/24", "config.cache_gib": "200", "config.proxy": "clients"}

    browse(ole).post(NEW, {**CLUSTER, **sent})

    config = Provider.objects.get().config
    assert {f"config.{key}": config[key] for key in ("control_plane_cidrs", "cache_gib", "proxy")} == sent
    assert (config["read_only_root"], config["vm_instance_uuid"], config["runtime_class"]) == ("true", "false", "")


def test_each_right_that_is_missing_stands_on_the_page_of_the_test(browse, ole):
    browser = browse(ole)
    browser.post(NEW, CLUSTER)
    row = Provider.objects.get()
    row.observed = {
        "test": {
            "passed": False, "at": timezone.now().isoformat(), "took_ms": 3,
            "checks": [
                {"name": "connect", "passed": True, "seen": "v1.36.3", "raw": "", "needed": True},
                {"name": "right:patch nodes", "passed": False, "seen": "Needed to cordon.", "raw": "", "needed": True},
            ],
        }
    }  # fmt: skip
    row.save(update_fields=["observed"])

    shown = text(browser.get("/ops/providers/oslo-k8s/connect/check"))

    assert "Its account may: patch nodes failed Needed to cordon." in shown


# --- a vCenter --------------------------------------------------------------------------------------------

VCENTER = {
    "kind": "vsphere", "name": "oslo-vc", "site": "oslo", "config.url": "https://127.0.0.1:8443",
    "config.user": "tenantry@vsphere.local", "config.templates": "ubuntu-24.04 = ubuntu-24.04-gpu",
    "config.access": "lab", "config.whole_gpus": "vgpu", "secret.password": "the-password-of-the-account",
}  # fmt: skip


def test_the_form_of_a_vcenter_shows_the_role_to_copy(browse, ole):
    shown = html.unescape(browse(ole).get(f"{NEW}?kind=vsphere").content.decode())

    assert "Copy the file" in shown
    assert "govc role.create 'Tenantry'" in shown
    assert "VirtualMachine.Config.AddRemoveDevice" in shown


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"secret.password": ""}, "secret.password", "needed"),
        ({"config.url": "https://vc/ui"}, "config.url", "has no path"),
        ({"config.templates": ""}, "config.templates", "at least one template"),
        ({"config.templates": "ubuntu"}, "config.templates", "image=template"),
        ({"config.vlans": "1200-5000"}, "config.vlans", "from 1 to 4094"),
        ({"config.root_folder": "a%2fb"}, "config.root_folder", "percent"),
        ({"config.thumbprint": "AB:CD"}, "config.thumbprint", "64 hexadecimal"),
        ({"config.tenant_group": "CORP\\all"}, "config.tenant_group", "exactly once"),
    ],
)
def test_what_cannot_be_used_of_a_vcenter_is_said_at_its_field_and_nothing_is_made(browse, ole, change, field, words):
    answer = browse(ole).post(NEW, {**VCENTER, **change})

    assert answer.status_code == 422
    assert f'id="{field}-error"' in answer.content.decode()
    assert words in text(answer)
    assert Provider.objects.count() == 0


@pytest.mark.real
@pytest.mark.vcsim
def test_a_vcenter_of_the_lab_is_connected_tested_and_its_hosts_are_found(browse, ole, vcenter, vcenter_control):
    vcenter_control.add_vm("neighbour", "DC0_C0_H0", "nvidia_h100xm-3-40c")
    browser = browse(ole)
    form = {**VCENTER, "name": "oslo-lab", "config.url": vcenter.url, "config.ca_pem": vcenter.ca_pem}
    form |= {"config.user": vcenter.user, "secret.password": vcenter.password, "config.vlans": "1200-1299"}
    try:
        assert browser.post(NEW, form).status_code == 302
        vcenter_control.deny("Datastore.Browse")
        checked = _tested(browser)
        assert "Its account may: Datastore.Browse on datastores failed" in checked
        vcenter_control.deny()
        assert browser.post(f"{HOME}/connect/test").status_code == 302
        checked = _tested(browser)
    finally:
        connections.close_all()
        vcenter_control.deny()
        vcenter_control.remove_vm("neighbour")

    assert "It works Simulated" in checked
    assert "5 hosts, 8 GPUs, 1 use" in checked
    assert "DC0_C0_H0" in text(browser.get(f"{HOME}/connect/found"))
    assert states() == ["joining"] * 5


@pytest.mark.real
@pytest.mark.vcsim
@pytest.mark.parametrize(
    ("change", "field", "label"),
    [
        ({"config.ca_pem": ""}, "config.ca_pem", "Certificate authority"),
        ({"config.ca_pem": "", "config.thumbprint": "ab" * 32}, "config.thumbprint", "Thumbprint"),
        ({"secret.password": "not the one"}, "secret.password", "Password"),
    ],
)
def test_what_a_vcenter_does_not_take_is_said_at_its_field(browse, ole, vcenter, change, field, label):
    browser = browse(ole)
    form = {**VCENTER, "name": "oslo-lab", "config.url": vcenter.url, "config.ca_pem": vcenter.ca_pem}
    form |= {"config.user": vcenter.user, "secret.password": vcenter.password}
    try:
        browser.post(NEW, {**form, **change})
        checked = _tested(browser)
        shown = browser.get(f"{HOME}/connect/credentials").content.decode()
        browser.post(f"{HOME}/connect/credentials", form | {"config.thumbprint": ""})
        waiting = browser.get(f"{HOME}/connect/credentials").content.decode()
        mended = _tested(browser)
    finally:
        connections.close_all()

    assert f"Change “{label}”" in checked
    assert f'id="{field}-error"' in shown
    assert f'id="{field}-error"' not in waiting
    assert "It works Simulated" in mended
    assert "Change “" not in mended


def _tested(browser) -> str:
    sweep.look_at(Provider.objects.get(name="oslo-lab").pk, engine=Engine(clock=timezone.now))
    return text(browser.get(f"{HOME}/connect/check"))


# --- many hosts -------------------------------------------------------------------------------------------


@pytest.fixture
def many(monkeypatch, db) -> Provider:
    """A provider with five hosts that nobody handed over, one of them not well; two are shown on a page."""
    monkeypatch.setattr(handing_over, "SHOWN", 2)
    monkeypatch.setattr(handing_over, "AT_ONCE", 3)
    row = factories.provider(name="oslo-lab", enabled=False, config={"url": "http://127.0.0.1:9"})
    for _ in range(5):
        factories.host(row, gpus=1, state="joining")
    sick = Host.objects.order_by("name").first()
    Host.objects.filter(pk=sick.pk).update(healthy=False)
    return row


def test_hosts_are_shown_by_the_page_with_the_counts_of_all(browse, ole, many):
    browser = browse(ole)

    seen, url, texts = [], f"{HOME}/connect/hand-over", []
    while url:
        body = browser.get(url).content.decode()
        seen += re.findall(r'name="host" value="(ho-\w+)"', body)
        texts.append(re.sub(r"<[^>]*>", " ", body))
        after = re.search(r'href="(\?after=[^"]*)"', body)
        url = f"{HOME}/connect/hand-over{after[1]}" if after else ""

    assert seen == list(Host.objects.order_by("name").values_list("short_id", flat=True))
    assert all("5 hosts wait, 1 not well" in text for text in texts)
    assert all("The next 3 hosts that are well" in text for text in texts)


def test_all_that_are_well_are_handed_over_some_at_a_time(browse, ole, many):
    browser = browse(ole)
    form = {"which": "well", "site": "oslo", "ranges": ""}

    asked = []
    for _ in range(2):
        browser.post(f"{HOME}/connect/hand-over", form)
        asked.append(Host.objects.filter(acceptance__has_key="requested_at").count())
    again = browser.post(f"{HOME}/connect/hand-over", form)

    assert asked == [3, 4]
    assert again.status_code == 422
    assert Host.objects.get(healthy=False).acceptance == {}


def test_what_is_ticked_alone_is_handed_over_where_the_page_is_one_of_several(browse, ole, many):
    key = Host.objects.filter(healthy=True).order_by("name").values_list("short_id", flat=True)[2]

    browse(ole).post(f"{HOME}/connect/hand-over", {"which": "ticked", "host": [key], "site": "oslo", "ranges": ""})

    assert Host.objects.get(acceptance__has_key="requested_at").short_id == key


def test_acceptance_counts_all_hosts_and_shows_those_that_are_asked_for(browse, ole, many):
    hosts = list(Host.objects.order_by("name"))
    moment = timezone.now().isoformat()
    failed = {"passed": False, "at": moment, "checks": [{"name": "nvidia-smi", "passed": False, "seen": "it is gone"}]}
    for host, values in zip(
        hosts,
        [
            {"acceptance": failed}, {"acceptance": {"requested_at": moment}}, {"state": "accepted"},
            {"state": "accepted"}, {},
        ],
        strict=True,
    ):  # fmt: skip
        Host.objects.filter(pk=host.pk).update(**values)
    browser = browse(ole)

    every, bad = (browser.get(f"{HOME}/connect/acceptance{query}") for query in ("", "?stands=failed"))

    assert "2 of 4 passed" in text(every)
    assert "Did not pass (1) Being tested (1) Accepted (2) In use (0) Left out (1)" in text(every)
    assert re.findall(r'value="(ho-\w+)"', every.content.decode()) == [hosts[0].short_id]  # the second is being tested
    assert re.findall(r'data-label="Host"><a [^>]*>([^<]*)', bad.content.decode()) == [hosts[0].name]
    assert "it is gone" in text(bad)
    assert "Open 2 hosts" in text(bad)


@pytest.mark.parametrize("step", ["found", "hand-over", "acceptance"])
def test_the_number_of_queries_of_a_step_does_not_grow_with_the_hosts(browse, ole, many, step):
    browser = browse(ole)
    counted = []
    for more in (0, 20):
        for _ in range(more):
            factories.host(many, gpus=1, state="joining")
        browser.get(f"{HOME}/connect/{step}")
        with CaptureQueriesContext(connection) as found:
            assert browser.get(f"{HOME}/connect/{step}").status_code == 200
        counted.append(len(found))

    assert counted[0] == counted[1]
