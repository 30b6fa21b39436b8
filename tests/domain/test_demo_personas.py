"""Personas: a log-in without a password, in a demo and nowhere else."""

from __future__ import annotations

import pytest

from controlplane.demo import guard
from controlplane.demo.guard import RealProviders
from tenants import demo
from tenants.actor import ANONYMOUS
from tenants.errors import Forbidden, NotVisible
from tenants.models import Event, Person
from tenants.transactions import reading
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")


def persona(key, **values):
    return Person.objects.create(email=f"{key}@demo.test", display_name=key.title(), created_at=NOW, **values)


def test_a_demo_lists_the_personas_that_are_there(settings):
    settings.TENANTRY_DEMO = True
    factories.provider()
    persona("mia")
    persona("ana")
    persona("omar", is_active=False)

    assert [one.key for one in demo.personas()] == ["mia", "ana"]
    with reading(ANONYMOUS):
        assert demo.bar() == demo.PERSONAS


def test_in_a_demo_a_persona_enters_without_a_password_and_an_event_says_so(settings):
    settings.TENANTRY_DEMO = True
    mia = persona("mia")

    assert demo.log_in("mia", now=NOW) == mia

    event = Event.objects.get(kind="person.demo-log-in")
    assert (event.object_id, event.person_id) == (mia.pk, mia.pk)


def test_no_other_installation_has_personas(settings):
    settings.TENANTRY_DEMO = False
    persona("mia")

    assert demo.personas() == ()
    with reading(ANONYMOUS):
        assert demo.bar() == ()
    with pytest.raises(Forbidden, match="Only a demo"):
        demo.log_in("mia", now=NOW)
    assert not Event.objects.exists()


def test_a_real_provider_ends_the_demo_at_once(settings):
    settings.TENANTRY_DEMO = True
    persona("mia")
    factories.provider(name="datacentre", kind="vsphere")

    assert demo.personas() == ()
    with reading(ANONYMOUS):
        assert demo.bar() == ()
    with pytest.raises(Forbidden, match="Only a demo"):
        demo.log_in("mia", now=NOW)


@pytest.mark.parametrize("key", ["", "nobody", "mia@demo.test", "ole"])
def test_nobody_else_enters_that_way(settings, key):
    settings.TENANTRY_DEMO = True
    persona("mia")
    persona("ole", is_active=False)
    factories.person()

    with pytest.raises(NotVisible):
        demo.log_in(key, now=NOW)


def test_a_demo_does_not_start_beside_real_providers(settings):
    settings.TENANTRY_DEMO = True
    factories.provider(name="datacentre", kind="kubernetes")

    with pytest.raises(RealProviders, match="beside real providers: datacentre"):
        guard.check_at_start()


def test_what_is_no_demo_starts_beside_them(settings):
    settings.TENANTRY_DEMO = False
    factories.provider(name="datacentre", kind="kubernetes")

    guard.check_at_start()


@pytest.mark.parametrize(("address", "real"), [("127.0.0.2:20443", []), ("127.0.0.1:20443", ["one"])])
def test_a_vcenter_of_the_lab_has_an_address_of_its_own(db, address, real):
    factories.provider(name="one", kind="vsphere", config={"access": "lab", "url": f"https://{address}"})

    assert demo.real_providers() == real


@pytest.mark.parametrize(
    ("config", "real"),
    [
        ({"access": "lab", "url": "https://127.0.0.1:6443"}, []),
        ({"access": "lab", "url": "https://cluster.example.org"}, ["one"]),
        ({"access": "route", "url": "https://127.0.0.1:6443"}, ["one"]),
        ({}, ["one"]),
    ],
)
def test_only_a_cluster_of_the_lab_is_no_real_provider(db, config, real):
    factories.provider(name="one", kind="kubernetes", config=config)

    assert demo.real_providers() == real
