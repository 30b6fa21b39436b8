"""Objects of one ref, as read → its parts and its boundary. Pure.

A part is present as wanted only if all objects of its step are there, agree on one want, and none has been
changed by somebody else since; otherwise it shows with no want at all, and the plan makes it anew.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from provisioners.driver import Observed, Part, Presence, Ref, Remark, RemarkKind
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import ISOLATING, fight_of, is_different, is_made_anew, removal_handle
from provisioners.kubernetes.boundary import NAMING_ANNOTATION, ClusterFacts
from provisioners.kubernetes.objects import Object, dig, name_of, title
from provisioners.steps import REGISTRY, in_order, order_of, split

CREATE: Final = "namespace.create"
GATEWAY: Final = "namespace.gateway"
STUCK: Final = (
    "NamespaceDeletionDiscoveryFailure",
    "NamespaceDeletionGroupVersionParsingFailure",
    "NamespaceDeletionContentFailure",
    "NamespaceFinalizersRemaining",
)
"""Conditions of a namespace that time alone does not mend."""
_KEEPS_APART: Final[Mapping[str, RemarkKind]] = {
    "Namespace": RemarkKind.RULES,
    "NetworkPolicy": RemarkKind.RULES,
    "Role": RemarkKind.ACCESS,
    "RoleBinding": RemarkKind.ACCESS,
    "ServiceAccount": RemarkKind.ACCESS,
}
"""Kind → what it is when others change it: of these it is about who can reach whom."""
_OF_STEP: Final[Mapping[str, tuple[RemarkKind, str]]] = {
    "namespace.limits": (RemarkKind.CHANGED, "quota and limits"),
    "namespace.policies": (RemarkKind.RULES, "network policies"),
    "namespace.access": (RemarkKind.ACCESS, "role bindings"),
}
"""Step of a boundary that always makes objects → what it is when others delete some, and what those are called."""
_REMAINING: Final = re.compile(r"([a-z0-9.-]+?)\.? has \d+ resource instances")


@dataclass(frozen=True, slots=True)
class Inside:
    """What was read of a namespace of ours."""

    namespace: Object | None
    marked: Sequence[Object] = ()
    """Everything in it with our mark, pods left out; Secrets without their values."""
    remaining: Mapping[str, Sequence[Object]] = field(default_factory=dict)
    """Resource → objects that a namespace on its way out still holds."""


def parts(ref: Ref, found: Iterable[Object], *, now: datetime) -> tuple[Part, ...]:
    """Return one part per step that any of these objects is of, in the order of steps."""
    by_step: dict[str, list[Object]] = defaultdict(list)
    for obj in found:
        step = marks.step_of(obj)
        if _is_step(step):
            by_step[step].append(obj)
    return tuple(part(ref, step, by_step[step], now=now) for step in in_order(by_step))


def part(ref: Ref, step: str, found: Sequence[Object], *, now: datetime) -> Part:
    """Return what the objects of one step (at least one) say of it."""
    staying = [obj for obj in found if not marks.is_deleting(obj)]
    if not staying:
        held = next(iter(finalizers(found)), "")
        message = f"being removed{f': {held}' if held else ''}"
        return Part(step, Presence.CHANGING, handle=removal_handle(ref, step).value, message=message, ready=False)
    changed = [obj for obj in staying if is_different(obj)]
    lost = [obj for obj in changed if obj["kind"] not in ISOLATING and fight_of(obj).is_lost(now)]
    if any(obj not in lost for obj in changed):
        return Part(step, Presence.PRESENT, message=_changed(changed), remarks=_remarks(changed, lost))
    remarks = _remarks(changed, lost)
    wants = {marks.intent_of(obj) for obj in staying}
    sets = {marks.annotations_of(obj).get(marks.SET_ANNOTATION, "") for obj in staying}
    whole = sets == {marks.set_digest(staying)}
    if len(wants) != 1 or (not whole and not lost):
        if len(wants) == len(sets) == 1:  # all of one making: what its steps did not leave so, others did
            remarks = (*remarks, *_missing(step, "some of its {} were deleted, or copied, by somebody else"))
        return Part(step, Presence.PRESENT, message="something of it is missing or left over", remarks=remarks)
    message = "; ".join(_fight(obj) for obj in lost)
    return Part(step, Presence.PRESENT, have=wants.pop(), message=message, remarks=remarks)


def _remarks(changed: Sequence[Object], lost: Sequence[Object]) -> tuple[Remark, ...]:
    """Return what others did to objects: a field that was left to them, or what is set right by the next step."""
    return tuple(
        Remark(RemarkKind.FIELD_FIGHT, _fight(obj), title(obj))
        if obj in lost
        else Remark(_KEEPS_APART.get(obj["kind"], RemarkKind.CHANGED), _changed([obj]), title(obj))
        for obj in changed
    )


def _missing(step: str, text: str) -> tuple[Remark, ...]:
    if step not in _OF_STEP:
        return ()
    kind, words = _OF_STEP[step]
    return (Remark(kind, text.format(words), words),)


def _gaps(found: Sequence[Part]) -> list[Part]:
    """Return the absent parts before one that is there.

    Steps are made one after the other and removed the other way round: nobody but others leaves such a gap.
    """
    there = {one.step for one in found if one.presence is Presence.PRESENT}
    last = max((order_of(step) for step in there), default=None)
    lacking = [step for step in in_order(_OF_STEP) if last is not None and order_of(step) < last]
    named = {one.step for one in found}
    return [
        Part(step, Presence.ABSENT, remarks=_missing(step, "its {} were deleted by somebody else"))
        for step in lacking
        if step not in named
    ]


def _changed(changed: Sequence[Object]) -> str:
    anew = [obj for obj in changed if is_made_anew(obj)]
    if anew:
        return f"{title(anew[0])} was made anew by somebody else; its isolation is restored first"
    return f"changed by somebody else: {', '.join(title(obj) for obj in changed[:3])}"


def _fight(obj: Object) -> str:
    fight = fight_of(obj)
    fields = ", ".join(fight.fields[:3]) or "a field"
    return f"{fight.by} takes {fields} of {title(obj)} back again and again; left to people"


def _is_step(name: str) -> bool:
    try:
        return split(name)[0] in REGISTRY
    except LookupError:
        return False


# --- boundary -------------------------------------------------------------------------------------


def boundary(
    ref: Ref,
    inside: Inside,
    *,
    gateway: Part | None,
    now: datetime,
    facts: ClusterFacts | None = None,
    simulated: bool = False,
) -> Observed:
    """Return a namespace boundary; one that is not there, or not ours, is `exists=False`.

    `gateway` is the part of its gateway, which looks at pods too.
    """
    namespace = inside.namespace
    if namespace is None or not marks.is_ours(namespace, ref):
        return Observed(ref, exists=False, simulated=simulated)
    if marks.is_deleting(namespace):
        blocked = stuck(namespace, inside.remaining)
        leaving = part(ref, CREATE, [namespace], now=now)
        return Observed(ref, exists=True, parts=(leaving,), blocked_by=blocked, simulated=simulated)
    own = [namespace, *(obj for obj in inside.marked if marks.is_ours(obj, ref))]
    found = [_complete(one, own, facts) for one in parts(ref, own, now=now) if one.step != GATEWAY]
    found += [gateway] if gateway is not None else []
    found += _gaps(found)
    return Observed(
        ref,
        exists=True,
        parts=tuple(sorted(found, key=lambda one: order_of(one.step))),
        blocked_by=holds(ref, inside.marked),
        simulated=simulated,
    )


def _complete(one: Part, own: Iterable[Object], facts: ClusterFacts | None) -> Part:
    """Show a quota as different that does not name all GPU resources that the cluster has by now, or names others."""
    if facts is None or one.step != "namespace.limits" or one.presence is not Presence.PRESENT:
        return one
    quotas = [obj for obj in own if obj["kind"] == "ResourceQuota"]
    named = {name for obj in quotas for name in dig(obj, "spec", "hard", default={})}
    lacking = sorted(name for name in facts.gpu_resources if f"requests.{name}" not in named)
    if lacking:
        return replace(one, have="", message=f"the quota does not name {', '.join(lacking[:3])} yet")
    naming = {marks.annotations_of(obj).get(NAMING_ANNOTATION, "").partition(" ")[0] for obj in quotas}
    if naming - {facts.naming}:
        return replace(one, have="", message="the quota names GPUs in another way than nodes do by now")
    return one


def holds(ref: Ref, marked: Iterable[Object]) -> str:
    """Return what of ours stands inside a boundary and would go with it, `""` where nothing does."""
    others = {found.name for obj in marked if (found := marks.ref_of(obj)) is not None and found != ref}
    return f"it still holds {', '.join(sorted(others))}" if others else ""


def stuck(namespace: Object, remaining: Mapping[str, Sequence[Object]]) -> str:
    """Return why a namespace does not go, by object and finalizer, `""` while it is only a matter of time."""
    told = {
        condition["type"]: str(condition.get("message", ""))
        for condition in dig(namespace, "status", "conditions", default=[])
        if condition.get("status") == "True"
    }
    reasons = [name for name in STUCK if name in told]
    if not reasons:
        return ""
    named = [text for found in remaining.values() for text in finalizers(found)]
    return "; ".join(named[:5] or [told[name][:300] for name in reasons])


def remaining_resources(namespace: Object) -> list[str]:
    """Return the resources (`configmaps`, `deployments.apps`) that a namespace on its way out says it still holds."""
    return list(_remaining(namespace))


def _remaining(namespace: Object) -> Iterator[str]:
    for condition in dig(namespace, "status", "conditions", default=[]):
        if condition.get("type") == "NamespaceContentRemaining" and condition.get("status") == "True":
            yield from _REMAINING.findall(str(condition.get("message", "")))


def finalizers(found: Iterable[Object]) -> Iterator[str]:
    """Yield `ConfigMap x is held by example.com/y` for what is on its way out and held by somebody."""
    for obj in found:
        held = [name for name in dig(obj, "metadata", "finalizers", default=[]) if name not in _OF_THE_CLUSTER]
        if marks.is_deleting(obj) and held:
            yield f"{obj.get('kind', 'object')} {name_of(obj)} is held by {', '.join(held)}"


_OF_THE_CLUSTER: Final = frozenset(
    {
        "foregroundDeletion",
        "kubernetes",
        "kubernetes.io/pvc-protection",
        "orphan",
        "resource.kubernetes.io/delete-protection",
        "service.kubernetes.io/load-balancer-cleanup",
    }
)
"""Finalizers of Kubernetes itself, which go by themselves."""
