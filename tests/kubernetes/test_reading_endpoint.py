"""An endpoint's objects and pods, as a cluster shows them → parts, units, address."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from provisioners.driver import ObservedUnit, Part, Power, Presence
from provisioners.kubernetes import gateways, workloads
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes import reading_endpoint as reading
from provisioners.kubernetes.reading_endpoint import EndpointSeen, GatewaySeen
from provisioners.kubernetes.settings import Settings
from tests.kubernetes.samples import BOUNDARY, ENDPOINT, PLUGIN, ROUTED, endpoint, gateway, settings, unit

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SPEC = endpoint(unit(0), unit(1))
LAB = settings(access="lab", lab=True)

Object = dict[str, Any]


def applied(wanted: tuple[Object, ...], step: str, ref: Any = ENDPOINT) -> list[Object]:
    """Objects as the server keeps them after we applied them."""
    made = marks.marked_set(wanted, ref, step=step, want=f"want-{step}")
    found = []
    for number, obj in enumerate(made):
        live = copy.deepcopy(obj)
        live["metadata"]["uid"] = f"{step}-{number}"
        live["metadata"]["generation"] = 1
        live["metadata"]["annotations"][marks.FIELDS_ANNOTATION] = marks.fields_digest(live)
        found.append(live)
    return found


def cluster(chosen: Settings = LAB, **changes: Any) -> list[Object]:
    """Everything of the endpoint, freshly applied."""
    found = applied(workloads.secret_objects(SPEC), "serving.secret")
    for one in SPEC.units:
        wanted = workloads.replica_objects(SPEC, one, chosen, PLUGIN)
        found += applied(wanted, f"serving.replica[{one.index}]")
    return found + applied(workloads.service_objects(SPEC, chosen, {"HTTPRoute"}), "serving.service")


def up(deployment: Object) -> Object:
    """A Deployment whose pod works."""
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
    deployment["status"] = {"observedGeneration": 1, **counts}
    return deployment


def pod(deployment: Object, *, ready: bool = True, phase: str = "Running", port: int = 0, **status: Any) -> Object:
    """The pod of a Deployment."""
    template = copy.deepcopy(deployment["spec"]["template"])
    metadata = template["metadata"]
    metadata |= {"name": f"{deployment['metadata']['name']}-x", "namespace": deployment["metadata"]["namespace"]}
    metadata["creationTimestamp"] = "2026-11-21T11:00:00Z"
    if port:
        metadata["annotations"]["lab.tenantry.internal/port"] = str(port)
    conditions = [{"type": "Ready", "status": str(ready)}]
    statuses = [{"state": {"running": {}}}]
    template["status"] = {"phase": phase, "conditions": conditions, "containerStatuses": statuses, **status}
    template["spec"]["nodeName"] = "node-a"
    return template | {"kind": "Pod", "apiVersion": "v1"}


def gateway_up(chosen: Settings = LAB, port: int = 31000) -> GatewaySeen:
    deployment = applied(gateways.gateway_objects(BOUNDARY, gateway(), chosen), "namespace.gateway", BOUNDARY)[-1]
    return GatewaySeen((pod(deployment, port=port),))


def units(uid: UUID, found: Object | None, backend: str) -> tuple[ObservedUnit, ...]:
    if found is None:
        return ()
    return (ObservedUnit(uid, found["spec"]["nodeName"], "node-a-gpu-0", 0, "1g.10gb", exact=True, backend=backend),)


def see(
    objects: list[Object], pods: list[Object] | None = None, chosen: Settings = LAB, front: GatewaySeen | None = None
) -> Any:
    seen = EndpointSeen(ENDPOINT, tuple(objects), tuple(pods or ()), (), front or gateway_up(chosen))
    return reading.observed(seen, chosen, units=units, now=NOW)


def deployments(objects: list[Object]) -> list[Object]:
    return [obj for obj in objects if obj["kind"] == "Deployment"]


def test_nothing_of_it_is_an_exact_absence() -> None:
    seen = see([])

    assert (seen.exists, seen.parts, seen.simulated) == (False, (), True)


def test_everything_there_and_working_is_as_wanted() -> None:
    found = cluster()
    running = [pod(up(one), port=30000 + number) for number, one in enumerate(deployments(found))]

    seen = see(found, running)

    names = ["serving.secret", "serving.replica[0]", "serving.replica[1]", "serving.service"]
    assert [part.step for part in seen.parts] == names
    assert all(
        part == Part(name, Presence.PRESENT, f"want-{name}") for name, part in zip(names, seen.parts, strict=True)
    )
    assert (seen.model, seen.revision, seen.power) == ("chat", 3, Power.ON)
    assert (seen.address, seen.reachable_from) == ("http://127.0.0.1:31000/v1", "lab")
    assert [(one.uid, one.backend) for one in seen.units] == [
        (SPEC.units[0].uid, "http://127.0.0.1:30000/v1"),
        (SPEC.units[1].uid, "http://127.0.0.1:30001/v1"),
    ]


def test_each_unit_says_which_revision_its_pod_runs() -> None:
    newer = replace(SPEC.serving, revision=4, revision_uid=uuid4())
    spec = replace(SPEC, beside=newer, on_beside=frozenset({SPEC.units[1].uid}))
    made = [workloads.replica_objects(spec, one, LAB, PLUGIN) for one in spec.units]
    found = [one for at, wanted in enumerate(made) for one in applied(wanted, f"serving.replica[{at}]")]
    first, second = deployments(found)

    both = see(found, [pod(up(first), port=1), pod(up(second), port=2)])
    turned = copy.deepcopy(first)  # asked to serve the next one, its former pod still there
    turned["metadata"]["annotations"][workloads.REVISION_ANNOTATION] = "4"
    turning = see([one for one in found if one is not first] + [turned], [pod(first, port=1)])
    without = see(found, [])

    assert [(one.uid, one.revision) for one in both.units] == [(SPEC.units[0].uid, 3), (SPEC.units[1].uid, 4)]
    assert both.revision == 3
    assert [one.revision for one in turning.units if one.uid == SPEC.units[0].uid] == [3]
    assert [one.revision for one in without.units] == [3, 4]


def test_a_secret_of_one_of_two_revisions_is_missed() -> None:
    spec = replace(SPEC, beside=replace(SPEC.serving, revision=4, revision_uid=uuid4()))
    both = applied(workloads.secret_objects(spec), "serving.secret")

    whole, lost = see(both).part("serving.secret"), see(both[:1]).part("serving.secret")

    assert (whole.have, lost.have) == ("want-serving.secret", "")
    assert (lost.presence, lost.message) == (Presence.PRESENT, "the Secret of one of its revisions is missing")


def test_a_pod_that_loads_is_there_and_not_ready() -> None:
    found = cluster()
    first, second = deployments(found)
    up(second)
    first["status"] = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}

    part = see(found, [pod(first, ready=False), pod(second)]).part("serving.replica[0]")

    assert part == Part(
        "serving.replica[0]", Presence.PRESENT, "want-serving.replica[0]", message="loading the model", ready=False
    )


def test_a_change_that_the_cluster_has_not_taken_yet_does_not_count_as_ready() -> None:
    found = cluster()
    for one in deployments(found):
        up(one)
    deployments(found)[0]["metadata"]["generation"] = 2

    part = see(found).part("serving.replica[0]")

    assert (part.ready, part.message) == (False, "the cluster has not taken the change yet")


def test_a_part_that_lost_one_of_its_objects_or_was_changed_has_nothing() -> None:
    found = cluster()
    without_service = [o for o in found if (o["kind"], marks.step_of(o)) != ("Service", "serving.replica[0]")]
    changed = copy.deepcopy(found)
    deployments(changed)[0]["metadata"]["managedFields"] = [
        {"manager": "tenantry", "operation": "Apply", "fieldsV1": {"f:spec": {"f:paused": {}}}}
    ]

    for objects in (without_service, changed):
        part = see(objects).part("serving.replica[0]")
        assert (part.presence, part.have) == (Presence.PRESENT, "")
        assert see(objects).part("serving.replica[1]").have == "want-serving.replica[1]"


def test_what_is_on_its_way_out_is_changing_and_names_a_foreign_finalizer() -> None:
    found = [o for o in cluster() if marks.step_of(o) == "serving.service"]
    for obj in found:
        obj["metadata"]["deletionTimestamp"] = "2026-11-21T11:59:00Z"
    found[0]["metadata"]["finalizers"] = ["foregroundDeletion"]
    leaving = see(found)
    found[0]["metadata"]["finalizers"] = ["example.com/keep"]
    blocked = see(found)

    assert leaving.part("serving.service").presence == Presence.CHANGING
    assert leaving.blocked_by == ""
    assert blocked.blocked_by == f"Service {ENDPOINT.name} waits for finalizer example.com/keep"


def test_pods_that_outlive_their_deployment_keep_the_part_until_they_are_gone() -> None:
    left = pod(deployments(cluster())[0])
    left["metadata"]["deletionTimestamp"] = "2026-11-21T11:59:00Z"

    seen = see([], [left])

    assert seen.exists
    assert seen.part("serving.replica[0]").presence == Presence.CHANGING


def test_powered_off_waits_for_the_last_pod() -> None:
    found = cluster()
    running = [pod(one) for one in deployments(found)]
    for one in deployments(found):
        one["spec"]["replicas"] = 0
        one["status"] = {"observedGeneration": 1}

    stopping, stopped = see(found, running), see(found)

    assert (stopping.power, stopped.power) == (Power.ON, Power.OFF)
    assert stopping.part("serving.replica[0]").message == "stopping"
    assert stopped.part("serving.replica[0]").ready
    assert {(one.device, one.backend) for one in stopped.units} == {("", "")}
    assert {one.host for one in stopped.units} == {"node-a"}


@pytest.mark.parametrize(
    ("access", "address", "reachable_from"),
    [
        ({"access": "cluster"}, f"http://{ENDPOINT.name}.{BOUNDARY.name}.svc/v1", "cluster"),
        (ROUTED, f"https://{ENDPOINT.name}.models.example.com/v1", "tenant"),
        ({"access": "lab"}, "http://127.0.0.1:31000/v1", "lab"),
    ],
)
def test_an_address_is_what_the_access_mode_makes_it(access: Any, address: str, reachable_from: str) -> None:
    chosen = settings(**access)
    found = cluster(chosen)
    for obj in found:
        if obj["kind"] == "HTTPRoute":
            good = [{"type": kind, "status": "True", "observedGeneration": 1} for kind in ("Accepted", "ResolvedRefs")]
            obj["status"] = {"parents": [{"conditions": good}]}

    seen = see(found, chosen=chosen)

    assert (seen.address, seen.reachable_from) == (address, reachable_from)
    assert see(found, chosen=chosen, front=GatewaySeen()).address == ""
    assert see([o for o in found if marks.step_of(o) != "serving.service"], chosen=chosen).address == ""


@pytest.mark.parametrize(
    ("parents", "words"),
    [
        ([], "no gateway controller of the cluster has taken its route yet"),
        ([{"conditions": [{"type": "Accepted", "status": "False", "reason": "NotAllowedByListeners"}]}],
         "the cluster's gateway takes no routes of this namespace"),
        ([{"conditions": [{"type": "Accepted", "status": "True", "observedGeneration": 0}]}],
         "the gateway controller has not looked at its route yet"),
    ],
)  # fmt: skip
def test_a_route_that_leads_nowhere_yet_says_why_and_gives_no_address(parents: Any, words: str) -> None:
    chosen = settings(**ROUTED)
    found = cluster(chosen)
    for obj in found:
        if obj["kind"] == "HTTPRoute":
            obj["status"] = {"parents": parents}

    seen = see(found, chosen=chosen)

    assert (seen.part("serving.service").ready, seen.part("serving.service").message) == (False, words)
    assert seen.address == ""


@pytest.mark.parametrize(
    ("given", "zone", "address", "reachable_from"),
    [
        ({"ip": "198.51.100.7"}, "", "http://198.51.100.7/v1", "tenant"),
        ({"ip": "8.8.8.8"}, "", "http://8.8.8.8/v1", "internet"),
        ({"ip": "2001:4860:4860::8888"}, "", "http://[2001:4860:4860::8888]/v1", "internet"),
        ({"hostname": "lb.example.net"}, "", "http://lb.example.net/v1", "tenant"),
        ({"ip": "10.0.0.7"}, "models.example.com", "http://10.0.0.7/v1", "tenant"),
    ],
)
def test_a_load_balancers_address_is_what_it_was_given(
    given: Any, zone: str, address: str, reachable_from: str
) -> None:
    chosen = settings(access="load-balancer", zone=zone)
    found = applied(gateways.gateway_objects(BOUNDARY, gateway(), chosen), "namespace.gateway", BOUNDARY)
    service = next(obj for obj in found if obj["kind"] == "Service")
    waiting = GatewaySeen((pod(found[-1]),), service)

    assert reading.gateway_address(waiting, chosen) == ("", "")
    service["status"] = {"loadBalancer": {"ingress": [given]}}
    assert reading.gateway_address(waiting, chosen) == (address, reachable_from)


# --- the gateway ----------------------------------------------------------------------------------


def gateway_objects(token: str = "one-time-token-9f8e7d") -> list[Object]:
    return applied(gateways.gateway_objects(BOUNDARY, gateway(token), LAB), "namespace.gateway", BOUNDARY)


def gateway_part(objects: list[Object], pods: list[Object]) -> Part | None:
    return reading.gateway_part(BOUNDARY, objects, pods, now=NOW)


def test_a_gateway_is_ready_once_it_has_enrolled() -> None:
    found = gateway_objects()
    found[-1]["status"] = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}
    enrolling = gateway_part(found, [pod(found[-1], ready=False)])
    up(found[-1])
    enrolled = gateway_part(found, [pod(found[-1])])

    assert enrolling is not None
    assert (enrolling.have, enrolling.ready, enrolling.message) == (
        "want-namespace.gateway",
        False,
        "the gateway has not enrolled yet",
    )
    assert enrolled == Part("namespace.gateway", Presence.PRESENT, "want-namespace.gateway")


def test_a_gateway_that_only_a_fresh_token_can_help_is_absent_until_it_gets_one() -> None:
    found = gateway_objects()
    given_up = pod(
        found[-1],
        ready=False,
        containerStatuses=[
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 3}},
                "restartCount": 2,
            }
        ],
    )
    anew = gateway_objects("a-fresh-token")

    assert gateway_part(found, [given_up]) is None
    started = gateway_part(anew, [given_up])
    assert started is not None
    assert (started.presence, started.ready) == (Presence.PRESENT, False)


def test_no_gateway_is_no_part_and_a_last_pod_is_one_that_goes() -> None:
    left = pod(gateway_objects()[-1])

    assert gateway_part([], []) is None
    leaving = gateway_part([], [left])
    assert leaving is not None
    assert leaving.presence == Presence.CHANGING
