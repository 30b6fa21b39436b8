"""Another size for a machine by the API: what it takes, what it refuses, and what `PUT` says instead."""

from __future__ import annotations

import pytest

from tenants.models import Machine, Unit
from tests import factories
from tests.api.world import MACHINE

pytestmark = pytest.mark.usefixtures("db")
BOX = "/api/v1/tenants/acme/machines/box"


@pytest.fixture
def me(api):
    tenant = factories.tenant(name="acme")
    provider = factories.provider(capabilities={"boundary_kinds": ["vm"], "bindings": ["device"]})
    factories.host(provider)
    factories.generous(tenant, "H100-80GB")
    client = api(factories.member(tenant))
    made = client.post("/api/v1/tenants/acme/machines", {**MACHINE, "name": "box"})
    assert made.status == 201, made
    return client


def off() -> None:
    row = Machine.objects.get()
    row.conditions = [
        {"type": "Ready", "status": "False", "reason": "ByOwner", "message": "", "observed_generation": 1,
         "last_transition_at": "2026-06-01T12:00:00+00:00"},
    ]  # fmt: skip
    row.power, row.observed, row.observed_generation = "off", {"power": "off"}, row.generation
    row.save()


def test_it_answers_with_the_new_size(me):
    off()

    answer = me.post(f"{BOX}/resize", {"vcpu": 3, "disk_gib": 300})

    assert answer.status == 200, answer
    assert (answer.body["units"][0]["vcpu"], answer.body["disk_gib"]) == (3, 300)
    assert answer.body["spec"]["units"][0]["vcpu"] == 3


def test_one_that_is_not_off_is_refused_with_what_to_do(me):
    answer = me.post(f"{BOX}/resize", {"vcpu": 3})

    assert (answer.status, answer.body["code"]) == (409, "not-off")
    assert "switch it off first" in answer.body["detail"]
    assert Machine.objects.get().resizes == 0


def test_a_smaller_disk_is_refused_with_its_field(me):
    off()

    answer = me.post(f"{BOX}/resize", {"disk_gib": 10})

    assert answer.status == 400
    assert answer.body["errors"] == [{"field": "disk_gib", "reason": answer.body["detail"]}]


@pytest.mark.parametrize("body", [{"vcpu": 0}, {"vcpu": "8"}, {"memory_gib": 20_000}, {"disk_gib": 5}, {"gpu": 2}])
def test_what_is_no_size_changes_nothing(me, body):
    off()

    assert me.post(f"{BOX}/resize", body).status == 400
    assert Machine.objects.get().resizes == 0


def test_another_version_is_refused(me):
    off()

    assert me.post(f"{BOX}/resize", {"vcpu": 3}, if_match='"99"').status == 412


def test_a_plan_says_what_it_would_do_and_does_nothing(me):
    off()

    answer = me.post(f"{BOX}/resize?plan=true", {"vcpu": 3})

    assert answer.status == 200, answer
    assert Machine.objects.get().resizes == 0
    assert Unit.objects.get().vcpu != 3


def test_putting_another_size_says_how_it_is_changed(me):
    version = me.get(BOX).headers["ETag"]
    wanted = {key: value for key, value in MACHINE.items() if key != "name"}

    answer = me.put(BOX, {**wanted, "disk_gib": 999}, if_match=version)

    assert (answer.status, answer.body["code"]) == (409, "immutable")
    assert "Resize it while it is off" in answer.body["detail"]
