"""Probes: accounts with exactly the roles of people, made for one run and taken away with it.

Their names come from the boundary and the role, so a run that died leaves nothing that the next one does not take over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from provisioners.driver import DriverError, IsolationCheck, Ref, TransientDriverError
from provisioners.kubernetes import access, rbac
from provisioners.kubernetes.boundary import account_name
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.isolation.checks import TITLES, UNKNOWN, check
from provisioners.kubernetes.isolation.rights import BASE
from provisioners.kubernetes.objects import MANAGED_BY_LABEL, Object, labels, uid_of
from provisioners.kubernetes.rbac import ACCESS_NAMESPACE
from provisioners.kubernetes.settings import Settings

REVOKED_WITHIN_S: Final = 5.0
SETTLED_WITHIN_S: Final = 10.0
"""For how long a probe's rights may take to reach the API server."""
PROBE: Final = "tenantry-certificate"
"""Names of the probes' bindings begin with it."""


@dataclass(slots=True)
class Probes:
    """An account for each role, with a client that uses its token."""

    clients: Mapping[str, Cluster]
    names: Mapping[str, str]


@contextmanager
def probes(cluster: Cluster, settings: Settings, ref: Ref) -> Iterator[Probes]:
    """Make an account for each role, and take them away whatever happens."""
    names = {word: account_name(ref, f"certificate/{word}") for word in rbac.ROLES}
    clients: dict[str, Cluster] = {}
    try:
        for word, name in names.items():
            for obj in probe_objects(ref, word, name):
                cluster.apply(obj)
            token = access.mint(cluster, ref, f"certificate/{word}", seconds=access.SHORTEST_S)
            clients[word] = Cluster(replace(settings, token=token.value, client_certificate=None, client_key=None))
        _await_rights(clients.values(), ref)
        yield Probes(clients, names)
    finally:
        for client in clients.values():
            client.close()
        for word, name in names.items():
            dismiss(cluster, ref, word, name)


def probe_objects(ref: Ref, word: str, name: str) -> tuple[Object, ...]:
    """Return the account of a probe, its lease and its role."""
    head = {"labels": {MANAGED_BY_LABEL: PROBE}}
    binding = rbac.role_binding(ref.name, word, [name])
    binding["metadata"] = {"name": f"{PROBE}-{word}", "namespace": ref.name, **head}
    account = {"name": name, "namespace": ACCESS_NAMESPACE, **head}
    return (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account, "automountServiceAccountToken": False},
        {"apiVersion": "v1", "kind": "Secret", "metadata": account, "type": "Opaque"},
        binding,
    )


def _await_rights(clients: Iterable[Cluster], ref: Ref) -> None:
    for client in clients:
        within(SETTLED_WITHIN_S, lambda client=client: rules_of(client, ref.name)[0])  # type: ignore[misc]


def dismiss(cluster: Cluster, ref: Ref, word: str, name: str) -> None:
    """End a probe as a membership ends."""
    for api, kind, called, namespace in (
        ("rbac.authorization.k8s.io/v1", "RoleBinding", f"{PROBE}-{word}", ref.name),
        ("v1", "Secret", name, ACCESS_NAMESPACE),
        ("v1", "ServiceAccount", name, ACCESS_NAMESPACE),
    ):
        live = cluster.get(api, kind, called, namespace)
        if live is not None and labels(live).get(MANAGED_BY_LABEL) == PROBE:
            cluster.delete(api, kind, called, namespace, uid=uid_of(live), propagation="Background")


def within(limit_s: float, check: Callable[[], Any]) -> float:
    """Ask until `check` is true; return how long it took. Raises `TransientDriverError` after `limit_s`."""
    started = time.monotonic()
    while not check():
        if time.monotonic() - started > limit_s:
            msg = "the cluster did not take up a change in time"
            raise TransientDriverError(msg)
        time.sleep(0.1)  # noqa: TID251  asks a server again
    return time.monotonic() - started


Rules = tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]
"""(rules on resources, rules on paths)."""


def rules_of(client: Cluster, namespace: str) -> Rules:
    """Return what a client may do in a namespace, without what everybody may."""
    status: Any = client.create(rbac.rules_review(namespace)).get("status") or {}
    own = [
        rule
        for rule in status.get("resourceRules") or ()
        if not {(g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]} <= BASE
    ]
    return tuple(own), tuple(status.get("nonResourceRules") or ())


def ended(cluster: Cluster, ref: Ref, made: Probes) -> IsolationCheck:
    """End one as a membership ends, and look how long its token is still taken."""
    key, word = "TEN-5-token", "viewer"
    client = made.clients[word]
    try:
        client.list("v1", "Pod", namespace=ref.name)
    except DriverError as error:
        return IsolationCheck(key, TITLES[key], UNKNOWN, f"The token never worked: {error.raw[:200]}")
    dismiss(cluster, ref, word, made.names[word])
    refusal = ""

    def is_refused() -> bool:
        nonlocal refusal
        try:
            client.list("v1", "Pod", namespace=ref.name)
        except DriverError as error:
            refusal = error.raw[:3]
        return refusal in {"401", "403"}

    try:
        took_s = within(REVOKED_WITHIN_S, is_refused)
    except TransientDriverError:
        return check(key, [f"it was still taken after {REVOKED_WITHIN_S:.0f} s"], "")
    return check(key, [], f"Refused with {refusal} after {took_s:.1f} s.")
