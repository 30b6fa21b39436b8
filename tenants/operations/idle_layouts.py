"""`on-idle`: where a provider says so, GPUs that nobody uses are carved for what waits, without a person's plan.

The setting `layouts` of a provider is `fixed` (people plan every change) or `on-idle`. Carving itself is the same plan
as a person's (`layouts`, `provisioners.layout_plan`): one per host, and a report younger than the plan has to show the
GPU empty. Its difference: nobody is told, moved or waited for, because nobody may be there; where somebody turns up it
is called off. Until a layout is there the ledger sells nothing but what is carved. Lock order: host, devices, plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from django.db.models import Q, QuerySet

from tenants import geometry, host_plans, layout_plans
from tenants.actor import Actor
from tenants.gpu_catalogue import UnknownProfile, profile
from tenants.models import Allocation, GpuDevice, Hold, Host, HostPlan, Provider
from tenants.operations.admissions import provider_ids
from tenants.operations.guards import locked
from tenants.operations.host_parts import host_changed, make_plan, set_state
from tenants.operations.layouts import FEATURE
from tenants.specs import AllocationSpec, GpuAsk
from tenants.states import HostState
from tenants.transactions import operation

SETTING: Final = "layouts"
ON_IDLE: Final = "on-idle"
AGAIN: Final = timedelta(hours=1)
"""So long a host is left alone that was carved, or where it came to nothing."""
MOST_ASKED: Final = 50
"""Of what waits longest; the rest has its turn when those are served."""


def is_on(provider: Provider) -> bool:
    """Whether a provider's idle GPUs are carved by themselves."""
    able = provider.capabilities.get("features", {}).get(FEATURE) is not False
    return able and provider.config.get(SETTING) == ON_IDLE


@operation
def carve(*, provider: Provider, actor: Actor, now: datetime) -> HostPlan | None:
    """Begin to carve idle GPUs of one host for what waits longest and has no room for its layout alone; None: nothing.

    One such plan runs at a provider at a time: what it makes room for is placed before the next is thought of.
    """
    if _begun(provider).filter(state="running").exists():
        return None
    rows = Allocation.objects.filter(
        queued_at__isnull=False, released_at__isnull=True, deletion_requested_at__isnull=True,
        observed__why__layout_change=True,
    )  # fmt: skip
    for row in rows.select_related("tenant").order_by("queued_at", "id")[:MOST_ASKED]:
        spec = AllocationSpec.from_json(row.spec)
        asks = [unit.gpu for unit in spec.units if unit.gpu is not None]
        if not asks or provider.pk not in provider_ids(row, spec):
            continue
        suits = _suits(row, spec)
        for product in sorted({ask.product for ask in asks}):
            fitting = [ask for ask in asks if ask.product == product]
            plan = _for(provider, product, fitting, suits, actor=actor, now=now)
            if plan is not None:
                return plan
    return None


def _begun(provider: Provider) -> QuerySet[HostPlan]:
    return HostPlan.objects.filter(host__provider=provider, kind=host_plans.LAYOUT, observed__has_key="on_idle")


def _suits(row: Allocation, spec: AllocationSpec) -> Q:
    """Return on which hosts something could be placed if only its layout were there."""
    least = Q(
        free_vcpu__gte=max(unit.vcpu for unit in spec.units),
        free_memory_gib__gte=max(unit.memory_gib for unit in spec.units),
    )
    whose = Q(dedicated_tenant__isnull=True) | Q(dedicated_tenant=row.tenant_id)
    if spec.where.kind is None:
        return least & whose
    return least & whose & (Q(boundary_kinds=[]) | Q(boundary_kinds__contains=[spec.where.kind.value]))


def _for(
    provider: Provider, product: str, asks: Sequence[GpuAsk], suits: Q, *, actor: Actor, now: datetime
) -> HostPlan | None:
    """Begin a plan on the first host with idle GPUs that can be carved as asked.

    A host that was carved lately stays as it is, whatever came of it: two that wait for different parts would have
    it carved to and fro without end.
    """
    tired = _begun(provider).filter(created_at__gt=now - AGAIN)
    hosts = Host.objects.filter(
        suits, provider=provider, state=HostState.OPEN.value, healthy=True, devices__product=product
    ).exclude(pk__in=tired.values("host"))
    for host in hosts.distinct().order_by("name"):
        if HostPlan.objects.filter(host=host, state="running").exists() or _wish(host, product, asks) is None:
            continue
        row = locked(host)  # what was seen without a lock is looked at once more
        wanted = _wish(row, product, asks)
        if row.state != HostState.OPEN.value or wanted is None:
            continue
        words = ", ".join(sorted({ask.profile or "whole" for ask in asks}))
        set_state(row, HostState.DRAINING)
        plan = make_plan(
            row, host_plans.LAYOUT, f"{ON_IDLE}: {words} of {product} is waited for", [], now, None, actor=actor,
            now=now, observed={"from": HostState.OPEN.value, "on_idle": True}, layout=wanted.as_json(),
        )  # fmt: skip
        host_plans.keep_empty(plan, now=now)
        host_changed(row, "host.layout-planned", actor=actor, now=now, plan=plan.pk, starts_at=now, units=0)
        return plan
    return None


def _wish(host: Host, product: str, asks: Sequence[GpuAsk]) -> layout_plans.Wish | None:
    """Return what of a host can be carved now as asked, None where nothing can or nothing would change."""
    layouts = dict(_layouts(host, product, asks))
    if not layouts:
        return None
    wanted = layout_plans.wish(host, layouts, evict=False)
    return wanted if wanted.differing and _is_empty(host, wanted) else None


def _is_empty(host: Host, wanted: layout_plans.Wish) -> bool:
    """Whether nobody is on the GPUs that differ, by ledger and report; where nobody knows on which, on the host."""
    return not (
        layout_plans.units_on(host, wanted)
        or layout_plans.foreign_on(host, wanted)
        or layout_plans.leaving(host, wanted)
    )


def _layouts(host: Host, product: str, asks: Sequence[GpuAsk]) -> Iterator[tuple[str, list[str]]]:
    """Yield (GPU, profiles) for as many idle GPUs as the asks need; of whole ones nothing where there are too few."""
    idle = GpuDevice.objects.filter(
        host=host, product=product, removed_at__isnull=True, placeable=True, layout_change="fixed",
        mode__in=["empty", "mig"],
    ).exclude(pk__in=Hold.objects.filter(host=host).values("device"))  # fmt: skip
    gpus = list(idle.order_by("mode", "index"))  # those that are carved for nobody yet come first
    left = [ask.profile for ask in asks if ask.profile]
    if left:
        for gpu in gpus:
            names = filled(product, left)
            if not names:
                return
            yield str(gpu.pk), names
            left = list((Counter(left) - Counter(names)).elements())
        return
    count = max(max(1, ask.count) for ask in asks)
    if len(gpus) >= count:
        yield from ((str(gpu.pk), []) for gpu in gpus[:count])


def filled(product: str, wanted: Sequence[str]) -> list[str]:
    """Return profiles that one GPU can have together: of those wanted what fits, then as many more of them as fit."""
    try:
        largest_first = sorted(wanted, key=lambda name: (-profile(product, name).size, name))
    except UnknownProfile:
        return []
    names: list[str] = []
    for name in largest_first:
        if geometry.arrangement(product, [*names, name]) is not None:
            names.append(name)
    for name in dict.fromkeys(largest_first):
        while geometry.arrangement(product, [*names, name]) is not None:
            names.append(name)
    return names
