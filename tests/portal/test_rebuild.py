"""Making a machine anew on its page: nothing by mistake, what is refused in words."""

from __future__ import annotations

import pytest
from django.test import Client

from tenants.models import Machine, Provider
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
PAGE = "/t/acme/machines/box/rebuild"


@pytest.fixture
def world(db: None) -> World:
    return build()


def asked(browser: Client, **given: str) -> str:
    return browser.post(PAGE, given, follow=True).content.decode()


def builds() -> tuple[int, str]:
    row = Machine.objects.get(name="box", tenant__name="acme")
    return row.build, row.image


def test_without_its_name_nothing_is_made_anew(world, browse):
    before = builds()
    page = asked(browse(world.acme.member), confirm="bux")

    assert "Type the name of the machine" in page
    assert builds() == before


def test_an_image_that_its_provider_has_not_is_refused_with_those_that_it_has(world, browse):
    Provider.objects.update(capabilities={"boundary_kinds": ["vm", "namespace"], "images": ["rocky-9"]})
    before = builds()
    page = asked(browse(world.acme.member), confirm="box", image="windows")

    assert "No image is called windows" in page
    assert "rocky-9" in page
    assert builds() == before


def test_it_is_made_anew_of_another_image(world, browse):
    count, _ = builds()
    asked(browse(world.acme.member), confirm="box", image="debian-12")

    assert builds() == (count + 1, "debian-12")
