"""What a pass's result means for the conditions of a row: shared by boundaries and the three products.

Each kind says what it wants and when it is ready; here stands how waiting, running, failing, being
blocked and being gone are told, so that every kind tells them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from provisioners import overdue, plan, steps
from provisioners.driver import (
    Conflicting,
    DriverError,
    NoCapacity,
    Observed,
    Presence,
    Spec,
    Step,
    TransientDriverError,
)
from provisioners.lease import Claim
from provisioners.passes import Engine, Prepared, Seen, say, stops
from tenants import desired
from tenants.actor import SYSTEM
from tenants.models import Reconciled
from tenants.states import STOPPING_REASONS, ConditionType, Reason, condition_of

POLL_FIRST_S: Final = 0.25
POLL_LAST_S: Final = 10.0
BLOCKED_S: Final = 10.0
NO_ROOM_S: Final = 30.0
TAKEN_S: Final = 60.0
"""A name that somebody else has: people must look, so there is no hurry."""
LOST: Final = (
    "Its provider does not show it any more, and nothing of ours removed it. If it was deleted, what was on its disk "
    "is gone with it. It is made anew only when somebody asks for that."
)
DRIVER_REASONS: Final[Mapping[type[DriverError], Reason]] = {
    TransientDriverError: Reason.PROVIDER_UNAVAILABLE,
    NoCapacity: Reason.NO_CAPACITY,
    Conflicting: Reason.NAME_TAKEN,
}


class ProviderKind:
    """A kind whose rows are objects on a provider. Subclasses fill in `prepare` and what is theirs."""

    word: str
    model: type[Reconciled]

    def prepare(self, row: Any, *, now: datetime) -> Prepared:
        """Read what is wanted, in the open transaction."""
        raise NotImplementedError

    def arm(self, row: Any, step: Step, prepared: Prepared, *, now: datetime) -> Spec | None:
        """Prepare secrets of a step about to start; most have none."""
        del row, step, prepared, now
        return None

    def before_conclude(self, claim: Claim, prepared: Prepared, seen: Seen, *, now: datetime) -> None:
        """Do what needs earlier locks; most need nothing."""

    def fields(self) -> list[str]:
        """Return the kind's own columns that passes write."""
        return []

    # --- what subclasses say of their own -----------------------------------------------------------

    def looked(self, row: Any, observed: Observed, prepared: Prepared, *, now: datetime) -> None:
        """Store what an exact look showed, whatever the pass's end."""
        del prepared, now
        row.observed = {**row.observed, **seen_as_json(observed)}

    def readiness(self, row: Any, observed: Observed, action: plan.Nothing, prepared: Prepared) -> str:
        """Return "" when the object can be used, else what is missing, in words."""
        del row, observed, prepared
        return "" if action.ready else action.why

    def still_works(self, row: Any, observed: Observed) -> bool:
        """Whether it can be used although a step is under way; by default not."""
        del row, observed
        return False

    def became_ready(self, row: Any, prepared: Prepared, *, now: datetime) -> None:
        """Tell others; called in the guarded apply each time a pass ends ready."""

    def gone(self, row: Any, prepared: Prepared, *, now: datetime) -> None:
        """Tell others that nothing of it is left; called once, in the guarded apply."""

    # --- the telling ----------------------------------------------------------------------------------

    def conclude(self, row: Any, prepared: Prepared, seen: Seen, *, engine: Engine, now: datetime) -> datetime | None:
        """Write what was seen onto the locked row; return when to look again."""
        if seen.observed is not None:
            self.looked(row, seen.observed, prepared, now=now)
        nothing_tried = prepared.wait is None and prepared.refused is None and prepared.provider is None
        if nothing_tried and not prepared.deleting:
            return None  # stopped until its spec changes; what was said of it stands
        if not seen.busy and seen.left_alone_until is None:
            _take_up_again(row, now=now)
        if prepared.wait is not None:
            return self._waiting(row, prepared, engine, now=now)
        if prepared.refused is not None:
            return self._failed(row, prepared.refused, prepared, seen, engine, now=now)
        if seen.busy:
            return engine.after(POLL_FIRST_S, now)
        if seen.left_alone_until is not None:
            on = prepared.provider is not None and prepared.provider.enabled
            why = "does not answer; it is asked again from time to time" if on else "is switched off"
            self._away(row, f"The provider {why}.", prepared, seen, now=now)
            return seen.left_alone_until
        if seen.error is not None:
            return self._failed(row, seen.error, prepared, seen, engine, now=now)
        row.failures = 0
        if prepared.deleting:
            return self._leaving(row, prepared, seen, engine, now=now)
        return self._arriving(row, prepared, seen, engine, now=now)

    def _waiting(self, row: Any, prepared: Prepared, engine: Engine, *, now: datetime) -> datetime | None:
        wait = prepared.wait
        assert wait is not None
        row.failures = 0
        if wait.condition is not ConditionType.READY:
            say(row, wait.condition, "False", wait.reason, wait.message, now=now)
        if not prepared.deleting:
            say(row, ConditionType.READY, "False", wait.reason, wait.message, now=now)
        return None if wait.retry_s is None else engine.after(wait.retry_s, now)

    def _arriving(self, row: Any, prepared: Prepared, seen: Seen, engine: Engine, *, now: datetime) -> datetime | None:
        match seen.action:
            case plan.Nothing() as action:
                return self._settled(row, action, prepared, seen, engine, now=now)
            case plan.Blocked(reason):
                say(row, ConditionType.PROVISIONED, "False", Reason.BLOCKED, reason, now=now)
                say(row, ConditionType.READY, "False", Reason.BLOCKED, reason, now=now)
                return engine.after(BLOCKED_S, now)
            case plan.Lost():
                return self._lost(row, engine, now=now)
            case _:
                reason, message = self._under_way(row, seen, now=now)
                say(row, ConditionType.PROVISIONED, "False", reason, message, now=now)
                if seen.observed is not None and not self.still_works(row, seen.observed):
                    say(row, ConditionType.READY, "False", reason, message, now=now)
                elif seen.observed is not None and row.ready_at is not None:
                    say(row, ConditionType.READY, "True", Reason.DONE, "", now=now)
                return next_poll(seen.running_since or now, now, engine)

    def _under_way(self, row: Any, seen: Seen, *, now: datetime) -> tuple[Reason, str]:
        """Return what to say of a step that runs: which one, or that it should have ended."""
        late = overdue.of(self.word, row.pk, now=now)
        if late is not None and (late.step, late.undo) == (seen.step, seen.undo):
            return Reason.STEP_OVERDUE, late.sentence
        return Reason.STEP_RUNNING, steps.words(seen.step, undo=seen.undo)

    def _hanging(self, row: Any, message: str, prepared: Prepared, seen: Seen, *, now: datetime) -> None:
        """Say that a task of ours is in the way of the next step; what works goes on to."""
        kind = ConditionType.DELETED if prepared.deleting else ConditionType.PROVISIONED
        say(row, kind, "False", Reason.STEP_OVERDUE, message, now=now)
        if not prepared.deleting and (seen.observed is None or not self.still_works(row, seen.observed)):
            say(row, ConditionType.READY, "False", Reason.STEP_OVERDUE, message, now=now)

    def _lost(self, row: Any, engine: Engine, *, now: datetime) -> datetime:
        """Tell it once, make nothing, and look again: what was only out of sight may come back."""
        known = condition_of(row.conditions, ConditionType.PROVISIONED)
        if known is None or known["reason"] != Reason.LOST:
            desired.happened(row, f"{self.word}.lost", actor=SYSTEM, at=now, nudge=False, name=row.name)
        for kind in (ConditionType.PROVISIONED, ConditionType.HEALTHY, ConditionType.READY):
            say(row, kind, "False", Reason.LOST, LOST, now=now)
        return engine.after(TAKEN_S, now)

    def _settled(
        self, row: Any, action: plan.Nothing, prepared: Prepared, seen: Seen, engine: Engine, *, now: datetime
    ) -> datetime | None:
        assert seen.observed is not None
        if action.complete:
            say(row, ConditionType.PROVISIONED, "True", Reason.DONE, "All that was asked for is there.", now=now)
        missing = self.readiness(row, seen.observed, action, prepared)
        if not missing:
            say(row, ConditionType.READY, "True", Reason.DONE, "", now=now)
            say(row, ConditionType.HEALTHY, "True", Reason.DONE, "", now=now)
            self._first_ready(row, now=now)
            self.became_ready(row, prepared, now=now)
            return None
        if self.still_works(row, seen.observed):
            say(row, ConditionType.READY, "True", Reason.DONE, "", now=now)
            say(row, ConditionType.HEALTHY, "False", Reason.UNHEALTHY, missing, now=now)
            self._first_ready(row, now=now)
            self.became_ready(row, prepared, now=now)
        elif was_ready(row):
            say(row, ConditionType.HEALTHY, "False", Reason.UNHEALTHY, missing, now=now)
            say(row, ConditionType.READY, "False", Reason.UNHEALTHY, missing, now=now)
        else:
            say(row, ConditionType.READY, "False", Reason.STARTING, missing, now=now)
        return self.look_again(since(row, ConditionType.READY, now), now, engine)

    def look_again(self, began: datetime, now: datetime, engine: Engine) -> datetime:
        """Return when to look again at what does not work yet, or not any more, since `began`."""
        return next_poll(began, now, engine)

    def _first_ready(self, row: Any, *, now: datetime) -> None:
        if row.ready_at is None:
            row.ready_at = now
            desired.happened(row, f"{self.word}.first-ready", actor=SYSTEM, at=now, nudge=False)

    def _leaving(self, row: Any, prepared: Prepared, seen: Seen, engine: Engine, *, now: datetime) -> datetime | None:
        match seen.action:
            case plan.Forget():
                say(row, ConditionType.DELETED, "True", Reason.DONE, "Nothing of it is left.", now=now)
                row.finalizers, row.released_at = [], now
                self.gone(row, prepared, now=now)
                return None
            case plan.Blocked(reason):
                say(row, ConditionType.DELETED, "False", Reason.BLOCKED, reason, now=now)
                return engine.after(BLOCKED_S, now)
            case plan.Nothing(why=reason):
                say(row, ConditionType.DELETED, "False", Reason.STEP_RUNNING, reason, now=now)
                return next_poll(since(row, ConditionType.DELETED, now), now, engine)
            case _:
                reason, message = self._under_way(row, seen, now=now)
                say(row, ConditionType.DELETED, "False", reason, message, now=now)
                return next_poll(seen.running_since or now, now, engine)

    def _failed(
        self, row: Any, error: DriverError, prepared: Prepared, seen: Seen, engine: Engine, *, now: datetime
    ) -> datetime | None:
        """The one handler of driver errors: its class decides."""
        row.failures += 1
        if isinstance(error, TransientDriverError):
            late = None
            if error.retry_after_s is None and seen.observed is not None:  # else it is the provider that is away
                late = overdue.of(self.word, row.pk, now=now)
            if late is None:
                self._away(row, error.detail, prepared, seen, now=now)
            else:  # what is in the way is most likely that task of ours, and not the provider
                self._hanging(row, f"{late.sentence} ({error.detail})", prepared, seen, now=now)
            if error.retry_after_s is not None:  # it is not broken but busy, and knows better when to come again
                return engine.after(error.retry_after_s, now)
            return engine.backoff(row.failures, now)
        reason = DRIVER_REASONS.get(type(error)) or Reason(error.reason)
        if prepared.deleting:  # a failed delete is retried, whatever the class
            say(row, ConditionType.DELETED, "False", reason, error.detail, now=now)
            return engine.backoff(row.failures, now)
        say(row, ConditionType.READY, "False", reason, error.detail, now=now)
        say(row, ConditionType.PROVISIONED, "False", reason, error.detail, now=now)
        if stops(error):
            return None
        if isinstance(error, NoCapacity):
            return self.no_capacity(row, seen, engine, now=now)
        return engine.after(TAKEN_S, now)

    def no_capacity(self, row: Any, seen: Seen, engine: Engine, *, now: datetime) -> datetime:
        """Return when to try again after the provider had no room."""
        del row, seen
        return engine.after(NO_ROOM_S, now)

    def _away(self, row: Any, message: str, prepared: Prepared, seen: Seen, *, now: datetime) -> None:
        """The provider cannot be asked: what is ready may well go on working, unless this pass saw it taken apart."""
        if prepared.deleting:
            say(row, ConditionType.DELETED, "False", Reason.PROVIDER_UNAVAILABLE, message, now=now)
            return
        say(row, ConditionType.HEALTHY, "Unknown", Reason.PROVIDER_UNAVAILABLE, message, now=now)
        ready = condition_of(row.conditions, ConditionType.READY)
        taken_apart = seen.observed is not None and not self.still_works(row, seen.observed)
        if ready is None or ready["status"] != "True" or taken_apart:
            say(row, ConditionType.READY, "False", Reason.PROVIDER_UNAVAILABLE, message, now=now)


def _take_up_again(row: Any, *, now: datetime) -> None:
    """Forget a refusal of an earlier spec: left standing beside another trouble it would stop the new one."""
    for condition in row.conditions:
        if condition["status"] == "False" and condition["reason"] in STOPPING_REASONS:
            kind = ConditionType(condition["type"])
            say(row, kind, "False", Reason.STEP_RUNNING, "It is tried again.", now=now)


def stopped(row: Any) -> bool:
    """Whether the provider refused the present spec: nothing is tried again until it changes."""
    return row.observed_generation == row.generation and any(
        c["status"] == "False" and c["reason"] in STOPPING_REASONS for c in row.conditions
    )


def was_ready(row: Any) -> bool:
    """Whether it worked before and nothing of ours has changed since."""
    healthy = condition_of(row.conditions, ConditionType.READY)
    return row.ready_at is not None and (
        healthy is None or healthy["status"] == "True" or healthy["reason"] == Reason.UNHEALTHY
    )


def since(row: Any, kind: ConditionType, now: datetime) -> datetime:
    """Return since when a condition has its status."""
    condition = condition_of(row.conditions, kind)
    return now if condition is None else datetime.fromisoformat(str(condition["last_transition_at"]))


def next_poll(started: datetime, now: datetime, engine: Engine) -> datetime:
    """Return when to look again at something that is under way: soon at first, then ever more patiently."""
    elapsed = max(0.0, (now - started).total_seconds())
    return engine.after(min(POLL_LAST_S, max(POLL_FIRST_S, elapsed / 16)), now)


def seen_as_json(observed: Observed, *, index_of: Mapping[UUID, int] | None = None) -> dict[str, Any]:
    """Return what people and queries read of an exact look. `index_of` maps units to their numbers, where known."""
    return {
        "exists": observed.exists,
        "address": observed.address,
        "reachable_from": observed.reachable_from,
        "power": None if observed.power is None else str(observed.power),
        "asleep": observed.asleep,
        "model": observed.model,
        "revision": observed.revision,
        "simulated": observed.simulated,
        "parts": [
            {
                "step": part.step,
                "presence": str(part.presence),
                "ready": part.ready,
                "message": part.message,
                **({"remarks": sorted({str(one.kind) for one in part.remarks})} if part.remarks else {}),
            }
            for part in observed.parts
        ],
        "units": [
            {
                "unit": str(unit.uid),
                "host": unit.host,
                "device": unit.device,
                "start": unit.start,
                "profile": unit.profile,
                "exact": unit.exact,
                "backend": unit.backend,
                **({"gateway": unit.gateway} if unit.gateway else {}),
                **({} if unit.revision is None else {"revision": unit.revision}),
                "ready": _works(observed, None if index_of is None else index_of.get(unit.uid)),
                **({"engine": asdict(unit.engine)} if unit.engine is not None else {}),
            }
            for unit in observed.units
        ],
    }


def _works(observed: Observed, index: int | None) -> bool:
    """Whether all parts of one unit are there and ready; of a unit that is not ours to know, no."""
    if index is None:
        return False
    parts = [part for part in observed.parts if part.step.endswith(f"[{index}]") or "[" not in part.step]
    return bool(parts) and all(part.presence is Presence.PRESENT and part.ready for part in parts)
