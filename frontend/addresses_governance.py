"""Addresses of decisions, rules, delegations, tenants, prices and people of the whole platform."""

from __future__ import annotations

from typing import Any, Final

from django.urls import path

from frontend.views import (
    decisions,
    delegations,
    everybody,
    platform_rules,
    prices,
    rules,
    tenancies,
    tenancy_changes,
)

PERSON: Final = "ops/people/<uuid:person>"
RULE: Final = "ops/decisions/rules/<uuid:key>"

GOVERNANCE: Final[list[Any]] = [
    path("ops/decisions", decisions.listed, name="decisions"),
    path("ops/decisions/rules", rules.listed, name="rules"),
    path("ops/decisions/rules/new", rules.create, name="rule-new"),
    path(RULE, rules.show, name="rule"),
    path(f"{RULE}/edit", rules.edit, name="rule-edit"),
    path(f"{RULE}/switch", rules.switch, name="rule-switch"),
    path("ops/decisions/delegations", delegations.listed, name="delegations"),
    path("ops/decisions/delegations/new", delegations.create, name="delegation-new"),
    path("ops/decisions/delegations/<uuid:key>/end", delegations.end, name="delegation-end"),
    path("ops/tenants", tenancies.listed, name="tenants"),
    path("ops/tenants/new", tenancies.create, name="tenancy-new"),
    path("ops/tenants/<str:name>", tenancies.show, name="tenancy"),
    path("ops/tenants/<str:tenant>/limits", tenancy_changes.limits, name="tenancy-limits"),
    path(
        "ops/tenants/<str:tenant>/limits/<uuid:key>/remove", tenancy_changes.remove_limit, name="tenancy-limit-remove"
    ),
    path("ops/tenants/<str:tenant>/suspend", tenancy_changes.suspend, name="tenancy-suspend"),
    path("ops/tenants/<str:tenant>/resume", tenancy_changes.resume, name="tenancy-resume"),
    path("ops/people", everybody.listed, name="everybody"),
    path(PERSON, everybody.show, name="everybody-one"),
    path(f"{PERSON}/roles", everybody.set_roles, name="everybody-roles"),
    path(f"{PERSON}/suspend", everybody.suspend, name="everybody-suspend"),
    path(f"{PERSON}/resume", everybody.resume, name="everybody-resume"),
    path(f"{PERSON}/leave", everybody.leave, name="everybody-leave"),
    path(f"{PERSON}/erase", everybody.erase, name="everybody-erase"),
    path("ops/prices", prices.listed, name="prices"),
    path("ops/prices/new", prices.create, name="price-list-new"),
    path("ops/prices/policies", platform_rules.policies, name="policies"),
    path("ops/prices/notices", platform_rules.notices, name="platform-notices"),
    path("ops/prices/<uuid:key>", prices.show, name="price-list"),
]
