"""What has a name of ours and is not ours is left as it is and named; on a real kube-apiserver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import pytest

from provisioners.driver import Conflicting, DriverError, Kind, Power, Ref
from provisioners.kubernetes import admission
from provisioners.kubernetes.boundary import NAMING_ANNOTATION, ClusterFacts
from provisioners.kubernetes.objects import MANAGED_BY_LABEL, Object, uid_of
from tests.kubernetes import samples
from tests.kubernetes.ground import Ground, eventually

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver]
BINDING = ("ValidatingAdmissionPolicyBinding", "tenantry-templates")


@contextmanager
def replaced(g: Ground, api: str, kind: str, name: str, namespace: str, body: Object) -> Iterator[Object]:
    """Have somebody else's object under a name of ours, and ours again afterwards."""
    ours = g.admin.get(api, kind, name, namespace)
    assert ours is not None
    g.admin.delete(api, kind, name, namespace, uid=uid_of(ours))
    eventually(lambda: g.admin.get(api, kind, name, namespace) is None, what="it is gone")
    place = {"namespace": namespace} if namespace else {}
    theirs = g.admin.create({"apiVersion": api, "kind": kind, "metadata": {"name": name, **place}, **body})
    with ExitStack() as stack:
        kept = {key: ours["metadata"][key] for key in ("labels", "annotations") if key in ours["metadata"]}
        rest = {key: value for key, value in ours.items() if key not in {"metadata", "status"}}
        stack.callback(g.admin.create, {**rest, "metadata": {"name": name, **place, **kept}})
        stack.callback(eventually, lambda: g.admin.get(api, kind, name, namespace) is None, what="theirs is gone")
        stack.callback(g.admin.delete, api, kind, name, namespace, uid=uid_of(theirs))
        yield theirs


def test_a_policy_of_somebody_else_under_a_name_of_ours_stays_theirs_and_is_said(ground: Ground) -> None:
    spec = {"policyName": "tenantry-templates", "validationActions": ["Audit"]}
    with replaced(ground, admission.API, *BINDING, "", {"spec": spec}) as theirs:
        shown = ground.driver.snapshot()
        left = ground.admin.get(admission.API, *BINDING)
        with pytest.raises(Conflicting, match="ValidatingAdmissionPolicyBinding tenantry-templates is there and is"):
            ground.driver._namespaces._make_policies()  # what a namespace that is to be made begins with

    assert left == theirs
    assert shown.capabilities.missing["admission"].startswith("Cannot be kept up: ValidatingAdmissionPolicyBinding ten")
    assert "admission" not in ground.driver.snapshot().capabilities.missing


def test_a_policy_of_ours_that_lost_its_labels_is_put_back_with_them(ground: Ground) -> None:
    ground.driver.snapshot()
    ground.admin.patch(
        admission.API, *BINDING, "", {"metadata": {"labels": None}, "spec": {"validationActions": ["Warn"]}}
    )

    shown = ground.driver.snapshot()

    left = ground.admin.get(admission.API, *BINDING)
    assert left is not None
    assert set(left["spec"]["validationActions"]) == {"Deny", "Audit"}
    assert left["metadata"]["labels"][MANAGED_BY_LABEL] == "tenantry"
    assert "ValidatingAdmissionPolicyBinding tenantry-templates" in [one.name for one in shown.restored or ()]


def test_placements_are_written_into_our_own_parameters_only(ground: Ground) -> None:
    mine = ground.mine
    unit = samples.unit(uid=uuid4())
    endpoint = samples.endpoint(unit, ref=Ref(Kind.ENDPOINT, uuid4(), mine.ref.tenant_uid), boundary=mine.ref)
    off = next(one for one in ground.driver.steps(samples.replace(endpoint, power=Power.OFF)) if "replica" in one.name)
    (handed,) = ground.driver.steps(mine.handed_out())
    theirs: Any = {"data": {"registries": "/"}}

    with replaced(ground, "v1", "ConfigMap", admission.PARAMS, mine.namespace, theirs) as made:
        for step in (off, handed, handed.undoing()):
            with pytest.raises(Conflicting, match=f"{admission.PARAMS} in {mine.namespace} is there and is not ours"):
                ground.driver.start(step)
        left = ground.admin.get("v1", "ConfigMap", admission.PARAMS, mine.namespace)

    assert left == made
    ground.let_in(mine)


def test_placements_are_not_written_into_parameters_made_anew_meanwhile(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = ground.driver.cluster
    read = cluster.get("v1", "ConfigMap", admission.PARAMS, ground.mine.namespace)
    assert read is not None
    stale = {**read, "metadata": {**read["metadata"], "uid": str(uuid4())}}
    monkeypatch.setattr(cluster, "get", lambda *_: stale)

    with pytest.raises(DriverError):
        ground.driver._ground.tell(ground.mine.namespace, ground.mine.ref.tenant_uid, admission.place(uuid4(), "n1"))

    monkeypatch.undo()
    assert cluster.get("v1", "ConfigMap", admission.PARAMS, ground.mine.namespace) == read


def test_a_quota_follows_the_names_by_which_nodes_hand_gpus_out(ground: Ground) -> None:
    mine = ground.mine
    limits = next(one for one in ground.driver.steps(mine.spec()) if one.name == "namespace.limits")

    def after(facts: ClusterFacts) -> tuple[bool, Object]:
        ground.driver._ground.remember("facts", facts)
        seen = ground.driver.observe(mine.ref).part("namespace.limits").have == limits.want
        ground.driver.start(limits)
        assert ground.driver.observe(mine.ref).part("namespace.limits").have == limits.want
        live = ground.admin.get("v1", "ResourceQuota", "tenantry", mine.namespace)
        assert live is not None
        return seen, live

    try:
        after(ClusterFacts())
        same, own = after(ClusterFacts())
        still, single = after(ClusterFacts(single=True))
        known, new = after(ClusterFacts(frozenset({"vendor.example/npu"})))
    finally:
        ground.driver._ground.remember("facts", ground.driver._ground.facts_of(ground.admin.list("v1", "Node").items))
        ground.driver.start(limits)

    assert (same, still, known) == (True, False, False)
    assert [one["spec"]["hard"]["requests.nvidia.com/gpu"] for one in (own, single, new)] == ["2", "4", "2"]
    assert new["spec"]["hard"]["requests.vendor.example/npu"] == "0"
    assert single["metadata"]["annotations"][NAMING_ANNOTATION].startswith("single ")


def test_a_policy_that_is_new_with_a_version_is_made_without_a_word_and_one_taken_away_is_told(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = admission.cluster_objects()
    before = tuple(one for one in every if one["metadata"]["name"] != BINDING[1])
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")

    def take_away() -> None:
        for kind in kinds:
            live = ground.admin.get(admission.API, kind, BINDING[1])
            assert live is not None
            ground.admin.delete(admission.API, kind, BINDING[1], uid=uid_of(live))
            eventually(lambda kind=kind: ground.admin.get(admission.API, kind, BINDING[1]) is None, what="it is gone")

    def told() -> set[str]:
        return {one.name for one in ground.driver.snapshot().restored or () if BINDING[1] in one.name}

    ground.driver.snapshot()
    with monkeypatch.context() as older:
        older.setattr(admission, "cluster_objects", lambda: before)
        take_away()
        ground.driver.snapshot()  # an older version of ours, which knows nothing of it
    new = told()
    take_away()
    gone = told()

    assert (new, gone) == (set(), {f"{kind} {BINDING[1]}" for kind in kinds})
