"""Benchmarks of endpoints: asked for and cancelled by people, taken, followed and ended by workers.

A key is made for each, with a budget of what its load can use at most and an end of its own; it is revoked with the
end of the benchmark, whatever that is. What it uses is the tenant's like any other call: counted, billed, and within
its budgets. A load is never begun twice: what a dead worker left half done has failed.
Lock order: endpoint, benchmark.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import IntegrityError, transaction

from tenants import desired
from tenants.actor import Actor
from tenants.benchmarks import LONGEST, Load, Result
from tenants.errors import Conflict
from tenants.key_limits import KeyLimits
from tenants.models import Benchmark, Endpoint, EndpointKey
from tenants.operations import endpoints
from tenants.operations.guards import allow
from tenants.operations.products import touch_gateways
from tenants.states import BENCHMARK_LIVE, BenchmarkState, BudgetPeriod, Phase
from tenants.transactions import operation

USABLE: Final = frozenset({Phase.READY.value, Phase.DEGRADED.value, Phase.EXPIRING.value})
KEPT: Final = 100
"""So many of one endpoint are kept, the newest."""
SILENT: Final = timedelta(seconds=30)
"""A worker that was not heard of for so long does not run it any more."""
KEY_SPARE: Final = timedelta(minutes=2)
DIED: Final = "The process that ran it ended in the middle. Ask for it again."
CANCELLED: Final = "It was cancelled."


@operation
def ask(*, endpoint: Endpoint, load: Load, actor: Actor, now: datetime) -> Benchmark:
    """Ask for a load on an endpoint.

    Raises `InvalidSpec`, `Conflict` (`not-ready`, `deleting`, `benchmark-running`).
    """
    allow(actor, endpoint.tenant, "endpoints.benchmark")
    load.check()
    row = (
        Endpoint.objects.select_for_update(no_key=True, of=("self",))
        .select_related("tenant", "revision")
        .get(pk=endpoint.pk)
    )
    if row.deletion_requested_at is not None:
        msg = f"{row.name} is being deleted."
        raise Conflict(msg, code="deleting")
    if row.slept_at is not None:
        msg = f"{row.name} sleeps; wake it first."
        raise Conflict(msg, code="not-ready")
    if not is_usable(row):
        msg = f"{row.name} does not answer yet; it can be measured once it is ready."
        raise Conflict(msg, code="not-ready")
    try:
        with transaction.atomic():
            made = Benchmark.objects.create(
                tenant_id=row.tenant_id,
                endpoint=row,
                revision=row.revision.number if row.revision is not None else 0,
                load=load.as_json(),
                author_id=actor.person_id,
                created_at=now,
            )
    except IntegrityError as error:
        msg = f"A benchmark of {row.name} goes on already; two would measure each other."
        raise Conflict(msg, code="benchmark-running") from error
    made.refresh_from_db()
    desired.happened(
        row, "endpoint.benchmark-asked", actor=actor, at=now, nudge=False, benchmark=made.short_id, load=load.words
    )
    return made


def is_usable(row: Endpoint) -> bool:
    """Whether an endpoint answers, so that it can be measured."""
    return row.phase in USABLE and bool(row.address) and row.revision_id is not None and row.slept_at is None


@operation
def cancel(*, benchmark: Benchmark, actor: Actor, now: datetime) -> Benchmark:
    """Let a benchmark end now; what it measured so far is kept. Safe to repeat, also when it has ended."""
    endpoint = Endpoint.objects.select_related("tenant").get(pk=benchmark.endpoint_id)
    allow(actor, endpoint.tenant, "endpoints.cancel_benchmark")
    row, live = _locked(benchmark.pk)
    if row is None or live is None:
        return Benchmark.objects.get(pk=benchmark.pk)
    if live.cancel_asked_at is None:
        live.cancel_asked_at = now
        live.save(update_fields=["cancel_asked_at"])
        desired.happened(row, "endpoint.benchmark-cancelled", actor=actor, at=now, nudge=False, benchmark=live.short_id)
    if live.state == BenchmarkState.WAITING.value:
        _end(row, live, BenchmarkState.CANCELLED, None, CANCELLED, actor=actor, now=now)
    return live


# --- workers ------------------------------------------------------------------------------------------


@operation
def take(*, actor: Actor, now: datetime) -> tuple[Benchmark, str] | None:
    """Begin the benchmark that waits longest, with a key of its own; None where none waits."""
    waiting = Benchmark.objects.filter(state=BenchmarkState.WAITING.value).order_by("created_at", "pk")
    for key in waiting.values_list("pk", flat=True)[:10]:
        row, live = _locked(key, skip=True)
        if row is None or live is None or live.state != BenchmarkState.WAITING.value:
            continue
        load = Load.of(live.load)
        made, secret = endpoints.new_key(
            row,
            f"benchmark {live.short_id}",
            actor=actor,
            now=now,
            expires_at=now + LONGEST + KEY_SPARE,
            limits=KeyLimits(budget_tokens=load.most_tokens, budget_period=BudgetPeriod.MONTH),
        )
        touch_gateways([row.boundary_id], now=now)
        live.state, live.started_at, live.heard_at = BenchmarkState.RUNNING.value, now, now
        live.key_id = made.public_id
        live.save(update_fields=["state", "started_at", "heard_at", "key_id"])
        live.endpoint = row
        return live, secret
    return None


@operation
def progressed(*, benchmark: Benchmark, sent: int, failed: int, actor: Actor, now: datetime) -> bool:
    """Note how far a load is; False where it is to end: cancelled, given up for dead, or its endpoint goes."""
    del actor
    on = Benchmark.objects.filter(pk=benchmark.pk, state=BenchmarkState.RUNNING.value)
    if not on.update(sent=sent, failed=failed, heard_at=now):
        return False
    return on.filter(cancel_asked_at=None, endpoint__deletion_requested_at=None).exists()


@operation
def ended(*, benchmark: Benchmark, result: Result | None, reason: str, actor: Actor, now: datetime) -> None:
    """Keep what came of a load: without a result, or without one good answer, it has failed. Safe to repeat."""
    row, live = _locked(benchmark.pk)
    if row is None or live is None or live.state != BenchmarkState.RUNNING.value:
        return
    good = result is not None and result.answered > 0
    state = BenchmarkState.DONE if good else BenchmarkState.FAILED
    if live.cancel_asked_at is not None:
        state, reason = BenchmarkState.CANCELLED, reason or CANCELLED
    _end(row, live, state, result, reason, actor=actor, now=now)


@operation
def give_up(*, actor: Actor, now: datetime) -> int:
    """End what no worker runs any more; return how many there were."""
    gone = Benchmark.objects.filter(state=BenchmarkState.RUNNING.value, heard_at__lt=now - SILENT).order_by("pk")
    count = 0
    for key in gone.values_list("pk", flat=True)[:100]:
        row, live = _locked(key, skip=True)
        if row is None or live is None or live.heard_at is None or live.heard_at >= now - SILENT:
            continue
        _end(row, live, BenchmarkState.FAILED, None, DIED, actor=actor, now=now)
        count += 1
    return count


def _locked(key: UUID, *, skip: bool = False) -> tuple[Endpoint | None, Benchmark | None]:
    """Return a benchmark that has not ended and its endpoint, locked in this order; None for what is not to be had."""
    owner = Benchmark.objects.filter(pk=key).values("endpoint_id")
    row = Endpoint.objects.select_for_update(no_key=True, skip_locked=skip).filter(pk__in=owner).first()
    live = Benchmark.objects.select_for_update(no_key=True, skip_locked=skip).filter(
        pk=key, state__in=sorted(BENCHMARK_LIVE)
    )
    return row, None if row is None else live.first()


def _end(
    row: Endpoint,
    live: Benchmark,
    state: BenchmarkState,
    result: Result | None,
    reason: str,
    *,
    actor: Actor,
    now: datetime,
) -> None:
    live.state, live.ended_at, live.reason = state.value, now, reason[:300]
    if result is not None:
        live.result = result.as_json()
        live.sent, live.failed = result.answered + result.failed, result.failed
    live.save()
    if live.key_id:
        EndpointKey.objects.filter(endpoint=row, public_id=live.key_id, revoked_at=None).update(revoked_at=now)
        touch_gateways([row.boundary_id], now=now)
    told: dict[str, Any] = {} if result is None else {"answered": result.answered, "failed": result.failed}
    desired.happened(
        row, "endpoint.benchmark-ended", actor=actor, at=now, nudge=False, benchmark=live.short_id, state=state.value,
        why=reason[:300], **told,
    )  # fmt: skip
    old = Benchmark.objects.filter(endpoint=row, ended_at__isnull=False).order_by("-created_at", "-pk")
    Benchmark.objects.filter(pk__in=list(old.values_list("pk", flat=True)[KEPT:])).delete()
