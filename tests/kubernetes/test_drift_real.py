"""Drift of everything that the driver owns, made by other managers on a real API server, mended by the sweep itself.

One endpoint of two replicas, one namespace handed to people, their boundary: rows, passes and inventory are the
control plane's own. A sweep reads the cluster once; what differs is made due and mended in the same sweep or the next.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests import factories

if TYPE_CHECKING:
    from controlplane.labs.kubernetes.client import Api
    from tests.kubernetes.core_ground import CoreOnCluster

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.timeout(600), pytest.mark.no_audit]

Object = dict[str, Any]
Change = Callable[[Object], Any]
SWEEPS = 2
"""Within so many must be mended what somebody changed."""
NET = "networking.k8s.io/v1"
RBAC = "rbac.authorization.k8s.io/v1"
ADMISSION = "admissionregistration.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Case:
    """One way to make one object different."""

    api: str
    kind: str
    pick: str
    """Part of its name."""
    change: Change | None = None
    """Merge patch by another manager; None: it is deleted."""
    apply: bool = False
    """The other manager applies by force instead, and owns from then on what it changed."""

    @property
    def key(self) -> tuple[str, str]:
        return self.api, self.kind


def to(**values: Any) -> Change:
    """Return a change to fixed values."""
    return lambda _: values


def spec(**values: Any) -> Change:
    return to(spec=values)


def no_mark(obj: Object) -> Any:
    """Take every label of ours off an object; the annotation stays."""
    return {"metadata": {"labels": {k: None for k in obj["metadata"]["labels"] if k.startswith("tenantry.internal/")}}}


def foreign_intent(_: Object) -> Any:
    return {"metadata": {"annotations": {"tenantry.internal/intent": "another"}}}


def container(**values: Any) -> Change:
    """Return a change of a Deployment's one container."""

    def change(obj: Object) -> Any:
        (one,) = obj["spec"]["template"]["spec"]["containers"]
        return {"spec": {"template": {"spec": {"containers": [{**one, **values}]}}}}

    return change


def emptied_secret(obj: Object) -> Any:
    return {"data": dict.fromkeys(obj.get("data") or {}, None)}


def changed_secret(obj: Object) -> Any:
    return {"data": dict.fromkeys(obj["data"], "ZXZpbA==")}


def moved_placement(obj: Object) -> Any:
    name = next(key for key in obj["data"] if key.startswith("unit."))
    return {"data": {name: "node-b|" + obj["data"][name].partition("|")[2]}}


def lost_placement(obj: Object) -> Any:
    return {"data": {next(key for key in obj["data"] if key.startswith("unit.")): None}}


STRANGERS_UNIT = "unit.99999999-9999-4999-8999-999999999999"

CASES: Mapping[str, Case] = {
    # the namespace
    "pod security switched off": Case(
        "v1", "Namespace", "", to(metadata={"labels": {"pod-security.kubernetes.io/enforce": "privileged"}})
    ),
    "pod security taken away": Case(
        "v1", "Namespace", "", to(metadata={"labels": {"pod-security.kubernetes.io/enforce": None}})
    ),
    "pod security of another version": Case(
        "v1", "Namespace", "", to(metadata={"labels": {"pod-security.kubernetes.io/enforce-version": "v1.20"}}),
        apply=True,
    ),
    "mark of the namespace gone": Case("v1", "Namespace", "", no_mark),
    "another tenant's mark": Case(
        "v1", "Namespace", "",
        to(metadata={"labels": {"tenantry.internal/tenant": "99999999-9999-4999-8999-999999999999"}}),
    ),
    "default account given a token": Case("v1", "ServiceAccount", "default", to(automountServiceAccountToken=True)),
    # quota and limits
    "quota raised": Case("v1", "ResourceQuota", "tenantry", spec(hard={"requests.nvidia.com/gpu": "64"})),
    "quota raised by apply": Case("v1", "ResourceQuota", "tenantry", spec(hard={"pods": "900"}), apply=True),
    "quota emptied": Case("v1", "ResourceQuota", "tenantry", spec(hard=None)),
    "quota deleted": Case("v1", "ResourceQuota", "tenantry"),
    "limits emptied": Case("v1", "LimitRange", "tenantry", spec(limits=[])),
    "limits changed": Case("v1", "LimitRange", "tenantry", spec(limits=[{"type": "Pod", "max": {"cpu": "900"}}])),
    "limits deleted": Case("v1", "LimitRange", "tenantry"),
    # network policies
    "default-deny without ingress": Case(NET, "NetworkPolicy", "tenantry-default-deny", spec(policyTypes=["Egress"])),
    "default-deny with an allow": Case(
        NET, "NetworkPolicy", "tenantry-default-deny", spec(ingress=[{}], egress=[{}])
    ),
    "default-deny with an allow by apply": Case(
        NET, "NetworkPolicy", "tenantry-default-deny", spec(podSelector={}, ingress=[{}]), apply=True
    ),
    "default-deny of one pod": Case(
        NET, "NetworkPolicy", "tenantry-default-deny", spec(podSelector={"matchLabels": {"a": "b"}})
    ),
    "default-deny deleted": Case(NET, "NetworkPolicy", "tenantry-default-deny"),
    **{
        f"{name} opened": Case(NET, "NetworkPolicy", name, spec(**{way: [{}]}))
        for name, way in (
            ("tenantry-dns", "egress"), ("tenantry-gateway-in", "ingress"), ("tenantry-gateway-out", "egress"),
            ("tenantry-replica-in", "ingress"), ("tenantry-gateway-home", "egress"),
            ("tenantry-replica-mirror", "egress"), ("tenantry-monitoring", "ingress"),
        )
    },
    "a policy emptied": Case(NET, "NetworkPolicy", "tenantry-gateway-in", spec(ingress=[])),
    "a policy deleted": Case(NET, "NetworkPolicy", "tenantry-gateway-out"),
    "a policy without mark": Case(NET, "NetworkPolicy", "tenantry-dns", no_mark),
    # roles
    "everybody is owner": Case(
        RBAC, "RoleBinding", "tenantry-owner",
        to(subjects=[{"kind": "Group", "name": "system:authenticated", "apiGroup": "rbac.authorization.k8s.io"}]),
    ),
    "members let out": Case(RBAC, "RoleBinding", "tenantry-member", to(subjects=[])),
    "binding deleted": Case(RBAC, "RoleBinding", "tenantry-viewer"),
    # parameters of admission
    "any registry": Case("v1", "ConfigMap", "tenantry-placements", to(data={"registries": "evil.example/"})),
    "parameters emptied": Case("v1", "ConfigMap", "tenantry-placements", to(data=None)),
    "parameters deleted": Case("v1", "ConfigMap", "tenantry-placements"),
    "placement moved": Case("v1", "ConfigMap", "tenantry-placements", moved_placement),
    "placement lost": Case("v1", "ConfigMap", "tenantry-placements", lost_placement),
    "placement of a stranger": Case(
        "v1", "ConfigMap", "tenantry-placements", to(data={STRANGERS_UNIT: "node-b|nvidia.com/gpu|"})
    ),
    "what people may use": Case(
        "v1", "ConfigMap", "tenantry-placements",
        lambda obj: {"data": {next(key for key in obj["data"] if key.startswith("free.")): None}},
    ),
    # the gateway
    "gateway scaled": Case("apps/v1", "Deployment", "tn-gateway", spec(replicas=3)),
    "gateway of another image": Case(
        "apps/v1", "Deployment", "tn-gateway",
        container(image="registry.lab.internal/tenantry/gateway@sha256:" + "9" * 64),
    ),
    "gateway with more rights": Case("apps/v1", "Deployment", "tn-gateway", container(securityContext={})),
    "gateway deleted": Case("apps/v1", "Deployment", "tn-gateway"),
    "gateway's service elsewhere": Case("v1", "Service", "tn-gateway", spec(selector={"app": "mine"})),
    "gateway's service deleted": Case("v1", "Service", "tn-gateway"),
    "gateway's token changed": Case("v1", "Secret", "tn-gateway-", changed_secret),
    "gateway's token emptied": Case("v1", "Secret", "tn-gateway-", emptied_secret),
    # the endpoint
    "keys without mark": Case("v1", "Secret", "-env", no_mark),
    "keys of another intent": Case("v1", "Secret", "-env", foreign_intent),
    "keys deleted": Case("v1", "Secret", "-env"),
    "replica switched off": Case("apps/v1", "Deployment", "-0", spec(replicas=0)),
    "replica of another command": Case("apps/v1", "Deployment", "-0", container(command=["sleep"])),
    "replica of another intent": Case("apps/v1", "Deployment", "-0", foreign_intent),
    "replica deleted": Case("apps/v1", "Deployment", "-1"),
    "replica's service elsewhere": Case("v1", "Service", "-0", spec(selector={"app": "mine"})),
    "replica's service deleted": Case("v1", "Service", "-1"),
    "claim's mark gone": Case("resource.k8s.io/v1", "ResourceClaim", "", no_mark),
    "cache's mark gone": Case("v1", "PersistentVolumeClaim", "-cache", no_mark),
    "budget loosened": Case("policy/v1", "PodDisruptionBudget", "", spec(minAvailable=0)),
    "budget deleted": Case("policy/v1", "PodDisruptionBudget", ""),
    "route led elsewhere": Case(
        "gateway.networking.k8s.io/v1", "HTTPRoute", "", spec(hostnames=["elsewhere.example"])
    ),
    "route emptied": Case("gateway.networking.k8s.io/v1", "HTTPRoute", "", spec(rules=[])),
    "route deleted": Case("gateway.networking.k8s.io/v1", "HTTPRoute", ""),
    "scraping elsewhere": Case("monitoring.coreos.com/v1", "PodMonitor", "tn-gateway", spec(podMetricsEndpoints=[])),
    "scraping deleted": Case("monitoring.coreos.com/v1", "PodMonitor", "tn-ep"),
    # people
    "a person's account deleted": Case("v1", "ServiceAccount", "tn-pr-"),
    "a person's account given a token": Case(
        "v1", "ServiceAccount", "tn-pr-", to(automountServiceAccountToken=True)
    ),
    "a person's lease deleted": Case("v1", "Secret", "tn-pr-"),
    # the whole cluster
    "admission only warns": Case(
        ADMISSION, "ValidatingAdmissionPolicyBinding", "tenantry-pods", spec(validationActions=["Warn"])
    ),
    "admission of fewer": Case(
        ADMISSION, "ValidatingAdmissionPolicyBinding", "tenantry-gpus",
        spec(matchResources={"objectSelector": {"matchLabels": {"a": "b"}}}),
    ),
    "admission's rules emptied": Case(
        ADMISSION, "ValidatingAdmissionPolicy", "tenantry-services",
        spec(validations=[{"expression": "true"}]),
    ),
    "admission under a condition": Case(
        ADMISSION, "ValidatingAdmissionPolicy", "tenantry-pods",
        spec(matchConditions=[{"name": "never", "expression": "false"}]),
    ),
    "admission deleted": Case(ADMISSION, "ValidatingAdmissionPolicy", "tenantry-marks"),
    "admission's binding deleted": Case(ADMISSION, "ValidatingAdmissionPolicyBinding", "tenantry-templates"),
    "pinning ignores failures": Case(
        ADMISSION, "MutatingAdmissionPolicy", "tenantry-gpu-nodes", spec(failurePolicy="Ignore")
    ),
    "pinning deleted": Case(ADMISSION, "MutatingAdmissionPolicyBinding", "tenantry-gpu-nodes"),
}  # fmt: skip


# --- the ground -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Ground:
    """An endpoint and a namespace that are ready, with nothing left to do."""

    core: CoreOnCluster
    endpoint: Any
    namespace: Any

    @property
    def api(self) -> Api:
        return self.core.api

    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Return the kinds that objects of ours may be of, as far as this cluster serves them."""
        from provisioners.kubernetes.inventory import MARKED

        serves = self.core.driver.cluster.serves
        return tuple(one for one in (*MARKED, ("resource.k8s.io/v1", "ResourceClaim")) if serves(*one))

    def owned(self) -> dict[tuple[str, str, str, str], Object]:
        """Return everything that the driver owns and that lasts, as it means; a new token's name is left out."""
        from provisioners.kubernetes.admission import cluster_objects
        from provisioners.specs_from_rows import ref_of

        places = {ref_of(self.endpoint.boundary).name, ref_of(self.namespace.boundary).name, "tenantry-access"}
        found = [
            obj for api, kind in self.kinds() for obj in self.api.list(api, kind, labels="tenantry.internal/uid")
            if (obj["metadata"].get("namespace") or obj["metadata"]["name"]) in places
        ]  # fmt: skip
        wanted = {(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in cluster_objects()}
        found += [one for key in sorted(wanted) if (one := self.api.get(*key)) is not None]
        return {
            (obj["apiVersion"], obj["kind"], obj["metadata"].get("namespace", ""), plain(obj)): meaning(obj)
            for obj in found
        }

    def version(self, obj: Object) -> str:
        """Return at which version one object stands now, "" where it is not there."""
        found = self.api.get(
            obj["apiVersion"], obj["kind"], obj["metadata"]["name"], obj["metadata"].get("namespace", "")
        )
        return "" if found is None else str(found["metadata"]["resourceVersion"])

    def picked(self, case: Case) -> Object:
        from provisioners.specs_from_rows import ref_of

        namespaces = [ref_of(self.endpoint.boundary).name]
        labels = "" if case.api == ADMISSION or case.kind == "ServiceAccount" else "tenantry.internal/uid"
        found = [
            obj
            for obj in self.api.list(case.api, case.kind, labels=labels)
            if case.pick in obj["metadata"]["name"]
            and (
                case.api == ADMISSION
                or case.pick == "tn-pr-"
                or (obj["metadata"].get("namespace") or obj["metadata"]["name"]) in namespaces
            )
        ]
        exact = [obj for obj in found if obj["metadata"]["name"] == case.pick]
        return (exact or found)[0]

    def rest(self) -> None:
        from tests.kubernetes.core_ground import accept_routes

        for _ in range(100):
            accept_routes(self.api)
            before = self.core.driver.cluster.writes
            if self.core.sweep() <= 1 and self.core.driver.cluster.writes == before and self.is_ready():
                return
            threading.Event().wait(0.2)
        raise AssertionError(f"it does not come to rest:\n{self.core.explain()}")

    def is_ready(self) -> bool:
        from tests.drive import fresh

        return all(fresh(row).phase == "Ready" for row in (self.endpoint, self.namespace, self.endpoint.boundary))


def plain(obj: Object) -> str:
    """Return an object's name without what a new token changes of it."""
    name = str(obj["metadata"]["name"])
    return "tn-gateway-*" if obj["kind"] == "Secret" and name.startswith("tn-gateway-") else name


def meaning(obj: Object) -> Object:
    """Return what somebody meant by an object: no status, no bookkeeping."""
    bookkeeping = ("fields", "restored", "self", "set")
    notes = obj["metadata"].get("annotations") or {}
    kept: Object = {key: value for key, value in obj.items() if key not in {"status", "metadata"}}
    kept["labels"] = obj["metadata"].get("labels")
    kept["annotations"] = {
        key: value
        for key, value in notes.items()
        if key.startswith("tenantry.internal/") and key.partition("/")[2] not in bookkeeping
    }
    if obj["kind"] == "Secret" and obj["metadata"]["name"].startswith("tn-gateway-"):
        kept["data"] = sorted(obj.get("data") or {})
    for name in ("clusterIP", "clusterIPs"):
        (kept.get("spec") or {}).pop(name, None)
    text = repr(sorted(kept.items(), key=lambda item: item[0]))
    delivery = notes.get("tenantry.internal/delivery")
    return {"text": text.replace(delivery, "*") if delivery else text}


@pytest.fixture(scope="module")
def ground(request: pytest.FixtureRequest, django_db_blocker: Any) -> Iterator[Ground]:
    """Everything ready, on a cluster with the kinds of the Gateway API and of the Prometheus operator."""
    from controlplane.labs.kubernetes.cluster import Cluster
    from provisioners.kubernetes.settings import RouteParent
    from tests.conformance.kubernetes_rig import ready_cluster
    from tests.kubernetes.core_ground import STORAGE, accept_routes, connected, definition, volume

    cluster: Cluster = ready_cluster(request)
    superuser, cleaner = request.getfixturevalue("superuser"), request.getfixturevalue("_cleaner")
    with cluster.api() as api:
        clear(api)
        api.apply(definition("gateway.networking.k8s.io", "HTTPRoute", "httproutes"))
        api.apply(definition("monitoring.coreos.com", "PodMonitor", "podmonitors"))
        api.apply(STORAGE)
        for number in range(8):
            api.apply(volume(number))
    with django_db_blocker.unblock():
        from django.db import connections

        core = connected(
            cluster,
            access="route",
            zone="lab.internal",
            route_parent=RouteParent("gateway-system", "tenants", "http"),
            monitoring_namespace="monitoring",
            cache_gib=10,
            storage_class="lab",
        )
        made = asked_for(core)
        try:
            from tests.drive import fresh

            def ready() -> bool:
                accept_routes(core.api)
                return all(fresh(row).phase == "Ready" for row in made)

            core.drive(ready, most=120)
            yield Ground(core, fresh(made[0]), fresh(made[1]))
        finally:
            clear(core.api)
            core.close()
            connections["default"].close()
            superuser.execute(cleaner)


def asked_for(core: CoreOnCluster) -> tuple[Any, Any]:
    """Ask for an endpoint of two replicas and for a namespace."""
    from tenants.operations import endpoints, namespaces
    from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, NamespaceAsk, RevisionAsk, UnitAsk
    from tenants.states import Role

    tenant = factories.tenant()
    factories.generous(tenant, "H100-80GB")
    factories.member(tenant, Role.OWNER)
    actor = factories.actor(factories.member(tenant))
    factories.served_model("llama-3-1-8b")
    unit = UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16)
    ask = EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), AllocationSpec(units=(unit, unit)))
    endpoint = endpoints.create(tenant=tenant, ask=ask, actor=actor, now=core.clock()).endpoint
    work = NamespaceAsk("work", AllocationSpec(units=(unit,)))
    namespace = namespaces.create(tenant=tenant, ask=work, actor=actor, now=core.clock())
    return endpoint, namespace


def clear(api: Api) -> None:
    """Take everything with our mark off the cluster."""
    labels = "tenantry.internal/uid"
    for pod in api.list("v1", "Pod", labels=labels):
        api.delete("v1", "Pod", pod["metadata"]["name"], pod["metadata"]["namespace"], grace_s=0)
    for one in api.list("v1", "Namespace", labels=labels):
        api.delete("v1", "Namespace", one["metadata"]["name"])
    for kind in ("Secret", "ServiceAccount", "ConfigMap"):
        for one in api.list("v1", kind, namespace="tenantry-access", labels=labels):
            api.delete("v1", kind, one["metadata"]["name"], "tenantry-access")
    for one in api.list("v1", "PersistentVolume"):
        api.delete("v1", "PersistentVolume", one["metadata"]["name"])
    for _ in range(300):
        if not api.list("v1", "Namespace", labels=labels):
            return
        threading.Event().wait(0.2)


# --- the table --------------------------------------------------------------------------------------------


def drift(api: Api, case: Case, obj: Object) -> None:
    """Do to an object what a case says, as another manager."""
    name, namespace = obj["metadata"]["name"], obj["metadata"].get("namespace", "")
    if case.change is None:
        api.delete(case.api, case.kind, name, namespace)
        wait(lambda: uid_now(api, case, obj) != obj["metadata"]["uid"])
        if case.kind == "Deployment":
            chosen = ",".join(f"{k}={v}" for k, v in obj["spec"]["selector"]["matchLabels"].items())
            for pod in api.list("v1", "Pod", namespace=namespace, labels=chosen):
                api.delete("v1", "Pod", pod["metadata"]["name"], namespace, grace_s=0)
            wait(lambda: not api.list("v1", "Pod", namespace=namespace, labels=chosen))
        return
    body = case.change(obj)
    params = {"fieldManager": "argocd-controller" if case.apply else "kubectl-edit"}
    content = "application/merge-patch+json"
    if case.apply:
        body = {"apiVersion": case.api, "kind": case.kind, **body}
        body["metadata"] = {**body.get("metadata", {}), "name": name} | ({"namespace": namespace} if namespace else {})
        params["force"], content = "true", "application/apply-patch+yaml"
    path = api.path(case.api, case.kind, name, namespace)
    api.request("PATCH", path, body=body, params=params, content_type=content)


def uid_now(api: Api, case: Case, obj: Object) -> str:
    found = api.get(case.api, case.kind, obj["metadata"]["name"], obj["metadata"].get("namespace", ""))
    return "" if found is None else str(found["metadata"]["uid"])


def wait(is_so: Callable[[], bool]) -> None:
    for _ in range(150):
        if is_so():
            return
        threading.Event().wait(0.2)
    raise AssertionError("not so in time")


def rounds() -> list[list[str]]:
    """Return the cases so that each round has at most one per object: a round's changes are made all at once."""
    taken: Counter[tuple[str, str, str]] = Counter()
    found: dict[int, list[str]] = {}
    for name, case in CASES.items():
        key = (case.api, case.kind, case.pick)
        found.setdefault(taken[key], []).append(name)
        taken[key] += 1
    return list(found.values())


@pytest.mark.parametrize("names", rounds(), ids=lambda names: f"{len(names)} at once")
def test_what_others_make_different_is_as_it_was_within_two_sweeps(ground: Ground, names: list[str]) -> None:
    ground.rest()
    before = ground.owned()
    chosen = {name: ground.picked(CASES[name]) for name in names}
    for name, obj in chosen.items():
        told = ground.version(obj)
        drift(ground.api, CASES[name], obj)
        assert ground.version(obj) != told, f"it made no difference: {name}"

    for _ in range(SWEEPS):
        ground.core.sweep()

    after = ground.owned()
    wrong = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    assert {key: (before.get(key), after.get(key)) for key in wrong} == {}, ground.core.explain()


# --- what costs nothing, what nobody owns -----------------------------------------------------------------


def reads_of_a_sweep(core: CoreOnCluster) -> int:
    """Sweep once; return the reads of it. Fails where anything was changed."""
    reads, writes = core.driver.cluster.reads, core.driver.cluster.writes
    core.sweep()
    assert core.driver.cluster.writes == writes
    return core.driver.cluster.reads - reads


def test_a_converged_sweep_changes_nothing_and_reads_as_much_for_ten_boundaries_more(ground: Ground) -> None:
    """The bench `boundaries` shows the same for 500, where lists come in pages."""
    from tenants.models import Boundary
    from tenants.operations import allocations
    from tenants.specs import AllocationSpec, BareAsk, GpuAsk, UnitAsk

    ground.rest()
    before = reads_of_a_sweep(ground.core)
    spec = AllocationSpec((UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 1, 1),))
    for number in range(10):
        tenant = factories.tenant(name=f"more-{number}")
        factories.generous(tenant, "H100-80GB")
        actor = factories.actor(factories.member(tenant))
        allocations.create(tenant=tenant, ask=BareAsk("a", spec), actor=actor, now=ground.core.clock())
    ground.core.drive(lambda: Boundary.objects.exclude(phase="Ready").count() == 0, most=400)
    ground.rest()

    reads = reads_of_a_sweep(ground.core)

    assert Boundary.objects.count() >= 11
    assert reads == before
    assert reads < 3 * Boundary.objects.count()


def test_what_carries_our_mark_and_belongs_to_no_row_is_a_finding_that_can_be_deleted(ground: Ground) -> None:
    from uuid import uuid4

    from provisioners.driver import Kind as Kinds
    from provisioners.driver import Ref
    from tenants.models import Finding
    from tenants.operations import findings as finding_operations
    from tenants.states import PlatformRole
    from tests.conformance.specs import namespace_boundary
    from tests.drive import fresh

    ground.rest()
    left = namespace_boundary(uuid4())
    for step in ground.core.driver.steps(left)[:4]:
        ground.core.driver.start(step)

    for _ in range(SWEEPS):
        ground.core.sweep()
    finding = Finding.objects.get(kind="orphan", subject=str(left.ref.uid), resolved_at__isnull=True)
    still_there = ground.api.get("v1", "Namespace", left.ref.name)
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    finding_operations.resolve(
        finding=finding, action="delete", reason="left over", actor=operator, now=ground.core.clock()
    )

    def gone() -> bool:
        ground.core.sweep()
        return ground.api.get("v1", "Namespace", left.ref.name) is None

    wait(gone)
    ground.core.sweep()
    assert still_there is not None
    assert fresh(finding).resolved_at is not None
    assert not ground.core.driver.observe(Ref(Kinds.BOUNDARY, left.ref.uid, left.ref.tenant_uid)).exists


def test_rules_of_the_whole_cluster_that_others_changed_are_told_and_every_namespace_is_tried_again(
    ground: Ground,
) -> None:
    from provisioners import certifying, inventory_isolation
    from provisioners.kubernetes import rbac
    from tenants import certificates
    from tenants.models import Event, Finding
    from tests.drive import fresh

    def is_due() -> bool:
        row = fresh(ground.endpoint.boundary)
        return certificates.is_due(row, now=ground.core.clock())

    def certify() -> None:
        while certifying.answer(ground.core.clock, driver_of=lambda _provider: ground.core.driver):
            pass

    def told() -> list[str]:
        found = Finding.objects.filter(kind="isolation-restored", resolved_at__isnull=True)
        return sorted(found.values_list("subject", flat=True))

    for obj in rbac.objects():
        ground.core.driver.cluster.apply(obj)
    ground.rest()
    certify()
    at_rest, known, before = is_due(), told(), Event.objects.filter(kind="provider.isolation-restored").count()
    ground.core.clock.move(inventory_isolation.PAUSE.total_seconds())  # what was put back before is long told
    for name in ("admission deleted", "admission only warns"):
        drift(ground.api, CASES[name], ground.picked(CASES[name]))

    for _ in range(SWEEPS):
        ground.core.sweep()
    shaken, events = is_due(), Event.objects.filter(kind="provider.isolation-restored")
    certify()
    for _ in range(SWEEPS):
        ground.core.sweep()

    names = {"ValidatingAdmissionPolicy tenantry-marks", "ValidatingAdmissionPolicyBinding tenantry-pods"}
    said = {row.subject: row.detail for row in Finding.objects.filter(kind="isolation-restored")}
    assert (at_rest, shaken, is_due()) == (False, True, False)
    assert names <= set(told()) | set(known)
    assert "(spec.validationActions" in said["ValidatingAdmissionPolicyBinding tenantry-pods"]
    assert "was not there" in said["ValidatingAdmissionPolicy tenantry-marks"]
    assert events.count() == before + 1  # told again by each snapshot, and counted once


def test_what_others_have_under_a_name_of_ours_stays_theirs_and_is_said(ground: Ground) -> None:
    from tests.drive import fresh

    ground.rest()
    name = ground.picked(CASES["quota deleted"])["metadata"]["namespace"]
    ground.api.delete("v1", "ResourceQuota", "tenantry", name)
    made = ground.api.create(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "tenantry", "namespace": name},
            "spec": {"hard": {"pods": "50"}},
        }
    )

    for _ in range(SWEEPS):
        ground.core.sweep()

    left = ground.api.get("v1", "ResourceQuota", "tenantry", name)
    said = [one["message"] for one in fresh(ground.endpoint.boundary).conditions]
    ground.api.delete("v1", "ResourceQuota", "tenantry", name)
    ground.core.drive(lambda: fresh(ground.endpoint.boundary).phase == "Ready", most=200)
    assert left is not None
    assert left["metadata"]["uid"] == made["metadata"]["uid"]
    assert any("ResourceQuota tenantry is there and is not ours" in message for message in said)
