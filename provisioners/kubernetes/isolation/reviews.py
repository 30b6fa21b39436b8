"""Access reviews: what each role may, here, elsewhere and in the whole cluster, compared with what it should.

Over every resource and subresource that the cluster serves, every verb, and paths; and over every binding there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from provisioners.driver import IsolationCheck, Ref
from provisioners.kubernetes import rbac
from provisioners.kubernetes.isolation import elsewhere, rights
from provisioners.kubernetes.isolation.checks import WITHHELD, check
from provisioners.kubernetes.isolation.probes import PROBE, Probes, Rules, rules_of
from provisioners.kubernetes.isolation.scene import ANOTHER, Seen
from provisioners.kubernetes.objects import dig, name_of, namespace_of, ref_of
from provisioners.kubernetes.rbac import ACCESS_NAMESPACE, Right


def reviews(seen: Seen, ref: Ref, made: Probes) -> Iterator[IsolationCheck]:
    """Yield the checks of rights. Raises `DriverError`."""
    here = {word: rules_of(client, ref.name) for word, client in made.clients.items()}
    yield _roles(seen, ref, here)
    yield from _elsewhere(seen, ref, here, made)
    yield from _changes(here)


def _roles(seen: Seen, ref: Ref, here: Mapping[str, Rules]) -> IsolationCheck:
    extra: list[str] = [f"{word} may not {words}" for word in here for words in _lacking(seen, word, here[word][0])]
    for word, (rules, _paths) in here.items():
        wanted = [rule.as_rule() for rule in rbac.PEOPLE[word]]
        extra += [
            f"{word} may {right.words}"
            for right in rights.of_resources(seen.resources, rules, namespaced=True)
            if not rbac.allows(wanted, right)
        ]
    strangers = [*_strangers(seen, ref), *extra]
    return check("TEN-6-roles", strangers, f"{len(seen.resources)} resources, {len(rights.VERBS)} verbs, 3 roles.")


def _elsewhere(seen: Seen, ref: Ref, here: Mapping[str, Rules], made: Probes) -> Iterator[IsolationCheck]:
    """Compare what the roles and the accounts here may in other namespaces and in the whole cluster with nothing."""
    cluster_wide, foreign = elsewhere.found(seen, ref)
    places = (*seen.neighbours, ACCESS_NAMESPACE, rbac.SYSTEM_NAMESPACE, "kube-system", "default")
    for word, client in made.clients.items():
        for place in places:
            rules, paths = rules_of(client, place)
            where = ANOTHER if place in seen.neighbours else place
            inside = rights.of_resources(seen.resources, rules, namespaced=True)
            outside = rights.of_resources(seen.resources, rules, namespaced=False)
            foreign += [f"{word} may {right.words} in {where}" for right in inside]
            cluster_wide += [f"{word} may {right.words}" for right in outside]
            cluster_wide += [f"{word} may {text}" for text in rights.of_paths(paths)]
    own = [
        f"{word} may {right.words}"
        for word, (rules, _paths) in here.items()
        for right in rights.of_resources(seen.resources, rules, namespaced=False)
    ]
    yield check(
        "MTB-PL1-CC-CPI-1", [*own, *cluster_wide],
        "Exactly what system:basic-user, system:discovery and system:public-info-viewer give, and the public keys "
        f"of service accounts. No binding of the cluster gives anybody here more; {len(seen.bindings)} were read.",
    )  # fmt: skip
    others = f"{len(seen.neighbours)} namespaces of other tenants, " if seen.neighbours else ""
    named = ", ".join(place for place in places if place not in seen.neighbours)
    yield check("MTB-PL1-CC-TI-2", foreign, f"Nothing in {others}{named}, and by no binding anywhere else.")


def _changes(here: Mapping[str, Rules]) -> Iterator[IsolationCheck]:
    """Look whether a role may change what bounds and isolates it."""
    for key, resources, offer in (
        ("MTB-PL1-CC-TI-1", (("", "resourcequotas"), ("", "limitranges")), ""),
        ("MTB-PL2-BC-OPS-3", (("rbac.authorization.k8s.io", "rolebindings"),), "members are let in and out"),
        ("MTB-PL2-BC-OPS-4", (("networking.k8s.io", "networkpolicies"),), "traffic is opened or cut off"),
    ):
        given = [
            f"{word} may {right.words}"
            for word, (rules, _paths) in here.items()
            for group, resource in resources
            for verb in ("create", "update", "patch", "delete", "deletecollection", "bind", "escalate")
            if rbac.touches(rules, right := Right(group, resource, verb))
        ]
        found = check(key, given, "No role may change them.")
        if offer and not given:
            words = f"Withheld on purpose: {offer} through the platform, which records who and why."
            found = replace(found, outcome=WITHHELD, seen=words)
        yield found


def _lacking(seen: Seen, word: str, rules: Sequence[Mapping[str, Any]]) -> list[str]:
    served = {(group, resource) for group, resource, _inside in seen.resources}
    return [
        right.words
        for rule in rbac.PEOPLE[word]
        for resource in rule.resources
        for verb in rule.verbs
        if (rule.group, resource) in served and not rbac.allows(rules, right := Right(rule.group, resource, verb))
    ]


def _strangers(seen: Seen, ref: Ref) -> list[str]:
    """Return bindings in the namespace that are none of ours, or bind whom ours do not."""
    found = []
    for binding in seen.bindings:
        name = name_of(binding)
        if namespace_of(binding) != ref.name or name.startswith(f"{PROBE}-"):
            continue
        role, subjects = str(dig(binding, "roleRef", "name")), binding.get("subjects") or []
        if name not in rbac.ROLES.values() or role != name or ref_of(binding) != ref:
            who = ", ".join(str(one.get("name")) for one in subjects)
            found.append(f"role binding {name} gives {role} to {who or 'nobody'}")
            continue
        found += [
            f"role binding {name} lets {one.get('kind')} {one.get('name')} in"
            for one in subjects
            if one.get("kind") != "ServiceAccount" or one.get("namespace") != ACCESS_NAMESPACE
        ]
    return found
