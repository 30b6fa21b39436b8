"""The left rail: only pages that exist and that the person may open.

An entry is shown when its address resolves and its policy lets the actor at it, so a page that is taken out of
the URLconf leaves the rail by itself. Order and words are here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from django.urls import NoReverseMatch, reverse
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from tenants import access
from tenants.actor import Actor
from tenants.models import Tenant
from tenants.policies import ROUTES


@dataclass(frozen=True, slots=True)
class Entry:
    """One page of the rail."""

    key: str
    label: str | Promise
    icon: str
    """Name of a Lucide icon."""
    route: str
    """URL name in the namespace `frontend`."""
    operation_id: str
    of_tenant: bool = True
    also: tuple[str, ...] = ()
    """Beginnings of other addresses whose pages belong to this entry."""


@dataclass(frozen=True, slots=True)
class Link:
    """An entry as the template shows it."""

    key: str
    label: str | Promise
    icon: str
    url: str
    current: bool
    count: int = 0


@dataclass(frozen=True, slots=True)
class Section:
    """A group of links with a heading."""

    label: str | Promise
    items: list[Link]


WORK: Final = (
    Entry("home", _("Home"), "house", "home-of", "tenants.read"),
    Entry("endpoints", _("Endpoints"), "radio-tower", "endpoints", "endpoints.list"),
    Entry("machines", _("Machines"), "monitor", "machines", "machines.list"),
    Entry("namespaces", _("Namespaces"), "box", "namespaces", "namespaces.list"),
    Entry("models", _("Models"), "library", "models", "served-models.list"),
)
TENANT: Final = (
    Entry("quota", _("Quota"), "gauge", "quota", "quotas.list"),
    Entry("requests", _("Requests"), "git-pull-request", "requests", "requests.list"),
    Entry("cost", _("Cost"), "receipt", "cost", "costs.list"),
    Entry("people", _("People and access"), "users", "people", "members.list"),
    Entry("activity", _("Activity"), "history", "activity", "events.list"),
    Entry("isolation", _("Isolation"), "shield-check", "isolation", "boundaries.certificate"),
    Entry("settings", _("Settings"), "settings", "settings", "tenants.update"),
)
DECIDE: Final = (
    Entry("inbox", _("Inbox"), "inbox", "inbox", "requests.inbox", of_tenant=False),
    Entry("decisions", _("Decisions and rules"), "scale", "decisions", "requests.inbox", of_tenant=False),
)
OPERATE: Final = (
    Entry("estate", _("Estate"), "server", "estate", "devices.list", of_tenant=False, also=("/ops/hosts", "/ops/gpus")),
    Entry("providers", _("Providers"), "plug", "providers", "hosts.list", of_tenant=False),
    Entry("plans", _("Plans"), "list-checks", "plans", "plans.list", of_tenant=False),
    Entry("findings", _("Findings"), "triangle-alert", "findings", "findings.list", of_tenant=False),
    Entry("tenants", _("Tenants"), "network", "tenants", "people.list", of_tenant=False),
    Entry("everybody", _("All people"), "users", "everybody", "people.list", of_tenant=False),
    Entry("prices", _("Prices"), "tags", "prices", "people.list", of_tenant=False),
    Entry("system", _("System"), "activity", "system", "system.read", of_tenant=False),
    Entry("served-models", _("Model catalogue"), "library", "served-models", "platform.read", of_tenant=False),
    Entry("evidence", _("Evidence"), "file-check", "evidence", "checkpoints.list", of_tenant=False),
    Entry("setup", _("Set-up"), "list-todo", "setup", "people.create", of_tenant=False),
)
SECTIONS: Final = ((_("Work"), WORK), (_("Tenant"), TENANT), (_("Decide"), DECIDE), (_("Operate"), OPERATE))


def rail(actor: Actor, tenant: Tenant | None, path: str) -> list[Section]:
    """Return the sections that have anything to show; `path` marks where the person is."""
    found = [
        Section(label, [link for each in group if (link := _link(each, actor, tenant, path))])
        for label, group in SECTIONS
    ]
    return [section for section in found if section.items]


def _link(entry: Entry, actor: Actor, tenant: Tenant | None, path: str) -> Link | None:
    if entry.of_tenant and tenant is None:
        return None
    policy = ROUTES.get(entry.operation_id)
    if policy is None or not access.allowed(actor, tenant if entry.of_tenant else None, policy):
        return None
    if entry.key in {"inbox", "decisions"} and not _decides(actor):
        return None
    url = _address(entry, tenant)
    if url is None:
        return None
    current = path == url or (entry.key != "home" and path.startswith((f"{url}/", *entry.also)))
    return Link(entry.key, entry.label, entry.icon, url, current)


def _decides(actor: Actor) -> bool:
    """Whether anything can land in the person's inbox: a platform role, or a tenant that he owns."""
    return bool(actor.platform_roles) or any(role.word == "owner" for role in actor.tenant_roles.values())


def _address(entry: Entry, tenant: Tenant | None) -> str | None:
    arguments: dict[str, Any] = {"tenant": tenant.name} if entry.of_tenant and tenant is not None else {}
    try:
        return reverse(f"frontend:{entry.route}", kwargs=arguments)
    except NoReverseMatch:
        return None
