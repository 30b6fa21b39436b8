"""What gateways (the principal `agent`) write: their enrolment, the configuration they took, usage, reports.

A gateway proves itself outside of these operations (`entry_of` and a comparison of digests in constant time)
and then acts under its own id: row-level security shows it its tenant and nothing else. Lock order: objects,
outbox, chain head, and the gateway's own row last, as everybody who bumps it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from django.db import connection
from django.db.models import F, Q

from tenants import access, desired, endpoint_minutes
from tenants.actor import Actor
from tenants.endpoint_minutes import MinuteLine
from tenants.errors import Gone, Unauthenticated
from tenants.models import Endpoint, EndpointKey, GatewayReplica, GatewayUsage, Rollout
from tenants.operations.products import touch_gateways
from tenants.policies import ROUTES
from tenants.states import Phase
from tenants.transactions import operation

BUSY_FROM: Final = 4
"""Fewer requests that wait in a model server are no trouble, however few it works on."""
USED_EVERY: Final = timedelta(minutes=1)
"""`last_used_at` of a key moves no more often than this."""
_SUMMED: Final = (
    *("requests", "errors", "prompt_tokens", "completion_tokens"),
    *("duration_ms", "ttft_ms", "between_us", "gaps"),
)
_HISTOGRAMS: Final = ("ttft_counts", "between_counts")
_COLUMNS: Final = ("id", "tenant_id", "endpoint_id", "key_id", "revision", "hour", *_SUMMED, *_HISTOGRAMS)
_ADDED: Final = (
    "CASE WHEN cardinality(u.{name}) = 0 THEN excluded.{name} WHEN cardinality(excluded.{name}) = 0 THEN u.{name} "
    "ELSE (SELECT array_agg(a + b ORDER BY i) FROM unnest(u.{name}, excluded.{name}) WITH ORDINALITY AS t(a, b, i)) END"
)
"""Sum of two histograms of the same bounds; an empty one adds nothing."""
_WAITING: Final = (Phase.PROVISIONING.value, Phase.DELETING.value)


@dataclass(frozen=True, slots=True)
class Entry:
    """What proves one gateway, and the version of its configuration."""

    gateway: UUID
    credential_digest: str
    token_digest: str
    token_expires_at: datetime | None
    config_version: int
    removed: bool


@dataclass(frozen=True, slots=True)
class UsageLine:
    """Sums over the requests of one batch: of one key, revision and hour."""

    endpoint: UUID
    key: str
    revision: int
    """0 where no revision answered."""
    hour: datetime
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    duration_ms: int = 0
    ttft_ms: int = 0
    """Of all streams together."""
    between_us: int = 0
    """First to last token of all streams together, with so many `gaps` between tokens."""
    gaps: int = 0
    ttft_counts: tuple[int, ...] = ()
    """Histograms by the bounds of `tenants.usage_times`; empty: no stream."""
    between_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """One batch of usage, summed."""

    id: UUID
    lines: tuple[UsageLine, ...]
    keys_used: Mapping[str, datetime]
    """Public key id → when it was last used, no later than now."""
    minutes: tuple[MinuteLine, ...] = ()
    """The same by minute, for charts."""


def entries(gateways: Sequence[UUID]) -> dict[UUID, Entry]:
    """Return gateway → entry for those that exist; in a read block of `AUTH`."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, credential_digest, token_digest, token_expires_at, config_version, removed "
            "FROM gateway_entries(%s)",
            [list(gateways)],
        )
        return {row[0]: Entry(*row) for row in cursor.fetchall()}


@operation
def enrol(
    *,
    gateway: UUID,
    token_digest: str,
    credential_digest: str,
    version: str,
    belongs: Callable[[GatewayReplica], bool],
    actor: Actor,
    now: datetime,
) -> GatewayReplica:
    """Take a gateway's one-time token and know it by its credential from now on.

    `belongs` says whether who shows the token is where it was delivered to. A used token counts again only with the
    credential it was used with: its answer was lost. Raises `Unauthenticated` alike for a token that is unknown,
    replaced, expired, shown elsewhere or used by another; `Gone`.
    """
    access.require_principal(actor, ROUTES["agents.enrol"])
    row = GatewayReplica.objects.filter(pk=gateway, token_digest=token_digest).exclude(token_digest="").first()
    if row is None or not belongs(row):
        raise Unauthenticated
    if row.enrolled_at is not None and row.credential_digest == credential_digest:
        return row
    if row.enrolled_at is not None or row.token_expires_at is None or row.token_expires_at <= now:
        raise Unauthenticated
    desired.happened(row, "gateway.enrolled", actor=actor, at=now, nudge=False, version=version)
    taken = GatewayReplica.objects.filter(
        pk=gateway, token_digest=token_digest, enrolled_at=None, removed_at=None
    ).update(credential_digest=credential_digest, enrolled_at=now, last_seen_at=now, token_sealed=None)
    if not taken:  # somebody else was faster; what he may do is decided by what stands now
        raise Unauthenticated
    row.refresh_from_db()
    return row


@operation
def take_config(
    *,
    gateway: UUID,
    have: int,
    render: Callable[[GatewayReplica], str],
    actor: Actor,
    now: datetime,
) -> tuple[int, str]:
    """Return (version, document) of a gateway's configuration, rendered once per version and kept.

    The row's lock makes it exact: a change has raised the version and is visible, or waits for us. `have` is
    what the gateway serves; where that is ahead (we were restored from a backup) ours goes past it.
    """
    access.require_principal(actor, ROUTES["agents.config"])
    row = GatewayReplica.objects.select_for_update(no_key=True).filter(pk=gateway, removed_at=None).first()
    if row is None:
        raise Gone
    if have > row.config_version or row.config_version < 1:
        row.config_version = have + 1
    if row.rendered_version != row.config_version or not row.rendered:
        row.rendered = render(row)
        row.rendered_version = row.config_version
    row.last_seen_at = now
    row.save(update_fields=["config_version", "rendered", "rendered_version", "last_seen_at"])
    return row.config_version, row.rendered


@operation
def serves(*, gateway: UUID, version: int, actor: Actor, now: datetime) -> None:
    """Note which version a gateway serves, and wake endpoints that are built or taken down: they wait for it."""
    access.require_principal(actor, ROUTES["agents.config"])
    row = GatewayReplica.objects.filter(pk=gateway).first()
    if row is None:
        raise Gone
    if version <= row.config_version and version != row.reported_version:
        waiting = Endpoint._base_manager.filter(boundary_id=row.boundary_id, released_at=None, phase__in=_WAITING)
        for endpoint in waiting.order_by("pk"):
            desired.nudge_now(endpoint, at=now)
        GatewayReplica.objects.filter(pk=gateway).update(reported_version=version, last_seen_at=now)
    else:
        GatewayReplica.objects.filter(pk=gateway).update(last_seen_at=now)


@operation
def count_usage(*, gateway: UUID, totals: UsageTotals, actor: Actor, now: datetime) -> bool:
    """Add one batch to the sums, once however often it comes; False for a repeat."""
    access.require_principal(actor, ROUTES["agents.usage"])
    row = GatewayReplica.objects.only("pk", "tenant_id").filter(pk=gateway).first()
    if row is None:
        raise Gone
    endpoints = {line.endpoint for line in totals.lines}
    batch = GatewayUsage(
        id=totals.id,
        tenant_id=row.tenant_id,
        gateway=row,
        endpoint_id=next(iter(endpoints)) if len(endpoints) == 1 else None,
        requests=sum(line.requests for line in totals.lines),
        prompt_tokens=sum(line.prompt_tokens for line in totals.lines),
        completion_tokens=sum(line.completion_tokens for line in totals.lines),
        errors=sum(line.errors for line in totals.lines),
        received_at=now,
    )
    if not _first_time(batch):
        return False
    known = _use_keys(totals.keys_used)
    _add(row.tenant_id, [line if line.key in known else replace(line, key="") for line in totals.lines])
    endpoint_minutes.count(row, totals.minutes, now=now)
    return True


def _first_time(batch: GatewayUsage) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenants_gatewayusage (id, tenant_id, gateway_id, endpoint_id, requests, prompt_tokens, "
            "completion_tokens, errors, body, received_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, '{}', %s) "
            "ON CONFLICT (id) DO NOTHING",
            [
                batch.pk, batch.tenant_id, batch.gateway_id, batch.endpoint_id, batch.requests, batch.prompt_tokens,
                batch.completion_tokens, batch.errors, batch.received_at,
            ],
        )  # fmt: skip
        return bool(cursor.rowcount)


def _use_keys(used: Mapping[str, datetime]) -> set[str]:
    """Move `last_used_at` of these keys, by id; return those that exist."""
    keys = EndpointKey.objects.filter(public_id__in=list(used)).order_by("pk").values_list("public_id", "last_used_at")
    known = set()
    for public_id, before in keys:
        known.add(public_id)
        at = used[public_id]
        if before is None or before <= at - USED_EVERY:
            EndpointKey.objects.filter(Q(last_used_at=None) | Q(last_used_at__lt=at), public_id=public_id).update(
                last_used_at=at
            )
    return known


def _add(tenant: UUID, lines: Sequence[UsageLine]) -> None:
    """Add lines to the sums, in one order for all, so that two batches never wait for each other in a ring."""
    ordered = sorted(lines, key=lambda line: (line.endpoint, line.key, line.revision, line.hour))
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO tenants_endpointusage AS u ({', '.join(_COLUMNS)}) "  # noqa: S608 - ours
            f"VALUES ({', '.join(['%s'] * len(_COLUMNS))}) "
            "ON CONFLICT (endpoint_id, key_id, revision, hour, tenant_id) DO UPDATE SET "
            + ", ".join(f"{name} = u.{name} + excluded.{name}" for name in _SUMMED)
            + "".join(f", {name} = {_ADDED.format(name=name)}" for name in _HISTOGRAMS),
            [
                [
                    uuid4(), tenant, line.endpoint, line.key, line.revision, line.hour,
                    *(getattr(line, name) for name in _SUMMED),
                    *(list(getattr(line, name)) for name in _HISTOGRAMS),
                ]
                for line in ordered
            ],
        )  # fmt: skip


@operation
def report(*, gateway: UUID, body: Mapping[str, Any], version: int, actor: Actor, now: datetime) -> None:
    """Keep what a gateway says of itself; make endpoints due whose state or backends it sees otherwise than before."""
    access.require_principal(actor, ROUTES["agents.report"])
    row = GatewayReplica.objects.filter(pk=gateway).first()
    if row is None:
        raise Gone
    before, after = health_of(row.report), health_of(body)
    rolling = set(
        Rollout.objects.filter(endpoint__boundary_id=row.boundary_id, ended_at=None).values_list(
            "endpoint_id", flat=True
        )
    )
    if rolling:
        before, after = _with_counts(before, row.report, rolling), _with_counts(after, body, rolling)
    changed = [uid for uid in {*before, *after} if before.get(uid) != after.get(uid)]
    served = Q(pk__in=changed) | Q(stands_in_for__in=changed)
    mine = Endpoint._base_manager.filter(served, boundary_id=row.boundary_id, released_at=None)
    for endpoint in mine.order_by("pk"):
        desired.nudge_now(endpoint, at=now)
    if row.unit_id is not None and body.get("listens_with", "") != row.report.get("listens_with", ""):
        touch_gateways([row.boundary_id], now=now)  # the others in its endpoint's machines know it by that
    endpoint_minutes.looked(row, body, now=now)
    GatewayReplica.objects.filter(pk=gateway).update(
        report=dict(body),
        last_seen_at=now,
        # A version beyond ours is of a time before a backup was restored; the next configuration goes past it.
        reported_version=version if version <= row.config_version else F("reported_version"),
    )


def _with_counts(health: Mapping[UUID, Any], body: Mapping[str, Any], rolling: set[UUID]) -> dict[UUID, Any]:
    """Return health with what a rollout looks at besides, of endpoints that are in one: what runs, and what came of it.

    Which configuration it is about belongs to it: what is drained waits for a report of the present one.
    """
    found = dict(health)
    for endpoint in body.get("endpoints", ()):
        uid = UUID(str(endpoint["uid"]))
        if uid in rolling:
            runs = [(backend["unit_uid"], backend["in_flight"]) for backend in endpoint["backends"]]
            found[uid] = (health.get(uid), runs, endpoint.get("revisions"), body.get("config_version"))
    return found


def is_busy(backend: Mapping[str, Any]) -> bool:
    """Whether a model server has as many requests waiting as it works on, by its own word."""
    queued, running = backend.get("queued"), backend.get("running")
    return queued is not None and running is not None and queued >= max(BUSY_FROM, running)


def health_of(body: Mapping[str, Any]) -> dict[UUID, Any]:
    """Return endpoint → what passes look at in a report: its state and which backends answer."""
    return {
        UUID(str(endpoint["uid"])): (
            endpoint["state"],
            {str(backend["unit_uid"]): (backend["reachable"], is_busy(backend)) for backend in endpoint["backends"]},
        )
        for endpoint in body.get("endpoints", ())
    }
