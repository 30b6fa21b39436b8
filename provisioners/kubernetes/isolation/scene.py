"""What is there before anything is tried: namespaces, policies, quotas, bindings, kinds, neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from provisioners.driver import Ref, TransientDriverError
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.objects import TENANT_LABEL, Object, dig, is_deleting, labels, name_of, namespace_of

_RBAC: Final = "rbac.authorization.k8s.io/v1"
MOST_NEIGHBOURS: Final = 3
"""Namespaces of others in which probes ask for their rights; bindings are read of all namespaces."""
ANOTHER: Final = "another tenant"
"""What a tenant's certificate calls others: who they are, and where, is not for it to read."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was read before anything was tried."""

    namespaces: tuple[Object, ...]
    policies: tuple[Object, ...]
    quotas: tuple[Object, ...]
    bindings: tuple[Object, ...]
    """Every role binding and cluster role binding of the cluster."""
    roles: Mapping[tuple[str, str], Object]
    """(namespace, `""` for a cluster role; name) → the role."""
    gpu_resources: frozenset[str]
    neighbours: tuple[str, ...]
    """Namespaces of other tenants."""
    resources: tuple[tuple[str, str, bool], ...]
    """(group, resource with its subresource, whether it lies in namespaces)."""


def read(cluster: Cluster, ref: Ref) -> Seen:
    """Read it. Raises `TransientDriverError` where the namespace is not there.

    What is on its way out protects nobody any more, so policies and quotas that are being deleted are left out.
    """
    namespaces = cluster.list("v1", "Namespace").items
    if not any(name_of(one) == ref.name for one in namespaces):
        msg = f"namespace {ref.name} is not there"
        raise TransientDriverError(msg)
    nodes = cluster.list("v1", "Node").items
    others = [one for one in namespaces if is_another(one, ref)]
    resources = {
        (one.group, name, one.namespaced)
        for one in cluster.resources()
        for name in (one.plural, *(f"{one.plural}/{below}" for below, _verbs in one.subresources))
    }
    return Seen(
        namespaces=namespaces,
        policies=_staying(cluster.list("networking.k8s.io/v1", "NetworkPolicy", namespace=ref.name).items),
        quotas=_staying(cluster.list("v1", "ResourceQuota", namespace=ref.name).items),
        bindings=tuple(
            one for kind in ("RoleBinding", "ClusterRoleBinding") for one in cluster.list(_RBAC, kind).items
        ),
        roles={
            (namespace_of(one), name_of(one)): one
            for kind in ("Role", "ClusterRole")
            for one in cluster.list(_RBAC, kind).items
        },
        gpu_resources=frozenset(
            name
            for node in nodes
            for name in dig(node, "status", "capacity", default={})
            if "/" in name and not name.partition("/")[0].endswith("kubernetes.io")
        ),
        neighbours=tuple(sorted(name_of(one) for one in others)[:MOST_NEIGHBOURS]),
        resources=tuple(sorted(resources)),
    )


def is_another(namespace: Object, ref: Ref) -> bool:
    """Whether a namespace is another tenant's."""
    tenant = labels(namespace).get(TENANT_LABEL)
    return tenant is not None and tenant != str(ref.tenant_uid)


def _staying(found: Sequence[Object]) -> tuple[Object, ...]:
    return tuple(one for one in found if not is_deleting(one))
