"""Addresses of decisions, rules, delegations, tenants, prices and people of the whole platform."""

from __future__ import annotations

from typing import Any, Final

from django.urls import path

from frontend.views import decisions, delegations, rules

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
]
