"""Keeps our admission policies as we made them: one list per kind, and only what differs is dry-run and applied.

They belong to the whole cluster and to no row: nobody's pass would look at them. They isolate, so they are always
restored, and what others add to them (a condition that is never met) is taken away. Each keeps a note of when it was
restored, so that every snapshot of the next hour tells it: none is lost with the process that mended. What has the
name of one and is not ours is a conflict and left alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from provisioners.driver import Conflicting, DriverError, DriverRejected, Kind, Restored
from provisioners.kubernetes import admission
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import Fight, fight_of, only_ours, taken
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.objects import Object, name_of, title, uid_of

SELECTOR: Final = f"{marks.MANAGED_BY_LABEL}=tenantry,{marks.COMPONENT_LABEL}=admission"
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
    wanted = [one for one in map(_intended, admission.cluster_objects()) if cluster.serves(admission.API, one["kind"])]
    listed = {
        (kind, name_of(one)): one
        for kind in sorted({one["kind"] for one in wanted})
        for one in cluster.list(admission.API, kind, labels=SELECTOR).items
    }
    troubles: list[DriverError] = []
    found: list[Object] = []
    for one in wanted:
        live = listed.get((one["kind"], name_of(one)))
        try:
            found.append(live if live is not None and not _differs(live, one) else _make(cluster, one, now))
        except DriverError as error:
            troubles.append(error)
    return Mended(tuple(_lately(found, now)), troubles[0] if troubles else None)


def _lately(found: list[Object], now: datetime) -> Iterator[Restored]:
    for one in found:
        fight = fight_of(one)
        if fight.at and now - fight.at[-1] < TOLD_FOR:
            yield Restored(title(one), fight.at[-1], fight.by, fight.fields)


def _make(cluster: Cluster, wanted: Object, now: datetime) -> Object:
    """Make one object be as wanted. Raises `DriverError`."""
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
        if _guards_any(cluster):
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
    """Whether boundaries are there: then a policy that is not there was taken away, or is new with this version."""
    return bool(cluster.list("v1", "Namespace", labels=f"{marks.KIND_LABEL}={Kind.BOUNDARY}", bare=True).items)


def _intended(obj: Object) -> Object:
    """Return an object that says what it was made for."""
    made = copy.deepcopy(obj)
    want = hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()[:16]
    made["metadata"]["annotations"] = {marks.INTENT_ANNOTATION: want}
    return made


def _differs(live: Object, wanted: Object) -> bool:
    return marks.intent_of(live) != marks.intent_of(wanted) or marks.has_drifted(live)
