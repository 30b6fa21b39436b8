"""A VM boundary on a Supervisor: a namespace as any of ours, in which no pod runs and machines are counted. Pure.

Of the objects of a namespace boundary those that mean something for machines: the namespace itself, closed as always,
and a quota. There is no gateway, nobody is let in, and there is nothing to allow: policies reach pods only. What cuts
machines off is `machines.Machines.isolate`. Room for CPU, memory and disks is the Supervisor's own to limit, for a
quota of Kubernetes does not see what a machine takes; the ledger gives out no more than was granted.
"""

from __future__ import annotations

from typing import Any

from provisioners.driver import BoundarySpec, Step
from provisioners.kubernetes import boundary as namespaces
from provisioners.kubernetes.boundary import ClusterFacts
from provisioners.kubernetes.objects import Object
from provisioners.kubernetes.settings import Settings
from provisioners.kubernetes.vm_service.kinds import GROUP
from provisioners.steps import make

CREATE = "namespace.create"
LIMITS = "namespace.limits"


def steps(spec: BoundarySpec) -> list[Step]:
    """Return the steps of a VM boundary."""
    wants: dict[str, dict[str, Any]] = {CREATE: {"tier": spec.tier}, LIMITS: {"machines": most_machines(spec)}}
    return [make(spec.ref, name, want, spec) for name, want in wants.items()]


def objects(step: str, spec: BoundarySpec, settings: Settings, facts: ClusterFacts) -> list[Object]:
    """Return the objects of one step, without our mark."""
    if step == CREATE:
        return namespaces.creation(spec, settings)
    return [quota(spec, facts), namespaces.admitted(spec, settings)]


def most_machines(spec: BoundarySpec) -> int:
    """Return how many machines may be there: each has a vCPU at least, and one that is replaced goes first."""
    return max(1, spec.vcpu)


def quota(spec: BoundarySpec, facts: ClusterFacts) -> Object:
    """Return the quota: machines, what they are told by, and 0 for pods and every GPU that a pod could ask for."""
    machines = most_machines(spec)
    hard = {
        f"count/virtualmachines.{GROUP}": str(machines),
        "count/secrets": str(2 * machines + 20),
        "pods": "0",
        "services": "0",
        **{f"requests.{name}": "0" for name in namespaces.gpu_quota({}, facts)},
    }
    return namespaces.quota_object(spec.ref.name, hard, facts)
