"""How people get into their namespace: an account each, tokens that end with their membership, a kubeconfig.

Each person has one service account per boundary in a namespace of ours, and beside it an empty Secret, its lease. Every
token is bound to the lease: with the lease it ends, whatever its expiry says. An API server remembers a token it has
seen for up to ten seconds, so the role binding goes as well: from then on the token opens nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import yaml

from provisioners.driver import NamespaceSpec, Ref, Secret, Step, TransientDriverError, UnitSpec
from provisioners.kubernetes.applying import KindRef
from provisioners.kubernetes.boundary import account_name
from provisioners.kubernetes.objects import Object, uid_of
from provisioners.kubernetes.rbac import ACCESS_NAMESPACE
from provisioners.steps import make

ACCOUNTS: Final = "access.accounts"
LONGEST_S: Final = 3600
SHORTEST_S: Final = 600
"""What the API server itself allows at least."""
MADE: Final = (KindRef("v1", "Secret"), KindRef("v1", "ServiceAccount"), KindRef("v1", "ConfigMap"))
"""Kinds of the step, in the order in which they are removed: leases first, they end the tokens."""
BOUNDARY_KEY: Final = "boundary"
EXEC_API: Final = "client.authentication.k8s.io/v1"


class Answering(Protocol):
    """What is needed of `client.Cluster`."""

    def get(self, api: str, kind: str, name: str, namespace: str = "") -> Object | None:
        """Return one object, None where it is not there."""

    def create(self, obj: Object, *, subresource: str = "", name: str = "") -> Object:
        """Create something through a subresource."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of one person in one boundary."""

    value: Secret
    expires_at: datetime


# --- the step ---------------------------------------------------------------------------------------------


def steps(spec: NamespaceSpec) -> list[Step]:
    """Return the one step that hands a namespace to people."""
    units = [[str(u.uid), u.host, u.profile, u.gpu_count, str(u.binding)] for u in sorted(spec.units, key=_index)]
    want = {"access": [list(pair) for pair in sorted(spec.access)], "cut_off": spec.cut_off, "units": units}
    return [make(spec.ref, ACCOUNTS, want, spec)]


def _index(unit: UnitSpec) -> int:
    return unit.index


def objects(spec: NamespaceSpec) -> list[Object]:
    """Return the accounts and leases of people, without our mark; none while the namespace is cut off."""
    found: list[Object] = [_anchor(spec)]
    for principal, _role in () if spec.cut_off else sorted(spec.access):
        name = account_name(spec.boundary, principal)
        found += [
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": ACCESS_NAMESPACE},
                "automountServiceAccountToken": False,
            },
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": ACCESS_NAMESPACE},
                "type": "Opaque",
            },
        ]
    return found


def _anchor(spec: NamespaceSpec) -> Object:
    """Return what stands for the step where there is nobody to hand it to, and says which boundary it is about."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": spec.ref.name, "namespace": ACCESS_NAMESPACE},
        "data": {BOUNDARY_KEY: spec.boundary.name},
    }


# --- tokens -----------------------------------------------------------------------------------------------


def mint(cluster: Answering, boundary: Ref, principal: str, *, seconds: int = LONGEST_S) -> Token:
    """Return a new token of one person, an hour at most, bound to the person's lease.

    Raises `TransientDriverError` while there is no lease: the person was not let in yet, or is no longer.
    """
    name = account_name(boundary, principal)
    lease = cluster.get("v1", "Secret", name, ACCESS_NAMESPACE)
    if lease is None:
        msg = "this person has no account in the cluster, or not yet"
        raise TransientDriverError(msg)
    answer = cluster.create(
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": name, "namespace": ACCESS_NAMESPACE},
            "spec": {
                "audiences": [],
                "expirationSeconds": max(SHORTEST_S, min(seconds, LONGEST_S)),
                "boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": name, "uid": uid_of(lease)},
            },
        },
        subresource="token",
        name=name,
    )
    status: Any = answer.get("status") or {}
    try:
        return Token(Secret(str(status["token"])), datetime.fromisoformat(str(status["expirationTimestamp"])))
    except (KeyError, ValueError) as error:
        msg = "the cluster's answer held no token"
        raise TransientDriverError(msg) from error


# --- what people get --------------------------------------------------------------------------------------


def kubeconfig(
    *, name: str, url: str, ca_pem: str, namespace: str, token: Secret | None = None, command: Sequence[str] = ()
) -> str:
    """Return a kubeconfig for one namespace: with `command`, kubectl asks for a token each time it needs one.

    `token` is the fallback for tools that run no program: it lasts an hour and is written into the file.
    """
    cluster: Object = {"server": url}
    if ca_pem:
        cluster["certificate-authority-data"] = base64.b64encode(ca_pem.encode()).decode()
    user: Object
    if command:
        user = {
            "exec": {
                "apiVersion": EXEC_API,
                "command": command[0],
                "args": list(command[1:]),
                "interactiveMode": "Never",
                "provideClusterInfo": False,
            }
        }
    elif token is not None:
        user = {"token": token.reveal()}
    else:
        msg = "a kubeconfig needs a command or a token"
        raise ValueError(msg)
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
            "current-context": name,
        },
        sort_keys=False,
    )


def exec_credential(token: str, expires_at: str) -> Object:
    """Return what kubectl reads from the exec plug-in (client.authentication.k8s.io/v1)."""
    return {
        "apiVersion": EXEC_API,
        "kind": "ExecCredential",
        "status": {"token": token, "expirationTimestamp": expires_at},
    }
