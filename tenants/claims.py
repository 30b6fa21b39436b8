"""Claims of many allocations at once: equal single-unit asks go through the ledger in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import connection

from tenants import geometry, gpu_catalogue, ledger, no_room
from tenants.models import Allocation, Host, Unit
from tenants.specs import AllocationSpec
from tenants.states import Tier


@dataclass(frozen=True, slots=True)
class Claim:
    """One allocation to place: its units (unplaced), its spec, where it may go, best first."""

    allocation: Allocation
    units: Sequence[Unit]
    spec: AllocationSpec
    options: Sequence[ledger.Option]


def claim_many(claims: Sequence[Claim], *, now: datetime) -> dict[UUID, ledger.Placed | no_room.NoRoom]:
    """Place each claim as a gang or not at all, in order; returns allocation id → outcome."""
    outcome: dict[UUID, ledger.Placed | no_room.NoRoom] = {}
    alike: dict[tuple[object, ...], list[Claim]] = {}
    for claim in claims:
        if len(claim.units) == 1 and len(claim.options) == 1 and len(claims) > 1 and not claim.units[0].avoid_hosts:
            unit = claim.units[0]
            key = (
                unit.product, unit.profile, unit.gpu_count, unit.vcpu, unit.memory_gib, claim.options[0],
                claim.spec.where.tier,
            )  # fmt: skip
            alike.setdefault(key, []).append(claim)
        else:
            outcome[claim.allocation.pk] = ledger.place(
                claim.allocation, claim.units, claim.spec, now=now, options=claim.options
            )
    for group in alike.values():
        _claim_alike(group, outcome, now=now)
    return outcome


def _claim_alike(group: Sequence[Claim], outcome: dict[UUID, ledger.Placed | no_room.NoRoom], *, now: datetime) -> None:
    first = group[0]
    unit, option = first.units[0], first.options[0]
    profile = gpu_catalogue.profile(unit.product, unit.profile)
    masks, starts = geometry.ranked_arrays(unit.product, unit.profile)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT x.unit, ledger_claim(x.unit, %s, x.allocation, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, '{}', %s, "
            "%s, %s) FROM unnest(%s::uuid[], %s::uuid[]) WITH ORDINALITY AS x(unit, allocation, n) ORDER BY x.n",
            [
                first.allocation.tenant_id, unit.product, unit.profile, masks, starts, profile.size, profile.media,
                max(1, unit.gpu_count), unit.vcpu, unit.memory_gib, list(option.providers),
                first.spec.where.tier is Tier.DEDICATED_HOST, [option.kind.value], now,
                [c.units[0].pk for c in group], [c.allocation.pk for c in group],
            ],
        )  # fmt: skip
        hosts = dict(cursor.fetchall())
    provider_of = dict(Host.objects.filter(pk__in={h for h in hosts.values() if h}).values_list("pk", "provider_id"))
    why: no_room.NoRoom | None = None
    for claim in group:
        host = hosts[claim.units[0].pk]
        if host is not None:
            claim.units[0].host_id, claim.units[0].placed_at = host, now
            outcome[claim.allocation.pk] = ledger.Placed((host,), provider_of[host], option.kind)
            continue
        if why is not None:
            outcome[claim.allocation.pk] = why
            continue
        answer = ledger.place(claim.allocation, claim.units, claim.spec, now=now, options=claim.options)
        outcome[claim.allocation.pk] = answer
        if isinstance(answer, no_room.NoRoom):
            why = answer
