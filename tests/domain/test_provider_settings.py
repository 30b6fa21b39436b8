"""What a provider's configuration may hold: what its driver knows and could use, said at its field when stored."""

from __future__ import annotations

from typing import Any

import pytest

from tenants import provider_kinds
from tenants.errors import InvalidSpec
from tenants.models import Event, Outbox, Provider
from tenants.operations import providers
from tenants.states import PlatformRole
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

CLUSTER = {"url": "https://10.0.0.1:6443", "access": "cluster"}
VCENTER = {"url": "https://vc.example.net", "user": "tenantry@vsphere.local", "templates": "endpoint=vllm"}
ESTATE = {"url": "http://127.0.0.1:9", "estate": "lab"}
ENOUGH = {"kubernetes": CLUSTER, "vsphere": VCENTER, "sandbox": ESTATE}


@pytest.fixture
def ole(db: None) -> Any:
    return factories.actor(factories.person(name="Ole", platform=(PlatformRole.OPERATOR,)))


def make(kind: str, config: dict[str, Any], ole: Any) -> Provider:
    return providers.create(name="lab-east", kind=kind, site="east", config=config, actor=ole, now=NOW)


REFUSED = [
    ("kubernetes", {"access": "foo"}, "access", "Choose one of these: route, load-balancer, cluster, lab."),
    ("kubernetes", {"access": "route", "zone": "a.example"}, "route_parent", "the Gateway that routes attach to"),
    ("kubernetes", {"control_plane_cidrs": "10.0.0.0/8, 10.1.2.3/8"}, "control_plane_cidrs", "'10.1.2.3/8' is no net"),
    ("kubernetes", {"storage_clas": "fast"}, "storage_clas", "Did you mean storage_class?"),
    ("kubernetes", {"xyzzy": "1"}, "xyzzy", "Kubernetes cluster has no setting of this name. There are: access, "),
    ("kubernetes", {"cache_gib": "much"}, "cache_gib", "No number."),
    ("kubernetes", {"cache_gib": "inf"}, "cache_gib", "No number."),
    ("kubernetes", {"cache_gib": 1.5}, "cache_gib", "A whole number."),
    ("kubernetes", {"page": "0"}, "page", "Must be above 0."),
    ("kubernetes", {"read_only_root": "perhaps"}, "read_only_root", "Choose one of these: true, false."),
    ("kubernetes", {"proxy": "Ingress System"}, "proxy", "Written namespace, or namespace:label=value"),
    ("kubernetes", {"dns": "kube-system:k8s-app"}, "dns", "Labels are written key=value."),
    ("kubernetes", {"pod_security_version": "1.36"}, "pod_security_version", "A version such as v1.36, or latest."),
    ("vsphere", {"access": "foo"}, "access", "Choose one of these: guest, lab."),
    ("vsphere", {"clones": "-1"}, "clones", "Must be above 0."),
    ("vsphere", {"datastore": "vsan"}, "datastore", "Did you mean datastores?"),
    ("sandbox", {"make": "a-palace"}, "make", "Choose one of these: kubernetes, vsphere."),
    ("sandbox", {"url": "127.0.0.1:9"}, "url", "beginning with http://"),
    ("sandbox", {"deadline_s": "soon"}, "deadline_s", "Give seconds above 0."),
    ("sandbox", {"estat": "lab"}, "estat", "Did you mean estate?"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "field", "words"), REFUSED)
def test_what_the_driver_could_not_use_is_refused_at_its_field_and_nothing_is_made(ole, kind, change, field, words):
    with pytest.raises(InvalidSpec) as raised:
        make(kind, {**ENOUGH[kind], **change}, ole)

    assert raised.value.field == f"config.{field}"
    assert words in raised.value.detail
    assert (Provider.objects.count(), Outbox.objects.count()) == (0, 0)


@pytest.mark.parametrize(("kind", "change", "field", "words"), REFUSED)
def test_a_change_that_the_driver_could_not_use_leaves_what_was(ole, kind, change, field, words):
    row = make(kind, ENOUGH[kind], ole)
    events = Event.objects.count()

    with pytest.raises(InvalidSpec, match=r"\w") as raised:
        providers.update(provider=row, config={**ENOUGH[kind], **change}, actor=ole, now=NOW)

    row.refresh_from_db()
    assert (raised.value.field, row.config, row.version) == (f"config.{field}", ENOUGH[kind], 1)
    assert Event.objects.count() == events


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (
            "kubernetes",
            {"vm_instance_uuid": True, "read_only_root": False, "cache_gib": 200, "page": "100", "lab": True},
        ),
        ("kubernetes", {"proxy": "ingress:app.kubernetes.io/name=envoy", "dns_cidrs": "169.254.20.10/32", "zone": ""}),
        ("vsphere", {"call_deadline_s": 10, "endpoint_image": "vllm", "thumbprint": None}),
        ("sandbox", {"deadline_s": 2.5, "history": "simulated", "make": ""}),
    ],
)
def test_what_a_driver_reads_is_stored_though_no_form_asks_for_it(ole, kind, more):
    config = {**ENOUGH[kind], **more, "address_ranges": ["10.0.0.0/8"]}

    assert make(kind, config, ole).config == config


def test_what_is_only_missing_is_stored_and_found_by_the_test(ole):
    assert make("kubernetes", {}, ole).config == {}
    assert providers.create(name="vc", kind="vsphere", site="x", config={}, actor=ole, now=NOW).config == {}


def test_an_entry_of_an_earlier_release_that_nobody_knows_does_not_stand_in_the_way_of_another(ole):
    row = make("kubernetes", CLUSTER, ole)
    Provider.objects.update(config={**CLUSTER, "colour": "blue"})

    stored = providers.update(provider=row, config={**CLUSTER, "colour": "blue", "cache_gib": "10"}, actor=ole, now=NOW)

    assert stored.config == {**CLUSTER, "colour": "blue", "cache_gib": "10"}
    with pytest.raises(InvalidSpec, match="no setting of this name"):
        providers.update(provider=row, config={**CLUSTER, "colour": "red"}, actor=ole, now=NOW)


def test_a_kind_that_nobody_offers_is_stored_and_found_by_the_test(ole):
    assert make("nothing", {"a": "b"}, ole).config == {"a": "b"}


def test_every_setting_that_a_form_asks_for_is_one_that_the_driver_reads():
    for kind in provider_kinds.offered():
        if kind.slug != "sandbox":
            assert {one.key for one in kind.settings} <= kind.more_keys
