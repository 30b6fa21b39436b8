"""Makes a step's objects true on a cluster and takes them away again, touching nothing that is not ours.

Everything is looked at before it is touched. An object that carries another mark, or none, is a conflict. One
whose recorded intent and fields are as wanted gets no call; one that differs is dry-run first, which tells the
set of fields that will be ours, and then applied with the uid that was looked at.

A field that others take back again and again is left to people (three times in ten minutes), except on objects
that isolate: those are always restored.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from provisioners.driver import Conflicting, Done, DriverRejected, Handle, Poll, Ref, Step, TransientDriverError
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.objects import Object, name_of, namespace_of, title, uid_of

FIGHT_WINDOW: Final = timedelta(minutes=10)
FIGHT_ROUNDS: Final = 3
ISOLATING: Final = frozenset(
    {"Namespace", "NetworkPolicy", "ResourceQuota", "LimitRange", "Role", "RoleBinding", "ServiceAccount", "ConfigMap"}
)
"""Kinds that are restored however often somebody changes them."""
MADE_ANEW: Final = frozenset(
    {"Service", "RoleBinding", "ConfigMap", "PodDisruptionBudget", "PodMonitor", "HTTPRoute", "Certificate"}
)
"""Kinds that may be removed and made again where an apply cannot restore them: nothing is lost with them."""
ONE_VALUE: Final = frozenset({"subjects", "command", "args", "value", "secretKeyRef"})
"""Fields of the kinds that we make which an apply owns whole, whatever is in them: who is bound, argv, variables."""
MADE_BY_THE_CLUSTER: Final = frozenset({("ServiceAccount", "default")})
"""What a namespace of ours gets by itself: the only objects that we change without having made them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KindRef:
    """One kind of object that steps make."""

    api: str
    kind: str


_POD: Final = KindRef("v1", "Pod")


class Applier:
    """Applies and removes the objects of steps on one cluster. Thread-safe."""

    def __init__(self, cluster: Cluster, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Work on `cluster`."""
        self._cluster = cluster
        self._now = now
        self._digests: dict[str, str] = {}
        self._lock = threading.Lock()

    # --- making -----------------------------------------------------------------------------------

    def make(
        self,
        step: Step,
        wanted: Iterable[Object],
        *,
        prune: Sequence[KindRef] = (),
        namespace: str = "",
        keep: Collection[tuple[str, str]] = (),
    ) -> Done:
        """Make the objects of `step` exist as wanted; of `prune` kinds, remove what it made before and wants no more.

        `keep`: (kind, name) of what it made before and still needs. Raises `Conflicting` for what is not ours,
        `TransientDriverError` for what is on its way out.
        """
        made = marks.marked_set(wanted, step.ref, step=step.name, want=step.want)
        there = self._listed(made, prune, namespace)
        for obj in made:
            kind = KindRef(obj["apiVersion"], obj["kind"])
            if kind in there and namespace_of(obj) == namespace:
                live = next((one for one in there[kind] if name_of(one) == name_of(obj)), None)
            else:
                live = self._cluster.get(kind.api, kind.kind, name_of(obj), namespace_of(obj))
            self._make_one(obj, step.ref, live)
        kept = {(obj["kind"], name_of(obj)) for obj in made} | set(keep)
        for kind in prune:
            found = there[kind] if kind in there else self._of_kind(kind, step.ref, namespace)
            for live in found:
                old = _is_of(live, step.ref, step.name) and not marks.is_deleting(live)
                if old and (live["kind"], name_of(live)) not in kept:
                    self._delete(kind, live)
        return Done()

    def _listed(
        self, made: Sequence[Object], prune: Sequence[KindRef], namespace: str
    ) -> dict[KindRef, tuple[Object, ...]]:
        """Return everything in a namespace, also what is not ours, of the kinds of which more than one look is needed.

        One list tells what is there under a wanted name and what is left over. Of each only the metadata are read:
        they say whose it is and whether others changed it.
        """
        if not namespace:
            return {}
        count = Counter(KindRef(obj["apiVersion"], obj["kind"]) for obj in made if namespace_of(obj) == namespace)
        kinds = [kind for kind, number in count.items() if number > 1 or kind in prune]
        return {kind: self._cluster.list(kind.api, kind.kind, namespace=namespace, bare=True).items for kind in kinds}

    def _make_one(self, wanted: Object, ref: Ref, live: Object | None) -> Object:
        if live is None:
            return self._remember_self(self._apply(wanted))
        by_cluster = (wanted["kind"], name_of(wanted)) in MADE_BY_THE_CLUSTER and marks.ref_of(live) is None
        if not marks.is_ours(live, ref) and not by_cluster:
            msg = f"{title(wanted)} is there and is not ours"
            raise Conflicting(msg)
        if marks.is_deleting(live):
            msg = f"{title(wanted)} is still being removed"
            raise TransientDriverError(msg)
        if not is_different(live) and _says_the_same(live, wanted):
            return live
        wanted["metadata"]["uid"] = uid_of(live)
        return self._remember_self(self._apply(wanted, live))

    def _apply(self, wanted: Object, live: Object | None = None) -> Object:
        """Apply one object; where others changed it, note when, who, and leave it be after too many times."""
        drifted = live is not None and _is_changed(live, wanted)
        if live is None or not drifted:
            return self._applied(wanted, live, known=True)
        now = self._now()
        fight = fight_of(live)
        if fight.is_lost(now) and live["kind"] not in ISOLATING:
            return live
        try:
            by, fields = taken(live, self._cluster.apply(wanted, dry_run=True))
            fight = fight.again(now, by, fields)
            _log.warning("%s was changed by %s; restoring %s", title(live), fight.by, ", ".join(fight.fields[:5]))
            wanted["metadata"]["annotations"][marks.RESTORED_ANNOTATION] = fight.text()
            return self._applied(wanted, live, known=False)
        except DriverRejected as error:
            if live["kind"] not in MADE_ANEW:
                raise
            # What others made of it cannot be turned back by an apply: a list with two of a name, a fixed reference.
            self._delete(KindRef(live["apiVersion"], live["kind"]), live)
            msg = f"{title(live)} was changed by others and is made anew"
            raise TransientDriverError(msg, raw=error.raw) from error

    def _applied(self, wanted: Object, live: Object | None, *, known: bool) -> Object:
        """Apply one object with the digest of the fields that will be ours; `known`: one of its shape may tell it."""
        shape = _shape(wanted)
        digest = self._digests.get(shape) if known else None
        if digest is None:
            digest = marks.fields_digest(self._cluster.apply(wanted, dry_run=True))
            with self._lock:
                self._digests[shape] = digest
        notes = wanted["metadata"]["annotations"]
        notes[marks.FIELDS_ANNOTATION] = digest
        if wanted["kind"] == "Namespace" and live is not None:
            notes[marks.SELF_ANNOTATION] = uid_of(live)
        # An apply restores what is ours; what others put beside it (one more allow) it leaves where it is.
        return only_ours(self._cluster, self._cluster.apply(wanted))

    def _remember_self(self, live: Object) -> Object:
        """Write a namespace's own uid on it, so that one made anew under its name is noticed."""
        if live["kind"] != "Namespace" or marks.annotations_of(live).get(marks.SELF_ANNOTATION) == uid_of(live):
            return live
        note = {"metadata": {"uid": uid_of(live), "annotations": {marks.SELF_ANNOTATION: uid_of(live)}}}
        return self._cluster.patch("v1", "Namespace", name_of(live), "", note)

    # --- removing ---------------------------------------------------------------------------------

    def remove(
        self,
        step: Step,
        kinds: Sequence[KindRef],
        *,
        places: Sequence[str] = (),
        may: Callable[[Object], bool] = lambda _live: True,
    ) -> Handle | Done:
        """Ask for the end of what `step` made and `may` allows; `Done` once an exact read finds nothing of it.

        `places`: the namespaces of ours where it is looked for, without their labels too; none: anywhere, by labels.
        """
        for kind in kinds:
            for live in self.of_step(kind, step.ref, step.name, places):
                if not marks.is_deleting(live) and may(live):
                    self._delete(kind, live)
        if self.is_gone(step.ref, step.name, kinds, places):
            return Done()
        return removal_handle(step.ref, step.name)

    def is_gone(self, ref: Ref, step: str, kinds: Sequence[KindRef], places: Sequence[str] = ()) -> bool:
        """Whether nothing that a step made is there any more, the pods of its Deployments included."""
        pods = [_POD] if any(kind.kind == "Deployment" for kind in kinds) else []
        return not any(self.of_step(kind, ref, step, places) for kind in (*kinds, *pods))

    def of_step(self, kind: KindRef, ref: Ref, step: str, places: Sequence[str] = ()) -> list[Object]:
        """Return the metadata of the objects of one kind that one step of a ref made."""
        found = [one for place in places or ("",) for one in self._of_kind(kind, ref, place)]
        return [one for one in found if _is_of(one, ref, step)]

    def _of_kind(self, kind: KindRef, ref: Ref, namespace: str) -> tuple[Object, ...]:
        """Return what may be a ref's of one kind; by its labels where no namespace is told, and of pods anywhere."""
        if not self._cluster.serves(kind.api, kind.kind):
            return ()
        labels = "" if namespace and kind != _POD else marks.selector(ref)
        return self._cluster.list(kind.api, kind.kind, namespace=namespace, labels=labels, bare=True).items

    def _delete(self, kind: KindRef, live: Object) -> None:
        # Only what owns pods waits for them; anything else is to be gone at once, an allow policy above all.
        propagation = "Foreground" if kind.kind == "Deployment" else "Background"
        name, namespace = name_of(live), namespace_of(live)
        self._cluster.delete(kind.api, kind.kind, name, namespace, uid=uid_of(live), propagation=propagation)


# --- handles --------------------------------------------------------------------------------------


def removal_handle(ref: Ref, step: str) -> Handle:
    """Return the handle of a removal: everything needed to look again, and no secret."""
    return Handle(f"removal {ref.kind}/{ref.uid}/{ref.tenant_uid} {step}")


def poll_of(gone: bool) -> Poll:  # noqa: FBT001  the one thing there is to say
    """Return what a poll says of a removal."""
    return Poll("done" if gone else "running")


# --- drift ----------------------------------------------------------------------------------------


def only_ours(cluster: Cluster, live: Object) -> Object:
    """Take away what others added to an isolating object that was just applied; return it as it is then."""
    added = marks.added_fields(live)
    if not added:
        return live
    _log.warning("%s: taking away %s", title(live), ", ".join(".".join(path) for path in added[:5]))
    patch = marks.without(added)
    # Whoever changed it meanwhile may have been we ourselves: then it is looked at again.
    patch["metadata"] = {"uid": uid_of(live), "resourceVersion": live["metadata"]["resourceVersion"]}
    return cluster.patch(live["apiVersion"], live["kind"], name_of(live), namespace_of(live), patch)


def _is_of(live: Object, ref: Ref, step: str) -> bool:
    """Whether one step of a ref made an object."""
    return marks.is_ours(live, ref) and marks.step_of(live) == step and marks.is_made_by_us(live)


def is_different(live: Object) -> bool:
    """Whether an object is no longer what we applied: fields of ours changed, or made anew under its name."""
    if marks.has_drifted(live) or is_made_anew(live):
        return True
    return marks.labels(live).get(marks.STEP_LABEL) is None


def is_made_anew(live: Object) -> bool:
    """Whether a namespace carries the mark of one that was there before it."""
    return live.get("kind") == "Namespace" and marks.annotations_of(live).get(marks.SELF_ANNOTATION) != uid_of(live)


def _is_changed(live: Object, wanted: Object) -> bool:
    """Whether somebody changed fields of ours on an object that was applied for the same want."""
    applied = marks.annotations_of(live).get(marks.FIELDS_ANNOTATION)
    return bool(applied) and marks.has_drifted(live) and marks.intent_of(live) == marks.intent_of(wanted)


def _says_the_same(live: Object, wanted: Object) -> bool:
    """Whether an object was applied for the same want, set and delivery: what we write on it is on it."""
    return (
        marks.annotations_of(wanted).items() <= marks.annotations_of(live).items()
        and marks.labels(wanted).items() <= marks.labels(live).items()
    )


@dataclass(frozen=True, slots=True)
class Fight:
    """How often fields of one object were taken back lately."""

    at: tuple[datetime, ...] = ()
    by: str = ""
    fields: tuple[str, ...] = ()

    def again(self, now: datetime, by: str, fields: Sequence[str]) -> Fight:
        """Return it after one more time."""
        recent = tuple(when for when in self.at if now - when <= FIGHT_WINDOW)[-FIGHT_ROUNDS:]
        return Fight((*recent, now), by or self.by, tuple(fields) or self.fields)

    def is_lost(self, now: datetime) -> bool:
        """Whether it has been tried often enough for now."""
        return sum(now - when <= FIGHT_WINDOW for when in self.at) >= FIGHT_ROUNDS

    def text(self) -> str:
        """Return it as it is kept on the object."""
        return json.dumps(
            {"at": [when.isoformat() for when in self.at], "by": self.by, "fields": list(self.fields)[:10]}
        )


def fight_of(live: Object) -> Fight:
    """Return what an object remembers of its fights."""
    try:
        told: Any = json.loads(marks.annotations_of(live).get(marks.RESTORED_ANNOTATION, "") or "{}")
        return Fight(
            tuple(datetime.fromisoformat(text) for text in told.get("at", ())),
            str(told.get("by", "")),
            tuple(str(field) for field in told.get("fields", ())),
        )
    except (ValueError, TypeError, AttributeError):
        return Fight()


def taken(live: Object, applied: Object) -> tuple[str, list[str]]:
    """Return (who took them, which fields): what would be ours and is not."""
    lost = marks.owned_fields(applied) - marks.owned_fields(live)
    names = [_plain(path) for path in sorted(lost) if not path.startswith("/f:metadata/f:annotations")]
    names += [".".join(path) for path in marks.added_fields(live)]
    others = [
        entry
        for entry in live.get("metadata", {}).get("managedFields") or []
        if lost & frozenset(marks.paths_of(entry)) or not lost
    ]
    others.sort(key=lambda entry: str(entry.get("time", "")))
    others = [entry for entry in others if entry.get("manager") != "tenantry" or entry.get("operation") != "Apply"]
    return (str(others[-1].get("manager", "somebody")) if others else "somebody", names)


def _plain(path: str) -> str:
    """Return a path of managed fields for people: `/f:spec/f:replicas` → `spec.replicas`."""
    return ".".join(part.removeprefix("f:") for part in path.strip("/").split("/"))


def _shape(obj: Object) -> str:
    """Return what decides which fields an apply of this object would own.

    Everything but plain values of mappings, and what the API takes as one value (`ONE_VALUE`).
    """
    bookkeeping = {marks.FIELDS_ANNOTATION, marks.RESTORED_ANNOTATION, marks.SELF_ANNOTATION}

    def bare(value: Any, *, in_list: bool) -> Any:
        if isinstance(value, dict):
            return {
                key: type(below).__name__ if key in ONE_VALUE else bare(below, in_list=in_list)
                for key, below in value.items()
                if key not in bookkeeping
            }
        if isinstance(value, list):
            return [bare(below, in_list=True) for below in value]
        return value if in_list else type(value).__name__

    body = {key: value for key, value in obj.items() if key not in {"apiVersion", "kind"}}
    body["metadata"] = {key: value for key, value in obj["metadata"].items() if key != "uid"}
    return json.dumps([obj["apiVersion"], obj["kind"], bare(body, in_list=False)], sort_keys=True)
