"""Addresses of providers and of connecting one, of plans over hosts, and of findings."""

from __future__ import annotations

from typing import Any

from django.urls import path

from frontend.views import connect, findings, handing_over, plans, provider_changes, providers

PROVIDER = "ops/providers/<str:provider>"
CONNECT = f"{PROVIDER}/connect"

PROVIDERS: list[Any] = [
    path("ops/providers", providers.listed, name="providers"),
    path("ops/providers/connect", connect.begin, name="provider-connect"),
    path(PROVIDER, providers.show, name="provider"),
    path(f"{PROVIDER}/test", provider_changes.test, name="provider-test"),
    path(f"{PROVIDER}/enable", provider_changes.enable, name="provider-enable"),
    path(f"{PROVIDER}/disable", provider_changes.disable, name="provider-disable"),
    path(f"{PROVIDER}/settings", provider_changes.edit, name="provider-settings"),
    path(f"{PROVIDER}/credentials/<str:credential>", provider_changes.set_credential, name="provider-credential"),
    path(f"{PROVIDER}/delete", provider_changes.delete, name="provider-delete"),
    path(CONNECT, connect.resume, name="connect"),
    path(f"{CONNECT}/credentials", connect.credentials, name="connect-credentials"),
    path(f"{CONNECT}/check", connect.check, name="connect-check"),
    path(f"{CONNECT}/test", connect.test, name="connect-test"),
    path(f"{CONNECT}/found", connect.found, name="connect-found"),
    path(f"{CONNECT}/hand-over", handing_over.hand_over, name="connect-hand-over"),
    path(f"{CONNECT}/acceptance", handing_over.acceptance, name="connect-acceptance"),
    path(f"{CONNECT}/accept", handing_over.accept, name="connect-accept"),
    path(f"{CONNECT}/open", handing_over.open_hosts, name="connect-open"),
    path("ops/plans", plans.listed, name="plans"),
    path("ops/plans/<str:key>", plans.show, name="plan"),
    path("ops/plans/<str:key>/start", plans.start, name="plan-start"),
    path("ops/plans/<str:key>/abort", plans.abort, name="plan-abort"),
    path("ops/findings", findings.listed, name="findings"),
    path("ops/findings/<str:key>", findings.show, name="finding"),
    path("ops/findings/<str:key>/resolve", findings.resolve, name="finding-resolve"),
]
