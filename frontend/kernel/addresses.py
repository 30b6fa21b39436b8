"""Addresses that data names: whether a page stands there that this person may open. No queries."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.urls import Resolver404, resolve

from tenants.actor import Actor
from tenants.policies import Scope


def openable(path: str, actor: Actor) -> str:
    """Return a path of the portal if a page stands there that the actor may ask for, else `""`.

    What the page is about is looked at by the page itself: it may be gone meanwhile.
    """
    if not path.startswith("/") or path.startswith("//"):
        return ""
    try:
        found = resolve(urlsplit(path).path)
    except Resolver404:
        return ""
    declared = getattr(found.func, "declared", None)
    if declared is None or "GET" not in declared.methods:
        return ""
    policy = declared.policy
    return "" if policy.scope is Scope.PLATFORM and not actor.has(*policy.platform) else path
