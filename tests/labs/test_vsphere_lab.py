"""The vSphere lab itself, through pyVmomi: who gets in, what is there, who chooses the GPU, and what goes wrong."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pyVim.connect import SmartStubAdapter
from pyVmomi import vim, vmodl

from controlplane.labs.errors import LabError
from controlplane.labs.vsphere import __main__ as command
from controlplane.labs.vsphere import worlds
from controlplane.labs.vsphere.control import AT_CALL, Control, Rule
from controlplane.labs.vsphere.vcenter import VCenter
from controlplane.labs.vsphere.worlds import GpuHosts, OtherVm, Policy, Template, World

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

PC = vmodl.query.PropertyCollector
SEVENTH, THIRD, WHOLE = "nvidia_h100xm-1-10c", "nvidia_h100xm-3-40c", "nvidia_h100xm-80c"
SMALL = World(
    hosts=2,
    gpu_hosts=(GpuHosts(("DC0_C0_H0",), worlds.gpus("H100-80GB", 1, board="H100XM")),),
    templates=(Template("ubuntu"),),
)


@contextmanager
def login(
    vcenter: VCenter, *, user: str = "", password: str | None = None, trust: str = "", **more: Any
) -> Iterator[Any]:
    """Log in as a driver does; every connection is closed in the end, also after a refusal."""
    context = ssl.create_default_context(cafile=trust or str(vcenter.ca_file))
    given = {"sslContext": context, "httpConnectionTimeout": 20} | more
    stub = SmartStubAdapter(host=vcenter.host, port=vcenter.port, **given)
    try:
        si = vim.ServiceInstance("ServiceInstance", stub)
        secret = vcenter.password if password is None else password
        si.RetrieveContent().sessionManager.Login(user or vcenter.user, secret, None)
        yield si
        with suppress(vmodl.MethodFault, OSError):
            si.content.sessionManager.Logout()
    finally:
        stub.DropConnections()


@pytest.fixture
def si(vcenter: VCenter) -> Iterator[Any]:
    with login(vcenter) as connected:
        yield connected


def rows(si: Any, kind: Any, *paths: str) -> list[tuple[Any, dict[str, Any]]]:
    view = si.content.viewManager.CreateContainerView(si.content.rootFolder, [kind], True)
    try:
        walk = PC.TraversalSpec(name="v", type=type(view), path="view", skip=False)
        spec = PC.FilterSpec(
            objectSet=[PC.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
            propSet=[PC.PropertySpec(type=kind, pathSet=list(paths))],
        )
        found = si.content.propertyCollector.RetrieveContents([spec])
        return [(one.obj, {p.name: p.val for p in one.propSet}) for one in found]
    finally:
        view.Destroy()


def named(si: Any, kind: Any, name: str) -> Any:
    return next(found for found, values in rows(si, kind, "name") if values["name"] == name)


def read(si: Any, found: Any, *paths: str) -> dict[str, Any]:
    spec = PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=found)], propSet=[PC.PropertySpec(type=type(found), pathSet=list(paths))]
    )
    return {p.name: p.val for p in si.content.propertyCollector.RetrieveContents([spec])[0].propSet}


def until(condition: Callable[[], Any], what: str, timeout_s: float = 10) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)  # noqa: TID251 - asks a real server again
    return found


def wait(si: Any, task: Any) -> Any:
    """Return a task's result; raises its fault."""
    read_now = lambda: read(si, task, "info.state", "info.error", "info.result")  # noqa: E731
    done = until(lambda: (now := read_now())["info.state"] in {"success", "error"} and now, "task")
    if done["info.state"] == "error":
        raise done["info.error"]
    return done.get("info.result")


def gpu_vm(si: Any, host: str, *types: str, name: str = "", template: str = "ubuntu-24.04-gpu") -> Any:
    """Clone a template bare, then give it its vGPUs: as the driver does."""
    name = name or f"vm-{uuid4().hex[:8]}"
    source = next(
        found for found, v in rows(si, vim.VirtualMachine, "name", "config.template") if v["name"] == template
    )
    at = named(si, vim.HostSystem, host)
    where = vim.vm.RelocateSpec(host=at, pool=read(si, at.parent, "resourcePool")["resourcePool"])
    folder = si.content.rootFolder.childEntity[0].vmFolder
    vm = wait(si, source.CloneVM_Task(folder=folder, name=name, spec=vim.vm.CloneSpec(location=where, powerOn=False)))
    backing = vim.vm.device.VirtualPCIPassthrough.VmiopBackingInfo
    devices = [
        vim.vm.device.VirtualDeviceSpec(
            operation="add", device=vim.vm.device.VirtualPCIPassthrough(key=-100 - at, backing=backing(vgpu=kind))
        )
        for at, kind in enumerate(types)
    ]
    wait(si, vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=devices)))
    return vm


@pytest.fixture
def vms(si: Any) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(*given: str, **more: Any) -> Any:
        made.append(gpu_vm(si, *given, **more))
        return made[-1]

    yield make
    for vm in made:
        if read(si, vm, "runtime.powerState")["runtime.powerState"] != "poweredOff":
            wait(si, vm.PowerOffVM_Task())
        wait(si, vm.Destroy_Task())


# --- who gets in ----------------------------------------------------------------------------------


def test_nobody_logs_in_without_the_password(vcenter):
    for wrong in ({"password": "wrong"}, {"password": ""}, {"user": "somebody"}):
        with pytest.raises(vim.fault.InvalidLogin), login(vcenter, **wrong):
            pass
    for headers in ({}, {"Authorization": "SIGN anything"}):
        answer = httpx.post(
            f"{vcenter.url}/rest/com/vmware/cis/session",
            headers=headers,
            verify=ssl.create_default_context(cafile=str(vcenter.ca_file)),
            trust_env=False,
        )
        assert answer.status_code == 401


def test_a_stranger_reads_nothing(vcenter):
    with login(vcenter) as si:
        si.content.sessionManager.Logout()
        with pytest.raises(vim.fault.NotAuthenticated):
            rows(si, vim.HostSystem, "name")


def test_its_certificate_is_checked_against_its_own_ca_only(vcenter, vcenters):
    other = vcenters("other", world=SMALL)
    with pytest.raises(ssl.SSLCertVerificationError), login(vcenter, trust=str(other.ca_file)):
        pass


def test_the_control_address_wants_the_password_too(vcenter):
    with (
        Control(vcenter.url, ca=str(vcenter.ca_file), user=vcenter.user, password="wrong") as stranger,
        pytest.raises(LabError, match="401"),
    ):
        stranger.gpus()


def test_secrets_are_readable_by_their_owner_alone(vcenter):
    secret = [vcenter.password_file, *vcenter.folder.glob("pki/*.key"), vcenter.folder / "work" / "logins.json"]
    assert {oct(file.stat().st_mode & 0o777) for file in secret} == {"0o600"}
    told = Path(f"/proc/{vcenter.status().pid}/cmdline").read_text()
    assert vcenter.password not in told


# --- what is there --------------------------------------------------------------------------------


def test_hosts_have_the_hardware_of_the_world(vcenter):
    with login(vcenter) as si:
        seen = rows(si, vim.HostSystem, "summary.hardware.numCpuThreads", "hardware.memorySize")

    wanted = (worlds.usual().host_vcpu, worlds.usual().host_memory_gib << 30)
    assert {(one["summary.hardware.numCpuThreads"], one["hardware.memorySize"]) for _host, one in seen} == {wanted}


def test_hosts_say_what_their_gpus_are(si):
    paths = ("name", "config.sharedPassthruGpuTypes", "config.graphicsInfo", "config.pciPassthruInfo")
    hosts = {v["name"]: v for _, v in rows(si, vim.HostSystem, *paths)}

    assert sorted(hosts) == [f"DC0_C0_H{n}" for n in range(5)]
    assert THIRD in hosts["DC0_C0_H0"]["config.sharedPassthruGpuTypes"]
    assert [g.deviceName for g in hosts["DC0_C0_H2"]["config.graphicsInfo"]] == ["NVIDIA A100-SXM4-80GB"] * 2
    assert [g.vgpuMode for g in hosts["DC0_C0_H2"]["config.graphicsInfo"]] == ["multiInstanceGpu"] * 2
    assert all(g.passthruActive for g in hosts["DC0_C0_H3"]["config.pciPassthruInfo"])
    assert not hosts["DC0_C0_H4"].get("config.sharedPassthruGpuTypes")


def test_the_graphics_manager_tells_how_each_type_shares(si):
    host = named(si, vim.HostSystem, "DC0_C0_H0")

    told = {one.profileName: one.profileSharing for one in host.configManager.graphicsManager.RetrieveVgpuProfileInfo()}

    assert (told[SEVENTH], told[WHOLE]) == ("mig", "timeSliced")


def test_templates_networks_and_the_content_library_are_there(si, vcenter):
    found = [
        v for _, v in rows(si, vim.VirtualMachine, "name", "config.template", "config.firmware", "config.annotation")
    ]
    by_name = {v["name"]: v for v in found if v["config.template"]}
    assert by_name["legacy-bios"]["config.firmware"] == "bios"
    assert by_name["ubuntu-24.04-gpu"]["config.firmware"] == "efi"
    assert named(si, vim.dvs.DistributedVirtualPortgroup, "DC0_DVPG0")
    with httpx.Client(
        base_url=f"{vcenter.url}/rest/com/vmware",
        auth=(vcenter.user, vcenter.password),
        verify=ssl.create_default_context(cafile=str(vcenter.ca_file)),
        trust_env=False,
    ) as rest:
        session = rest.post("/cis/session").json()["value"]
        library = rest.get("/content/library", headers={"vmware-api-session-id": session}).json()["value"][0]
        items = rest.get(
            f"/content/library/item?library_id={library}", headers={"vmware-api-session-id": session}
        ).json()["value"]
    assert len(items) == 4


def test_a_vm_can_be_read_whole(si):
    vm = rows(si, vim.VirtualMachine, "name")[0][0]

    assert (vm.runtime.powerState, vm.summary.runtime.powerState) == ("poweredOff", "poweredOff")


# --- who chooses ----------------------------------------------------------------------------------


def test_the_host_chooses_at_power_on_and_shows_who_is_where(si, vms, vcenter_control):
    vm = vms("DC0_C0_H0", THIRD)
    assert not any(gpu.held for gpu in vcenter_control.gpus())

    wait(si, vm.PowerOnVM_Task())

    [gpu] = [one for one in vcenter_control.gpus() if one.held]
    assert (gpu.host, gpu.mode, gpu.held[0].vm, gpu.held[0].start) == ("DC0_C0_H0", "mig", vm._moId, 0)
    shown = read(si, named(si, vim.HostSystem, "DC0_C0_H0"), "config.graphicsInfo")["config.graphicsInfo"]
    assert [[held._moId for held in one.vm] for one in shown] == [[vm._moId], []]
    assert [one.vgpuMode for one in shown] == ["multiInstanceGpu", "none"]


def test_a_full_host_and_one_without_gpus_refuse_the_power_on(si, vms):
    for _ in range(2):
        wait(si, vms("DC0_C0_H1", WHOLE).PowerOnVM_Task())
    for host in ("DC0_C0_H1", "DC0_C0_H4"):
        with pytest.raises(vim.fault.InsufficientGraphicsResourcesFault):
            wait(si, vms(host, WHOLE).PowerOnVM_Task())


def test_a_window_is_free_again_when_its_vm_is_off_or_suspended(si, vms, vcenter_control):
    held = lambda: sum(len(gpu.held) for gpu in vcenter_control.gpus())  # noqa: E731
    vm = vms("DC0_C0_H0", SEVENTH)
    for end in (vm.PowerOffVM_Task, vm.SuspendVM_Task):
        wait(si, vm.PowerOnVM_Task())
        assert held() == 1
        wait(si, end())
        assert held() == 0


def test_a_running_vm_that_moves_takes_its_window_along(si, vms, vcenter_control):
    vm = vms("DC0_C0_H0", SEVENTH)
    wait(si, vm.PowerOnVM_Task())

    wait(si, vm.RelocateVM_Task(vim.vm.RelocateSpec(host=named(si, vim.HostSystem, "DC0_C0_H1"))))

    assert [gpu.host for gpu in vcenter_control.gpus() if gpu.held] == ["DC0_C0_H1"]
    with pytest.raises(vim.fault.InsufficientGraphicsResourcesFault):
        wait(si, vm.RelocateVM_Task(vim.vm.RelocateSpec(host=named(si, vim.HostSystem, "DC0_C0_H4"))))
    assert [gpu.host for gpu in vcenter_control.gpus() if gpu.held] == ["DC0_C0_H1"]


def test_vms_of_others_come_and_go(si, vcenter_control):
    vcenter_control.add_vm("neighbour", "DC0_C0_H0", THIRD, SEVENTH)
    try:
        assert sorted(w.type for gpu in vcenter_control.gpus() for w in gpu.held) == [SEVENTH, THIRD]
        with pytest.raises(LabError, match="InsufficientGraphicsResources"):
            vcenter_control.add_vm("too-much", "DC0_C0_H4", THIRD)
        vcenter_control.remove_vm("too-much")
    finally:
        vcenter_control.remove_vm("neighbour")
    assert not any(gpu.held for gpu in vcenter_control.gpus())


def test_the_same_seed_makes_the_same_choices(vcenters):
    def choices(seed: int, name: str) -> list[tuple[str, int]]:
        world = replace(
            SMALL,
            policy=Policy.ADVERSARIAL,
            seed=seed,
            vms=tuple(OtherVm(f"other-{n}", "DC0_C0_H0", (SEVENTH,)) for n in range(4)),
        )
        with vcenters(name, world=world).control() as control:
            return [(gpu.pci_id, window.start) for gpu in control.gpus() for window in gpu.held]

    first = choices(5, "seed-a")

    assert len(first) == 4
    assert choices(5, "seed-b") == first


# --- guests ---------------------------------------------------------------------------------------


def test_a_booted_guest_shows_address_and_name_and_redacts(si, vms):
    vm = vms("DC0_C0_H0", SEVENTH)
    metadata = json.dumps({"local-hostname": "alpha", "redact": ["userdata"]})
    given = {"guestinfo.metadata": metadata, "guestinfo.userdata": "#cloud-config\n{}"}
    extra = [vim.option.OptionValue(key=key, value=value) for key, value in given.items()]
    wait(si, vm.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=extra)))

    wait(si, vm.PowerOnVM_Task())

    until(lambda: read(si, vm, "guest.ipAddress").get("guest.ipAddress"), "address")
    seen = read(si, vm, "guest.hostName", "guest.toolsRunningStatus", "config.extraConfig", "guest.net")
    assert (seen["guest.hostName"], seen["guest.toolsRunningStatus"]) == ("alpha", "guestToolsRunning")
    assert {o.key: o.value for o in seen["config.extraConfig"]}["guestinfo.userdata"] == "---"
    assert seen["guest.net"][0].macAddress


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_call_fails_at_once_as_often_as_asked(si, vcenter_control):
    vcenter_control.fail_call("CreateFolder", "NoPermission", count=2)
    folder = si.content.rootFolder.childEntity[0].vmFolder
    for _ in range(2):
        with pytest.raises(vim.fault.NoPermission):
            folder.CreateFolder("never")
    folder.CreateFolder("third").Destroy_Task()

    assert [rule.hits for rule in vcenter_control.rules()] == [2]


@pytest.mark.parametrize(
    "fault",
    [
        "TaskInProgress",
        "ResourceInUse",
        "FileLocked",
        "ConcurrentAccess",
        "HostCommunication",
        "HostNotConnected",
        "Timedout",
        "RequestCanceled",
        "SystemError",
        "InsufficientGraphicsResourcesFault",
        "InsufficientMemoryResourcesFault",
        "NoCompatibleHost",
        "NoDiskSpace",
        "NoPermission",
        "VmConfigFault",
        "GenericVmConfigFault",
        "ManagedObjectNotFound",
        "InvalidPowerState",
        "DuplicateName",
        "NotAuthenticated",
    ],
)
def test_a_task_ends_in_any_fault_of_the_api(fault, si, vms, vcenter_control):
    vm = vms("DC0_C0_H0", SEVENTH)
    vcenter_control.fail_task("PowerOnVM_Task", fault, message="as the lab was told")

    with pytest.raises(vmodl.MethodFault) as raised:
        wait(si, vm.PowerOnVM_Task())

    assert type(raised.value).__name__.rpartition(".")[2] == fault
    assert not any(gpu.held for gpu in vcenter_control.gpus())
    wait(si, vm.PowerOnVM_Task())


def test_a_late_fault_is_of_work_that_was_done(si, vms, vcenter_control):
    vm = vms("DC0_C0_H0", SEVENTH)
    vcenter_control.fail_task("PowerOnVM_Task", "HostCommunication", late=True)

    with pytest.raises(vmodl.fault.HostCommunication):
        wait(si, vm.PowerOnVM_Task())

    assert read(si, vm, "runtime.powerState")["runtime.powerState"] == "poweredOn"


def test_an_endless_task_can_be_watched_and_cancelled(si, vms, vcenter_control):
    vm = vms("DC0_C0_H0", SEVENTH)
    vcenter_control.hang_task("PowerOnVM_Task")

    task = vm.PowerOnVM_Task()

    assert read(si, vm, "runtime.powerState")["runtime.powerState"] == "poweredOff"
    assert read(si, task, "info.state", "info.entity") == {"info.state": "running", "info.entity": vm}
    task.CancelTask()
    with pytest.raises(vmodl.fault.RequestCanceled):
        wait(si, task)
    wait(si, vm.PowerOnVM_Task())


def test_a_task_held_back_goes_on_when_its_rule_is_taken_back(si, vms, vcenter_control):
    vm = vms("DC0_C0_H0", SEVENTH)
    rule = vcenter_control.hang_task("PowerOnVM_Task")
    task = vm.PowerOnVM_Task()

    vcenter_control.clear(rule)

    wait(si, task)
    assert read(si, vm, "runtime.powerState")["runtime.powerState"] == "poweredOn"


def test_a_lost_answer_is_of_a_call_that_was_carried_out(si, vcenter_control):
    folder = si.content.rootFolder.childEntity[0].vmFolder
    for lose, there in ((vcenter_control.cut, False), (vcenter_control.lose_answer, True)):
        name = f"f-{uuid4().hex[:6]}"
        lose("CreateFolder")
        with pytest.raises((OSError, HTTPException)):
            folder.CreateFolder(name)
        found = si.content.searchIndex.FindChild(folder, name)
        assert (found is not None) == there
        if found:
            wait(si, found.Destroy_Task())


def test_http_errors_and_ended_sessions(si, vcenter_control):
    vcenter_control.answer("CurrentTime", 503)
    with pytest.raises(Exception, match="503"):
        si.CurrentTime()
    assert si.CurrentTime()

    assert vcenter_control.end_sessions() >= 1
    with pytest.raises(vim.fault.NotAuthenticated):
        si.CurrentTime()


def test_a_slow_call_outlasts_a_clients_patience(vcenter, vcenter_control):
    with login(vcenter, httpConnectionTimeout=0.3) as si:
        vcenter_control.slow_call("CurrentTime", 2000, count=1)
        with pytest.raises(TimeoutError):
            si.CurrentTime()


def test_a_place_that_is_not_there_is_a_fault_and_no_crash(si, vms):
    vm = vms("DC0_C0_H0", SEVENTH)
    gone = vim.vm.RelocateSpec(datastore=vim.Datastore("datastore-404", si._stub))

    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vm.RelocateVM_Task(gone)

    assert si.CurrentTime()


def test_calls_are_counted(si, vcenter_control):
    vcenter_control.forget_calls()
    si.CurrentTime()
    assert vcenter_control.calls()["CurrentTime"] == 1


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (Rule("somewhere", "CloneVM_Task", fault="Timedout"), "at: call, task or http"),
        (Rule(AT_CALL, "CloneVM_Task", fault="NoSuchFault"), "the API has none named NoSuchFault"),
        (Rule(AT_CALL, "CloneVM_Task"), "does nothing"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(rule, why, vcenter_control):
    with pytest.raises(LabError, match=why):
        vcenter_control.add(rule)


# --- life -----------------------------------------------------------------------------------------


def test_two_stand_side_by_side_and_leave_nothing(tmp_path, vsphere_program):
    first, second = (VCenter(name, folder=tmp_path / name, world=SMALL) for name in ("one", "two"))
    try:
        for one in (first, second):
            one.start()
        assert first.port != second.port
        with login(first) as a, login(second) as b:
            assert a.content.about.instanceUuid != b.content.about.instanceUuid
            assert a.content.about.fullName.endswith("(simulated)")
        with pytest.raises(vim.fault.InvalidLogin), login(first, password=second.password):
            pass
        pid = first.status().pid

        assert first.stop()

        assert not Path(f"/proc/{pid}").exists()
        assert not first.stop()
        assert not first.status().ready
        assert second.status().ready
    finally:
        for one in (first, second):
            one.delete()
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_killed_comes_back_with_its_address_and_logins(tmp_path, vsphere_program):
    vcenter = VCenter("again", folder=tmp_path / "again", world=SMALL)
    try:
        vcenter.start()
        before = (vcenter.url, vcenter.password, vcenter.ca_pem)
        vcenter.kill()
        assert not vcenter.status().ready

        VCenter("again", folder=tmp_path / "again", world=SMALL).start()

        assert (vcenter.url, vcenter.password, vcenter.ca_pem) == before
        with login(vcenter) as si:
            assert si.CurrentTime()
    finally:
        vcenter.delete()


def test_a_world_that_cannot_be_says_why(tmp_path, vsphere_program):
    broken = replace(SMALL.gpu_hosts[0].gpus[0].types[0], starts=())
    gpu = replace(SMALL.gpu_hosts[0].gpus[0], types=(broken,))
    vcenter = VCenter("bad", folder=tmp_path / "bad", world=replace(SMALL, gpu_hosts=(GpuHosts((), (gpu,)),)))
    with pytest.raises(LabError, match="has a size and legal starts"):
        vcenter.start()
    vcenter.delete()


def test_the_terminal_says_what_a_person_needs(tmp_path, vsphere_program, capsys):
    folder = str(tmp_path / "lab")
    try:
        assert command.main(["up", "--folder", folder]) == 0
        told = capsys.readouterr().out
        for word in (
            "ready",
            "https://127.0.0.2:",
            f"{folder}/pki/ca.crt",
            "administrator@vsphere.local",
            f"{folder}/password",
        ):
            assert word in told
        assert VCenter("lab", folder=Path(folder)).password not in told
    finally:
        assert command.main(["down", "--delete", "--folder", folder]) == 0
    assert "stopped, data deleted" in capsys.readouterr().out
