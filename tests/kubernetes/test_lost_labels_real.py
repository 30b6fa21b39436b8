"""Objects of an endpoint whose labels somebody took off, on a real API server: seen, restored, and gone with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from provisioners.driver import BoundarySpec, EndpointSpec, Presence
from provisioners.kubernetes import admission, workloads
from provisioners.kubernetes.objects import Object, labels, name_of, uid_of
from tests.conformance.specs import endpoint, finish, namespace_boundary, remove, unit

if TYPE_CHECKING:
    from tests.conformance.kubernetes_rig import KubernetesRig

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.timeout(300)]
TENANT = UUID("66666666-6666-4666-8666-666666666666")
OBJECTS: dict[str, tuple[str, str, Callable[[EndpointSpec], str], str]] = {
    "keys": ("v1", "Secret", lambda spec: workloads.secret_name(spec.ref, spec.serving), "serving.secret"),
    "address": ("v1", "Service", lambda spec: spec.ref.name, "serving.service"),
    "replica": ("apps/v1", "Deployment", lambda spec: workloads.replica_name(spec.ref, 0), "serving.replica[0]"),
    "a replica's service": ("v1", "Service", lambda spec: workloads.replica_name(spec.ref, 0), "serving.replica[0]"),
}


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Any:
    from tests.conformance.kubernetes_rig import ready_cluster

    return ready_cluster(request)


@pytest.fixture
def rig(lab: Any) -> Iterator[KubernetesRig]:
    from tests.conformance.kubernetes_rig import KubernetesRig

    made = KubernetesRig(lab)
    yield made
    made.close()


@pytest.fixture
def made(rig: KubernetesRig) -> tuple[BoundarySpec, EndpointSpec]:
    boundary = namespace_boundary(TENANT)
    finish(rig, boundary)
    spec = endpoint(boundary, unit())
    finish(rig, spec)
    return boundary, spec


def strip(rig: KubernetesRig, spec: EndpointSpec, what: str) -> Object:
    """Take every label of ours off one object; return it as it was."""
    api, kind, name, _ = OBJECTS[what]
    before = rig.driver.cluster.get(api, kind, name(spec), spec.boundary.name)
    assert before is not None
    none = {key: None for key in labels(before) if key.startswith(("tenantry.internal/", "app.kubernetes.io/"))}
    rig.api.patch(api, kind, name_of(before), {"metadata": {"labels": none}}, namespace=spec.boundary.name)
    return before


@pytest.mark.parametrize("what", OBJECTS)
def test_what_lost_its_labels_shows_as_changed_and_gets_them_back(
    rig: KubernetesRig, made: tuple[BoundarySpec, EndpointSpec], what: str
) -> None:
    _, spec = made
    api, kind, _, step = OBJECTS[what]
    shown = {one.ref: one.fingerprint for one in rig.driver.snapshot().objects}

    before = strip(rig, spec, what)

    after = {one.ref: one.fingerprint for one in rig.driver.snapshot().objects}
    part = rig.driver.observe(spec.ref).part(step)
    assert shown[spec.ref] != after[spec.ref]
    assert (part.presence, part.have) == (Presence.PRESENT, "")
    assert f"changed by somebody else: {kind} {name_of(before)}" in part.message

    finish(rig, spec)

    found = rig.api.list(api, kind, namespace=spec.boundary.name)
    assert [(uid_of(one), labels(one)) for one in found if name_of(one) == name_of(before)] == [
        (uid_of(before), labels(before))
    ]
    remove(rig, spec)


def test_what_lost_its_labels_goes_with_its_endpoint_all_the_same(
    rig: KubernetesRig, made: tuple[BoundarySpec, EndpointSpec]
) -> None:
    boundary, spec = made
    for what in OBJECTS:
        strip(rig, spec, what)

    remove(rig, spec)

    for api, kind, name, _ in OBJECTS.values():
        assert rig.api.get(api, kind, name(spec), boundary.ref.name) is None
    told = rig.api.get("v1", "ConfigMap", admission.PARAMS, boundary.ref.name)
    assert told is not None
    assert [key for key in told["data"] if key.startswith("unit.")] == []
    assert rig.truth() == []


def test_what_people_call_ours_by_an_annotation_is_theirs_and_stays(
    rig: KubernetesRig, made: tuple[BoundarySpec, EndpointSpec]
) -> None:
    boundary, spec = made
    real = rig.api.get("v1", "Service", spec.ref.name, boundary.ref.name)
    assert real is not None
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "web", "namespace": boundary.ref.name, "annotations": real["metadata"]["annotations"],
        },
        "spec": {"ports": [{"port": 80}]},
    }  # fmt: skip
    made_by_people = rig.api.create(theirs)

    seen = finish(rig, spec)
    remove(rig, spec)

    left = rig.api.get("v1", "Service", "web", boundary.ref.name)
    assert left is not None
    assert uid_of(left) == uid_of(made_by_people)
    assert {part.step for part in seen.parts} == {"serving.secret", "serving.replica[0]", "serving.service"}
