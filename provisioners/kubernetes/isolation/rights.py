"""Which rights rules give beyond what everybody has, over everything that a cluster serves. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from provisioners.kubernetes import rbac
from provisioners.kubernetes.rbac import Right

BASE: Final = frozenset(
    {
        ("authentication.k8s.io", "selfsubjectreviews", "create"),
        ("authorization.k8s.io", "selfsubjectaccessreviews", "create"),
        ("authorization.k8s.io", "selfsubjectrulesreviews", "create"),
    }
)
"""What `system:basic-user` gives to everybody; `system:discovery` and `system:public-info-viewer` give paths only."""
BASE_PATHS: Final = frozenset(
    {
        "/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/version", "/version/", "/healthz", "/livez",
        "/readyz", "/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks",
        "/openid/v1/jwks/",
    }
)  # fmt: skip
"""Paths of those two roles, and the public keys of service accounts (`system:service-account-issuer-discovery`)."""
VERBS: Final = (
    "get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "bind", "escalate",
    "impersonate",
)  # fmt: skip
"""Verbs that are asked for of every resource, beside those that rules name."""
NOT_SERVED: Final = (
    ("", "users", False), ("", "groups", False), ("authentication.k8s.io", "uids", False),
    ("authentication.k8s.io", "userextras", False), ("certificates.k8s.io", "signers", False),
)  # fmt: skip
"""What rights are about and no API serves: whom one may act as (`impersonate`), who signs certificates."""

Rule = Mapping[str, Any]
Resources = Sequence[tuple[str, str, bool]]
"""(group, resource with its subresource, whether it lies in namespaces)."""


def of_resources(resources: Resources, rules: Sequence[Rule], *, namespaced: bool) -> list[Right]:
    """Return every verb on every resource that rules give, of one scope, be it for objects of certain names only."""
    if not rules:
        return []
    bare = [{**rule, "resourceNames": None} for rule in rules]
    verbs = dict.fromkeys((*VERBS, *(str(verb) for rule in rules for verb in rule.get("verbs") or () if verb != "*")))
    return [
        right
        for group, resource, inside in (*resources, *NOT_SERVED)
        if inside is namespaced
        for verb in verbs
        if (group, resource, verb) not in BASE and rbac.allows(bare, right := Right(group, resource, verb))
    ]


def of_paths(rules: Sequence[Rule]) -> Iterator[str]:
    """Yield `get /metrics` for each path that rules give and not everybody has."""
    for rule in rules:
        for path in rule.get("nonResourceURLs") or ():
            for verb in rule.get("verbs") or ():
                if path not in BASE_PATHS or verb != "get":
                    yield f"{verb} {path}"


def beyond(resources: Resources, rules: Sequence[Rule]) -> list[str]:
    """Return in words what the rules of a role give that not everybody has."""
    bound = [rule for rule in rules if not rule.get("nonResourceURLs")]
    found = [right.words for inside in (True, False) for right in of_resources(resources, bound, namespaced=inside)]
    return [*found, *of_paths(rules)]
