"""Addresses of the REST API, below `/api/v1/`.

Objects of a tenant stand below it, by name, short id or id; the same noun at the top lists them across the
tenants that the caller sees. Actions are POSTs below their object.
"""

from __future__ import annotations

from typing import Any

from django.urls import path

from tenants.api.stream import EventStream
from tenants.api.views import (
    accounting,
    capacity,
    costs,
    layouts,
    notifications,
    offers,
    people,
    platform,
    products,
    records,
    requests,
    serving,
    system,
    tenancy,
)

TENANT = "tenants/<str:tenant>"


def _both(noun: str, anywhere: Any, collection: Any) -> list[Any]:
    """Return the list across tenants and the collection of one tenant."""
    return [path(noun, anywhere.as_view()), path(f"{TENANT}/{noun}", collection.as_view())]


PRODUCTS: list[Any] = [
    *_both("endpoints", products.EndpointsAnywhere, products.Endpoints),
    path(f"{TENANT}/endpoints/<str:name>", products.EndpointItem.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/revisions", products.Revisions.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/calls", accounting.Calls.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/minutes", accounting.Minutes.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/revisions/diff", products.RevisionDiff.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/rollouts", products.Rollouts.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/rollout/promote", products.RolloutPromote.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/rollout/hold", products.RolloutHold.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/rollout/resume", products.RolloutResume.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/rollout/abort", products.RolloutAbort.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/sleep", products.EndpointSleep.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/wake", products.EndpointWake.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/idle", products.EndpointIdle.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/rollback", products.EndpointRollback.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/keys", products.Keys.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/keys/<str:key>", products.KeyItem.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/keys/<str:key>/roll", products.KeyRoll.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/keys/<str:key>/limits", products.KeyLimits.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/address", serving.Address.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/logs", serving.Logs.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/logs/<str:log>", serving.LogItem.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/benchmarks", serving.Benchmarks.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/benchmarks/<str:benchmark>", serving.BenchmarkItem.as_view()),
    path(f"{TENANT}/endpoints/<str:name>/benchmarks/<str:benchmark>/cancel", serving.BenchmarkCancel.as_view()),
    *_both("machines", products.MachinesAnywhere, products.Machines),
    path(f"{TENANT}/machines/<str:name>", products.MachineItem.as_view()),
    path(f"{TENANT}/machines/<str:name>/power", products.MachinePower.as_view()),
    path(f"{TENANT}/machines/<str:name>/rebuild", products.MachineRebuild.as_view()),
    path(f"{TENANT}/machines/<str:name>/resize", products.MachineResize.as_view()),
    path(f"{TENANT}/machines/<str:name>/ssh-certificates", products.SshCertificates.as_view()),
    path(f"{TENANT}/machines/<str:name>/consoles", products.Consoles.as_view()),
    path(f"{TENANT}/machines/<str:name>/consoles/<str:console>", products.ConsoleItem.as_view()),
    *_both("namespaces", products.NamespacesAnywhere, products.Namespaces),
    path(f"{TENANT}/namespaces/<str:name>", products.NamespaceItem.as_view()),
    path(f"{TENANT}/namespaces/<str:name>/credentials", products.Credentials.as_view()),
    path(f"{TENANT}/namespaces/<str:name>/credentials/<str:credential>", products.CredentialItem.as_view()),
    *_both("allocations", capacity.AllocationsAnywhere, capacity.Allocations),
    path(f"{TENANT}/allocations:batch", capacity.AllocationBatch.as_view()),
    path(f"{TENANT}/allocations/<str:name>", capacity.AllocationItem.as_view()),
    path(f"{TENANT}/allocations/<str:name>/renew", capacity.AllocationRenewal.as_view()),
    *_both("boundaries", capacity.Boundaries, capacity.Boundaries),
    path(f"{TENANT}/boundaries/<str:name>", capacity.BoundaryItem.as_view()),
    path(f"{TENANT}/boundaries/<str:name>/certificate", capacity.BoundaryCertificate.as_view()),
    path(f"{TENANT}/boundaries/<str:name>/certify", capacity.BoundaryCertifying.as_view()),
    *[path(f"{TENANT}/{noun}/<str:name>/explain", view.as_view()) for noun, view in capacity.EXPLAINED.items()],
]

TENANCY: list[Any] = [
    path("tenants", tenancy.Tenants.as_view()),
    path(TENANT, tenancy.TenantItem.as_view()),
    path(f"{TENANT}/children", tenancy.Children.as_view()),
    path(f"{TENANT}/policy", tenancy.TenantPolicy.as_view()),
    path(f"{TENANT}/ssh-authority", tenancy.SshAuthorityView.as_view()),
    path(f"{TENANT}/suspension", tenancy.SuspensionView.as_view()),
    path(f"{TENANT}/suspensions", tenancy.Suspensions.as_view()),
    path(f"{TENANT}/members", tenancy.Members.as_view()),
    path(f"{TENANT}/members/<str:person>", tenancy.MemberItem.as_view()),
    path(f"{TENANT}/members/<str:person>/hand-over", tenancy.MemberHandover.as_view()),
    path(f"{TENANT}/service-accounts", tenancy.ServiceAccounts.as_view()),
    path(f"{TENANT}/service-accounts/<str:name>", tenancy.ServiceAccountItem.as_view()),
    path(f"{TENANT}/service-accounts/<str:name>/tokens", tenancy.ServiceTokens.as_view()),
    path(f"{TENANT}/service-accounts/<str:name>/tokens/<str:token>", tenancy.ServiceTokenItem.as_view()),
    path(f"{TENANT}/quotas", records.Quotas.as_view()),
    path(f"{TENANT}/quotas/<str:quota>", records.QuotaItem.as_view()),
    path(f"{TENANT}/quota-position", records.Position.as_view()),
    *_both("requests", requests.RequestsAnywhere, requests.Requests),
    path(f"{TENANT}/requests/<str:name>", requests.RequestOfTenant.as_view()),
    *_both("events", records.Events, records.Events),
    *_both("usage", records.Usage, records.Usage),
    path(f"{TENANT}/costs", costs.Costs.as_view()),
    path(f"{TENANT}/budget", costs.BudgetItem.as_view()),
    *_both("notices", records.Notices, records.Notices),
]

PEOPLE: list[Any] = [
    path("login", people.Login.as_view()),
    path("who", people.Who.as_view()),
    path("who/password", people.Password.as_view()),
    path("tokens", people.Tokens.as_view()),
    path("tokens:find", people.FindToken.as_view()),
    path("tokens/<str:token>", people.TokenItem.as_view()),
    path("people", people.People.as_view()),
    path("people/<str:person>", people.PersonItem.as_view()),
    path("people/<str:person>/suspend", people.PersonSuspend.as_view()),
    path("people/<str:person>/resume", people.PersonResume.as_view()),
    path("people/<str:person>/roles", people.PersonRoles.as_view()),
    path("people/<str:person>/leave", people.PersonLeave.as_view()),
    path("objects/<str:short_id>", people.Objects.as_view()),
    path("requests:tenant", requests.RequestTenant.as_view()),
    path("requests:join", requests.RequestJoin.as_view()),
    path("requests:write-off", requests.RequestWriteOff.as_view()),
    path("requests/<str:name>", requests.RequestItem.as_view()),
    path("requests/<str:name>/decide", requests.RequestDecide.as_view()),
    path("requests/<str:name>/proof", requests.RequestProof.as_view()),
    path("requests/<str:name>/comments", requests.RequestComments.as_view()),
    path("inbox", requests.Inbox.as_view()),
    path("delegations", requests.Delegations.as_view()),
    path("delegations/<str:delegation>", requests.DelegationItem.as_view()),
    path("auto-approval-rules", requests.Rules.as_view()),
    path("auto-approval-rules/<str:rule>", requests.RuleItem.as_view()),
]

NOTIFICATIONS: list[Any] = [
    path("notifications", notifications.Notifications.as_view()),
    path("notifications:unread", notifications.Unread.as_view()),
    path("notifications:read", notifications.MarkRead.as_view()),
    path("notification-kinds", notifications.Kinds.as_view()),
    path("notification-preferences", notifications.Preferences.as_view()),
    path(f"{TENANT}/webhooks", notifications.Webhooks.as_view()),
    path(f"{TENANT}/webhooks/<str:name>", notifications.WebhookItem.as_view()),
    *[path(f"{TENANT}/webhooks/<str:name>/{step}", view.as_view()) for step, view in notifications.STEPS.items()],
    path(f"{TENANT}/webhooks/<str:name>/deliveries", notifications.Deliveries.as_view()),
    path(f"{TENANT}/webhooks/<str:name>/deliveries/<str:delivery>", notifications.DeliveryItem.as_view()),
    path(f"{TENANT}/webhooks/<str:name>/deliveries/<str:delivery>/send-again", notifications.SendAgain.as_view()),
]

PLATFORM: list[Any] = [
    path("events/stream", EventStream.as_view()),
    path("providers", platform.Providers.as_view()),
    path("providers/<str:provider>", platform.ProviderItem.as_view()),
    path("providers/<str:provider>/enable", platform.PROVIDER_STEPS["enable"].as_view()),
    path("providers/<str:provider>/disable", platform.PROVIDER_STEPS["disable"].as_view()),
    path("providers/<str:provider>/test", platform.ProviderTest.as_view()),
    path("providers/<str:provider>/credentials/<str:credential>", platform.ProviderCredentialItem.as_view()),
    path("hosts", platform.Hosts.as_view()),
    path("hosts/<str:host>", platform.HostItem.as_view()),
    *[path(f"hosts/<str:host>/{step}", view.as_view()) for step, view in platform.HOST_STEPS.items()],
    path("hosts/<str:host>/preview-drain", platform.DrainPreview.as_view()),
    path("hosts/<str:host>/preview-layout", layouts.LayoutPreview.as_view()),
    path("hosts/<str:host>/layout", layouts.HostLayout.as_view()),
    path("plans", platform.HostPlans.as_view()),
    path("plans/<str:plan>", platform.HostPlanItem.as_view()),
    path("plans/<str:plan>/cancel", platform.HostPlanCancel.as_view()),
    path("plans/<str:plan>/start", platform.HostPlanStart.as_view()),
    path("devices", platform.Devices.as_view()),
    path("devices/<str:device>", platform.DeviceItem.as_view()),
    path("devices/<str:device>/repair", platform.DeviceRepair.as_view()),
    path("findings", platform.Findings.as_view()),
    path("findings/<str:finding>", platform.FindingItem.as_view()),
    path("findings/<str:finding>/resolve", platform.FindingResolve.as_view()),
    path("served-models", offers.ServedModels.as_view()),
    path("served-models/<str:model>", offers.ServedModelItem.as_view()),
    path("prices", offers.PriceLists.as_view()),
    path("prices/<str:price_list>", offers.PriceListItem.as_view()),
    path("gpu-products", offers.Catalogue.as_view()),
    path("machine-images", offers.MachineImages.as_view()),
    path("checkpoints", records.Checkpoints.as_view()),
    path("system-reports", system.SystemReports.as_view()),
    path(f"{TENANT}/as-of", system.AsOf.as_view()),
]

urlpatterns: list[Any] = [*PRODUCTS, *TENANCY, *PEOPLE, *NOTIFICATIONS, *PLATFORM]
