"""How a thing came to be: its timeline with elapsed and usual times, what holds it up, and what is usual.

Reads only, in the caller's read block; a constant number of queries. Usual times are the median and the ninth decile
of what the same steps took before, as far as the tenant's own past shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design import numbers, resting
from frontend.design.timeline import StepState, Timeline, TimelineStep
from frontend.kernel import outlook, topics, words
from tenants import queries
from tenants.models import Allocation, Boundary, Endpoint, Event, Intent, Machine, Namespace, Request
from tenants.operations import model_stages
from tenants.states import Phase, RequestState, StageState

Product = Endpoint | Machine | Namespace
HISTORY: Final = 400
"""Past steps that usual times are worked out from."""
EVENTS_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Usual:
    """What a step usually takes, in seconds."""

    median: float
    ninth: float
    count: int


def of(row: Product, *, now: datetime) -> Timeline:
    """Return the timeline of a product from being asked for to being ready, or to now."""
    allocation: Allocation = row.allocation
    boundary: Boundary | None = row.boundary
    requests = list(Request.objects.filter(allocation=allocation).prefetch_related("stages").order_by("created_at"))
    steps = _steps(row, boundary)
    usual, order = _usual(row, boundary)
    lines = [TimelineStep(_("Asked for"), StepState.DONE, started_at=row.created_at)]
    lines += [_decision(request, now) for request in requests]
    lines += _room(row, allocation, now)
    lines += _files(row, boundary, now)
    lines += [_step(intent, usual, now) for intent in steps]
    ended = row.phase in {Phase.FAILED, Phase.RELEASED, Phase.DELETING}
    if row.ready_at is None and not ended:
        done = {(intent.object_kind, intent.step) for intent in steps}
        skip = "boundary" if boundary is not None and boundary.ready_at is not None else ""
        lines += [_todo(step, usual) for kind, step in order if (kind, step) not in done and kind != skip]
        lines.append(TimelineStep(_("Ready"), StepState.TODO))
    if row.ready_at is not None:
        lines.append(TimelineStep(_("Ready"), StepState.DONE, started_at=row.ready_at))
    state = "failed" if row.phase == Phase.FAILED else ("ready" if row.ready_at is not None or ended else "building")
    end = row.ready_at or row.released_at
    known = [line.median_s for line in lines if line.median_s is not None]
    return Timeline(
        state=state,
        steps=lines,
        started_at=row.created_at,
        ended_at=end,
        total_s=((end or now) - row.created_at).total_seconds(),
        usual_s=sum(known) if known else None,
        usual_of=_("what your tenant built before") if known else "",
        headline=_headline(row),
    )


def _headline(row: Product) -> str:
    return {
        Phase.AWAITING_APPROVAL.value: _("Waits for a decision"),
        Phase.WAITING.value: _("Waits for room"),
        Phase.DELETING.value: _("Is being given back"),
        Phase.RELEASED.value: _("Was given back"),
    }.get(row.phase, "")


def _steps(row: Product, boundary: Boundary | None) -> list[Intent]:
    """Return the steps of the thing, and those of its isolation that were made for it, oldest first."""
    objects: list[UUID] = [row.pk]
    if boundary is not None:
        objects.append(boundary.pk)
    found = list(
        Intent.objects.filter(object_id__in=objects, started_at__gte=row.created_at).order_by("-started_at")[:HISTORY]
    )
    last = row.ready_at
    kept = [
        intent for intent in reversed(found) if intent.object_id == row.pk or last is None or intent.started_at <= last
    ]
    return _without_repeats(kept)


def _without_repeats(steps: Sequence[Intent]) -> list[Intent]:
    """Return the last try of each run of the same step: its number of tries tells of the others."""
    found: list[Intent] = []
    for intent in steps:
        if found and (found[-1].object_id, found[-1].step, found[-1].undo) == (
            intent.object_id,
            intent.step,
            intent.undo,
        ):
            intent.attempt = max(intent.attempt, found[-1].attempt + 1)
            intent.started_at = found[-1].started_at
            if intent.error is None:
                intent.error = found[-1].error
            found[-1] = intent
        else:
            found.append(intent)
    return found


def _step(intent: Intent, usual: Mapping[str, Usual], now: datetime) -> TimelineStep:
    end = intent.settled_at or now
    failed = intent.outcome in {"failed", "unknown", "overdue"}
    state = StepState.RUNNING if intent.settled_at is None else (StepState.FAILED if failed else StepState.DONE)
    known = None if intent.undo else usual.get(intent.step)
    tries = max(0, intent.attempt - 1)
    elapsed = max(0.0, (end - intent.started_at).total_seconds())
    slow = known is not None and elapsed > known.ninth
    return TimelineStep(
        words.step(intent.step, undo=intent.undo),
        state,
        elapsed_s=elapsed,
        median_s=known.median if known is not None else None,
        p90_s=known.ninth if known is not None else None,
        started_at=intent.started_at,
        ended_at=intent.settled_at,
        retries=tries,
        slower_because=_("it was tried again") if slow and tries else "",
        error=str((intent.error or {}).get("detail", "")),
        next_step=_("Nothing to do: it is tried again by itself.") if failed else "",
    )


def _todo(step: str, usual: Mapping[str, Usual]) -> TimelineStep:
    known = usual.get(step)
    return TimelineStep(
        words.step(step),
        StepState.TODO,
        median_s=known.median if known is not None else None,
        p90_s=known.ninth if known is not None else None,
    )


def _decision(request: Request, now: datetime) -> TimelineStep:
    if request.state == RequestState.SUBMITTED.value:
        open_stages = [stage for stage in request.stages.all() if stage.done_at is None]
        first = min(open_stages, key=lambda stage: stage.order, default=None)
        who = outlook.decider(first.decider) if first is not None else ""
        return TimelineStep(
            _("Waits for a decision"),
            StepState.WAITING,
            elapsed_s=(now - request.created_at).total_seconds(),
            started_at=request.created_at,
            message=_("Next: %(who)s. Request %(request)s.") % {"who": who, "request": request.short_id},
        )
    verdict = {
        RequestState.APPROVED.value: _("Approved"),
        RequestState.REDUCED.value: _("Approved for less"),
        RequestState.DENIED.value: _("Denied"),
        RequestState.WITHDRAWN.value: _("Withdrawn"),
        RequestState.EXPIRED.value: _("Nobody decided in time"),
    }[request.state]
    took = (request.decided_at - request.created_at).total_seconds() if request.decided_at else None
    good = request.state in {RequestState.APPROVED.value, RequestState.REDUCED.value}
    return TimelineStep(
        verdict,
        StepState.DONE if good else StepState.FAILED,
        elapsed_s=took,
        started_at=request.created_at,
        ended_at=request.decided_at,
        message=request.short_id,
    )


def _room(row: Product, allocation: Allocation, now: datetime) -> list[TimelineStep]:
    if row.boundary_id is not None:
        at = _since(allocation.conditions, "Placed")
        return [TimelineStep(_("A place was found"), StepState.DONE, started_at=at)]
    if row.phase == Phase.WAITING and allocation.queued_at is not None:
        position = (queries.waiting_of(allocation) or {}).get("position")
        return [
            TimelineStep(
                _("Waits for room"),
                StepState.WAITING,
                elapsed_s=(now - allocation.queued_at).total_seconds(),
                started_at=allocation.queued_at,
                message=_("Number %(n)d in the queue.") % {"n": position} if position else "",
            )
        ]
    return []


def _files(row: Product, boundary: Boundary | None, now: datetime) -> list[TimelineStep]:
    """Return how far the files of an endpoint's model are where it runs, where they are brought there beforehand."""
    revision = row.revision if isinstance(row, Endpoint) else None
    if revision is None or boundary is None:
        return []
    stage = model_stages.live_of(boundary.provider, revision.model)
    if stage is None or stage.removing:
        return []
    there, whole = numbers.size(stage.bytes_done), numbers.size(stage.bytes_total)
    if stage.state == StageState.DONE.value:
        before = stage.ended_at is not None and stage.ended_at < row.created_at
        said = _("%(size)s were there already.") if before else _("%(size)s.")
        return [
            TimelineStep(
                _("Files of the model"), StepState.DONE, started_at=stage.ended_at, message=said % {"size": there}
            )
        ]
    said = _("%(done)s of %(whole)s.") % {"done": there, "whole": whole}
    return [
        TimelineStep(
            _("Files of the model"),
            StepState.RUNNING,
            elapsed_s=(now - stage.asked_at).total_seconds(),
            started_at=stage.asked_at,
            message=f"{said} {stage.message}".strip(),
            share=stage.bytes_done * 100 // stage.bytes_total if stage.bytes_total else 0,
        )
    ]


def _since(conditions: Sequence[Mapping[str, Any]], kind: str) -> datetime | None:
    found = next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)
    return datetime.fromisoformat(found["last_transition_at"]) if found else None


def _usual(row: Product, boundary: Boundary | None) -> tuple[dict[str, Usual], list[tuple[str, str]]]:
    """Return step → what it usually takes, and the order of steps of the last one that was built."""
    kinds = [type(row).__name__.lower(), "boundary"]
    past = list(
        Intent.objects.filter(
            tenant_id=row.tenant_id,
            object_kind__in=kinds,
            undo=False,
            outcome__in=["done", "seen"],
            settled_at__isnull=False,
        )
        .exclude(object_id__in=[row.pk, *([boundary.pk] if boundary is not None else [])])
        .order_by("-started_at")
        .values_list("object_kind", "object_id", "step", "started_at", "settled_at")[:HISTORY]
    )
    took: dict[str, list[float]] = {}
    order: list[tuple[str, str]] = []
    last = next((entry[1] for entry in past if entry[0] == kinds[0]), None)
    for kind, key, step, start, end in reversed(past):
        if end is None:
            continue
        took.setdefault(step, []).append((end - start).total_seconds())
        if key == last and (kind, step) not in order:
            order.append((kind, step))
    return {step: _quantiles(sorted(seen)) for step, seen in took.items()}, order


def _quantiles(seen: Sequence[float]) -> Usual:
    return Usual(seen[len(seen) // 2], seen[min(len(seen) - 1, (len(seen) * 9) // 10)], len(seen))


@dataclass(frozen=True, slots=True)
class Happening:
    """One event, for the log below the timeline."""

    at: datetime
    text: str
    by: str


def events(row: Product) -> list[Happening]:
    """Return what happened to it, newest first."""
    found = Event.objects.filter(object_id__in=[row.pk, row.allocation_id]).order_by("-at", "-seq")[:EVENTS_SHOWN]
    return [
        Happening(event.at, words.event(event.kind), event.actor.partition(":")[0])
        for event in found
        if not words.is_quiet(event.kind)
    ]


def conditions(row: Product) -> list[dict[str, Any]]:
    """Return the conditions as the component shows them, troubles first, with reason and next step."""
    found = []
    for item in row.conditions:
        good = (item["status"] == "True") != (item["type"] in BAD)
        found.append(
            {
                "label": words.condition(item["type"]),
                "status": item["status"],
                "good": good,
                "reason": "" if good else reason(item["reason"]),
                "code": item["reason"],
                "message": "" if good and item["reason"] == "Done" else words.plain(str(item["message"])),
                "since": datetime.fromisoformat(item["last_transition_at"]),
                "next_step": "" if good else resting.next_step(row) or _(queries.NEXT_STEPS[row.phase]),
                "help_url": "" if good else help_of(item["reason"]),
            }
        )
    return sorted(found, key=lambda one: bool(one["good"]))


BAD: Final = frozenset({"Suspended", "Expiring"})
"""Conditions that are bad when true."""


def help_of(code: str) -> str:
    """Return the address of the help on a reason, `""` without one."""
    return reverse("frontend:help-topic", kwargs={"code": code}) if code in topics.REASONS else ""


def reason(code: str) -> str:
    """Return a CamelCase reason as words for tenants."""
    return words.plain("".join(f" {c.lower()}" if c.isupper() else c for c in code).strip()).capitalize()
