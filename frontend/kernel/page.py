"""`@page`: what every portal view is wrapped in. Declares its policy, finds actor and tenant, opens the read block.

A GET runs inside one read block as its actor; a POST outside any, because operations open their own. Foreign and
missing look the same. A view without this decorator stops the process at start (`verify`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, URLResolver
from django.utils import timezone
from django.utils.cache import patch_cache_control
from django_htmx.middleware import HtmxDetails

from frontend.kernel import portal, problems
from tenants import access
from tenants.actor import ANONYMOUS, Actor
from tenants.errors import ControlPlaneError, MethodNotAllowed
from tenants.models import Person, Tenant
from tenants.policies import ROUTES, Policy, Scope
from tenants.transactions import reading

SAFE: Final = frozenset({"GET", "HEAD"})


class PageRequest(HttpRequest):
    """A request as views see it: typing only, the attributes are set by `page`."""

    actor: Actor
    tenant: Tenant
    """Only where the address names one."""
    portal: portal.Portal
    now: datetime
    htmx: HtmxDetails


class View(Protocol):
    """A view of the portal."""

    def __call__(self, request: Any, **path: Any) -> HttpResponseBase:
        """Answer a request."""
        ...


@dataclass(frozen=True, slots=True)
class Declared:
    """What a view says about itself."""

    operation_id: str
    methods: tuple[str, ...]
    own_blocks: bool
    """A GET that opens its read blocks itself: it streams, or reads between two of them."""

    @property
    def policy(self) -> Policy:
        """Return who may call it."""
        return ROUTES[self.operation_id]


def page(
    operation_id: str, *, methods: Sequence[str] = ("GET",), own_blocks: bool = False
) -> Callable[[Callable[..., HttpResponseBase]], View]:
    """Declare a view: the operation whose policy decides, and its methods.

    The view gets `request.actor`, `.portal`, `.now`, and `.tenant` when its address has `<str:tenant>`. Raised
    `ControlPlaneError`s become pages.
    """
    declared = Declared(operation_id, tuple(methods), own_blocks)

    def decorate(view: Callable[..., HttpResponseBase]) -> View:
        @functools.wraps(view)
        def run(request: PageRequest, **path: Any) -> HttpResponseBase:
            try:
                response = _answer(declared, view, request, path)
            except ControlPlaneError as error:
                response = problems.answer(request, error)
            if not response.has_header("Cache-Control"):
                patch_cache_control(response, private=True, no_store=True)
            return response

        run.declared = declared  # type: ignore[attr-defined]
        return run

    return decorate


def _answer(
    declared: Declared, view: Callable[..., HttpResponseBase], request: PageRequest, path: dict[str, Any]
) -> HttpResponseBase:
    if request.method not in declared.methods and not (request.method == "HEAD" and "GET" in declared.methods):
        raise MethodNotAllowed
    request.now = timezone.now()
    request.actor = actor_of(request)
    policy = declared.policy
    if request.actor is ANONYMOUS and policy.scope is not Scope.PUBLIC:
        return to_log_in(request)
    access.require_principal(request.actor, policy)
    safe = request.method in SAFE
    with reading(request.actor):
        _enter(request, policy, path)
        if safe and not declared.own_blocks:
            return view(request, **path)
    return view(request, **path)


def _enter(request: PageRequest, policy: Policy, path: dict[str, Any]) -> None:
    """Find the tenant that the address names, and what every page shows. Raises `NotVisible`, `Forbidden`."""
    tenant: Tenant | None = None
    try:
        if policy.scope is Scope.PLATFORM:
            access.check(request.actor, None, policy)
        if "tenant" in path:
            tenant = access.tenant_for(request.actor, path.pop("tenant"), policy)
            request.tenant = tenant
    finally:
        request.portal = portal.of(request, request.actor, tenant)  # the page of a refusal has its frame too


def actor_of(request: HttpRequest) -> Actor:
    """Return the person of the session with his roles of now, anonymous without one. Raises `DependencyDown`."""
    if settings.SESSION_COOKIE_NAME not in request.COOKIES:
        return ANONYMOUS
    return portal.session_actor(request) or ANONYMOUS


def person_of(request: HttpRequest) -> Person | None:
    """Return the logged-in person, None for anybody else."""
    user = request.user
    return user if isinstance(user, Person) else None


def to_log_in(request: HttpRequest) -> HttpResponse:
    """Send an anonymous visitor to the log-in, and back afterwards; an htmx request takes the whole page there."""
    back = request.get_full_path() if request.method in SAFE else "/"
    if getattr(request, "htmx", False):
        back = getattr(request, "htmx").current_url_abs_path or "/"  # noqa: B009 - set by a middleware
        response = HttpResponse(status=204)
        response["HX-Redirect"] = f"{settings.LOGIN_URL}?{urlencode({'next': back})}"
        return response
    query = f"?{urlencode({'next': back})}" if back != "/" else ""
    return HttpResponseRedirect(f"{settings.LOGIN_URL}{query}")


def routes(patterns: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Declared | None]]:
    """Yield (path, what its view declares) of every portal route; None where it declares nothing."""
    for pattern in patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, path)
        elif isinstance(pattern, URLPattern):
            yield path, getattr(pattern.callback, "declared", None)


def verify(patterns: Iterable[Any]) -> None:
    """Raise `ImproperlyConfigured` unless every route of the portal declares an operation with a policy."""
    for path, declared in routes(patterns):
        if declared is None:
            raise ImproperlyConfigured(f"/{path} is no @page: who may open it?")
        if declared.operation_id not in ROUTES:
            raise ImproperlyConfigured(f"/{path} is {declared.operation_id}, which has no policy in tenants.policies")
