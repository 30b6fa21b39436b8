"""Objects of a cluster as plain dicts: our mark on them, what it says, and small ways to read them. Pure.

Our mark is a set of labels that name our row, its tenant and the step that made the object, repeated in one
annotation so that an object whose labels somebody took away is still known as ours. What has another row's
mark, or none, is never adopted, changed or deleted.

Invariants: names derive from ids, never from slugs; every object of a step carries the step's want and the
names of all objects of that step, so a part that lost one of its objects is seen as different.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from provisioners.driver import FIELD_MANAGER, MARK_DOMAIN, Kind, Ref

Object = dict[str, Any]

UID_LABEL: Final = f"{MARK_DOMAIN}/uid"
TENANT_LABEL: Final = f"{MARK_DOMAIN}/tenant"
KIND_LABEL: Final = f"{MARK_DOMAIN}/kind"
STEP_LABEL: Final = f"{MARK_DOMAIN}/step"
UNIT_LABEL: Final = f"{MARK_DOMAIN}/unit"
COMPONENT_LABEL: Final = f"{MARK_DOMAIN}/component"
"""What a pod is to the network policies: `gateway` or `replica`."""
CUT_OFF_LABEL: Final = f"{MARK_DOMAIN}/cut-off"
"""On a pod that no connection may reach for the time being; its memory stays."""
MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
OUR_NAMES: Final = "tn-"
"""What the names of our objects in a tenant's namespace begin with: admission keeps people from making such ones."""

INTENT_ANNOTATION: Final = f"{MARK_DOMAIN}/intent"
"""The step's want."""
SET_ANNOTATION: Final = f"{MARK_DOMAIN}/set"
"""Stands for the names of all objects of the step."""
MARK_ANNOTATION: Final = f"{MARK_DOMAIN}/mark"
"""The labels of the mark once more: `<kind>/<uid>/<tenant>/<step>`; older ones end before the step."""
FIELDS_ANNOTATION: Final = f"{MARK_DOMAIN}/fields"
"""Digest of the set of fields that were ours when the object was applied."""
RESTORED_ANNOTATION: Final = f"{MARK_DOMAIN}/restored"
"""When fields that others had taken were taken back, the last few instants (RFC 3339, comma-separated)."""
SELF_ANNOTATION: Final = f"{MARK_DOMAIN}/self"
"""The cluster's own uid of the object when we made it: one that was made anew under its name shows."""

_INDEXED: Final = re.compile(r"^(?P<bare>[a-z]+\.[a-z]+)\.(?P<index>\d+)$")
_STEP: Final = re.compile(r"^(?P<bare>[a-z]+\.[a-z]+)\[(?P<index>\d+)\]$")


def step_label(step: str) -> str:
    """Return a step's name as a label's value: `serving.replica[0]` → `serving.replica.0`."""
    match = _STEP.match(step)
    return step if match is None else f"{match['bare']}.{match['index']}"


def step_of(obj: Object) -> str:
    """Return the step that made an object, by its label, else its annotation; `""` where neither says."""
    label = labels(obj).get(STEP_LABEL, "") or _note(obj)[3]
    match = _INDEXED.match(label)
    return label if match is None else f"{match['bare']}[{match['index']}]"


def marked(obj: Object, ref: Ref, *, step: str, want: str) -> Object:
    """Return `obj` with our mark; its own labels and annotations stay."""
    made = copy.deepcopy(obj)
    metadata = made.setdefault("metadata", {})
    metadata["labels"] = {**metadata.get("labels", {}), **mark(ref), STEP_LABEL: step_label(step)}
    metadata["annotations"] = {
        **metadata.get("annotations", {}),
        INTENT_ANNOTATION: want,
        MARK_ANNOTATION: f"{ref.kind}/{ref.uid}/{ref.tenant_uid}/{step_label(step)}",
    }
    return made


def marked_set(objects: Iterable[Object], ref: Ref, *, step: str, want: str) -> tuple[Object, ...]:
    """Return all objects of one step with our mark, each knowing the whole set."""
    found = [marked(obj, ref, step=step, want=want) for obj in objects]
    digest = set_digest(found)
    for obj in found:
        obj["metadata"]["annotations"][SET_ANNOTATION] = digest
    return tuple(found)


def mark(ref: Ref) -> dict[str, str]:
    """Return the labels of our mark without the step's; for pod templates too."""
    return {
        UID_LABEL: str(ref.uid),
        TENANT_LABEL: str(ref.tenant_uid),
        KIND_LABEL: str(ref.kind),
        MANAGED_BY_LABEL: FIELD_MANAGER,
    }


def selector(ref: Ref) -> str:
    """Return the label selector of everything that a ref made."""
    return f"{UID_LABEL}={ref.uid},{TENANT_LABEL}={ref.tenant_uid},{KIND_LABEL}={ref.kind}"


EVERYTHING: Final = f"{UID_LABEL}"
"""The label selector of everything with our mark."""


def _note(obj: Object) -> tuple[str, str, str, str]:
    """Return (kind, uid, tenant, step label) of the mark's annotation, each "" where it does not say."""
    kind, uid, tenant, step = (*annotations_of(obj).get(MARK_ANNOTATION, "").split("/", 3), "", "", "", "")[:4]
    return kind, uid, tenant, step


def ref_of(obj: Object) -> Ref | None:
    """Return whose an object is by its mark (labels, else the annotation), None where it has none that is whole.

    Where the two disagree, somebody has changed one of them: the labels count while they are still ours.
    """
    found = labels(obj)
    by_labels = _ref(found.get(KIND_LABEL, ""), found.get(UID_LABEL, ""), found.get(TENANT_LABEL, ""))
    by_note = _ref(*_note(obj)[:3])
    if by_labels is None or by_note is None or by_labels == by_note:
        return by_labels or by_note
    ours = {f"/f:metadata/f:labels/f:{name}" for name in (KIND_LABEL, UID_LABEL, TENANT_LABEL)} <= owned_fields(obj)
    return by_labels if ours else by_note


def _ref(kind: str, uid: str, tenant: str) -> Ref | None:
    try:
        return Ref(Kind(kind), UUID(uid), UUID(tenant))
    except ValueError:
        return None


def is_ours(obj: Object, ref: Ref) -> bool:
    """Whether an object carries the mark of exactly this ref."""
    return ref_of(obj) == ref


def is_made_by_us(obj: Object) -> bool:
    """Whether an object in a tenant's namespace is one that we made: by a label, or by a name that only we may give.

    Labels of ours are kept from people by admission; an annotation alone would prove nothing, anybody can write it.
    """
    return ref_of(obj) is not None and (UID_LABEL in labels(obj) or name_of(obj).startswith(OUR_NAMES))


def set_digest(objects: Iterable[Object]) -> str:
    """Return what stands for the kinds and names of a set of objects; Secrets come and go with what they deliver."""
    return _digest(sorted(f"{obj['kind']}/{name_of(obj)}" for obj in objects if obj["kind"] != "Secret"))


# --- reading --------------------------------------------------------------------------------------


def labels(obj: Object) -> Mapping[str, str]:
    """Return an object's labels."""
    found: Mapping[str, str] = obj.get("metadata", {}).get("labels") or {}
    return found


def annotations_of(obj: Object) -> Mapping[str, str]:
    """Return an object's annotations."""
    found: Mapping[str, str] = obj.get("metadata", {}).get("annotations") or {}
    return found


def name_of(obj: Object) -> str:
    """Return an object's name."""
    return str(obj.get("metadata", {}).get("name", ""))


def namespace_of(obj: Object) -> str:
    """Return an object's namespace, `""` for one of the cluster."""
    return str(obj.get("metadata", {}).get("namespace") or "")


def uid_of(obj: Object) -> str:
    """Return the cluster's own id of an object."""
    return str(obj.get("metadata", {}).get("uid", ""))


def intent_of(obj: Object) -> str:
    """Return the want that an object was applied for."""
    return annotations_of(obj).get(INTENT_ANNOTATION, "")


def is_deleting(obj: Object) -> bool:
    """Whether somebody has asked for an object's end."""
    return bool(obj.get("metadata", {}).get("deletionTimestamp"))


def dig(obj: Any, *path: str | int, default: Any = None) -> Any:
    """Return what lies at a path of keys and positions, `default` where any of it is missing or null."""
    at: Any = obj
    for key in path:
        if isinstance(key, int):
            if not isinstance(at, list) or len(at) <= key:
                return default
            at = at[key]
        else:
            if not isinstance(at, dict):
                return default
            at = at.get(key)
        if at is None:
            return default
    return at


def title(obj: Object) -> str:
    """Return how an object is called in texts for people: `Deployment tn-ep-…-0`."""
    return f"{obj.get('kind', 'object')} {name_of(obj)}"


# --- fields of ours -------------------------------------------------------------------------------


def owned_fields(obj: Object) -> frozenset[str]:
    """Return the paths of the fields that our applies own, as the server keeps them.

    A field whose value another manager changed or took away is no longer among them: that is how drift shows.
    """
    found: set[str] = set()
    for entry in obj.get("metadata", {}).get("managedFields") or []:
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource"):
            found.update(_leaves(entry.get("fieldsV1") or {}, ""))
    return frozenset(found)


GUARDED: Final[Mapping[str, str]] = {
    "NetworkPolicy": "spec",
    "ResourceQuota": "spec",
    "LimitRange": "spec",
    "RoleBinding": "subjects",
    "ConfigMap": "data",
    "ValidatingAdmissionPolicy": "spec",
    "ValidatingAdmissionPolicyBinding": "spec",
    "MutatingAdmissionPolicy": "spec",
    "MutatingAdmissionPolicyBinding": "spec",
}
"""Isolating kinds, and the field below which nobody but us may add anything: one more allow would open them."""


def added_fields(obj: Object) -> tuple[tuple[str, ...], ...]:
    """Return the paths of what others put beside our own fields where only ours may be, each as short as possible.

    Further entries of lists that are ours are left out: such lists are ours whole, or entries do not weaken each other.
    """
    root = GUARDED.get(str(obj.get("kind")))
    if root is None:
        return ()
    entries = [one for one in obj.get("metadata", {}).get("managedFields") or [] if not one.get("subresource")]
    ours: dict[str, Any] = {}
    for entry in entries:
        if entry.get("manager") == FIELD_MANAGER:
            _merge(ours, dig(entry, "fieldsV1", f"f:{root}", default={}))
    found: set[tuple[str, ...]] = set()
    for entry in entries:
        if entry.get("manager") != FIELD_MANAGER:
            found.update(_beside(dig(entry, "fieldsV1", f"f:{root}", default={}), ours, (root,)))
    return tuple(sorted(found))


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, below in more.items():
        _merge(into.setdefault(key, {}), below)


def _beside(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key, below in theirs.items():
        if not key.startswith("f:"):
            continue
        if key not in ours:
            yield (*path, key.removeprefix("f:"))
        else:
            yield from _beside(below, ours[key], (*path, key.removeprefix("f:")))


def without(paths: Iterable[tuple[str, ...]]) -> Object:
    """Return the merge patch that takes fields away."""
    patch: Object = {}
    for path in paths:
        at = patch
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = None
    return patch


def paths_of(entry: Mapping[str, Any]) -> frozenset[str]:
    """Return the paths of one entry of managed fields."""
    return frozenset(_leaves(entry.get("fieldsV1") or {}, ""))


def _leaves(fields: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, below in fields.items():
        if key == ".":
            yield f"{path}/."
        elif below:
            yield from _leaves(below, f"{path}/{key}")
        else:
            yield f"{path}/{key}"


_BOOKKEEPING: Final = tuple(
    f"/f:metadata/f:annotations/f:{name}" for name in (FIELDS_ANNOTATION, RESTORED_ANNOTATION, SELF_ANNOTATION)
)


def fields_digest(obj: Object) -> str:
    """Return what stands for the set of our fields on an object that was read or applied."""
    return _digest(sorted(owned_fields(obj) - set(_BOOKKEEPING)))


def has_drifted(obj: Object) -> bool:
    """Whether somebody else has changed or taken a field that we applied, or added one where only ours may be."""
    return annotations_of(obj).get(FIELDS_ANNOTATION) != fields_digest(obj) or bool(added_fields(obj))


def fingerprint(objects: Iterable[Object], beside: Iterable[str] = ()) -> str:
    """Return what changes whenever anything that a pass cares for changes about the objects of one ref.

    `beside`: what is kept for them on objects of others.
    """
    seen = sorted(
        [
            obj.get("kind", ""),
            namespace_of(obj),
            name_of(obj),
            uid_of(obj),
            obj.get("metadata", {}).get("generation", 0),
            intent_of(obj),
            is_deleting(obj),
            fields_digest(obj),
            added_fields(obj),
            json.dumps(_vital(obj), sort_keys=True),
        ]
        for obj in objects
    )
    return _digest([*seen, *sorted(beside)])


_VITAL: Final = (
    "phase", "powerState", "readyReplicas", "unavailableReplicas", "observedGeneration", "hard", "allocation",
)  # fmt: skip


def _vital(obj: Object) -> Any:
    """Return of an object's status what readiness hangs on."""
    status = obj.get("status") or {}
    conditions = [
        [condition.get("type"), condition.get("status"), condition.get("reason")]
        for condition in status.get("conditions") or []
    ]
    numbers = {name: status[name] for name in _VITAL if name in status}
    return [numbers, sorted(conditions, key=str)]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
