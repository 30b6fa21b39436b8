"""Keeps our admission policies as we made them: one list per kind, and only what differs is dry-run and applied.

They belong to the whole cluster and to no row: nobody's pass would look at them. They isolate, so they are always
restored, and what others add to them (a condition that is never met) is taken away. Each keeps a note of when it was
restored, so that every snapshot of the next hour tells it: none is lost with the process that mended. What has the
name of one and is not ours is a conflict and left alone.

Each also names all that were made beside it. What none of them names is new with this version of ours, and nobody has
taken it away: such ones are made first, so that none is named before it is there.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from provisioners.driver import MARK_DOMAIN, Conflicting, DriverError, DriverRejected, Kind, Restored
from provisioners.kubernetes import admission
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import Fight, fight_of, only_ours, taken
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.objects import Object, name_of, title, uid_of

SELECTOR: Final = f"{marks.MANAGED_BY_LABEL}=tenantry,{marks.COMPONENT_LABEL}=admission"
BESIDE_ANNOTATION: Final = f"{MARK_DOMAIN}/beside"
"""The titles of all that the version of ours made that applied it last."""
TOLD_FOR: Final = timedelta(hours=1)
"""For how long snapshots tell that something was restored."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mended:
    """What was made of the policies."""

    restored: tuple[Restored, ...]
    """What had to be put back of late, whichever process did it."""
    trouble: DriverError | None
    """What stands in the way of one of them: `Conflicting` where its name is taken."""


def mend(cluster: Cluster, *, now: datetime) -> Mended:
    """Make every policy and binding be as it should be. Raises `DriverError` where they cannot be listed."""
    served = [one for one in admission.cluster_objects() if cluster.serves(admission.API, one["kind"])]
    wanted = [_intended(one, served) for one in served]
    listed = {
        (kind, name_of(one)): one
        for kind in sorted({one["kind"] for one in wanted})
        for one in cluster.list(admission.API, kind, labels=SELECTOR).items
    }
    troubles: list[DriverError] = []
    found: list[Object] = []
    named = {name for one in listed.values() for name in _beside(one)}
    for one in sorted(wanted, key=lambda one: (one["kind"], name_of(one)) in listed):
        live = listed.get((one["kind"], name_of(one)))
        was_there = not listed or title(one) in named
        try:
            found.append(
                live if live is not None and not _differs(live, one) else _make(cluster, one, now, was_there=was_there)
            )
        except DriverError as error:
            troubles.append(error)
    return Mended(tuple(_lately(found, now)), troubles[0] if troubles else None)


def _lately(found: list[Object], now: datetime) -> Iterator[Restored]:
    for one in found:
        fight = fight_of(one)
        if fight.at and now - fight.at[-1] < TOLD_FOR:
            yield Restored(title(one), fight.at[-1], fight.by, fight.fields)


def _make(cluster: Cluster, wanted: Object, now: datetime, *, was_there: bool) -> Object:
    """Make one object be as wanted; `was_there`: it had been made before. Raises `DriverError`."""
    # Read exactly: one that lost our labels, or that somebody else made under its name, is not in the list.
    live = cluster.get(wanted["apiVersion"], wanted["kind"], name_of(wanted))
    if live is not None and not _is_ours(live):
        msg = f"{title(wanted)} is there and is not ours"
        raise Conflicting(msg)
    if live is not None and not _differs(live, wanted):
        return live
    fight = Fight() if live is None else fight_of(live)
    if live is not None:
        wanted["metadata"]["uid"] = uid_of(live)
    try:
        dry = cluster.apply(wanted, dry_run=True)
    except DriverRejected:
        if live is None:
            raise
        # An apply adds to what others put into a set; together they may not be valid. First all of it is ours.
        whole = {"metadata": {"uid": uid_of(live)}, "spec": wanted["spec"]}
        cluster.patch(wanted["apiVersion"], wanted["kind"], name_of(wanted), "", whole)
        dry = cluster.apply(wanted, dry_run=True)
    if live is None:
        if was_there and _guards_any(cluster):
            fight = fight.again(now, "", ())
    elif marks.intent_of(live) and marks.has_drifted(live):  # without an intent it was never made by this
        fight = fight.again(now, *taken(live, dry))
        _log.warning("%s was changed by %s; restoring it", title(wanted), fight.by)
    notes = wanted["metadata"]["annotations"]
    notes[marks.FIELDS_ANNOTATION] = marks.fields_digest(dry)
    if fight.at:
        notes[marks.RESTORED_ANNOTATION] = fight.text()
    return only_ours(cluster, cluster.apply(wanted))


def _is_ours(live: Object) -> bool:
    """Whether we made an object: it carries our labels, or what we applied is still on it."""
    found = marks.labels(live)
    labelled = found.get(marks.MANAGED_BY_LABEL) == "tenantry" and found.get(marks.COMPONENT_LABEL) == "admission"
    return labelled or bool(marks.owned_fields(live))


def _guards_any(cluster: Cluster) -> bool:
    """Whether boundaries are there: before the first of them nothing has been made that could be taken away."""
    return bool(cluster.list("v1", "Namespace", labels=f"{marks.KIND_LABEL}={Kind.BOUNDARY}", bare=True).items)


def _beside(live: Object) -> list[str]:
    """Return what an object says was made beside it; nothing for one of before that was noted."""
    return [name for name in marks.annotations_of(live).get(BESIDE_ANNOTATION, "").split(", ") if name]


def _intended(obj: Object, beside: Iterable[Object]) -> Object:
    """Return an object that says what it was made for, and beside what."""
    made = copy.deepcopy(obj)
    made["metadata"]["annotations"] = {BESIDE_ANNOTATION: ", ".join(sorted(title(one) for one in beside))}
    want = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
    made["metadata"]["annotations"][marks.INTENT_ANNOTATION] = want
    return made


def _differs(live: Object, wanted: Object) -> bool:
    return marks.intent_of(live) != marks.intent_of(wanted) or marks.has_drifted(live)
