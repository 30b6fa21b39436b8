"""Route → policy → scope: which operation a request is, whether its principal may try, and on which rows.

A route whose methods name no operation, or one that is not in `policies.ROUTES`, stops the web process at
start (`verify`, called by the URLconf).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.urls import URLPattern, URLResolver
from rest_framework.permissions import BasePermission

from tenants import access
from tenants.actor import ANONYMOUS, Actor
from tenants.errors import Forbidden, MethodNotAllowed
from tenants.policies import ROUTES, Policy, Scope

if TYPE_CHECKING:  # DRF reads its settings, which name this module, while it defines these classes
    from rest_framework.request import Request
    from rest_framework.views import APIView

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class DeclaredPolicy(BasePermission):
    """Lets a request pass to its handler if the declared policy is open to its kind of principal.

    The tenant's role is checked in the handler's read block, where the tenant is known.
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Return True or raise `Unauthenticated`, `Forbidden`, `MethodNotAllowed`."""
        policy = policy_of(view, str(request.method))
        actor = actor_of(request)
        access.require_principal(actor, policy)
        if actor.read_only and request.method not in SAFE_METHODS:
            raise Forbidden("This token may only read.", code="token-read-only")
        if policy.scope is Scope.PLATFORM:
            access.check(actor, None, policy)
        return True


def actor_of(request: Request) -> Actor:
    """Return who asks; anonymous without proof."""
    user = request.user
    return user if isinstance(user, Actor) else ANONYMOUS


def operation_id_of(view: Any, method: str) -> str | None:
    """Return the operation a view declares for a method, None without one."""
    operations = getattr(view, "operations", {})
    return operations.get("GET" if method == "HEAD" else method)


def policy_of(view: Any, method: str) -> Policy:
    """Return the policy of a view's method. Raises `MethodNotAllowed` where none is declared."""
    operation_id = operation_id_of(view, method)
    if operation_id is None:
        raise MethodNotAllowed
    return ROUTES[operation_id]


def routes(patterns: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, str, str | None]]:
    """Yield (path, method, operation id) of every REST route below `patterns`; None where none is declared."""
    for pattern in patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, path)
        elif isinstance(pattern, URLPattern):
            view = getattr(pattern.callback, "cls", None) or getattr(pattern.callback, "view_class", None)
            if view is None or not hasattr(view, "http_method_names"):
                yield path, "GET", getattr(pattern.callback, "operation_id", None)
                continue
            for method in view.http_method_names:
                if method not in {"head", "options"} and hasattr(view, method):
                    yield path, method.upper(), operation_id_of(view, method.upper())


def verify(patterns: Iterable[Any], prefix: str = "") -> None:
    """Raise `ImproperlyConfigured` unless every route names an operation with a policy."""
    for path, method, operation_id in routes(patterns, prefix):
        if operation_id is None:
            raise ImproperlyConfigured(f"{method} /{path} names no operation: who may call it?")
        if operation_id not in ROUTES:
            raise ImproperlyConfigured(f"{method} /{path} is {operation_id}, which has no policy in tenants.policies")
