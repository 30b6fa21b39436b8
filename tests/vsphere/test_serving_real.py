"""Endpoints in VMs of the lab's vCenter, by the driver alone: guests enrol, serve, change, lie, and go."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners import plan
from provisioners.driver import BoundarySpec, Power, Presence, machine_uuid
from provisioners.gateway import keys
from provisioners.vsphere import vms
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.guest_agent import ENROLMENT, GATEWAY_REPORT, REPLICA_REPORT, SERVING
from tests.vsphere.ground import boundary, settings_for, walk
from tests.vsphere.guest_lab import Story, serving, story

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

TEMPLATES = {"endpoint": "ubuntu-24.04-gpu"}


@pytest.fixture(scope="module")
def vcenter(vcenters: Callable[..., VCenter]) -> VCenter:
    """A vCenter of our own: guests are played in it."""
    return vcenters("serving")


@pytest.fixture
def control(vcenter: VCenter) -> Iterator[Control]:
    with vcenter.control() as made:
        yield made
        made.clear()


@pytest.fixture
def driver(vcenter: VCenter) -> Iterator[VSphereDriver]:
    made = VSphereDriver(settings_for(vcenter, templates=TEMPLATES))
    yield made
    made.close()


@pytest.fixture
def told(driver: VSphereDriver, control: Control, tmp_path: Path) -> Iterator[Story]:
    place: BoundarySpec = boundary()
    walk(driver, place)
    with story(driver, place, control, tmp_path / "guests") as made:
        yield made
        made.gone()


def extra(told: Story) -> dict[str, str]:
    """Return the configuration of its VM beside the hardware, as an administrator reads it."""
    return dict(told.vm().extra)


def test_from_a_template_to_an_answer_and_nothing_left(told: Story, control: Control) -> None:
    seen = told.ready()

    assert told.started == [
        "vm.clone[0]", "vm.configure[0]", "vm.power[0]", "vm.gateway[0]", "serving.replica[0]", "serving.service",
    ]  # fmt: skip
    assert (seen.reachable_from, seen.model, seen.revision, seen.simulated) == ("lab", "alpha", 1, True)
    [unit] = seen.units
    assert (unit.uid, unit.host, unit.exact) == (told.unit.uid, "DC0_C0_H0", True)
    told.publish()
    body = told.answers(seen.address)
    text = body["choices"][0]["message"]["content"]
    assert "simulated VM" in text
    assert unit.device.partition("/")[2] in text
    assert body["tenantry"]["host"] == "DC0_C0_H0"
    assert told.ask(seen.address, key=keys.make("test").plain)[0] == 401
    secrets = [told.home.token, told.spec.serving.secrets["VLLM_API_KEY"].reveal()]
    assert not [key for key, value in extra(told).items() if any(secret in value for secret in secrets)]

    told.gone()

    assert [window for gpu in control.gpus() for window in gpu.held] == []
    told.await_(lambda: not told.keeper._played and not any(told.keeper._folder.iterdir()))


def test_a_new_revision_runs_with_its_own_key_and_the_old_one_no_more(told: Story) -> None:
    seen = told.ready()
    told.publish()
    told.answers(seen.address)
    told.started.clear()

    told.want(serving=serving(2, max_model_len=4096))
    seen = told.ready()
    told.publish(revision=2)

    assert told.started == ["serving.replica[0]"]
    assert seen.revision == 2
    assert told.answers(seen.address)["tenantry"]["revision"] == 2
    fresh = keys.make("test")
    told.publish(revision=2, key=fresh)
    told.answers(seen.address, status=401)
    told.answers(seen.address, key=fresh.plain)


def test_off_and_on_again_the_same_gateway_serves_without_a_token(told: Story) -> None:
    told.ready()
    told.started.clear()

    told.switch(Power.OFF)
    told.until(lambda action: isinstance(action, plan.Nothing) and action.ready)
    off = told.seen()
    told.switch(Power.ON)
    on = told.ready()
    told.publish()

    assert (off.power, off.address, on.power) == (Power.OFF, "", Power.ON)
    assert "vm.gateway[0]" not in told.started
    assert len(told.home.enrolments) == 1
    told.answers(on.address)


def test_what_is_killed_in_a_guest_comes_back_by_itself_and_needs_no_token(told: Story) -> None:
    first = told.ready()
    [played] = told.keeper._played.values()
    running = dict(played.guest._running)

    for one in running.values():
        assert one.process is not None
        one.process.send(signal.SIGKILL, group=True)
    told.await_(lambda: all(played.guest._running[unit] is not one for unit, one in running.items()))
    seen = told.ready()
    told.publish()

    told.answers(seen.address)
    assert seen.address != first.address  # somebody else may have had its port
    assert len(told.home.enrolments) == 1


def test_another_player_takes_the_guests_over_where_one_was_killed(told: Story, control: Control) -> None:
    told.ready()
    told.stop_playing(halt=False)
    left = [one for played in told.keeper._played.values() for one in played.guest._running.values()]

    told.play(control)
    told.await_(lambda: bool(told.keeper._played) and not any(one.is_alive() for one in left))
    seen = told.ready()
    told.publish()

    told.answers(seen.address)
    assert len(told.home.enrolments) == 1


def test_another_machines_uuid_enrols_nobody(told: Story) -> None:
    told.home.wants = told.spec.serving
    told.home.gateway_uid, real = uuid4(), told.home.gateway_uid  # the token was made for another machine

    told.until(lambda _: told.started.count("vm.gateway[0]") == 2)

    assert {asked.machine_uuid for asked in told.home.enrolments} == {machine_uuid(real)}
    assert told.home.credential_digest == ""
    told.home.gateway_uid = real


def test_a_token_that_came_too_late_is_replaced_by_a_fresh_one(told: Story) -> None:
    told.at_home(told.home.stop())
    told.wait_for("vm.gateway", "has not enrolled yet")

    action = told.once(stale=frozenset({"vm.gateway[0]"}))
    told.at_home(told.home.start())
    told.ready()

    assert isinstance(action, plan.Start)
    assert action.step.undo
    assert told.started.count("vm.gateway[0]") == 2
    assert [asked.credential_digest for asked in told.home.enrolments if asked.token == told.home.token] == [
        told.home.credential_digest
    ]


def test_a_guest_that_lies_gains_nothing(told: Story, control: Control) -> None:
    told.ready()
    told.stop_playing()
    [vm] = [one for one in control.guests() if one.name == f"{told.spec.ref.name}-0"]
    records = {key: value for key, value in extra(told).items() if key.startswith(vms.RECORD)}

    for word in ("http://169.254.169.254/v1", "http://127.0.0.1:8000@evil.example/v1", "file:///etc/passwd", "\0", 7):
        lie = {
            "delivery": json.loads(records["tenantry.want.gateway"])["delivery"],
            "state": "enrolled",
            "address": word,
        }
        control.set_guestinfo(vm.id, GATEWAY_REPORT, json.dumps(lie))
        seen = told.seen()
        assert seen.address == ""
    other = {"want": "f" * 16, "state": "ready", "backend": "http://10.0.0.1/v1", "message": "\x1b[2J" + "x" * 5000}
    control.set_guestinfo(vm.id, REPLICA_REPORT, json.dumps(other))
    seen = told.seen()
    part = seen.part("serving.replica[0]")

    assert (part.ready, part.presence, [unit.backend for unit in seen.units]) == (False, Presence.PRESENT, [""])
    assert len(part.message) <= 200
    assert "\x1b" not in part.message
    for nonsense in ("[" * 60_000, "null", "7", "{}"):
        control.set_guestinfo(vm.id, GATEWAY_REPORT, nonsense)
        assert not told.seen().part("vm.gateway[0]").ready
    assert {key: value for key, value in extra(told).items() if key.startswith(vms.RECORD)} == records


def test_what_somebody_takes_out_of_the_configuration_is_put_back(told: Story) -> None:
    told.ready()
    told.started.clear()

    told.machines.tell(told.vm(), {"tenantry.want.replica": "", SERVING: ""})
    told.ready()
    told.machines.tell(told.vm(), {"tenantry.want.gateway": "", ENROLMENT: ""})
    told.ready()

    assert told.started == ["serving.replica[0]", "vm.gateway[0]"]


def test_a_vcenter_that_lost_everything_shows_nothing_and_it_is_made_anew(
    driver: VSphereDriver, vcenters: Callable[..., VCenter], tmp_path: Path
) -> None:
    del driver
    vcenter = vcenters("serving-restart")
    mine = VSphereDriver(settings_for(vcenter, templates=TEMPLATES))
    place = boundary()
    walk(mine, place)
    with vcenter.control() as control, story(mine, place, control, tmp_path / "guests") as told:
        told.ready()
        vcenter.restart()
        mine.close()

        assert not told.seen().exists
        walk(mine, place)
        told.ready()

        assert told.started.count("vm.clone[0]") == 2
        assert len(told.home.enrolments) == 2
        told.gone()
    mine.close()
