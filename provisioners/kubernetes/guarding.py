"""Keeps our admission policies as we made them: one list per kind, and only what differs is dry-run and applied.

They belong to the whole cluster and to no row: nobody's pass would look at them. They isolate, so they are always
restored, and what others add to them (a condition that is never met) is taken away.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from typing import Final

from provisioners.driver import DriverError, DriverRejected
from provisioners.kubernetes import admission
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import only_ours
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.objects import Object, name_of, title, uid_of

SELECTOR: Final = f"{marks.MANAGED_BY_LABEL}=tenantry,{marks.COMPONENT_LABEL}=admission"

_log = logging.getLogger(__name__)


def mend(cluster: Cluster) -> tuple[str, ...]:
    """Make every policy and binding be as it should be; return what was not. Raises `DriverError`."""
    wanted = [one for one in map(_intended, admission.cluster_objects()) if cluster.serves(admission.API, one["kind"])]
    live = {
        (kind, name_of(one)): one
        for kind in sorted({one["kind"] for one in wanted})
        for one in cluster.list(admission.API, kind, labels=SELECTOR).items
    }
    different = [one for one in wanted if _differs(live.get((one["kind"], name_of(one))), one)]
    troubles = [trouble for one in different if (trouble := _make(cluster, one, live.get((one["kind"], name_of(one)))))]
    if troubles:
        raise troubles[0]
    return tuple(title(one) for one in different)


def _make(cluster: Cluster, wanted: Object, live: Object | None) -> DriverError | None:
    """Make one object be as wanted; return what stands in the way, so that the others are made all the same."""
    if live is not None:
        _log.warning("%s was changed by somebody else; restoring it", title(wanted))
    try:
        try:
            dry = cluster.apply(wanted, dry_run=True)
        except DriverRejected:
            if live is None:
                raise
            # An apply adds to what others put into a set; together they may not be valid. First all of it is ours.
            whole = {"metadata": {"uid": uid_of(live)}, "spec": wanted["spec"]}
            cluster.patch(wanted["apiVersion"], wanted["kind"], name_of(wanted), "", whole)
            dry = cluster.apply(wanted, dry_run=True)
        wanted["metadata"]["annotations"][marks.FIELDS_ANNOTATION] = marks.fields_digest(dry)
        only_ours(cluster, cluster.apply(wanted))
    except DriverError as error:
        return error
    return None


def _intended(obj: Object) -> Object:
    """Return an object that says what it was made for."""
    made = copy.deepcopy(obj)
    want = hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()[:16]
    made["metadata"]["annotations"] = {marks.INTENT_ANNOTATION: want}
    return made


def _differs(live: Object | None, wanted: Object) -> bool:
    return live is None or marks.intent_of(live) != marks.intent_of(wanted) or marks.has_drifted(live)
