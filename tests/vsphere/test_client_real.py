"""The client against the lab's vCenter: trust, sessions, reads, tasks, and faults as our own errors."""

from __future__ import annotations

import hashlib
import pickle
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pyVmomi import vim

from controlplane.labs.vsphere.vcenter import VCenter
from provisioners.driver import DriverError, DriverRejected, Secret, TransientDriverError
from provisioners.vsphere.client import MoRef, VCenterClient, managed
from provisioners.vsphere.failures import AccessDenied, LookFirst, SessionLost, Untrusted, fault_of
from provisioners.vsphere.settings import Settings

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

NOTE = vim.vm.ConfigSpec(annotation="no cloud-init")
"""What the template says already: a change that changes nothing."""


@pytest.fixture
def settings(vcenter: VCenter) -> Settings:
    return Settings(
        "lab", vcenter.host, vcenter.user, Secret(vcenter.password), port=vcenter.port, ca_pem=vcenter.ca_pem
    )


@pytest.fixture
def client(settings: Settings) -> Iterator[VCenterClient]:
    made = VCenterClient(settings)
    yield made
    made.close()


def thumbprint(vcenter: VCenter) -> str:
    shown = ssl.get_server_certificate((vcenter.host, vcenter.port))
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown)).hexdigest()


def vm_folder(client: VCenterClient) -> MoRef:
    [datacenter] = client.rows({"Datacenter": ("vmFolder",)})["Datacenter"]
    return MoRef("Folder", datacenter.values["vmFolder"]._moId)


def template(client: VCenterClient) -> MoRef:
    rows = client.rows({"VirtualMachine": ("name", "config.template")})["VirtualMachine"]
    return next(one.ref for one in rows if one.values["name"] == "legacy-bios")


# --- trust ----------------------------------------------------------------------------------------


def test_only_the_given_ca_or_the_pinned_certificate_is_trusted(vcenter, settings):
    pinned = thumbprint(vcenter)
    for good in (settings, replace(settings, ca_pem="", thumbprint=pinned)):
        client = VCenterClient(good)
        assert client.about()["full_name"].endswith("(simulated)")
        client.close()
    for bad, field in (
        (replace(settings, ca_pem=""), "config.ca_pem"),
        (replace(settings, ca_pem="", thumbprint="ab" * 32), "config.thumbprint"),
    ):
        with pytest.raises(Untrusted) as raised:
            VCenterClient(bad).about()
        assert pinned in raised.value.raw
        assert raised.value.field == field


@pytest.mark.parametrize("name", ["vc.elsewhere.example", "127.0.0.3"])
def test_a_certificate_of_the_right_ca_for_another_name_is_refused_by_the_setting(vcenter, settings, monkeypatch, name):
    """What is dialled and what the certificate says differ: an address that was mistyped, or somebody between."""
    real = socket.getaddrinfo

    def resolved(host: str, *given: Any, **named: Any) -> Any:
        return real(vcenter.host if host == name else host, *given, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    client = VCenterClient(replace(settings, host=name))

    with pytest.raises(Untrusted) as raised:
        client.about()

    assert raised.value.detail.startswith(f"url: the certificate of vCenter is not for {name}")
    assert client.logins == 0


def test_a_certificate_of_another_ca_is_refused_by_the_setting(settings):
    with pytest.raises(Untrusted) as raised:
        VCenterClient(replace(settings, ca_pem="")).about()

    assert raised.value.detail.startswith("ca_pem: the certificate of vCenter is not one that we trust")
    with pytest.raises(Untrusted) as raised:
        VCenterClient(replace(settings, ca_pem="", thumbprint="ab" * 32)).about()

    assert raised.value.detail.startswith("thumbprint: the certificate of vCenter is another one")


def test_a_wrong_password_and_a_dead_vcenter_are_told_apart(settings):
    with pytest.raises(AccessDenied) as denied:
        VCenterClient(replace(settings, password=Secret("wrong"))).about()
    with pytest.raises(LookFirst) as dead:
        VCenterClient(replace(settings, port=9)).about()

    assert (denied.value.field, dead.value.field) == ("secret.password", "")


# --- reading --------------------------------------------------------------------------------------


def test_several_kinds_are_read_in_a_number_of_calls_that_does_not_grow(client, vcenter_control):
    wanted = {"HostSystem": ("name",), "VirtualMachine": ("name", "runtime.powerState"), "Datastore": ("name",)}
    client.rows(wanted)
    vcenter_control.forget_calls()

    found = client.rows(wanted)

    assert vcenter_control.calls() == {"RetrievePropertiesEx": 1}
    assert len(found["HostSystem"]) == 5
    assert {one.values["runtime.powerState"] for one in found["VirtualMachine"]} == {"poweredOff"}
    assert pickle.loads(pickle.dumps(found["HostSystem"][0].ref)).kind == "HostSystem"


def test_many_objects_come_in_pages(settings):
    client = VCenterClient(replace(settings, page=2))

    assert len(client.rows({"HostSystem": ("name",)})["HostSystem"]) == 5
    client.close()


def test_only_what_is_really_not_there_is_none(client, vcenter_control):
    assert client.get(MoRef("VirtualMachine", "vm-404"), "name") is None
    vcenter_control.fail_call("RetrievePropertiesEx", "HostCommunication")
    with pytest.raises(TransientDriverError):
        client.get(template(client), "name")


# --- sessions -------------------------------------------------------------------------------------


def test_a_read_survives_the_end_of_its_session_and_a_change_does_not_run_twice(client, vcenter_control):
    wanted = {"HostSystem": ("name",)}
    client.rows(wanted)
    vcenter_control.end_sessions()
    assert len(client.rows(wanted)["HostSystem"]) == 5

    folder = vm_folder(client)
    vcenter_control.end_sessions()
    vcenter_control.forget_calls()
    with pytest.raises(SessionLost):
        client.changing(lambda si: managed(folder, si).CreateFolder("never"))
    assert vcenter_control.calls()["CreateFolder"] == 1
    assert client.about()


def test_close_logs_out(settings, vcenter_control):
    client = VCenterClient(settings)
    client.about()
    before = len(vcenter_control.sessions())

    client.close()

    assert len(vcenter_control.sessions()) == before - 1
    client.close()


# --- changing -------------------------------------------------------------------------------------


def test_a_lost_answer_says_look_first(client, vcenter_control):
    folder = vm_folder(client)
    vcenter_control.lose_answer("CreateFolder")

    with pytest.raises(LookFirst):
        client.changing(lambda si: managed(folder, si).CreateFolder("once"))
    with pytest.raises(LookFirst) as raised:
        client.changing(lambda si: managed(folder, si).CreateFolder("once"))

    assert fault_of(raised.value) == "DuplicateName"
    made = next(one.ref for one in client.rows({"Folder": ("name",)})["Folder"] if one.values["name"] == "once")
    client.start(lambda si: managed(made, si).Destroy_Task())


def test_a_slow_vcenter_costs_no_more_than_the_deadline(settings, vcenter_control):
    client = VCenterClient(replace(settings, call_deadline_s=0.5))
    client.about()
    folder = vm_folder(client)
    vcenter_control.slow_call("CreateFolder", 3000, count=1)

    with pytest.raises(LookFirst, match="connection"):
        client.changing(lambda si: managed(folder, si).CreateFolder("late"))
    client.close()


# --- tasks ----------------------------------------------------------------------------------------


def test_a_task_is_asked_and_not_waited_for(client, vcenter_control):
    vm = template(client)
    rule = vcenter_control.hang_task("ReconfigVM_Task")

    task = client.start(lambda si: managed(vm, si).ReconfigVM_Task(NOTE))
    first = client.task(task)
    vcenter_control.clear(rule)

    assert (first.state, first.is_over, first.entity) == ("running", False, vm)
    state = first
    while not state.is_over:
        state = client.task(task)
    assert (state.state, state.error) == ("success", None)


def test_a_failed_task_has_an_error_that_can_be_stored(client, vcenter_control):
    vm = template(client)
    vcenter_control.fail_task("ReconfigVM_Task", "InvalidArgument", message="says why")

    task = client.start(lambda si: managed(vm, si).ReconfigVM_Task(NOTE))
    state = client.task(task)
    while not state.is_over:
        state = client.task(task)

    error = pickle.loads(pickle.dumps(state.error))
    assert isinstance(error, DriverRejected)
    assert isinstance(error, DriverError)
    assert "says why" in error.raw


def test_a_task_that_is_forgotten_is_unknown(client):
    assert client.task("task-999999999").state == "unknown"


# --- answers that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    ["<UnheardOf xmlns='urn:vim25'/>", "<returnval xmlns='urn:vim25' type='NoSuchKind'>x-1</returnval>", "<not closed"],
    ids=["an unknown kind", "a reference of an unknown kind", "no XML"],
)
def test_an_answer_that_cannot_be_read_says_look_first_and_nothing_else(client, body):
    def read(session: object) -> None:
        from pyVmomi.SoapAdapter import Deserialize

        Deserialize(f"<a xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance'>{body}</a>")

    with pytest.raises(LookFirst) as raised:
        client.reading(read)

    assert "an answer that cannot be read" in raised.value.raw


def test_a_bug_of_ours_is_not_taken_for_an_answer(client):
    with pytest.raises(KeyError):
        client.reading(lambda _session: {}["of ours"])
