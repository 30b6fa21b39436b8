"""Bindings that give whoever is in a namespace rights anywhere else: in other namespaces, in the whole cluster. Pure.

Probes show what accounts like those of people may do; here the accounts themselves are looked for, by name and by their
groups, and those that pods of the namespace run as. A tenant reads it: what is another's is not named to it, the log
names it to operators.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from provisioners.driver import Ref
from provisioners.kubernetes import rbac
from provisioners.kubernetes.isolation import rights
from provisioners.kubernetes.isolation.probes import PROBE
from provisioners.kubernetes.isolation.scene import ANOTHER, Seen
from provisioners.kubernetes.objects import TENANT_LABEL, Object, dig, labels, name_of, namespace_of
from provisioners.kubernetes.rbac import ACCESS_NAMESPACE

OPEN_NAMES: Final = frozenset({ACCESS_NAMESPACE, rbac.SYSTEM_NAMESPACE, "default", "kube-system", "kube-public"})
"""Namespaces that a certificate may name though they are not the tenant's."""
EVERYBODY: Final = frozenset({"system:authenticated", "system:unauthenticated", "system:serviceaccounts"})
_USER: Final = "system:serviceaccount:"
_GROUP: Final = "system:serviceaccounts:"

_log = logging.getLogger(__name__)


def found(seen: Seen, ref: Ref) -> tuple[list[str], list[str]]:
    """Return (what bindings of the whole cluster give, what role bindings in other namespaces give), in words."""
    people = _people(seen, ref)
    tenants = {name_of(one): labels(one).get(TENANT_LABEL) for one in seen.namespaces}
    cluster_wide: list[str] = []
    foreign: list[str] = []
    for binding in seen.bindings:
        namespace = namespace_of(binding)
        whom = list(dict.fromkeys(_ours(binding, ref, people)))
        if namespace == ref.name or not whom:
            continue
        given = rights.beyond(seen.resources, _rules(seen, binding))
        if not given:
            continue
        name, who, what = name_of(binding), ", ".join(whom), _few(given)
        if not namespace:
            cluster_wide.append(f"cluster role binding {name} gives {who}: {what}")
            continue
        _log.warning("role binding %s/%s gives %s: %s", namespace, name, who, what)
        if namespace in OPEN_NAMES or tenants.get(namespace) == str(ref.tenant_uid):
            foreign.append(f"role binding {name} in {namespace} gives {who}: {what}")
        else:
            whose = ANOTHER if tenants.get(namespace) else "another namespace"
            foreign.append(f"a role binding of {whose} gives {who}: {what}")
    return cluster_wide, foreign


def _people(seen: Seen, ref: Ref) -> frozenset[str]:
    """Return the accounts of people who are let in here; probes are none."""
    return frozenset(
        str(subject.get("name"))
        for binding in seen.bindings
        if namespace_of(binding) == ref.name and not name_of(binding).startswith(f"{PROBE}-")
        for subject in binding.get("subjects") or ()
        if subject.get("kind") == "ServiceAccount" and subject.get("namespace") == ACCESS_NAMESPACE
    )


def _ours(binding: Object, ref: Ref, people: Collection[str]) -> Iterator[str]:
    """Yield whom of this namespace a binding is about."""
    for subject in binding.get("subjects") or ():
        kind, name = subject.get("kind"), str(subject.get("name"))
        account = f"{subject.get('namespace') or namespace_of(binding)}:{name}" if kind == "ServiceAccount" else ""
        if kind == "User" and name.startswith(_USER):
            account = name.removeprefix(_USER)
        where, _, who = account.partition(":")
        if where == ref.name:
            yield f"account {who} of this namespace"
        elif where == ACCESS_NAMESPACE and who in people:
            yield f"account {who} of a person here"
        elif kind == "Group" and (name in EVERYBODY or name in {f"{_GROUP}{ref.name}", f"{_GROUP}{ACCESS_NAMESPACE}"}):
            yield f"group {name}"


def _rules(seen: Seen, binding: Object) -> tuple[Mapping[str, Any], ...]:
    kind, name = dig(binding, "roleRef", "kind"), str(dig(binding, "roleRef", "name"))
    role = seen.roles.get((namespace_of(binding) if kind == "Role" else "", name))
    return tuple((role or {}).get("rules") or ())


def _few(given: Collection[str]) -> str:
    listed = list(dict.fromkeys(given))
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
