"""The platform's own objects: providers, hosts, devices, findings, host plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.db.models import QuerySet
from pydantic import BaseModel

from tenants import access
from tenants.api.serializers.base import Out, Page, page_of
from tenants.api.serializers.platform import (
    CredentialIn,
    DeviceOut,
    DeviceQuery,
    DrainIn,
    DrainPreviewOut,
    FindingOut,
    FindingQuery,
    HostOut,
    HostPlanOut,
    HostQuery,
    MaintenanceIn,
    PlanQuery,
    PlanReasonIn,
    ProviderChangeIn,
    ProviderIn,
    ProviderOut,
    ProviderQuery,
    ResolveIn,
)
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.api.views.filters import named
from tenants.models import (
    Finding,
    GpuDevice,
    Host,
    HostPlan,
    Provider,
    ProviderCredential,
)
from tenants.operations import findings, inventory, providers

ProviderPage = page_of(ProviderOut)
HostPage = page_of(HostOut)
DevicePage = page_of(DeviceOut)
FindingPage = page_of(FindingOut)
HostPlanPage = page_of(HostPlanOut)


class ProviderView(ApiView):
    """Providers."""

    def rows(self, call: Call) -> QuerySet[Provider]:  # noqa: ARG002
        """Return all providers: their names and sites are no secret."""
        return Provider.objects.all()

    def show(self, row: Provider, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a provider, with its configuration to platform roles."""
        return ProviderOut.of(row, inside=bool(call.actor.platform_roles))


class Providers(ProviderView):
    """All providers."""

    @reads("providers.list", answers=ProviderPage, query=ProviderQuery)
    def get(self, call: Call) -> Page:
        """List providers."""
        rows = self.rows(call)
        if call.query.kind:
            rows = rows.filter(kind=call.query.kind)
        if call.query.site:
            rows = rows.filter(site=call.query.site)
        return self.page(call, rows, ProviderPage)

    @writes("providers.create", body=ProviderIn, answers=ProviderOut, status=201)
    def post(self, call: Call) -> Any:
        """Register a vCenter, a cluster or a sandbox estate."""
        body: ProviderIn = call.body
        return providers.create(
            name=body.name, kind=body.kind, site=body.site, config=body.config, actor=call.actor, now=call.now
        )


class ProviderItem(ProviderView):
    """One provider."""

    key = "provider"

    @reads("providers.read", answers=ProviderOut)
    def get(self, call: Call) -> Any:
        """Read a provider."""
        return call.target

    @writes("providers.update", body=ProviderChangeIn, answers=ProviderOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Change site or configuration."""
        return providers.update(
            provider=call.target,
            site=call.body.site,
            config=call.body.config,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )

    @writes("providers.delete", answers=ProviderOut, versioned=True)
    def delete(self, call: Call) -> Any:
        """Give up a provider that nobody uses."""
        return providers.delete(provider=call.target, actor=call.actor, now=call.now, version=call.version)


class ProviderCredentialItem(ProviderView):
    """One secret of a provider."""

    key = "provider"
    slugs = frozenset({"credential"})

    @writes("providers.set_credential", body=CredentialIn, answers=ProviderOut, plannable=False)
    def put(self, call: Call) -> Any:
        """Store or replace one secret, sealed; it is never shown again."""
        return providers.set_credential(
            provider=call.target,
            name=call.path["credential"],
            secret=call.body.value,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )

    @writes("providers.remove_credential", answers=ProviderOut, plannable=False)
    def delete(self, call: Call) -> Any:
        """Destroy one secret."""
        return providers.remove_credential(
            provider=call.target,
            name=call.path["credential"],
            actor=call.actor,
            now=call.now,
            version=call.version,
        )

    def again(self, row: Any, call: Call) -> Any:
        """Return the provider, whatever row the operation returned."""
        return self.rows(call).get(pk=row.provider_id if isinstance(row, ProviderCredential) else row.pk)


def _switched(operation_id: str, function: Callable[..., Any], words: str) -> type[ApiView]:
    """Return the view that switches a provider."""

    class Switch(ProviderView):
        __doc__ = words
        key = "provider"

        def post(self, call: Call) -> Any:
            return function(provider=call.target, actor=call.actor, now=call.now, version=call.version)

        post.__doc__ = words
        post = writes(operation_id, answers=ProviderOut)(post)

    return Switch


PROVIDER_STEPS: Mapping[str, type[ApiView]] = {
    "enable": _switched("providers.enable", providers.enable, "Let new units be placed on a provider again."),
    "disable": _switched(
        "providers.disable", providers.disable, "Place nothing new on a provider; what runs there goes on."
    ),
}


class ProviderTest(ProviderView):
    """Testing a provider."""

    key = "provider"

    @writes("providers.test", answers=ProviderOut)
    def post(self, call: Call) -> Any:
        """Have a worker call the provider now; `test` of the provider has what it found."""
        return providers.test(provider=call.target, actor=call.actor, now=call.now)


class HostView(ApiView):
    """Hosts."""

    def rows(self, call: Call) -> QuerySet[Host]:  # noqa: ARG002
        """Return all hosts; the policy is for platform roles."""
        return Host.objects.select_related("provider")

    def show(self, row: Host, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a host."""
        return HostOut.of(row)


class Hosts(HostView):
    """All hosts."""

    @reads("hosts.list", answers=HostPage, query=HostQuery)
    def get(self, call: Call) -> Page:
        """List hosts."""
        query: HostQuery = call.query
        rows = self.rows(call)
        if query.provider:
            rows = rows.filter(named(query.provider, "provider"))
        if query.state is not None:
            rows = rows.filter(state=query.state.value)
        if query.name:
            rows = rows.filter(name=query.name)
        if query.product:
            rows = rows.filter(gpu_product=query.product)
        return self.page(call, rows, HostPage)


class HostItem(HostView):
    """One host."""

    key = "host"

    @reads("hosts.read", answers=HostOut)
    def get(self, call: Call) -> Any:
        """Read a host."""
        return call.target

    @writes("hosts.remove", answers=HostOut, versioned=True)
    def delete(self, call: Call) -> Any:
        """Take a host out for good; drain it first."""
        return inventory.remove(host=call.target, actor=call.actor, now=call.now, version=call.version)


class HostPlanView(ApiView):
    """Plans over hosts."""

    def rows(self, call: Call) -> QuerySet[HostPlan]:  # noqa: ARG002
        """Return all plans; the policy is for platform roles."""
        return HostPlan.objects.select_related("host")

    def show(self, row: HostPlan, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a plan."""
        return HostPlanOut.of(row)


class HostPlans(HostPlanView):
    """All plans."""

    @reads("plans.list", answers=HostPlanPage, query=PlanQuery)
    def get(self, call: Call) -> Page:
        """List plans over hosts."""
        rows = self.rows(call)
        if call.query.host:
            rows = rows.filter(named(call.query.host, "host"))
        if call.query.state:
            rows = rows.filter(state=call.query.state)
        return self.page(call, rows, HostPlanPage)


class HostPlanItem(HostPlanView):
    """One plan."""

    key = "plan"

    @reads("plans.read", answers=HostPlanOut, waitable=True)
    def get(self, call: Call) -> Any:
        """Read a plan: who is touched, what moves where, how far it is."""
        return call.target


class HostPlanCancel(HostPlanView):
    """Rolling a plan back."""

    key = "plan"

    @writes("plans.cancel", answers=HostPlanOut)
    def post(self, call: Call) -> Any:
        """Cancel a running plan: maintenance holds dropped, the host as it was."""
        return inventory.cancel_plan(plan=call.target, actor=call.actor, now=call.now, version=call.version)


class HostPlanStart(HostPlanView):
    """Ending a plan's notice early."""

    key = "plan"

    @writes("plans.start", answers=HostPlanOut)
    def post(self, call: Call) -> Any:
        """Begin a drain whose notice still runs; its tenants are told again."""
        return inventory.start_plan(plan=call.target, actor=call.actor, now=call.now, version=call.version)


def _moved(operation_id: str, function: Callable[..., Any], words: str) -> type[ApiView]:
    """Return the view of a step in a host's life that takes no words."""

    class Move(HostView):
        __doc__ = words
        key = "host"

        def post(self, call: Call) -> Any:
            return function(host=call.target, actor=call.actor, now=call.now, version=call.version)

        post.__doc__ = words
        post = writes(operation_id, answers=HostOut)(post)

    return Move


def _planned(
    operation_id: str, function: Callable[..., Any], body: type[BaseModel], words: str, *fields: str
) -> type[ApiView]:
    """Return the view of a step in a host's life that makes a plan."""

    class Plan(HostView):
        __doc__ = words
        key = "host"

        def post(self, call: Call) -> Any:
            given = {name: getattr(call.body, name) for name in fields}
            return function(host=call.target, actor=call.actor, now=call.now, version=call.version, **given)

        post.__doc__ = words
        post = writes(operation_id, answers=HostPlanOut, body=body, status=201)(post)

        def again(self, row: Any, call: Call) -> Any:  # noqa: ARG002
            """Return the plan."""
            return HostPlan.objects.select_related("host").get(pk=row.pk)

        def replayed(self, replay: Any, call: Call) -> Any:  # noqa: ARG002
            """Return the plan an earlier request made."""
            return access.find(HostPlan.objects.select_related("host"), replay.ids[0])

        def show(self, row: Any, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
            """Return the plan."""
            return HostPlanOut.of(row)

    return Plan


HOST_STEPS: Mapping[str, type[ApiView]] = {
    "accept": _moved("hosts.accept", inventory.accept, "Ask for a host's acceptance run."),
    "open": _moved("hosts.open", inventory.open_host, "Let units be placed on an accepted host."),
    "cordon": _moved("hosts.cordon", inventory.cordon, "Place nothing new on an open host."),
    "uncordon": _moved("hosts.uncordon", inventory.uncordon, "Open a cordoned host again."),
    "drain": _planned(
        "hosts.drain", inventory.drain, DrainIn, "Empty a host by plan, with notice to its tenants.",
        "reason", "starts_at", "ends_at",
    ),
    "maintenance": _planned(
        "hosts.maintenance", inventory.maintenance, MaintenanceIn, "Take an empty host into maintenance.",
        "reason", "ends_at",
    ),
    "return": _planned(
        "hosts.return", inventory.return_host, PlanReasonIn, "Bring a host back from maintenance.", "reason"
    ),
}  # fmt: skip


class DrainPreview(HostView):
    """What a drain would touch."""

    key = "host"

    @writes("hosts.preview_drain", answers=DrainPreviewOut, plannable=False)
    def post(self, call: Call) -> Any:
        """Say what a drain would touch at this moment; changes nothing."""
        found = inventory.preview_drain(host=call.target, actor=call.actor, now=call.now)
        return DrainPreviewOut.model_validate(found)


class DeviceView(ApiView):
    """GPU devices."""

    def rows(self, call: Call) -> QuerySet[GpuDevice]:  # noqa: ARG002
        """Return all devices; the policy is for platform roles."""
        return GpuDevice.objects.select_related("host", "provider")

    def show(self, row: GpuDevice, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a device."""
        return DeviceOut.of(row)


class Devices(DeviceView):
    """All GPU devices."""

    @reads("devices.list", answers=DevicePage, query=DeviceQuery)
    def get(self, call: Call) -> Page:
        """List GPU devices and what is free of them."""
        query: DeviceQuery = call.query
        rows = self.rows(call)
        if query.provider:
            rows = rows.filter(named(query.provider, "provider"))
        if query.host:
            rows = rows.filter(named(query.host, "host"))
        if query.product:
            rows = rows.filter(product=query.product)
        if query.healthy is not None:
            rows = rows.filter(healthy=query.healthy)
        return self.page(call, rows, DevicePage)


class DeviceItem(DeviceView):
    """One GPU device."""

    key = "device"

    @reads("devices.read", answers=DeviceOut)
    def get(self, call: Call) -> Any:
        """Read a GPU device."""
        return call.target


class DeviceRepair(HostPlanView):
    """Repairing a GPU."""

    key = "device"

    def find(self, call: Call) -> Any:
        """Return the device that the path names."""
        return access.find(GpuDevice.objects.select_related("host", "provider"), call.path["device"])

    @writes("devices.repair", body=PlanReasonIn, answers=HostPlanOut, status=201)
    def post(self, call: Call) -> Any:
        """Move what can be moved off a faulty GPU."""
        return inventory.repair_gpu(device=call.target, reason=call.body.reason, actor=call.actor, now=call.now)


class FindingView(ApiView):
    """Findings."""

    def rows(self, call: Call) -> QuerySet[Finding]:  # noqa: ARG002
        """Return all findings; the policy is for platform roles."""
        return Finding.objects.select_related("provider", "host")

    def show(self, row: Finding, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a finding."""
        return FindingOut.of(row)


class Findings(FindingView):
    """All findings."""

    @reads("findings.list", answers=FindingPage, query=FindingQuery)
    def get(self, call: Call) -> Page:
        """List findings: what does not fit together and needs a person."""
        query: FindingQuery = call.query
        rows = self.rows(call)
        if query.kind:
            rows = rows.filter(kind=query.kind)
        if query.provider:
            rows = rows.filter(named(query.provider, "provider"))
        if query.open is not None:
            rows = rows.filter(resolved_at__isnull=query.open)
        return self.page(call, rows, FindingPage, at="first_seen_at")


class FindingItem(FindingView):
    """One finding."""

    key = "finding"

    @reads("findings.read", answers=FindingOut)
    def get(self, call: Call) -> Any:
        """Read a finding."""
        return call.target


class FindingResolve(FindingView):
    """Doing something about a finding."""

    key = "finding"

    @writes("findings.resolve", body=ResolveIn, answers=FindingOut)
    def post(self, call: Call) -> Any:
        """Ignore, repair, delete or adopt what a finding is about."""
        return findings.resolve(
            finding=call.target,
            action=call.body.action,
            reason=call.body.reason,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )
