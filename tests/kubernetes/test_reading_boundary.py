"""What was read of a namespace → parts: whole, changed, fought over, on its way out, stuck."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from provisioners.driver import Kind, Observed, Part, Presence, Ref, RemarkKind
from provisioners.kubernetes import reading
from provisioners.kubernetes.applying import Fight
from provisioners.kubernetes.boundary import NAMING_ANNOTATION, ClusterFacts
from provisioners.kubernetes.objects import (
    FIELDS_ANNOTATION,
    RESTORED_ANNOTATION,
    SELF_ANNOTATION,
    Object,
    fields_digest,
    marked_set,
)

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
REF = Ref(Kind.BOUNDARY, UUID(int=1), UUID(int=2))
OTHER = Ref(Kind.ENDPOINT, UUID(int=7), UUID(int=2))


def live(obj: Object, uid: str = "u-1") -> Object:
    """Return an applied object as the server would show it: our fields owned, their digest noted."""
    made = copy.deepcopy(obj)
    owned: dict[str, Any] = {"f:metadata": {"f:labels": {f"f:{name}": {} for name in made["metadata"]["labels"]}}}
    owned |= {f"f:{name}": {} for name in made if name not in {"apiVersion", "kind", "metadata"}}
    made["metadata"] |= {
        "uid": uid,
        "managedFields": [{"manager": "tenantry", "operation": "Apply", "fieldsV1": owned}],
    }
    made["metadata"]["annotations"][FIELDS_ANNOTATION] = fields_digest(made)
    if made["kind"] == "Namespace":
        made["metadata"]["annotations"][SELF_ANNOTATION] = uid
    return made


def of_step(step: str, *kinds: str, want: str = "w", ref: Ref = REF) -> list[Object]:
    plain = [{"apiVersion": "v1", "kind": kind, "metadata": {"name": kind.lower()}, "spec": {}} for kind in kinds]
    return [live(obj) for obj in marked_set(plain, ref, step=step, want=want)]


def namespace() -> Object:
    (made,) = of_step("namespace.create", "Namespace")
    return made


def taken_by(obj: Object, manager: str, field: str) -> None:
    """Let another manager change a field of ours: it owns it now, we do no more."""
    own = obj["metadata"]["managedFields"][0]
    del own["fieldsV1"][f"f:{field}"]
    obj["metadata"]["managedFields"].append(
        {"manager": manager, "operation": "Update", "time": "2026-11-21T11:59:00Z", "fieldsV1": {f"f:{field}": {}}}
    )


def only(found: tuple[Part, ...], step: str) -> Part:
    return next(part for part in found if part.step == step)


def test_a_step_whose_objects_agree_is_as_wanted() -> None:
    found = reading.parts(REF, of_step("namespace.limits", "ResourceQuota", "LimitRange"), now=NOW)

    assert found == (Part("namespace.limits", Presence.PRESENT, have="w"),)


def test_an_object_that_is_missing_or_left_over_makes_the_part_different() -> None:
    whole = of_step("namespace.limits", "ResourceQuota", "LimitRange")
    older = of_step("namespace.limits", "ConfigMap", want="older")

    assert only(reading.parts(REF, whole[:1], now=NOW), "namespace.limits").have == ""
    assert only(reading.parts(REF, [*whole, *older], now=NOW), "namespace.limits").have == ""


def test_a_field_that_somebody_changed_makes_the_part_different_and_says_whose_object() -> None:
    whole = of_step("namespace.limits", "ResourceQuota", "LimitRange")
    taken_by(whole[0], "kubectl-edit", "spec")

    part = only(reading.parts(REF, whole, now=NOW), "namespace.limits")

    assert (part.presence, part.have) == (Presence.PRESENT, "")
    assert "ResourceQuota resourcequota" in part.message


def test_a_lost_fight_is_left_to_people_unless_the_object_isolates() -> None:
    times = tuple(NOW - timedelta(minutes=minute) for minute in (8, 5, 2))
    text = Fight(times, "argocd", ("spec.replicas",)).text()
    workload, policy = of_step("serving.service", "Service"), of_step("namespace.policies", "NetworkPolicy")
    for found in (workload, policy):
        taken_by(found[0], "argocd", "spec")
        found[0]["metadata"]["annotations"][RESTORED_ANNOTATION] = text

    left = only(reading.parts(REF, workload, now=NOW), "serving.service")
    restored = only(reading.parts(REF, policy, now=NOW), "namespace.policies")
    later = only(reading.parts(REF, workload, now=NOW + timedelta(minutes=9)), "serving.service")

    assert left.have == "w"
    assert "argocd takes spec.replicas of Service service back" in left.message
    assert [(one.kind, one.subject) for one in left.remarks] == [(RemarkKind.FIELD_FIGHT, "Service service")]
    assert [one.kind for one in restored.remarks] == [RemarkKind.RULES]
    assert (restored.have, later.have) == ("", "")


def test_a_fight_counts_three_times_in_ten_minutes() -> None:
    fight = Fight()
    for minute in range(3):
        assert not fight.is_lost(NOW + timedelta(minutes=minute))
        fight = fight.again(NOW + timedelta(minutes=minute), "argocd", ["spec.replicas"])

    assert fight.is_lost(NOW + timedelta(minutes=4))
    assert not fight.is_lost(NOW + timedelta(minutes=11))


def test_a_namespace_made_anew_under_its_name_is_different_and_says_so() -> None:
    made = namespace()
    made["metadata"]["uid"] = "u-2"

    seen = reading.boundary(REF, reading.Inside(made), gateway=None, now=NOW)

    assert seen.exists
    assert seen.part("namespace.create").have == ""
    assert "made anew" in seen.part("namespace.create").message


def test_what_is_not_ours_does_not_exist_for_us() -> None:
    stranger = Ref(Kind.BOUNDARY, REF.uid, UUID(int=9))
    foreign = {"kind": "Namespace", "metadata": {"name": REF.name, "labels": {}}}

    assert not reading.boundary(stranger, reading.Inside(namespace()), gateway=None, now=NOW).exists
    assert not reading.boundary(REF, reading.Inside(foreign), gateway=None, now=NOW).exists
    assert not reading.boundary(REF, reading.Inside(None), gateway=None, now=NOW).exists


def test_a_boundary_names_what_it_still_holds() -> None:
    inside = reading.Inside(namespace(), of_step("serving.secret", "Secret", ref=OTHER))

    assert OTHER.name in reading.boundary(REF, inside, gateway=None, now=NOW).blocked_by


def test_a_quota_that_does_not_name_a_new_resource_is_different() -> None:
    limits = of_step("namespace.limits", "ResourceQuota", "LimitRange")
    limits[0]["spec"]["hard"] = {"requests.nvidia.com/gpu": "0"}
    inside = reading.Inside(namespace(), limits)

    limits[0]["metadata"]["annotations"][NAMING_ANNOTATION] = "own 0123456789abcdef"

    def seen(*names: str, single: bool = False) -> Observed:
        facts = ClusterFacts(frozenset(names), single=single)
        return reading.boundary(REF, inside, gateway=None, now=NOW, facts=facts)

    known, newer = seen("nvidia.com/gpu"), seen("nvidia.com/gpu", "amd.com/gpu")
    other = seen("nvidia.com/gpu", single=True)

    assert known.part("namespace.limits").have == "w"
    assert newer.part("namespace.limits").have == ""
    assert "amd.com/gpu" in newer.part("namespace.limits").message
    assert other.part("namespace.limits").have == ""
    assert "in another way" in other.part("namespace.limits").message


def test_a_namespace_on_its_way_out_is_changing_and_only_stuck_when_it_says_so() -> None:
    leaving = namespace()
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T11:59:00Z"
    going = reading.boundary(REF, reading.Inside(leaving), gateway=None, now=NOW)
    leaving["status"] = {
        "conditions": [
            {
                "type": "NamespaceContentRemaining",
                "status": "True",
                "message": "Some resources are remaining: configmaps. has 1 resource instances, deployments.apps has "
                "2 resource instances",
            },
            {"type": "NamespaceFinalizersRemaining", "status": "True", "message": "example.com/x in 1 instances"},
        ]
    }
    held = {
        "kind": "ConfigMap",
        "metadata": {"name": "theirs", "deletionTimestamp": "x", "finalizers": ["example.com/x"]},
    }

    stuck = reading.boundary(REF, reading.Inside(leaving, remaining={"configmaps": [held]}), gateway=None, now=NOW)

    assert (going.part("namespace.create").presence, going.blocked_by) == (Presence.CHANGING, "")
    assert going.part("namespace.create").handle == f"removal boundary/{REF.uid}/{REF.tenant_uid} namespace.create"
    assert reading.remaining_resources(leaving) == ["configmaps", "deployments.apps"]
    assert stuck.blocked_by == "ConfigMap theirs is held by example.com/x"


def whole_boundary() -> list[Object]:
    """Return what stands in a namespace of ours, one object per kind."""
    return [
        *of_step("namespace.limits", "ResourceQuota", "LimitRange"),
        *of_step("namespace.policies", "NetworkPolicy"),
        *of_step("namespace.access", "RoleBinding"),
    ]


def seen(marked: list[Object], facts: ClusterFacts | None = None) -> Observed:
    inside = reading.Inside(namespace(), [one for one in marked if one["kind"] != "Namespace"])
    return reading.boundary(REF, inside, gateway=None, now=NOW, facts=facts)


def told(observed: Observed) -> list[tuple[str, str, str]]:
    return [(part.step, str(one.kind), one.text) for part in observed.parts for one in part.remarks]


def test_a_whole_boundary_has_no_remarks_and_neither_has_one_that_is_being_made() -> None:
    assert told(seen(whole_boundary())) == []
    assert told(seen(whole_boundary()[:2])) == []
    assert told(seen([])) == []


def test_network_policies_that_somebody_deleted_are_remarked_on() -> None:
    left = [one for one in whole_boundary() if one["kind"] != "NetworkPolicy"]

    found = seen(left)

    assert told(found) == [
        ("namespace.policies", "isolation-changed", "its network policies were deleted by somebody else")
    ]
    assert found.part("namespace.policies").presence is Presence.ABSENT
    assert [part.step for part in found.parts] == [
        "namespace.create", "namespace.limits", "namespace.policies", "namespace.access",
    ]  # fmt: skip


def test_one_policy_of_several_that_somebody_deleted_is_remarked_on() -> None:
    plain = [{"apiVersion": "v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": {}} for name in "ab"]
    two = [live(obj) for obj in marked_set(plain, REF, step="namespace.policies", want="w")]
    half_changed = [two[0], *of_step("namespace.policies", "NetworkPolicy", want="older")]

    assert [(one.kind, one.text) for one in seen(two[:1]).part("namespace.policies").remarks] == [
        (RemarkKind.RULES, "some of its network policies were deleted, or copied, by somebody else")
    ]
    assert seen(two).part("namespace.policies").remarks == ()
    assert seen(half_changed).part("namespace.policies").remarks == ()  # a change of ours on its way


def test_a_limit_that_somebody_took_out_of_the_quota_is_remarked_on() -> None:
    facts = ClusterFacts(gpu_resources=frozenset({"nvidia.com/gpu"}))
    found = whole_boundary()
    taken_by(found[0], "kubectl-edit", "spec")

    part = seen(found, facts).part("namespace.limits")

    assert (part.have, part.message) == ("", "the quota does not name nvidia.com/gpu yet")
    assert [(one.kind, one.subject) for one in part.remarks] == [(RemarkKind.CHANGED, "ResourceQuota resourcequota")]
