"""Every object that we can generate, plain and hostile, as a real API server takes or refuses it.

Applied as the driver applies: server-side, `fieldValidation=Strict`, our field manager, into a namespace with Pod
Security `restricted`, the boundary's own quota and limits. The definitions of the Gateway API and of the Prometheus
operator come from `../shared/crds`; what is cluster-wide is dry-run, so that the shared cluster stays as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import yaml

from provisioners.driver import (
    BoundarySpec,
    DriverError,
    DriverRejected,
    EndpointSpec,
    Kind,
    ModelFiles,
    NamespaceSpec,
    Power,
    Ref,
    Secret,
    UnitSpec,
)
from provisioners.kubernetes import (
    acceptance,
    access,
    admission,
    boundary,
    gateways,
    gpu,
    inventory,
    layout,
    nodes,
    rbac,
    slices,
    workloads,
)
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.isolation import probes
from provisioners.kubernetes.objects import Object
from provisioners.kubernetes.settings import Peer, Settings
from provisioners.kubernetes.staging import stages
from tests.kubernetes import gpu_objects, samples

if TYPE_CHECKING:
    from controlplane.labs.kubernetes.client import Api

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.shared, pytest.mark.timeout(300)]

DEFINITIONS = Path(__file__).resolve().parents[3] / "shared" / "crds"
NEEDED = ("gateway-api/httproutes.gateway.networking.k8s.io", "prometheus-operator/podmonitors.monitoring.coreos.com")
SERVED = ("HTTPRoute", "PodMonitor")
BESIDE = UUID("77777777-7777-4777-8777-777777777777")
"""Revision that is tried beside; no other for each worker that collects, which they would not agree about."""
ACCESS: dict[str, dict[str, Any]] = {
    "route": samples.ROUTED,
    "load-balancer": {"access": "load-balancer", "zone": "models.example.com"},
    "tls": {"access": "load-balancer", "zone": "models.example.com", "certificates": "own-ca"},
    "cluster": {"access": "cluster"},
    "lab": {"access": "lab", "lab": True},
}
VOLUMES: dict[str, dict[str, Any]] = {
    "emptyDir": {},
    "claims": {"cache_gib": 10, "storage_class": "fast", "gateway_storage_class": "fast"},
}
FACTS = boundary.ClusterFacts(
    frozenset({"nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "amd.com/gpu"}), frozenset({"gpu.nvidia.com"})
)
NOTHING = gpu.Request(node_selector={})
GRANTED = {"H100-80GB.1g.10gb": 4, "H100-80GB": 4}


@pytest.fixture(scope="module")
def cluster(kube_cluster: Any) -> Iterator[Cluster]:
    """Our client on the shared cluster, with the definitions that our objects need."""
    if not DEFINITIONS.is_dir():
        pytest.skip(f"{DEFINITIONS} is not there: the definitions of custom resources lie beside the checkout")
    chosen = samples.settings(
        url=kube_cluster.url,
        ca_pem=kube_cluster.ca_pem,
        token=Secret(kube_cluster.admin_token),
        reads_per_s=1000.0,
        writes_per_s=1000.0,
        call_deadline_s=60.0,  # what is asked here is whether it is taken, not how fast
    )
    with kube_cluster.api() as api:
        for name in NEEDED:
            _define(api, yaml.safe_load((DEFINITIONS / f"{name}.yaml").read_text()))
    found = Cluster(chosen)
    yield found
    found.close()


def _define(api: Api, definition: Object) -> None:
    api.apply(definition)
    name, deadline = definition["metadata"]["name"], time.monotonic() + 20
    while True:
        live = api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name)
        conditions = marks.dig(live, "status", "conditions", default=[])
        if any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
            return
        assert time.monotonic() < deadline, f"{name} is not served in time"
        time.sleep(0.1)  # noqa: TID251 - asks a real server again


@pytest.fixture
def refs(cluster: Cluster, kube_api: Api) -> Iterator[tuple[Ref, Ref]]:
    """Refs of a boundary and an endpoint of their own; the namespace goes after the test."""
    tenant = uuid4()
    where = Ref(Kind.BOUNDARY, uuid4(), tenant)
    yield where, Ref(Kind.ENDPOINT, uuid4(), tenant)
    kube_api.delete("v1", "Namespace", where.name)


def _settings(cluster: Cluster, **changes: Any) -> Settings:
    return replace(cluster.settings, **changes)


def _boundary(ref: Ref, **changes: Any) -> BoundarySpec:
    room = {"vcpu": 64, "memory_gib": 256, "storage_gib": 200, "gpu_resources": GRANTED}
    return samples.boundary(ref=ref, **{**room, **changes})


def _made(cluster: Cluster, ref: Ref, step: str, wanted: Any, *, dry_run: bool = False) -> list[Object]:
    """Apply what a step makes, marked as the driver marks it."""
    found = marks.marked_set(wanted, ref, step=step, want="0123456789abcdef")
    assert len({(obj["kind"], marks.name_of(obj)) for obj in found}) == len(found)
    return [cluster.apply(obj, dry_run=dry_run) for obj in found]


def _namespace(cluster: Cluster, spec: BoundarySpec, chosen: Settings) -> None:
    """Make the whole boundary but its gateway."""
    for step in boundary.steps(spec):
        if step.name != "namespace.gateway":
            _made(cluster, spec.ref, step.name, boundary.objects(step.name, spec, chosen, FACTS))


def _pod_of(deployment: Object) -> Object:
    """The pod that a Deployment's template stands for: only pods meet Pod Security and quota at once."""
    template = deployment["spec"]["template"]
    metadata = {**template["metadata"], "name": "probe", "namespace": marks.namespace_of(deployment)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _place(cluster: Cluster, unit: UnitSpec, namespace: str, share: gpu.Request) -> None:
    """Tell admission of a unit as the driver does: where our policies are, they refuse GPU pods without one."""
    host = share.node_selector.get("kubernetes.io/hostname", "")
    body = admission.place(
        unit.uid, host, resources=share.resources, claims=[marks.name_of(claim) for claim in share.claims]
    )
    cluster.patch("v1", "ConfigMap", admission.PARAMS, namespace, body)


# --- boundary -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cut_off": True},
        {"gpu_resources": {}, "vcpu": 0, "memory_gib": 0, "storage_gib": 0},
        {"gpu_resources": {"A100-80GB.1g.10gb+me": 1, "RTX-PRO-6000.1g.24gb+gfx": 2, "made-up.9g.9gb": 1}},
        {"tier": samples.HOSTILE[0], "access": tuple((text, "member") for text in samples.HOSTILE)},
        {"access": (("p-1", "owner"), ("p-2", "member"), ("p-3", "viewer"), ("p-4", samples.HOSTILE[0]))},
    ],
)
@pytest.mark.parametrize("access", ACCESS)
def test_a_boundary_is_taken(cluster: Cluster, refs: tuple[Ref, Ref], changes: dict[str, Any], access: str) -> None:
    chosen = _settings(
        cluster,
        **ACCESS[access],
        dns_cidrs=("169.254.20.10/32",),
        dns=Peer("kube-system", {"k8s-app": "kube-dns"}),
        control_plane_cidrs=("192.0.2.1/32", "2001:db8::/64"),
    )

    _namespace(cluster, _boundary(refs[0], **changes), chosen)

    live = cluster.get("v1", "Namespace", refs[0].name)
    assert live is not None
    assert marks.labels(live)["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(("access", "volumes"), list(product(ACCESS, VOLUMES)))
@pytest.mark.parametrize("url", ["https://tenantry.example", "http://127.0.0.1:8420/$(TENANTRY_GATEWAY_TOKEN)"])
def test_a_gateway_is_taken_and_its_pod_too(
    cluster: Cluster, refs: tuple[Ref, Ref], access: str, volumes: str, url: str
) -> None:
    chosen = _settings(cluster, **ACCESS[access], **VOLUMES[volumes])
    _namespace(cluster, _boundary(refs[0]), chosen)

    wanted = gateways.gateway_objects(refs[0], samples.gateway(url=url), chosen, SERVED)
    live = _made(cluster, refs[0], gateways.GATEWAY_STEP, wanted)

    assert {obj["kind"] for obj in live} >= {"Secret", "Service", "Deployment", "PodMonitor"}
    cluster.apply(_pod_of(live[-1]), dry_run=True)


# --- endpoint -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("access", "volumes"), list(product(ACCESS, VOLUMES)))
@pytest.mark.parametrize("hostile", [False, True])
def test_an_endpoint_is_taken_and_its_pods_too(
    cluster: Cluster, refs: tuple[Ref, Ref], access: str, volumes: str, *, hostile: bool
) -> None:
    chosen = _settings(cluster, **ACCESS[access], **VOLUMES[volumes])
    spec = _endpoint(refs, samples.unit(0), samples.unit(1, profile="", gpu_count=1, role="replica"))
    if hostile:
        spec = replace(spec, serving=samples.hostile_serving())
    _namespace(cluster, _boundary(refs[0]), chosen)

    live = _whole(cluster, spec, chosen)

    kinds = [obj["kind"] for obj in live]
    assert kinds.count("Deployment") == 2
    assert ("HTTPRoute" in kinds) == (access == "route")
    for deployment in live:
        if deployment["kind"] == "Deployment":
            cluster.apply(_pod_of(deployment), dry_run=True)
            _check_round_trip(spec, deployment)
    secret = cluster.get("v1", "Secret", workloads.secret_name(refs[1], spec.serving), refs[0].name)
    assert secret is not None
    assert set(secret.get("data") or {}) == set(spec.serving.secrets)


def _endpoint(refs: tuple[Ref, Ref], *units: UnitSpec, **changes: Any) -> EndpointSpec:
    return replace(samples.endpoint(*units), ref=refs[1], boundary=refs[0], **changes)


def _whole(cluster: Cluster, spec: EndpointSpec, chosen: Settings) -> list[Object]:
    found: list[Object] = []
    for step in workloads.endpoint_steps(spec):
        part = step.payload
        if part.unit is not None:
            share = _plugin(part.unit)
            _place(cluster, part.unit, spec.boundary.name, share)
            wanted = workloads.replica_objects(spec, part.unit, chosen, share)
        elif step.name == workloads.SECRET_STEP:
            wanted = workloads.secret_objects(spec)
        else:
            wanted = workloads.service_objects(spec, chosen, SERVED)
        found += _made(cluster, spec.ref, step.name, wanted)
    return found


def _plugin(unit: UnitSpec) -> gpu.Request:
    offers = {"nvidia.com/gpu": 2, "nvidia.com/mig-1g.10gb": 7}
    return gpu.request(unit, nodes.read(gpu_objects.node(unit.host, gpus=3, offers=offers)), name="x", namespace="x")


def _check_round_trip(spec: EndpointSpec, deployment: Object) -> None:
    """What the server keeps is what the revision has, a dollar sign doubled and nothing else changed."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["command"][: len(spec.serving.argv)] == [word.replace("$", "$$") for word in spec.serving.argv]
    plain = {one["name"]: one.get("value", "") for one in container["env"] if "valueFrom" not in one}
    for name, value in spec.serving.environment.items():
        assert plain[name] == value.replace("$", "$$")


@pytest.mark.parametrize(
    "changes",
    [
        {"power": Power.OFF},
        {"cut_off": True},
        {"serving": samples.serving(secrets={})},
        {"serving": samples.serving(environment={})},
        {"units": (samples.unit(product="", profile="", host=""),)},
        {"host": "chat.aurora.models.example.com", "named": False},
        {
            "units": (samples.unit(), samples.unit(9, role="surge")),
            "beside": samples.serving(revision=4, revision_uid=BESIDE, secrets={"VLLM_API_KEY": Secret("four")}),
            "on_beside": frozenset({samples.unit(9).uid}),
        },
        {"units": (samples.unit(vcpu=0, memory_gib=0),)},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_every_shape_of_an_endpoint_is_taken(cluster: Cluster, refs: tuple[Ref, Ref], changes: dict[str, Any]) -> None:
    chosen = _settings(cluster, **ACCESS["route"], runtime_class="nvidia", read_only_root=False)
    spec = _endpoint(refs, **changes)
    _namespace(cluster, _boundary(refs[0]), chosen)

    assert _whole(cluster, spec, chosen)


def test_a_replica_goes_to_another_revision_and_back_in_place(cluster: Cluster, refs: tuple[Ref, Ref]) -> None:
    _namespace(cluster, _boundary(refs[0]), cluster.settings)
    newer = samples.serving(revision=4, revision_uid=uuid4(), secrets={"VLLM_API_KEY": Secret("four")})
    spec = _endpoint(refs, samples.unit())
    over = replace(spec, beside=newer, on_beside=frozenset({samples.unit().uid}))
    said = []

    for one in (spec, over, replace(over, serving=newer, beside=spec.serving, on_beside=frozenset()), spec):
        wanted = workloads.replica_objects(one, one.units[0], cluster.settings, samples.PLUGIN)
        live = _made(cluster, refs[1], "serving.replica[0]", wanted)[-1]
        said.append(marks.annotations_of(live)[workloads.REVISION_ANNOTATION])

    assert said == ["3", "4", "4", "3"]


def test_an_endpoint_is_changed_in_place_in_every_field_that_a_spec_may_change(
    cluster: Cluster, refs: tuple[Ref, Ref]
) -> None:
    chosen = cluster.settings
    _namespace(cluster, _boundary(refs[0]), chosen)
    first = _endpoint(refs, samples.unit())

    for spec in (
        first,
        replace(first, serving=samples.serving(revision=4, environment={"OTHER": "1"}, argv=("vllm", "serve", "m"))),
        replace(first, units=(samples.unit(uid=uuid4(), profile="", gpu_count=2, vcpu=8, memory_gib=64),)),
        replace(first, power=Power.OFF, cut_off=True),
        replace(first, serving=samples.serving(secrets={})),
    ):
        live = _whole(cluster, spec, chosen)
        deployment = next(obj for obj in live if obj["kind"] == "Deployment")
        names = {one["name"] for one in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
        assert names == {*spec.serving.environment, *spec.serving.secrets, *workloads.SERVING_ENVIRONMENT}


# --- claims ---------------------------------------------------------------------------------------


def _claims() -> Iterator[tuple[str, UnitSpec, gpu.Request]]:
    """Every way in which a unit is asked for by a claim."""
    dynamic = [*gpu_objects.every_partition("node-a", 0), *gpu_objects.every_partition("node-a", 1)]
    fixed = [gpu_objects.mig("node-a", 0, "1g.10gb", start, uuid=f"MIG-{start}") for start in range(3)]
    whole = [gpu_objects.whole("node-a", index) for index in range(1, 3)]
    carved, *others = (gpu_objects.gpu_uuid("node-a", index) for index in range(3))
    for name, devices, unit in (
        ("by parent and profile", dynamic, samples.unit(devices=(carved,))),
        ("by the MIG device", [*fixed, *whole], samples.unit(devices=(carved,), starts=(1,))),
        ("whole GPUs", whole, samples.unit(profile="", gpu_count=2, devices=tuple(others), starts=(0, 0))),
    ):
        pools = slices.read([gpu_objects.resource_slice("node-a", devices)])
        node = nodes.read(gpu_objects.bare_node("node-a"), pools.on("node-a"))
        placed = replace(unit, binding=node.binding)
        yield name, placed, gpu.request(placed, node, name="tn-ep-x-0", namespace="x")


@pytest.mark.parametrize("way", ["by parent and profile", "by the MIG device", "whole GPUs"])
def test_a_claim_is_taken_with_the_pod_that_refers_to_it(cluster: Cluster, refs: tuple[Ref, Ref], way: str) -> None:
    _namespace(cluster, _boundary(refs[0]), cluster.settings)
    unit, share = next((unit, share) for name, unit, share in _claims() if name == way)
    for claim in share.claims:
        claim["metadata"]["namespace"] = refs[0].name
    spec = _endpoint(refs, unit)

    live = _made(cluster, refs[1], "serving.replica[0]", workloads.replica_objects(spec, unit, cluster.settings, share))

    assert [obj["kind"] for obj in live] == ["ResourceClaim", "Service", "Deployment"]
    _place(cluster, unit, refs[0].name, share)
    cluster.apply(_pod_of(live[-1]), dry_run=True)


# --- rights and admission -------------------------------------------------------------------------


ONCE = {f"{obj['kind']}/{marks.name_of(obj)}": obj for obj in (*admission.cluster_objects(), *rbac.objects())}


@pytest.mark.parametrize("name", ONCE)
def test_what_the_cluster_gets_once_is_taken(cluster: Cluster, name: str) -> None:
    obj = ONCE[name]
    namespaced = marks.namespace_of(obj)
    if namespaced and cluster.get("v1", "Namespace", namespaced) is None:
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespaced}})

    assert cluster.apply(json.loads(json.dumps(obj)), dry_run=True)["metadata"]["name"] == marks.name_of(obj)


def test_parameters_and_placements_of_admission_are_taken(cluster: Cluster, refs: tuple[Ref, Ref]) -> None:
    _namespace(cluster, _boundary(refs[0]), cluster.settings)
    wanted = admission.params(
        refs[0].name,
        [*samples.HOSTILE, "registry.internal"],
        priority_classes=samples.HOSTILE,
        runtime_classes=["nvidia"],
    )
    handed_out = uuid4()

    live = _made(cluster, refs[0], "namespace.access", [wanted])[0]
    patched = cluster.patch(
        "v1", "ConfigMap", admission.PARAMS, refs[0].name, admission.place(samples.UNIT, "node-a", resources=["x/y"])
    )

    free = cluster.patch(
        "v1",
        "ConfigMap",
        admission.PARAMS,
        refs[0].name,
        admission.hand_out(handed_out, ["node-b", "node-a"], resources=["x/y"], claims=["tn-ns-x-0"]),
    )
    taken_back = [
        cluster.patch("v1", "ConfigMap", admission.PARAMS, refs[0].name, body)
        for body in (admission.unplace(samples.UNIT), admission.hand_out(handed_out, ()))
    ][-1]

    assert live["data"]["registries"].count("registry.internal/") == 1
    assert admission.placement_of(patched, samples.UNIT) == ("node-a", ("x/y",), ())
    assert free["data"][f"{admission.FREE}{handed_out}"] == "node-a,node-b|x/y|tn-ns-x-0"
    assert set(taken_back["data"]) == {"registries", "priorityClasses", "runtimeClasses"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cut_off": True},
        {"access": ()},
        {"access": tuple((text, role) for text in samples.HOSTILE for role in ("owner", samples.HOSTILE[0]))},
    ],
    ids=["people", "cut off", "nobody", "hostile"],
)
def test_what_lets_people_into_a_namespace_is_taken(
    cluster: Cluster, refs: tuple[Ref, Ref], changes: dict[str, Any]
) -> None:
    _installed(cluster)
    handed_out = Ref(Kind.NAMESPACE, uuid4(), refs[0].tenant_uid)
    base = NamespaceSpec(handed_out, refs[0], 1, units=(), access=(("p-1", "owner"), ("p-2", "viewer")))
    spec = replace(base, **changes)
    by_name = {(obj["kind"], marks.name_of(obj)): obj for obj in access.objects(spec)}

    live = _made(cluster, handed_out, access.ACCOUNTS, by_name.values(), dry_run=True)

    assert len(live) == 1 + (0 if spec.cut_off else 2 * len({person for person, _ in spec.access}))
    assert all(obj.get("automountServiceAccountToken") is False for obj in live if obj["kind"] == "ServiceAccount")


@pytest.mark.parametrize(
    "node",
    [
        nodes.read(gpu_objects.node("node-a", gpus=2, offers={"nvidia.com/gpu": 1, "nvidia.com/mig-1g.10gb": 7})),
        nodes.read(
            gpu_objects.bare_node("node-b"),
            slices.read([gpu_objects.resource_slice("node-b", [gpu_objects.whole("node-b", 0)])]).on("node-b"),
        ),
        nodes.read(gpu_objects.bare_node("node-c")),
    ],
    ids=["device plugin", "DRA", "no GPU"],
)
def test_the_pod_that_accepts_a_host_is_taken(cluster: Cluster, node: nodes.Node) -> None:
    _installed(cluster)
    wanted = acceptance.wanted_of(node, gpu.Occupied())

    live = [cluster.apply(obj, dry_run=True) for obj in acceptance.objects(node, cluster.settings, wanted)]

    assert live[-1]["kind"] == "Pod"


@pytest.mark.parametrize("task", [stages.BRING, stages.REMOVE])
def test_the_pod_that_brings_a_model_and_the_one_that_takes_it_away_are_taken(cluster: Cluster, task: str) -> None:
    _installed(cluster)
    files = ModelFiles(uuid4(), "meta-llama/Llama-3.1-8B", "0" * 40, "nfs://files.example/exports/models")

    live = cluster.create(stages.pod_of(files, task, cluster.settings), dry_run=True)

    assert live["spec"]["volumes"][0]["csi"]["driver"] == "nfs.csi.k8s.io"


def _installed(cluster: Cluster) -> None:
    """Make the namespaces of the platform that `rbac.yaml` makes."""
    for obj in rbac.objects():
        if obj["kind"] == "Namespace":
            cluster.apply(obj)


# --- what is asked of the server, and what certificates and layouts make ---------------------------


def test_every_right_and_every_namespace_is_asked_about_in_a_form_that_the_server_takes(cluster: Cluster) -> None:
    answers = [cluster.create(right.review()) for right in rbac.needed()]
    rules = cluster.create(rbac.rules_review("default"))

    assert all(answer["status"]["allowed"] for answer in answers)  # an administrator asks
    assert rules["status"]["resourceRules"]


def test_the_probes_of_a_certificate_and_the_tokens_of_people_are_taken(
    cluster: Cluster, refs: tuple[Ref, Ref]
) -> None:
    _installed(cluster)
    spec = _boundary(refs[0])
    _namespace(cluster, spec, cluster.settings)
    word, principal = "member", f"certificate/{uuid4()}"
    name = boundary.account_name(refs[0], principal)
    made = [cluster.apply(obj) for obj in probes.probe_objects(refs[0], word, name)]

    token = access.mint(cluster, refs[0], principal)
    probes.dismiss(cluster, refs[0], word, name)

    assert [obj["kind"] for obj in made] == ["ServiceAccount", "Secret", "RoleBinding"]
    assert token.value.reveal().count(".") == 2
    assert cluster.get("v1", "Secret", name, rbac.ACCESS_NAMESPACE) is None


def test_layouts_for_the_mig_manager_are_taken(cluster: Cluster, refs: tuple[Ref, Ref]) -> None:
    _namespace(cluster, _boundary(refs[0]), cluster.settings)
    entries = layout.entries({"a": ("1g.10gb",) * 7, "b": (), "c": ("1g.10gb+me", "2g.20gb")}, ["a", "b", "c"])
    wanted = layout.config_map({"tenantry-0123-x": entries, "tenantry-0123-x-back": entries})
    wanted["metadata"]["namespace"] = refs[0].name

    live = cluster.create(wanted)
    again = cluster.apply(live | {"metadata": {**live["metadata"], "managedFields": None}}, dry_run=True)

    assert yaml.safe_load(again["data"][inventory.LAYOUTS_KEY])["mig-configs"]["tenantry-0123-x"] == entries


def test_an_eviction_names_one_pod_and_no_later_one_of_that_name(cluster: Cluster, refs: tuple[Ref, Ref]) -> None:
    _namespace(cluster, _boundary(refs[0]), cluster.settings)
    spec = _endpoint(refs, samples.unit(product="", profile="", host=""))
    pod = cluster.apply(_pod_of(workloads.replica_objects(spec, spec.units[0], cluster.settings, NOTHING)[-1]))
    body = layout.eviction(pod)

    stale = {"deleteOptions": {"preconditions": {"uid": str(uuid4())}}}
    with pytest.raises(DriverError):
        cluster.create(body | stale, subresource="eviction", name=marks.name_of(pod))
    cluster.create(body, subresource="eviction", name=marks.name_of(pod))


# --- that the server looks at all -----------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda obj: obj["spec"].update(replica=1),
        lambda obj: obj["spec"]["template"]["spec"].update(enableServiceLink=False),
        lambda obj: obj["spec"]["template"]["spec"]["containers"][0]["startupProbe"].update(path="/health"),
        lambda obj: obj["spec"]["template"]["spec"]["containers"][0]["resources"].update(claim=[]),
    ],
)
def test_one_wrong_field_anywhere_is_refused(cluster: Cluster, refs: tuple[Ref, Ref], spoil: Any) -> None:
    _namespace(cluster, _boundary(refs[0]), cluster.settings)
    spec = _endpoint(refs, samples.unit())
    deployment = workloads.replica_objects(spec, spec.units[0], cluster.settings, samples.PLUGIN)[-1]
    spoil(deployment)

    with pytest.raises(DriverRejected):
        _made(cluster, refs[1], "serving.replica[0]", [deployment])


def test_a_pod_that_is_not_restricted_is_refused_where_ours_are_taken(cluster: Cluster, refs: tuple[Ref, Ref]) -> None:
    _namespace(cluster, _boundary(refs[0]), cluster.settings)
    spec = _endpoint(refs, samples.unit())
    _place(cluster, spec.units[0], refs[0].name, samples.PLUGIN)
    pod = _pod_of(workloads.replica_objects(spec, spec.units[0], cluster.settings, samples.PLUGIN)[-1])
    cluster.apply(pod, dry_run=True)
    del pod["spec"]["securityContext"]["seccompProfile"]

    with pytest.raises(DriverRejected, match="Pod Security"):
        cluster.apply(pod, dry_run=True)
