"""Images of machines: what enabled providers say that they have, and nothing else can be asked for."""

from __future__ import annotations

import pytest

from tenants.models import Machine, Provider
from tests import factories
from tests.api.world import MACHINE

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def member(api):
    tenant = factories.tenant(name="acme")
    factories.generous(tenant, "H100-80GB")
    return api(factories.member(tenant))


def names(client) -> list[str]:
    return [item["name"] for item in client.get("/api/v1/machine-images").body["items"]]


def test_the_list_is_what_enabled_providers_of_machines_say(member):
    vm = {"boundary_kinds": ["vm"]}
    factories.provider(capabilities={**vm, "images": ["rocky-9"]})
    factories.provider(capabilities={**vm, "images": ["sles-15"]}, enabled=False)
    factories.provider(capabilities={"boundary_kinds": ["namespace"], "images": ["ubi-9"]})

    assert names(member) == ["rocky-9"]

    factories.provider(capabilities=vm)  # says nothing: taken to have the usual ones
    assert names(member) == ["debian-12", "rocky-9", "ubuntu-22.04", "ubuntu-24.04"]


def test_before_any_provider_the_usual_ones_are_listed(member):
    Provider.objects.all().delete()
    assert names(member) == ["debian-12", "ubuntu-22.04", "ubuntu-24.04"]


def test_another_image_is_refused_with_the_field_and_those_that_there_are(member):
    factories.provider(capabilities={"boundary_kinds": ["vm"], "images": ["rocky-9"]})

    answer = member.post("/api/v1/tenants/acme/machines", {**MACHINE, "image": "ubuntu-24.04"})

    assert answer.status == 400
    assert answer.body["errors"][0]["field"] == "image"
    assert answer.body["data"]["offered"] == ["rocky-9"]
    assert not Machine.objects.exists()
