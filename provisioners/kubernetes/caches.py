"""Volumes of weights in a namespace: replicas at zero keep theirs, until the room is another's.

An endpoint at zero may have given its units back, and the namespace's quota counts storage by the units that are held.
What its replicas have loaded is then only a convenience, which must not keep a unit that is held from its own volume.
Invariant: only what we made, of a Deployment of no pods, and no more than is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.nodes import quantity
from provisioners.kubernetes.objects import COMPONENT_LABEL, Object, dig, name_of, uid_of
from provisioners.kubernetes.pods import REPLICA
from provisioners.kubernetes.workloads import cache_name

STORAGE: Final = "requests.storage"


def make_room(cluster: Cluster, namespace: str, quota: Object) -> None:
    """Drop caches of replicas at zero as long as a namespace's volumes ask for more than its quota has."""
    deployments = cluster.list("apps/v1", "Deployment", namespace=namespace).items
    claims = cluster.list("v1", "PersistentVolumeClaim", namespace=namespace).items
    for claim in to_drop(deployments, claims, quantity(dig(quota, "spec", "hard", STORAGE, default=0))):
        cluster.delete("v1", "PersistentVolumeClaim", name_of(claim), namespace, uid=uid_of(claim))


def to_drop(deployments: Iterable[Object], claims: Iterable[Object], room: Decimal) -> list[Object]:
    """Return the claims that are to go so that the others fit into `room` bytes, or all that may go."""
    staying = [one for one in claims if not marks.is_deleting(one)]
    idle = {
        cache_name(name_of(one))
        for one in deployments
        if marks.labels(one).get(COMPONENT_LABEL) == REPLICA and dig(one, "spec", "replicas") == 0
    }
    asked = sum((_size(one) for one in staying), Decimal())
    found = []
    for claim in sorted(staying, key=name_of):
        if asked <= room:
            break
        if name_of(claim) in idle and marks.is_made_by_us(claim):
            found.append(claim)
            asked -= _size(claim)
    return found


def _size(claim: Object) -> Decimal:
    return quantity(dig(claim, "spec", "resources", "requests", "storage", default=0))
