"""The checks of a certificate, and what an attempt or a list of holes makes of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from provisioners.driver import DriverError, IsolationCheck
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.objects import Object

PASSED: Final = "passed"
FAILED: Final = "failed"
WITHHELD: Final = "withheld"
UNKNOWN: Final = "unknown"
TITLES: Final[Mapping[str, str]] = {
    "MTB-PL1-CC-CPI-1": "People reach nothing that belongs to the whole cluster",
    "MTB-PL1-BC-CPI-2": "People do not change what the platform shares with them",
    "MTB-PL1-BC-CPI-3": "No added capabilities",
    "MTB-PL1-BC-CPI-4": "Nothing runs as root",
    "MTB-PL1-BC-CPI-5": "No privileged containers",
    "MTB-PL1-BC-CPI-6": "No raising of privileges",
    "MTB-PL1-CC-TI-1": "People do not change their quotas",
    "MTB-PL1-CC-TI-2": "People reach nothing of other tenants",
    "MTB-PL1-BC-HI-1": "No directories of the node",
    "MTB-PL1-BC-HI-1-ports": "No ports on nodes",
    "MTB-PL1-BC-HI-3": "Not the node's network",
    "MTB-PL1-BC-HI-4": "Not the node's processes",
    "MTB-PL1-BC-HI-5": "Not the node's shared memory",
    "MTB-PL1-CC-FNS-1": "Quotas bound every resource, each kind of GPU included",
    "MTB-PL1-CC-FNS-2": "Quotas bound numbers of objects",
    "MTB-PL1-CC-DI-1": "Images are pulled anew, with the pod's own rights",
    "MTB-PL2-BC-OPS-3": "People make role bindings in their namespace",
    "MTB-PL2-BC-OPS-4": "People make network policies in their namespace",
    "TEN-1-claim": "Nobody uses devices handed to another",
    "TEN-2-image": "Only images of the platform's registries, pinned by digest",
    "TEN-3-node": "GPUs only with a placement, and only on its node",
    "TEN-4-peer": "The network lets nobody else in, and nobody out",
    "TEN-5-token": "A token is refused within 5 s of leaving",
    "TEN-6-roles": "Each role may exactly what it should, and nobody else is let in",
}
"""Every check, in the order in which it is shown."""


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt: refused for the right reason (`held`), let through (`hole`), or stopped by something else."""

    what: str
    outcome: str
    words: str


def attempt(client: Cluster, what: str, obj: Object, words: tuple[str, ...]) -> Try:
    """Try to make `obj`, as a dry run; a refusal should hold one of `words`."""
    try:
        client.apply(obj, dry_run=True)
    except DriverError as error:
        return refused(what, error, words)
    return Try(what, FAILED, "was let through")


def refused(what: str, error: DriverError, words: tuple[str, ...]) -> Try:
    """Return what a refusal is worth."""
    if any(word in error.raw for word in words):
        return Try(what, PASSED, error.raw)
    if "exceeded quota" in error.raw:
        return Try(what, FAILED, "only the quota stood in its way")  # quota is asked last: all else let it through
    return Try(what, UNKNOWN, f"was stopped by something else: {error.raw[:200] or error.detail}")


def judged(key: str, tries: Sequence[Try]) -> IsolationCheck:
    """Return a check by the worst of its attempts."""
    worst = next((o for o in (FAILED, UNKNOWN) if any(one.outcome == o for one in tries)), PASSED)
    if worst == PASSED:
        return IsolationCheck(key, TITLES[key], PASSED, "Refused: " + "; ".join(one.what for one in tries) + ".")
    return IsolationCheck(
        key, TITLES[key], worst, "; ".join(f"{one.what}: {one.words}" for one in tries if one.outcome == worst)
    )


def check(key: str, holes: Sequence[str], held: str) -> IsolationCheck:
    """Return a check that failed by `holes`; without any it passed, and `held` says what was looked at."""
    if not holes:
        return IsolationCheck(key, TITLES[key], PASSED, held)
    unique = list(dict.fromkeys(holes))
    more = f" and {len(unique) - 5} more" if len(unique) > 5 else ""
    return IsolationCheck(key, TITLES[key], FAILED, "; ".join(unique[:5]) + more)
