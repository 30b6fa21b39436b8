"""The isolation certificate of one namespace: what was really tried against it, with which outcome.

The 18 checks are those of the multi-tenancy benchmarks (kubernetes-sigs/multi-tenancy, benchmarks; ids as there, two
share MTB-PL1-BC-HI-1), five and the access reviews are ours. Attempts are made with tokens of probes: accounts with
exactly the roles of people, made for the run and taken away with it; all of them are dry runs. A refusal counts only
with the reason it should have: one that something else happened to stop is not shown to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from provisioners.driver import Certificate, IsolationCheck, Ref
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.isolation import connections
from provisioners.kubernetes.isolation.attempts import Attempts
from provisioners.kubernetes.isolation.checks import TITLES, UNKNOWN, check
from provisioners.kubernetes.isolation.probes import Probes, ended, probes
from provisioners.kubernetes.isolation.reviews import reviews
from provisioners.kubernetes.isolation.scene import Seen, read
from provisioners.kubernetes.objects import dig
from provisioners.kubernetes.settings import Settings


def certify(
    cluster: Cluster, settings: Settings, ref: Ref, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Certificate:
    """Try everything against one boundary and say what held. Raises `DriverError` where that cannot even begin."""
    began = now()
    seen = read(cluster, ref)
    with probes(cluster, settings, ref) as made:
        found = {one.key: one for one in _all(cluster, settings, ref, seen, made)}
    checks = tuple(
        found.get(key, IsolationCheck(key, title, UNKNOWN, "It could not be tried.")) for key, title in TITLES.items()
    )
    return Certificate(ref, began, cluster.version(), checks, _unshown(settings, seen), simulated=settings.lab)


def _all(cluster: Cluster, settings: Settings, ref: Ref, seen: Seen, made: Probes) -> Iterator[IsolationCheck]:
    """Yield every check; the token's is last, it ends a probe."""
    attempts = Attempts(settings, ref.name, seen.gpu_resources)
    yield from reviews(seen, ref, made)
    yield from _bounds(seen)
    yield from attempts.of_member(made.clients["member"])
    yield attempts.of_owner(made.clients["owner"])
    yield attempts.pulling(made.clients["member"])
    holes = list(dict.fromkeys(connections.holes(seen.namespaces, seen.policies, settings, ref)))
    yield check("TEN-4-peer", holes, "Every connection but the platform's own is refused by the policies.")
    yield ended(cluster, ref, made)


def _bounds(seen: Seen) -> Iterator[IsolationCheck]:
    """Look whether quotas bound what there is."""
    hard: dict[str, str] = {}
    for quota in seen.quotas:
        hard |= dig(quota, "spec", "hard", default={})
    wanted = ["requests.cpu", "requests.memory", "limits.memory", "requests.storage"]
    wanted += [f"requests.{name}" for name in sorted(seen.gpu_resources)]
    missing = [f"{name} is not bounded" for name in wanted if name not in hard]
    yield check("MTB-PL1-CC-FNS-1", missing, f"{len(wanted)} resources, each with a limit.")
    counts = ["pods", "persistentvolumeclaims", "count/deployments.apps", "count/secrets", "count/configmaps"]
    missing = [f"{name} is not bounded" for name in counts if name not in hard]
    yield check("MTB-PL1-CC-FNS-2", missing, f"{', '.join(counts)}.")


def _unshown(settings: Settings, seen: Seen) -> tuple[str, ...]:
    """Return what no check of ours can show."""
    found = [
        "Whether the network plug-in enforces the policies: what they mean was evaluated, no packet was sent.",
        "Isolation of memory and timing between parts of one GPU: that is the hardware's.",
        "Attempts were dry runs: admission answered them as it would in earnest, nothing was started.",
    ]
    if not seen.neighbours:
        found.append("No other tenant is on this cluster: a namespace made up stood in for its own.")
    if settings.lab or settings.access == "lab":
        found.append("This cluster is a laboratory: its nodes and pods are simulated.")
    return tuple(found)
