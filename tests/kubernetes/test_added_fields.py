"""What others put beside our fields, and whose an object is when its mark was changed: read from managed fields."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from provisioners.driver import Kind, Ref
from provisioners.kubernetes import objects as marks

REF = Ref(Kind.BOUNDARY, UUID(int=1), UUID(int=2))
STRANGER = str(UUID(int=9))


def entry(manager: str, fields: dict[str, Any], operation: str = "Update", **more: Any) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "fieldsV1": fields, **more}


def policy(*entries: dict[str, Any], kind: str = "NetworkPolicy") -> dict[str, Any]:
    ours = entry("tenantry", {"f:spec": {"f:podSelector": {}, "f:policyTypes": {}}}, "Apply")
    return {"kind": kind, "metadata": {"name": "x", "managedFields": [ours, *entries]}}


def test_an_allow_added_to_a_policy_is_found_and_the_patch_takes_it_away() -> None:
    obj = policy(entry("kubectl-edit", {"f:spec": {"f:ingress": {}, "f:podSelector": {}}}))

    added = marks.added_fields(obj)

    assert added == (("spec", "ingress"),)
    assert marks.without(added) == {"spec": {"ingress": None}}
    assert marks.has_drifted(obj)


def test_what_others_add_to_status_labels_or_objects_that_isolate_nothing_is_theirs() -> None:
    in_status = policy(entry("controller", {"f:spec": {"f:ingress": {}}}, subresource="status"))
    in_labels = policy(entry("kubectl-edit", {"f:metadata": {"f:labels": {"f:team": {}}}}))
    in_deployment = policy(entry("kubectl-edit", {"f:spec": {"f:paused": {}}}), kind="Deployment")

    assert marks.added_fields(in_status) == ()
    assert marks.added_fields(in_labels) == ()
    assert marks.added_fields(in_deployment) == ()


def test_what_we_patch_in_ourselves_is_ours() -> None:
    ours = entry("tenantry", {"f:data": {"f:registries": {}}}, "Apply")
    placed = entry("tenantry", {"f:data": {"f:unit.1": {}}})
    theirs = entry("kubectl-edit", {"f:data": {"f:unit.1": {}, "f:unit.2": {}}})
    obj = {"kind": "ConfigMap", "metadata": {"name": "x", "managedFields": [ours, placed, theirs]}}

    assert marks.added_fields(obj) == (("data", "unit.2"),)


def marked(labels: dict[str, str], owner: str) -> dict[str, Any]:
    made = marks.marked({"kind": "Namespace", "metadata": {"name": REF.name}}, REF, step="namespace.create", want="w")
    made["metadata"]["labels"] |= labels
    fields: dict[str, Any] = {"f:metadata": {"f:labels": {f"f:{name}": {} for name in marks.mark(REF)}}}
    made["metadata"]["managedFields"] = [entry(owner, fields, "Apply")]
    return made


def test_labels_of_our_mark_count_only_while_they_are_ours() -> None:
    another = Ref(Kind.BOUNDARY, REF.uid, UUID(STRANGER))

    changed_by_others = marked({marks.TENANT_LABEL: STRANGER}, "kubectl-edit")
    note_changed_by_others = marked({marks.TENANT_LABEL: STRANGER}, "tenantry")

    assert marks.ref_of(changed_by_others) == REF
    assert marks.ref_of(note_changed_by_others) == another
