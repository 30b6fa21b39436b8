"""Admission policies: how they are written, and what a namespace's parameters say."""

from __future__ import annotations

from uuid import UUID

from provisioners.kubernetes import admission, rbac

UNIT = UUID("11111111-1111-4111-8111-111111111111")


def test_every_policy_has_its_binding_and_acts_on_tenants_namespaces_only() -> None:
    found = admission.cluster_objects()

    names = {obj["metadata"]["name"] for obj in found}
    assert names == set(admission.VALIDATING) | set(admission.MUTATING) == set(rbac.POLICIES)
    assert len(found) == 2 * len(names)
    for obj in found:
        spec = obj["spec"]
        if obj["kind"].endswith("Binding"):
            assert spec["policyName"] == obj["metadata"]["name"]
            assert spec["matchResources"]["namespaceSelector"]["matchExpressions"] == [
                {"key": "tenantry.internal/tenant", "operator": "Exists"}
            ]
        else:
            assert spec["failurePolicy"] == "Fail"
            bound = next(b for b in found if b["kind"].endswith("Binding") and b["metadata"] == obj["metadata"])
            assert ("paramKind" in spec) == ("paramRef" in bound["spec"])
            assert bound["spec"].get("paramRef", {}).get("parameterNotFoundAction", "Deny") == "Deny"


def test_parameters_hold_registries_as_whole_paths() -> None:
    config = admission.params("tn-bd-1", ["registry.internal", "other/"])

    assert config["data"] == {
        "registries": "other/,registry.internal/",
        "priorityClasses": "",
        "runtimeClasses": "",
    }


def test_a_placement_is_patched_in_read_back_and_patched_out() -> None:
    body = admission.place(UNIT, "node-a", resources=["nvidia.com/mig-1g.10gb"], claims=[])

    assert admission.placement_of(body, UNIT) == ("node-a", ("nvidia.com/mig-1g.10gb",), ())
    assert admission.unplace(UNIT)["data"] == {f"unit.{UNIT}": None}
    assert admission.placement_of(admission.unplace(UNIT), UNIT) is None


def test_what_is_handed_out_to_people_is_patched_in_and_out_per_product() -> None:
    given = admission.hand_out(UNIT, ["b", "a", "a"], resources=["nvidia.com/gpu"], claims=["c"])

    assert given["data"] == {f"free.{UNIT}": "a,b|nvidia.com/gpu|c"}
    assert admission.hand_out(UNIT, ())["data"] == {f"free.{UNIT}": None}
