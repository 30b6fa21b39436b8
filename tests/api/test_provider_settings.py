"""A provider's configuration over HTTP: what its driver could not use is refused with its field, nothing changes."""

from __future__ import annotations

import pytest

from tenants.models import Provider
from tenants.states import PlatformRole
from tests import factories

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def me(api):
    return api(factories.person(platform=(PlatformRole.OPERATOR,)))


@pytest.mark.parametrize(
    ("config", "field", "words"),
    [
        ({"access": "foo"}, "config.access", "Choose one of these: route, load-balancer, cluster, lab."),
        ({"model_mirror_cidrs": "10.0.0.0/99"}, "config.model_mirror_cidrs", "'10.0.0.0/99' is no network"),
        ({"gateway_imag": "x"}, "config.gateway_imag", "Did you mean gateway_image?"),
    ],
)
def test_what_the_driver_could_not_use_is_refused_with_its_field(me, config, field, words):
    body = {"name": "lab-east", "kind": "kubernetes", "site": "east"}
    made = me.post("providers", {**body, "config": {"access": "cluster"}})
    assert made.status == 201, made

    another = me.post("providers", {**body, "name": "another", "config": config})
    changed = me.patch("providers/lab-east", {"config": config}, if_match=made.headers["ETag"])

    for answer in (another, changed):
        assert answer.status == 400, answer
        assert answer.body["errors"][0]["field"] == field
        assert words in answer.body["errors"][0]["reason"]
    assert list(Provider.objects.values_list("name", "config", "version")) == [
        ("lab-east", {"access": "cluster"}, 1),
    ]  # fmt: skip
