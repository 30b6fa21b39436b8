"""Machines of a Supervisor against a real kube-apiserver that knows the kinds of the VM Service.

The server checks every field (`fieldValidation=Strict`) and keeps rights and quota; no machine runs. What vm-operator
would tell of them, a few lines here write into `status`: nothing is learned from these tests about vm-operator itself,
nor about the Supervisor's webhooks, which are not there. The cluster is one of its own: what it serves changes what
the driver offers, and other tests' clusters are to stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from provisioners import plan
from provisioners.driver import (
    BoundaryKind,
    BoundarySpec,
    Conflicting,
    Done,
    DriverRejected,
    Handle,
    Kind,
    MachineSpec,
    Observed,
    Power,
    Ref,
    Secret,
    Spec,
    Step,
    TransientDriverError,
)
from provisioners.kubernetes import objects, rbac
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.failures import AccessDenied
from provisioners.kubernetes.objects import Object, dig, name_of
from provisioners.kubernetes.settings import Settings
from provisioners.kubernetes.vm_service import bootstrap, classes, kinds, machine
from tests.kubernetes.ground import eventually
from tests.kubernetes.samples import HOSTILE
from tests.kubernetes.vm_samples import TYPES, condition, status, unit, vm_boundary
from tests.kubernetes.vm_samples import machine as machine_spec

if TYPE_CHECKING:
    from controlplane.labs.kubernetes.client import Api
    from controlplane.labs.kubernetes.cluster import Cluster as LabCluster

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.shared, pytest.mark.timeout(300)]
DEFINITIONS = Path(__file__).resolve().parents[3] / "shared" / "crds" / "vm-operator"
RBAC = "rbac.authorization.k8s.io/v1"
FINALIZER = "virtualmachine.vmoperator.vmware.com"
ADDRESS = "10.20.30.40"


# --- the ground -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def supervisor(kube_clusters: Callable[..., LabCluster]) -> LabCluster:
    """A cluster with the definitions of the VM Service and our rights."""
    if not DEFINITIONS.is_dir():
        pytest.skip(f"{DEFINITIONS} is not there: the definitions of custom resources lie beside the checkout")
    from controlplane.labs.kubernetes import definitions

    found = kube_clusters("supervisor", pods="ready")
    with found.api() as api:
        definitions.install(api, DEFINITIONS)
        for obj in rbac.objects():
            api.apply(obj)
        eventually(lambda: _counts_machines(api), within_s=90, what="the quota controller knows the kinds")
    return found


def _counts_machines(api: Api) -> bool:
    """Whether a new quota is counted with its machines: the controller looks for new kinds every half minute."""
    name = f"count/virtualmachines.{kinds.GROUP}"
    made: Object = {
        "apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": {name: "1"}},
        "metadata": {"name": f"probe-{uuid4().hex[:8]}", "namespace": "default"},
    }  # fmt: skip
    api.create(made)
    try:
        eventually(lambda: _used(api, made["metadata"]["name"], name), within_s=2)
    except AssertionError:
        return False
    finally:
        api.delete("v1", "ResourceQuota", made["metadata"]["name"], "default")
    return True


def _used(api: Api, quota: str, name: str) -> bool:
    return name in dig(api.get("v1", "ResourceQuota", quota, "default"), "status", "used", default={})


@pytest.fixture(scope="module")
def settings(supervisor: LabCluster) -> Settings:
    return Settings(
        slug="supervisor", url=supervisor.url, ca_pem=supervisor.ca_pem, token=Secret(supervisor.admin_token), lab=True,
        storage_class="fast", vm_gpu_types=TYPES, reads_per_s=500, writes_per_s=500, call_deadline_s=30,
    )  # fmt: skip


@pytest.fixture(scope="module")
def admin(settings: Settings) -> Iterator[Cluster]:
    made = Cluster(settings)
    yield made
    made.close()


@pytest.fixture(scope="module")
def driver(settings: Settings, admin: Cluster) -> Iterator[KubernetesDriver]:
    """The driver with the rights of deploy/kubernetes/rbac.yaml and no other."""
    request = {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []},
        "metadata": {"name": rbac.ACCOUNT, "namespace": rbac.SYSTEM_NAMESPACE},
    }  # fmt: skip
    token = admin.create(request, subresource="token", name=rbac.ACCOUNT)["status"]["token"]
    made = KubernetesDriver(replace(settings, token=Secret(token)))
    yield made
    made.close()


class World:
    """A boundary, and who plays vm-operator in it."""

    def __init__(self, driver: KubernetesDriver, admin: Cluster) -> None:
        self.driver, self.admin = driver, admin
        self.boundary = vm_boundary()
        self.api = kinds.api_of(admin.serves)
        self.room = True

    def vm(self, ref: Ref) -> Object | None:
        return self.admin.get(self.api, kinds.VM, ref.name, self.boundary.ref.name)

    def play(self) -> None:
        """Tell of every machine what vm-operator would, and let go of those that are to end."""
        for vm in self.admin.list(self.api, kinds.VM, namespace=self.boundary.ref.name).items:
            if objects.is_deleting(vm):
                self._patch(vm, {"metadata": {"finalizers": None}})
                continue
            if not dig(vm, "metadata", "finalizers"):
                self._patch(vm, {"metadata": {"finalizers": [FINALIZER]}})
            self._patch(vm, {"status": self._status(vm)}, subresource="status")

    def _status(self, vm: Object) -> Object:
        where = self.boundary.ref.name
        secret = dig(vm, "spec", "bootstrap", "cloudInit", "cloudConfig", "write_files", 0, "content", "name")
        if self.admin.get("v1", "Secret", secret, where) is None:
            return {"conditions": [condition("VirtualMachineBootstrapReady", "False", "NotFound", "no secret")]}
        if self.admin.get(self.api, kinds.CLASS, vm["spec"]["className"], where) is None:
            return {"conditions": [condition("VirtualMachineClassReady", "False", "NotFound", "no class")]}
        if not self.room:
            return {"conditions": [condition("VirtualMachineConditionPlacementReady", "False", "NotReady", "no room")]}
        power = vm["spec"]["powerState"]
        return status(power, ADDRESS if power == machine.ON else "")

    def _patch(self, vm: Object, body: Object, *, subresource: str = "") -> None:
        self.admin.patch(self.api, kinds.VM, name_of(vm), self.boundary.ref.name, body, subresource=subresource)

    def spoil(self, ref: Ref, body: Object) -> None:
        """Change a machine as somebody else would."""
        found = self.vm(ref)
        assert found is not None
        self._patch(found, body)

    # --- walking, by the pure plan ----------------------------------------------------------------

    def walk(self, spec: Spec, *, deleting: bool = False, most: int = 60) -> tuple[Observed, list[str]]:
        """Do what the plan says until it says that nothing is to be done; return what is seen and what was done."""
        done: list[str] = []
        steps = self.driver.steps(spec)
        for _ in range(most):
            seen = self.driver.observe(spec.ref)
            action = plan.plan(steps, seen, deleting=deleting)
            match action:
                case plan.Start(step):
                    done.append(f"{'undo ' if step.undo else ''}{step.name}")
                    self.start(step)
                case plan.Poll(handle):
                    self.wait(handle)
                case plan.Nothing(ready=True) | plan.Forget():
                    return seen, done
                case plan.Blocked(reason):
                    raise AssertionError(reason)
            self.play()
        raise AssertionError(f"no end of {done}: {self.driver.observe(spec.ref)}")

    def start(self, step: Step) -> None:
        """Start a step and wait for its end; a quota whose use is not counted yet refuses everything for a moment."""
        answer = eventually(lambda: self._started(step), what=f"{step.name} is not denied")
        if isinstance(answer, Handle):
            self.wait(answer)

    def _started(self, step: Step) -> Handle | Done | None:
        try:
            return self.driver.start(step)
        except AccessDenied:
            return None

    def wait(self, handle: Handle) -> None:
        def ended() -> bool:
            self.play()
            return self.driver.poll(handle).state == "done"

        eventually(ended, within_s=60, what=handle.value)


@pytest.fixture
def world(driver: KubernetesDriver, admin: Cluster) -> Iterator[World]:
    made = World(driver, admin)
    made.walk(made.boundary)
    yield made
    made.play()
    found = admin.get("v1", "Namespace", made.boundary.ref.name)
    if found is not None:
        for vm in admin.list(made.api, kinds.VM, namespace=made.boundary.ref.name).items:
            admin.patch(made.api, kinds.VM, name_of(vm), made.boundary.ref.name, {"metadata": {"finalizers": None}})
        admin.delete("v1", "Namespace", name_of(found), uid=objects.uid_of(found), propagation="Background")


# --- every object, strictly -----------------------------------------------------------------------

SHAPES: dict[str, dict[str, Any]] = {
    "slice": {},
    "whole": {"profile": "", "gpu_count": 1},
    "none": {"product": "", "profile": ""},
    "huge": {"vcpu": 255, "memory_gib": 6144},
}
TOLD: dict[str, dict[str, Any]] = {
    "everything": {},
    "nobody": {"ssh_keys": (), "ssh_ca": "", "ssh_principals": (), "ssh_revoked_url": ""},
    "keys": {"ssh_ca": "", "ssh_principals": (), "ssh_revoked_url": "", "disk_gib": 0},
    "suspended": {"power": Power.OFF, "cut_off": True},
}
GROUND: dict[str, dict[str, Any]] = {
    "default": {},
    "all": {"vm_instance_uuid": True, "vm_network": "crd.nsx.vmware.com/v1alpha1/SubnetSet/vm-default"},
    "bare": {"storage_class": ""},
}


def everything(spec: MachineSpec, api: str, chosen: Settings) -> list[Object]:
    """All objects of one machine, as they are made."""
    clone, configure, _power = machine.steps(spec)
    shape = classes.shape_of(spec.unit, TYPES)
    secret = bootstrap.secret(spec.ref, spec.boundary.name, clone.payload.seed)
    return [
        classes.build(shape, api, spec.boundary),
        objects.marked(secret, spec.ref, step=kinds.CONFIGURE, want=configure.want),
        machine.build(clone, clone.payload, api, shape.name, chosen),
    ]


@pytest.mark.parametrize("version", kinds.VERSIONS)
@pytest.mark.parametrize(("shape", "told", "ground"), list(product(SHAPES, TOLD, GROUND)))
def test_every_object_is_taken_in_every_version(
    world_of_all: World, version: str, shape: str, told: str, ground: str
) -> None:
    where = world_of_all.boundary.ref
    spec = machine_spec(where, unit=unit(**SHAPES[shape]), **TOLD[told])
    chosen = replace(world_of_all.driver.settings, **GROUND[ground])

    for obj in everything(spec, f"{kinds.GROUP}/{version}", chosen):
        world_of_all.admin.create(obj, dry_run=True)
        world_of_all.admin.apply(obj, dry_run=True)


@pytest.fixture(scope="module")
def world_of_all(driver: KubernetesDriver, admin: Cluster) -> World:
    made = World(driver, admin)
    made.walk(made.boundary)
    return made


@pytest.mark.parametrize("image", HOSTILE)
def test_an_image_with_a_hostile_name_is_a_name_and_nothing_else(world_of_all: World, image: str) -> None:
    spec = machine_spec(world_of_all.boundary.ref, image=image)

    made = world_of_all.admin.create(everything(spec, world_of_all.api, world_of_all.driver.settings)[-1], dry_run=True)

    assert made["spec"]["imageName"] == image


@pytest.mark.parametrize(
    ("which", "path"),
    [
        (0, ("spec", "hardware")), (0, ("spec", "hardware", "devices")), (2, ("spec",)), (2, ("spec", "network")),
        (2, ("spec", "advanced")), (2, ("spec", "bootstrap", "cloudInit")),
        (2, ("spec", "bootstrap", "cloudInit", "cloudConfig")),
    ],
)  # fmt: skip
def test_one_wrong_field_anywhere_is_refused(world_of_all: World, which: int, path: tuple[str, ...]) -> None:
    made = everything(machine_spec(world_of_all.boundary.ref), world_of_all.api, world_of_all.driver.settings)[which]
    dig(made, *path)["fieldThatNobodyKnows"] = "x"

    with pytest.raises(DriverRejected):
        world_of_all.admin.create(made, dry_run=True)


# --- a machine's life -----------------------------------------------------------------------------


def test_a_supervisor_is_known_by_what_it_serves(driver: KubernetesDriver) -> None:
    found = driver.capabilities()

    assert found.boundary_kinds == {BoundaryKind.NAMESPACE, BoundaryKind.VM}
    assert found.features["vm-service"]
    assert not [name for name in found.missing if "vmoperator" in name or name == "vm-storage"]


def test_a_machine_is_made_runs_is_seen_and_goes_with_all_that_was_its_own(world: World) -> None:
    spec = machine_spec(world.boundary.ref)

    seen, done = world.walk(spec)

    assert done == ["vm.clone", "vm.configure", "vm.power"]
    assert (seen.address, seen.reachable_from, seen.power) == (f"{ADDRESS}:22", "tenant", Power.ON)
    assert [one.host for one in seen.units] == ["esx-1.example"]
    vm = world.vm(spec.ref)
    assert vm is not None
    where = world.boundary.ref.name
    secret = world.admin.get("v1", "Secret", bootstrap.secret_name(spec.ref), where)
    assert secret is not None
    assert not [text for text in secret["data"].values() if text and text in json.dumps(vm)]
    [shape] = world.admin.list(world.api, kinds.CLASS, namespace=where).items
    assert vm["spec"]["className"] == name_of(shape)
    assert classes.gpus_of(shape) == ("nvidia_h100xm-1-10c",)
    shown = world.driver.snapshot()
    assert {spec.ref, world.boundary.ref} <= {one.ref for one in shown.objects}
    assert world.walk(spec) == (seen, [])
    with pytest.raises(TransientDriverError, match="still holds"):
        world.driver.start(world.driver.steps(world.boundary)[0].undoing())

    _, undone = world.walk(spec, deleting=True)

    assert undone == ["undo vm.power", "undo vm.configure", "undo vm.clone"]
    assert world.vm(spec.ref) is None
    assert world.admin.get("v1", "Secret", bootstrap.secret_name(spec.ref), where) is None
    world.walk(world.boundary, deleting=True)
    eventually(lambda: world.admin.get("v1", "Namespace", where) is None, within_s=60, what="the namespace goes")


def test_machines_of_one_shape_share_a_class_and_no_field_is_taken_from_a_machine_by_a_later_step(world: World) -> None:
    first, second = machine_spec(world.boundary.ref), machine_spec(world.boundary.ref, power=Power.OFF)
    world.walk(first)
    before = world.vm(first.ref)
    world.walk(second)
    world.walk(replace(first, power=Power.OFF))

    after = world.vm(first.ref)

    assert before is not None
    assert after is not None
    assert {**before["spec"], "powerState": "PoweredOff"} == after["spec"]
    assert len(world.admin.list(world.api, kinds.CLASS, namespace=world.boundary.ref.name).items) == 1


def test_another_size_waits_until_the_machine_is_off_and_is_another_class_then(world: World) -> None:
    spec = machine_spec(world.boundary.ref)
    world.walk(spec)
    larger = replace(spec, unit=replace(spec.unit, vcpu=16), disk_gib=400)

    with pytest.raises(TransientDriverError, match="has to be switched off"):
        world.walk(larger)
    _, done = world.walk(replace(larger, power=Power.OFF))

    vm = world.vm(spec.ref)
    assert vm is not None
    assert (vm["spec"]["className"], vm["spec"]["advanced"]["bootDiskCapacity"]) == (
        classes.Shape(16, 64, ("nvidia_h100xm-1-10c",)).name, "400Gi"
    )  # fmt: skip
    assert "undo vm.clone" not in done


@pytest.mark.parametrize("by", ["spec", "machine", "boundary"])
def test_a_machine_that_is_cut_off_is_suspended_and_runs_again(world: World, by: str) -> None:
    spec = machine_spec(world.boundary.ref)
    world.walk(spec)
    ref = world.boundary.ref if by == "boundary" else spec.ref

    if by == "spec":
        world.walk(replace(spec, cut_off=True))
    else:
        world.driver.isolate(ref, cut_off=True)
        world.play()
    cut = world.driver.observe(spec.ref)
    if by == "spec":
        world.walk(spec)
    else:
        world.driver.isolate(ref, cut_off=False)
        world.play()

    assert (cut.address, cut.power) == ("", Power.ON)
    assert world.driver.observe(spec.ref).address == f"{ADDRESS}:22"


def test_what_somebody_else_changed_is_mended_and_a_lost_secret_comes_back(world: World) -> None:
    spec = machine_spec(world.boundary.ref)
    world.walk(spec)
    secret = world.admin.get("v1", "Secret", bootstrap.secret_name(spec.ref), world.boundary.ref.name)
    assert secret is not None

    world.spoil(spec.ref, {"spec": {"powerState": "PoweredOff"}})
    _, switched = world.walk(spec)
    world.admin.delete("v1", "Secret", name_of(secret), world.boundary.ref.name, uid=objects.uid_of(secret))
    _, delivered = world.walk(spec)
    world.spoil(spec.ref, {"metadata": {"labels": dict.fromkeys(objects.mark(spec.ref))}})
    _, still = world.walk(spec)

    assert (switched, delivered, still) == (["vm.power"], ["vm.configure"], [])


def test_another_image_is_another_machine(world: World) -> None:
    spec = machine_spec(world.boundary.ref)
    world.walk(spec)
    before = world.vm(spec.ref)

    _, done = world.walk(replace(spec, image="vmi-other"))

    after = world.vm(spec.ref)
    assert before is not None
    assert after is not None
    assert objects.uid_of(before) != objects.uid_of(after)
    assert done[-3:] == ["vm.clone", "vm.configure", "vm.power"]


def test_what_keeps_a_machine_from_running_is_told_in_the_supervisors_words(world: World) -> None:
    spec = machine_spec(world.boundary.ref)
    world.room = False

    with pytest.raises(AssertionError, match="no room"):
        world.walk(spec, most=6)
    world.room = True
    seen, _ = world.walk(spec)

    assert seen.part("vm.power").ready


def test_an_answer_that_got_lost_makes_no_second_machine(world: World) -> None:
    spec = machine_spec(world.boundary.ref)
    for step in world.driver.steps(spec):
        world.driver.start(step)
        before = world.vm(spec.ref)
        world.driver.start(step)
        after = world.vm(spec.ref)
        assert before is not None
        assert after is not None
        assert (objects.uid_of(before), before["spec"]) == (objects.uid_of(after), after["spec"])


def test_what_has_our_name_and_not_our_mark_is_left_alone(world: World) -> None:
    spec = machine_spec(world.boundary.ref)
    theirs = {
        "apiVersion": world.api, "kind": kinds.VM, "spec": {"className": "x", "imageName": "y"},
        "metadata": {"name": spec.ref.name, "namespace": world.boundary.ref.name},
    }  # fmt: skip
    made = world.admin.create(theirs)

    with pytest.raises(Conflicting, match="is not ours"):
        world.driver.start(world.driver.steps(spec)[0])

    assert not world.driver.observe(spec.ref).exists
    assert world.vm(spec.ref) == made


def test_a_machine_in_a_foreign_namespace_is_nobodys(world: World) -> None:
    elsewhere = Ref(Kind.BOUNDARY, uuid4(), world.boundary.ref.tenant_uid)
    spec = machine_spec(elsewhere)
    world.admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": elsewhere.name}})

    with pytest.raises(Conflicting, match="is not ours"):
        world.driver.start(world.driver.steps(spec)[0])

    found = world.admin.get("v1", "Namespace", elsewhere.name)
    assert found is not None
    world.admin.delete("v1", "Namespace", elsewhere.name, uid=objects.uid_of(found), propagation="Background")


def test_without_the_right_to_make_classes_one_that_fits_is_chosen_or_the_shape_is_refused(world: World) -> None:
    role = next(one for one in rbac.objects() if one["kind"] == "ClusterRole" and name_of(one) == rbac.ACCOUNT)
    fewer = [rule for rule in role["rules"] if rule["resources"] != ["virtualmachineclasses"]]
    reading = {"apiGroups": [kinds.GROUP], "resources": ["virtualmachineclasses"], "verbs": ["get", "list", "watch"]}
    spec = machine_spec(world.boundary.ref)
    start = world.driver.steps(spec)[0]
    theirs = classes.build(classes.Shape(8, 64, ("nvidia_h100xm-1-10c",)), world.api, world.boundary.ref)
    theirs["metadata"] = {"name": "h100-slice", "namespace": world.boundary.ref.name}
    world.admin.patch(RBAC, "ClusterRole", rbac.ACCOUNT, "", {"rules": [*fewer, reading]})
    try:

        def refused() -> str:
            try:
                world.driver.start(start)
            except DriverRejected as error:
                return error.detail
            found = world.vm(spec.ref)  # the server's authorizer had not heard of it yet
            assert found is not None
            world.admin.delete(world.api, kinds.VM, spec.ref.name, world.boundary.ref.name, uid=objects.uid_of(found))
            for one in world.admin.list(world.api, kinds.CLASS, namespace=world.boundary.ref.name).items:
                world.admin.delete(one["apiVersion"], kinds.CLASS, name_of(one), objects.namespace_of(one),
                                   uid=objects.uid_of(one))  # fmt: skip
            return ""

        why = eventually(refused, what="the right is gone")
        world.admin.create(theirs)
        world.walk(spec)
    finally:
        world.admin.patch(RBAC, "ClusterRole", rbac.ACCOUNT, "", {"rules": role["rules"]})

    world.spoil(spec.ref, {"metadata": {"annotations": {machine.key_of(kinds.CONFIGURE): None}}})
    _, done = world.walk(spec)

    assert "our account may make none" in why
    vm = world.vm(spec.ref)
    assert vm is not None
    assert (vm["spec"]["className"], done) == ("h100-slice", ["vm.configure"])


def test_no_pod_runs_beside_the_machines_and_no_more_of_them_than_were_granted(world: World) -> None:
    where = world.boundary.ref.name
    quota = world.admin.get("v1", "ResourceQuota", "tenantry", where)
    assert quota is not None
    assert quota["spec"]["hard"]["pods"] == "0"

    one: BoundarySpec = replace(world.boundary, vcpu=1)
    world.walk(one)
    world.walk(machine_spec(world.boundary.ref))
    second = machine_spec(world.boundary.ref)

    def refused() -> bool:
        try:
            world.admin.create(everything(second, world.api, world.driver.settings)[-1], dry_run=True)
        except TransientDriverError:
            return True
        return False

    eventually(refused, within_s=60, what="the quota counts machines")
