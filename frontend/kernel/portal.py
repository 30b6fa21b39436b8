"""What every page shows around its content: who, which tenant, which others, and the rail.

Read once per request inside its read block (a few queries, each over an index), so that templates, also those of
errors, touch no database.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from frontend.kernel import navigation
from tenants import access, demo, login
from tenants.actor import AUTH, Actor
from tenants.models import Person, Provider, Tenant
from tenants.notifications import reads
from tenants.transactions import acting

MOST_TENANTS: Final = 50
"""In the switch; who has more uses the search."""
TENANT_COOKIE: Final = "tenantry_tenant"
"""Name of the tenant that was looked at last; only a preference, never a right."""


@dataclass(slots=True)
class Portal:
    """The frame of one page."""

    person: Person | None = None
    tenant: Tenant | None = None
    role: str = ""
    """`viewer`, `member`, `owner` or `""` on the tenant."""
    tenants: list[Tenant] = field(default_factory=list)
    rail: list[navigation.Section] = field(default_factory=list)
    platform_roles: list[str] = field(default_factory=list)
    is_simulated: bool = False
    """Whether any provider is a simulation."""
    unread: int = 0
    """Of the person's bell; counted up to a hundred."""
    personas: tuple[demo.Persona, ...] = ()
    """Whom one can play; none where this is no demo."""

    @property
    def can_write(self) -> bool:
        """Whether the person may ask for things in this tenant."""
        return self.role in {"member", "owner"}


def of(request: HttpRequest, actor: Actor, tenant: Tenant | None) -> Portal:
    """Return the frame of a page, inside the request's read block."""
    person = request.user if isinstance(request.user, Person) else None
    if person is None:
        return Portal()
    tenants = list(_switchable(actor))
    chosen = tenant or home_of(request, actor, tenants)
    return Portal(
        person=person,
        tenant=chosen,
        role=access.role_word(actor, chosen) if chosen is not None else "",
        tenants=tenants,
        rail=navigation.rail(actor, chosen, request.path),
        platform_roles=sorted(str(role) for role in actor.platform_roles),
        is_simulated=Provider.objects.filter(capabilities__simulated=True).exists(),
        unread=reads.unread_count(actor),
        personas=demo.bar(),
    )


def _switchable(actor: Actor) -> Any:
    return access.tenants(actor).exclude(status="closed").order_by("name")[:MOST_TENANTS]


def home_of(request: HttpRequest, actor: Actor, tenants: list[Tenant]) -> Tenant | None:
    """Return the tenant that a page without one is about: the last one looked at, else the person's first own."""
    wanted = request.COOKIES.get(TENANT_COOKIE, "")
    found = next((row for row in tenants if row.name == wanted), None)
    own = next((row for row in tenants if actor.role_on(row.path) is not None), None)
    return found or own


def session_actor(request: HttpRequest) -> Actor | None:
    """Return the actor of a browser's session, None without one. The session is read as `auth`."""
    with acting(AUTH):
        known = SESSION_KEY in request.session and BACKEND_SESSION_KEY in request.session
    if not known:
        return None
    return login.session_actor(request)


def context(request: HttpRequest) -> dict[str, Any]:
    """Give templates the frame: `portal`, and what the layouts name (context processor). Touches no database."""
    frame: Portal = getattr(request, "portal", None) or Portal()
    current = frame.tenant.pk if frame.tenant is not None else None
    values: dict[str, Any] = {
        "portal": frame,
        "navigation": frame.rail,
        "tenant_choices": [
            {
                "name": row.name,
                "title": row.display_name,
                "url": f"/t/{row.name}",
                "current": row.pk == current,
                "role": "",
            }
            for row in frame.tenants
        ],
        "zone": timezone.get_current_timezone_name(),
        "logout_url": settings.PORTAL_LOG_OUT_URL,
        "is_simulated": frame.is_simulated,
    }
    if frame.person is not None:
        values["person"] = {"name": frame.person.display_name, "email": frame.person.email}
        values["unread_count"] = frame.unread
        values |= _personas(frame.personas, frame.person)
    return values


def _personas(personas: tuple[demo.Persona, ...], person: Person) -> dict[str, Any]:
    try:
        url = reverse("frontend:personas")
    except NoReverseMatch:
        return {}
    return {
        "persona_url": url,
        "personas": [
            {"key": one.key, "name": one.name, "role": one.role, "current": one.email == person.email}
            for one in personas
        ],
    }
