"""Machines as objects of a Supervisor's VM Service: what is written, what it means when it is read. No cluster."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import yaml

from provisioners.driver import (
    BoundaryKind,
    DriverRejected,
    Kind,
    NotSupported,
    Power,
    Presence,
    Ref,
    Secret,
    machine_uuid,
)
from provisioners.kubernetes import capabilities, failures, objects, reading, watching
from provisioners.kubernetes.boundary import ClusterFacts
from provisioners.kubernetes.capabilities import Facts
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.rbac import Right
from provisioners.kubernetes.settings import BadSettings, Settings, settings_of
from provisioners.kubernetes.vm_service import bootstrap, boundary, classes, kinds, machine
from provisioners.kubernetes.vm_service import reading as vm_reading
from provisioners.kubernetes.vm_service.kinds import CLONE, CONFIGURE, POWER
from tests.kubernetes.vm_samples import IMAGE, TYPES, condition, status, unit, vm_boundary
from tests.kubernetes.vm_samples import machine as machine_spec

API = "vmoperator.vmware.com/v1alpha5"
SETTINGS = Settings(slug="s", url="https://x.invalid", token=Secret("t"), storage_class="fast", vm_gpu_types=TYPES)
SHAPE = classes.Shape(8, 64, ("nvidia_h100xm-1-10c",))


def served(*versions: str) -> Any:
    known = {(f"{kinds.GROUP}/{version}", kind) for version in versions for kind in (kinds.VM, kinds.CLASS)}
    return lambda api, kind="": (api, kind) in known


# --- which cluster has it -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "api"),
    [((), ""), (("v1alpha1", "v1alpha2"), ""), (("v1alpha2", "v1alpha3"), "v1alpha3"),
     (("v1alpha3", "v1alpha6", "v1alpha5"), "v1alpha6")],
)  # fmt: skip
def test_the_newest_version_that_says_what_we_write_is_taken(versions: tuple[str, ...], api: str) -> None:
    assert kinds.api_of(served(*versions)) == (f"{kinds.GROUP}/{api}" if api else "")


def test_a_supervisor_offers_vm_boundaries_and_other_clusters_stay_as_they_were() -> None:
    plain = capabilities.assess(Facts("v1.36.3", served()), SETTINGS)
    found = capabilities.assess(Facts("v1.36.3", served("v1alpha5")), SETTINGS)

    assert plain.boundary_kinds == {BoundaryKind.NAMESPACE}
    assert kinds.FEATURE not in {**plain.features, **plain.missing}
    assert found.boundary_kinds == {BoundaryKind.NAMESPACE, BoundaryKind.VM}
    assert found.features[kinds.FEATURE]


def test_without_the_right_to_machines_none_is_offered_and_without_one_to_classes_they_are() -> None:
    def assessed(resource: str) -> Any:
        lacking = (Right(kinds.GROUP, resource, "create", why="run machines", optional=True),)
        return capabilities.assess(Facts("v1.36.3", served("v1alpha5"), lacking), SETTINGS)

    assert BoundaryKind.VM not in assessed("virtualmachines").boundary_kinds
    assert "create virtualmachines.vmoperator.vmware.com" in assessed("virtualmachines").missing
    assert BoundaryKind.VM in assessed("virtualmachineclasses").boundary_kinds


def test_a_supervisor_without_a_storage_class_says_that_machines_need_one() -> None:
    found = capabilities.assess(Facts("v1.36.3", served("v1alpha5")), replace(SETTINGS, storage_class=""))

    assert "storage class" in found.missing["vm-storage"]


class Discovering(Cluster):
    """A cluster of which nothing is asked but what it serves."""

    def __init__(self, *versions: str) -> None:
        super().__init__(SETTINGS)
        self.known = served(*versions)

    def serves(self, api: str, kind: str = "") -> bool:
        return bool(self.known(api, kind))


def test_the_driver_has_steps_for_machines_only_where_the_vm_service_is() -> None:
    plain = KubernetesDriver(SETTINGS, cluster=Discovering())
    supervisor = KubernetesDriver(SETTINGS, cluster=Discovering("v1alpha5"))

    for spec in (machine_spec(), vm_boundary()):
        with pytest.raises(NotSupported, match="vm boundary elsewhere"):
            plain.steps(spec)
    assert [step.name for step in supervisor.steps(machine_spec())] == [CLONE, CONFIGURE, POWER]
    assert [step.name for step in supervisor.steps(vm_boundary())] == ["namespace.create", "namespace.limits"]


# --- settings -------------------------------------------------------------------------------------


def test_what_machines_need_is_read_from_a_providers_row() -> None:
    network = "crd.nsx.vmware.com/v1alpha1/SubnetSet/vm-default"
    given = {"url": "https://x.example", "vm_gpu_types": "a, b", "vm_network": network, "vm_instance_uuid": "true"}

    found = settings_of(given, {"token": Secret("t")})

    assert (found.vm_gpu_types, found.vm_network, found.vm_instance_uuid) == (("a", "b"), network, True)


@pytest.mark.parametrize("text", ["net", "v1/Network/x", "netoperator.vmware.com/v1alpha1/Network/../x"])
def test_a_network_that_is_not_written_whole_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(BadSettings, match="vm_network: written group/version/Kind/name"):
        settings_of({"url": "https://x.example", "vm_network": text}, {"token": Secret("t")})


# --- the boundary ---------------------------------------------------------------------------------


def test_a_vm_boundary_is_a_closed_namespace_without_pods_and_names_every_gpu_resource() -> None:
    spec, facts = vm_boundary(), ClusterFacts(frozenset({"example.com/gpu"}))

    steps = {step.name: boundary.objects(step.name, spec, SETTINGS, facts) for step in boundary.steps(spec)}

    assert [obj["kind"] for obj in steps["namespace.create"]] == ["Namespace", "NetworkPolicy", "ServiceAccount"]
    [quota, params] = steps["namespace.limits"]
    hard = quota["spec"]["hard"]
    assert (hard["pods"], hard["count/virtualmachines.vmoperator.vmware.com"]) == ("0", "32")
    assert hard["requests.example.com/gpu"] == hard["requests.nvidia.com/gpu"] == "0"
    assert params["kind"] == "ConfigMap"


def test_a_machine_holds_its_boundary_up_and_a_class_does_not() -> None:
    spec = machine_spec()
    step = machine.steps(spec)[0]
    vm = machine.build(step, step.payload, API, "c", SETTINGS)
    shape = classes.build(SHAPE, API, spec.boundary)

    assert spec.ref.name in reading.holds(spec.boundary, [vm, shape])
    assert reading.holds(spec.boundary, [shape]) == ""
    assert [one.kind for one in kinds.held(served("v1alpha5"))] == [kinds.VM]


# --- classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({}, ("nvidia_h100xm-1-10c",)),
        ({"profile": "3g.40gb"}, ("nvidia_h100xm-3-40c",)),
        ({"profile": "", "gpu_count": 1}, ("nvidia_h100xm-80c",)),
        ({"profile": "", "gpu_count": 2}, ("nvidia_h100xm-80c",) * 2),
        ({"product": "", "profile": ""}, ()),
    ],
)
def test_a_unit_becomes_a_shape_of_types_that_hosts_are_known_to_have(asked: Any, gpus: tuple[str, ...]) -> None:
    assert classes.shape_of(unit(**asked), TYPES) == classes.Shape(8, 64, gpus)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"vcpu": 0}, "unit.vcpu"),
        ({"memory_gib": 0}, "unit.memory_gib"),
        ({"profile": "2g.20gb"}, "unit.profile"),
        ({"profile": "", "gpu_count": 1, "product": "A100-80GB"}, "unit.product"),
    ],
)
def test_what_no_host_is_known_to_have_is_refused_with_its_field(asked: Any, field: str) -> None:
    with pytest.raises(DriverRejected, match=field):
        classes.shape_of(unit(**asked), TYPES)


def test_a_class_says_its_shape_reserves_memory_for_a_gpu_and_is_named_by_its_content() -> None:
    where = machine_spec().boundary
    made = classes.build(SHAPE, API, where)

    assert made["spec"] == {
        "hardware": {
            "cpus": 8,
            "memory": "64Gi",
            "devices": {"vgpuDevices": [{"profileName": "nvidia_h100xm-1-10c"}]},
        },
        "policies": {"resources": {"requests": {"memory": "64Gi"}, "limits": {"memory": "64Gi"}}},
    }
    assert classes.build(replace(SHAPE, gpus=()), API, where)["spec"] == {"hardware": {"cpus": 8, "memory": "64Gi"}}
    assert classes.fits(made, SHAPE)
    assert objects.ref_of(made) == where
    names = {replace(SHAPE, vcpu=count).name for count in (8, 8, 16)} | {replace(SHAPE, gpus=()).name}
    assert len(names) == 3


def test_a_class_is_chosen_only_if_it_makes_exactly_the_shape() -> None:
    def named(name: str, **hardware: Any) -> Any:
        base = {"cpus": 8, "memory": "65536Mi", "devices": {"vgpuDevices": [{"profileName": "NVIDIA_H100XM-1-10C"}]}}
        return {"metadata": {"name": name}, "spec": {"hardware": {**base, **hardware}}}

    found = [
        named("larger", cpus=16),
        named("more-gpu", devices={"vgpuDevices": [{"profileName": name} for name in TYPES[:2]]}),
        named("no-gpu", devices={}),
        named("passthrough", devices={"dynamicDirectPathIODevices": [{"vendorID": 4318, "deviceID": 9008}]}),
        named("right"),
    ]

    assert classes.chosen(found, SHAPE, why="…") == "right"
    with pytest.raises(DriverRejected, match=r"no VM class of 8 vCPU, 64 GiB, 1 × nvidia_h100xm-1-10c, and our acc"):
        classes.chosen(found[:4], SHAPE, why="our account may make none")


def test_several_vgpus_of_one_type_need_a_class_of_people_whose_config_lists_them() -> None:
    both = classes.shape_of(unit(profile="", gpu_count=2), TYPES)
    device = {"device": {"backing": {"vgpu": "nvidia_h100xm-80c"}}, "operation": "add"}
    theirs = {
        "metadata": {"name": "two"},
        "spec": {"hardware": {"cpus": 8, "memory": "64Gi"}, "configSpec": {"deviceChange": [device, device]}},
    }

    assert not classes.is_makeable(both)
    assert classes.is_makeable(SHAPE)
    assert classes.chosen([theirs], both, why="…") == "two"


def test_types_are_known_from_settings_and_from_classes_of_others_but_not_from_our_own() -> None:
    theirs = {"metadata": {"name": "x"}, "spec": {"hardware": {"devices": {"vgpuDevices": [{"profileName": "t"}]}}}}
    ours = classes.build(SHAPE, API, machine_spec().boundary)

    assert classes.offered([theirs, ours], ("c",)) == ("c", "t")


# --- bootstrap ------------------------------------------------------------------------------------


def test_every_file_of_the_guest_lies_in_the_secret_and_the_machine_refers_to_it() -> None:
    spec = machine_spec()
    plan = machine.steps(spec)[0].payload

    told = bootstrap.cloud_init_of(spec.ref, plan.seed)
    secret = bootstrap.secret(spec.ref, spec.boundary.name, plan.seed)

    files = told["cloudConfig"]["write_files"]
    assert {one["content"]["name"] for one in files} == {secret["metadata"]["name"]}
    assert sorted(one["content"]["key"] for one in files) == sorted(secret["data"])
    texts = [base64.b64decode(text).decode() for text in secret["data"].values()]
    assert any("PasswordAuthentication no" in text for text in texts)
    assert not any(text and text in json.dumps(told) for text in texts)
    assert told["instanceID"] == str(machine_uuid(spec.unit.uid))
    assert [one["name"] for one in told["cloudConfig"]["users"]] == ["tenant"]
    assert told["cloudConfig"]["ssh_pwauth"] is False


def test_a_machine_that_lets_nobody_in_has_no_account() -> None:
    spec = machine_spec(ssh_keys=(), ssh_ca="", ssh_principals=(), ssh_revoked_url="")
    plan = machine.steps(spec)[0].payload

    assert "users" not in bootstrap.cloud_init_of(spec.ref, plan.seed)["cloudConfig"]


# --- the machine ----------------------------------------------------------------------------------


def test_a_machine_is_made_powered_off_with_everything_that_it_is_known_by() -> None:
    spec = machine_spec()
    step = machine.steps(spec)[0]

    made = machine.build(step, step.payload, API, "tn-class-1", replace(SETTINGS, vm_network="g.example/v1/Net/n"))

    assert made["metadata"]["name"] == spec.ref.name
    assert made["metadata"]["namespace"] == spec.boundary.name
    assert objects.is_ours(made, spec.ref)
    assert {key: made["spec"][key] for key in made["spec"] if key != "bootstrap"} == {
        "className": "tn-class-1",
        "imageName": IMAGE,
        "biosUUID": str(machine_uuid(spec.unit.uid)),
        "powerState": "PoweredOff",
        "powerOffMode": "TrySoft",
        "storageClass": "fast",
        "advanced": {"bootDiskCapacity": "200Gi"},
        "network": {
            "hostName": spec.ref.name,
            "interfaces": [{"name": "eth0", "network": {"apiVersion": "g.example/v1", "kind": "Net", "name": "n"}}],
        },
    }


def test_an_instance_uuid_is_ours_only_where_the_supervisor_takes_it_from_us() -> None:
    step = machine.steps(machine_spec())[0]

    plain = machine.build(step, step.payload, API, "c", SETTINGS)["spec"]
    privileged = machine.build(step, step.payload, API, "c", replace(SETTINGS, vm_instance_uuid=True))["spec"]
    again = machine.build(step, step.payload, API, "c", replace(SETTINGS, vm_instance_uuid=True))["spec"]

    assert "instanceUUID" not in plain
    assert privileged["instanceUUID"] == again["instanceUUID"] != privileged["biosUUID"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"image": ""}, "image"), ({"disk_gib": -1}, "disk_gib"), ({"ssh_keys": ("a\nb",)}, r"ssh_keys\[0\]"),
     ({"ssh_principals": ("a b",)}, r"ssh_principals\[0\]")],
)  # fmt: skip
def test_what_no_guest_should_be_told_is_refused_with_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(DriverRejected, match=field):
        machine.steps(machine_spec(**changes))


def test_another_size_alters_a_machine_another_image_is_another_and_another_host_is_nothing() -> None:
    spec = machine_spec()

    def wants(**changes: Any) -> list[bool]:
        pairs = zip(machine.steps(spec), machine.steps(replace(spec, **changes)), strict=True)
        return [one.want == other.want for one, other in pairs]

    assert wants(unit=replace(spec.unit, host="esx-2.example")) == [True, True, True]
    assert wants(unit=replace(spec.unit, vcpu=16)) == [True, False, True]
    assert wants(disk_gib=400) == [True, False, True]
    assert wants(image="other") == [False, True, True]
    assert wants(cut_off=True) == [True, True, False]
    assert [step.replaces for step in machine.steps(spec)] == [True, False, False]


@pytest.mark.parametrize(
    ("power", "cut_off", "now", "state"),
    [
        (Power.ON, False, "PoweredOff", "PoweredOn"),
        (Power.ON, False, "Suspended", "PoweredOn"),
        (Power.ON, True, "PoweredOn", "Suspended"),
        (Power.ON, True, "Suspended", "Suspended"),
        (Power.ON, True, "PoweredOff", "PoweredOff"),
        (Power.OFF, True, "Suspended", "PoweredOff"),
        (Power.OFF, False, "PoweredOn", "PoweredOff"),
    ],
)
def test_power_is_asked_for_as_a_supervisor_takes_it(power: Power, cut_off: bool, now: str, state: str) -> None:
    assert machine.state_of(power, cut_off=cut_off, now=now) == state


def test_what_the_supervisors_webhooks_refuse_is_said_with_the_field_and_for_good() -> None:
    message = (
        'admission webhook "default.validating.virtualmachine.v1alpha5.vmoperator.vmware.com" denied the request: '
        "[spec.className: Required value, spec.network.interfaces[0].network: Forbidden: field is immutable]"
    )
    body = json.dumps({"kind": "Status", "reason": "Forbidden", "message": message, "code": 403}).encode()

    found = failures.error_of(403, body, {}, kind=kinds.VM)
    of_others = failures.error_of(403, body, {}, kind="Deployment")

    assert isinstance(found, DriverRejected)
    assert found.detail.endswith(": spec.className, spec.network.interfaces[0].network")
    assert isinstance(of_others, failures.AccessDenied)


# --- reading --------------------------------------------------------------------------------------


def merged(obj: Any, patch: Any) -> Any:
    """What a merge patch makes of an object."""
    if not isinstance(patch, dict):
        return patch
    base = dict(obj) if isinstance(obj, dict) else {}
    for key, value in patch.items():
        if value is None:
            base.pop(key, None)
        else:
            base[key] = merged(base.get(key), value)
    return base


class Life:
    """One machine, changed as the driver changes it."""

    def __init__(self, **changes: Any) -> None:
        self.spec = machine_spec(**changes)
        self.clone, self.configure, self.switch = machine.steps(self.spec)
        self.plan = self.clone.payload
        self.vm = machine.build(self.clone, self.plan, API, "c", SETTINGS)
        self.vm["metadata"]["uid"] = "u-1"

    def fit(self, name: str = "c") -> None:
        self.vm = merged(self.vm, machine.configured(self.configure, self.plan, name, self.vm))

    def power(self) -> None:
        self.vm = merged(self.vm, machine.powered(self.switch, self.plan, self.vm))

    def parts(self, *, has_secret: bool = True) -> dict[str, Any]:
        found = vm_reading.parts(self.spec.ref, self.vm, has_secret=has_secret)
        return {part.step: part for part in found}


def test_a_machine_shows_each_step_once_it_is_done_and_works_when_its_address_is_told() -> None:
    life = Life()
    assert list(life.parts()) == [CLONE]
    assert life.parts()[CLONE].have == life.clone.want
    assert life.parts()[CLONE].ready  # the next step brings what the Supervisor waits for

    life.fit()
    assert list(life.parts()) == [CLONE, CONFIGURE]
    assert life.parts()[CONFIGURE].have == life.configure.want

    life.power()
    assert life.vm["spec"]["powerState"] == "PoweredOn"
    assert life.parts()[POWER].have == life.switch.want
    assert "has not made it PoweredOn yet" in life.parts()[POWER].message

    life.vm["status"] = status("PoweredOn")
    assert (life.parts()[POWER].ready, vm_reading.address(life.vm)) == (False, "")
    life.vm["status"] = status("PoweredOn", "10.2.3.4")
    assert life.parts()[POWER].ready
    assert vm_reading.address(life.vm) == "10.2.3.4"
    [seen] = vm_reading.units(life.vm)
    assert (seen.uid, seen.host, seen.exact) == (life.spec.unit.uid, "esx-1.example", False)


def test_the_vgpus_of_a_machine_that_runs_are_uses_of_its_host_whosever_it_is() -> None:
    life = Life()
    hardware = {"vGPUs": [{"type": "Nvidia", "profile": name} for name in ("NVIDIA_H100XM-3-40C", "unheard-of")]}
    life.vm["status"] = status("PoweredOn", hardware=hardware)
    theirs = {"metadata": {"name": "theirs"}, "status": life.vm["status"]}

    ours = vm_reading.uses(life.vm)
    foreign = vm_reading.uses(theirs)

    assert [(use.host, use.size, use.profile, use.ref, use.unit) for use in ours] == [
        ("esx-1.example", 4, "3g.40gb", life.spec.ref, life.spec.unit.uid),
        ("esx-1.example", 0, "", life.spec.ref, life.spec.unit.uid),
    ]
    assert [(use.name, use.ref, use.unit) for use in foreign] == [("theirs", None, None)] * 2
    assert vm_reading.uses({**life.vm, "status": {**life.vm["status"], "powerState": "PoweredOff"}}) == ()


def test_a_machine_that_is_to_be_off_works_when_it_is_off() -> None:
    life = Life(power=Power.OFF)
    life.fit()
    life.power()
    assert not life.parts()[POWER].ready

    life.vm["status"] = status("PoweredOff")

    assert life.parts()[POWER].ready
    assert vm_reading.power(life.vm) is Power.OFF


def test_the_first_condition_that_fails_says_what_a_machine_lacks() -> None:
    life = Life()
    life.fit()
    life.power()
    life.vm["status"] = {
        "conditions": [
            condition("VirtualMachineCreated", "False", "NotCreated", "…"),
            condition("VirtualMachineConditionPlacementReady", "False", "NotReady", "no host has room for 1 vGPU"),
            condition("VirtualMachineClassReady", "True"),
        ]
    }

    assert life.parts()[POWER].message == "NotReady: no host has room for 1 vGPU"
    assert not life.parts()[POWER].ready


@pytest.mark.parametrize(
    ("step", "change", "says"),
    [
        (CONFIGURE, {"spec": {"className": "huge"}}, "huge"),
        (CONFIGURE, {"spec": {"advanced": {"bootDiskCapacity": "900Gi"}}}, "900"),
        (POWER, {"spec": {"powerState": "Suspended"}}, "somebody else"),
    ],
)
def test_what_somebody_else_changed_shows_no_want_so_that_its_step_is_done_again(
    step: str, change: dict[str, Any], says: str
) -> None:
    life = Life()
    life.fit()
    life.power()

    life.vm = merged(life.vm, change)

    part = life.parts()[step]
    assert (part.presence, part.have) == (Presence.PRESENT, "")
    assert says in part.message


def test_a_machine_whose_secret_is_gone_is_fitted_again_and_one_without_its_record_is_for_people() -> None:
    life = Life()
    life.fit()
    assert life.parts(has_secret=False)[CONFIGURE].have == ""

    life.vm = merged(life.vm, {"metadata": {"annotations": {machine.key_of(CLONE): "{nonsense"}}})

    assert life.parts()[CLONE].presence is Presence.FAILED


def test_undoing_power_waits_until_the_machine_is_off_and_then_nothing_of_it_is_left() -> None:
    life = Life()
    life.fit()
    life.power()
    life.vm["status"] = status("PoweredOn", "10.2.3.4")

    life.vm = merged(life.vm, machine.undone(life.vm, POWER))
    part = life.parts()[POWER]
    assert (part.presence, bool(part.handle)) == (Presence.CHANGING, True)
    life.vm["status"] = status("PoweredOff")
    assert POWER not in life.parts()
    life.vm = merged(life.vm, machine.undone(life.vm, CONFIGURE))

    assert list(life.parts()) == [CLONE]
    assert life.vm["spec"]["powerState"] == "PoweredOff"


def test_a_machine_on_its_way_out_shows_who_holds_it() -> None:
    life = Life()
    life.vm["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["vmoperator.vmware.com/vm"]}

    [part] = life.parts().values()

    assert part.presence is Presence.CHANGING
    assert "vmoperator.vmware.com/vm" in part.message


def test_a_change_of_size_is_written_only_where_it_differs() -> None:
    life = Life()
    life.fit()

    same = machine.configured(life.configure, life.plan, "c", life.vm)
    other = machine.configured(life.configure, life.plan, "d", life.vm)

    assert "spec" not in same
    assert other["spec"] == {"className": "d"}
    assert other["metadata"]["uid"] == "u-1"


def test_a_change_of_a_machines_power_rings() -> None:
    life = Life()
    before = objects.fingerprint([{**life.vm, "status": status("PoweredOff")}])
    assert objects.fingerprint([{**life.vm, "status": status("PoweredOn")}]) != before
    assert not any(one.kind == kinds.VM for one in watching.HEARD)


def test_what_is_written_is_plain_yaml_and_a_ref_of_another_tenant_is_not_ours() -> None:
    life = Life()
    assert yaml.safe_load(json.dumps(life.vm)) == life.vm
    assert not objects.is_ours(life.vm, Ref(Kind.MACHINE, life.spec.ref.uid, uuid4()))
