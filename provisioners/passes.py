"""The pass runner: claim a row, look, do at most one step at a time, say what was seen.

    claim ─► prepare (what is wanted) ─► observe ─► plan (pure) ─► intent row ─► one call ─► … ─► guarded apply

What is wanted, and what a look means for a row, is each kind's own (`ProviderKind` and its subclasses).
Several immediate steps may follow each other under one lease; each has its intent, its call and its commit.
The one handler of driver errors is here: the class of an error decides what happens next, never its text.
No provider is called inside a transaction, and nothing is written without the claim's epoch.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

from django.utils import timezone

from provisioners import breaker, connections, instants, intents, lease, overdue, plan, remarks
from provisioners.connections import Watched, step_word
from provisioners.driver import (
    Done,
    Driver,
    DriverError,
    DriverRejected,
    NoCapacity,
    NotSupported,
    Observed,
    Presence,
    Ref,
    Spec,
    Step,
    TransientDriverError,
)
from provisioners.instants import Instant
from provisioners.lease import Claim, Clock, StaleLease
from provisioners.steps import definition
from tenants import desired
from tenants.actor import SYSTEM
from tenants.errors import DependencyDown
from tenants.models import Intent, Provider, Reconciled
from tenants.states import ConditionType, Reason, phase_of, set_condition
from tenants.transactions import RetryableError, acting

log = logging.getLogger(__name__)

MOST_STEPS: Final = 24
"""Immediate steps under one lease; what is left waits for the next pass."""
MOST_ROUNDS: Final = 3
"""Passes in a row over one row that is due again at once."""
ATTEMPTS: Final = 4
SWITCHED_OFF_S: Final = 60.0
"""Between looks at whether an operator has switched a provider on again."""
T = TypeVar("T")


# --- what a kind says and is told -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done at a provider now."""

    condition: ConditionType
    reason: Reason
    message: str
    retry_s: float | None
    """When to look again although nobody nudges; None: only a change brings it back."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a row wants, as read in one transaction at the start of a pass."""

    deleting: bool
    wait: Wait | None = None
    provider: Provider | None = None
    ref: Ref | None = None
    spec: Spec | None = None
    """None while deleting: undoing needs names only."""
    facts: Any = None
    """The kind's own."""
    stale: frozenset[str] = frozenset()
    """Parts that will never work as they are, and are made anew unless they do."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Parts that hold what nobody can make anew, with the want that was last seen there (`plan.plan`)."""
    refused: DriverError | None = None
    """Why no spec can be made of the row at all; the provider is not asked."""


@dataclass(slots=True)
class Seen:
    """What came of a pass at the provider."""

    observed: Observed | None = None
    """The last exact look; None where only a running task was asked."""
    told: remarks.Told = field(default_factory=remarks.Told)
    """What others did, by every look of the pass."""
    action: plan.Action | None = None
    """The last action; not carried out if it is one that waits."""
    step: str = ""
    undo: bool = False
    running_since: datetime | None = None
    """Set while a task of the provider is at work on `step`."""
    error: DriverError | None = None
    left_alone_until: datetime | None = None
    """Set when the provider's breaker is open or it is switched off: nothing was called."""
    moved: bool = False
    """A unit that was refused holds room on another host now."""
    busy: bool = False
    """All of this worker's slots at the provider are taken: nothing was called."""


class Kind(Protocol):
    """One kind of row and what its passes mean."""

    @property
    def word(self) -> str:
        """Return the word of events, intents and tasks."""
        ...

    @property
    def model(self) -> type[Reconciled]:
        """Return the rows it drives."""
        ...

    def prepare(self, row: Any, *, now: datetime) -> Prepared:
        """Read what is wanted, in the open transaction; may make rows that the spec needs."""
        ...

    def arm(self, row: Any, step: Step, prepared: Prepared, *, now: datetime) -> Spec | None:
        """Prepare secrets of a step about to start, in its intent's transaction; a spec with them, or None."""
        ...

    def before_conclude(self, claim: Claim, prepared: Prepared, seen: Seen, *, now: datetime) -> None:
        """Do what needs locks that come before the row's own, in a transaction of its own."""
        ...

    def conclude(self, row: Any, prepared: Prepared, seen: Seen, *, engine: Engine, now: datetime) -> datetime | None:
        """Write what was seen onto the locked row; return when to look again."""
        ...

    def fields(self) -> list[str]:
        """Return the columns that `conclude` may change."""
        ...


@dataclass(slots=True)
class Engine:
    """What passes run with; tests put in their own clock, drivers and dice."""

    clock: Clock = timezone.now
    driver_of: Callable[[Provider], Driver] = connections.driver_of
    ttl: timedelta = field(default_factory=lease.ttl_setting)
    base_s: float = 1.0
    """First pause after an error; doubles with each further one."""
    jitter: Callable[[], float] = field(default=lambda: random.uniform(0.8, 1.2))  # noqa: S311 - no secret

    def after(self, seconds: float, now: datetime) -> datetime:
        """Return `now` and so many seconds, give or take a fifth, so that many rows part."""
        return now + timedelta(seconds=seconds * self.jitter())

    def backoff(self, failures: int, now: datetime, *, cap_s: float = 60.0) -> datetime:
        """Return when to try again after so many failures in a row."""
        return self.after(desired.backoff(max(0, failures - 1), base_s=self.base_s, cap_s=cap_s).total_seconds(), now)


# --- the runner ---------------------------------------------------------------------------------------


def run(kind: Kind, pk: UUID, *, engine: Engine, due_only: bool = True) -> int:
    """Move one row closer to its spec; return how many passes were made (0: not due, held by another, gone).

    A row that is due again at once (nudged meanwhile) is taken up again here, so that no nudge waits for a sweep.
    """
    for made in range(MOST_ROUNDS):
        with lease.claim(kind.word, kind.model, pk, clock=engine.clock, ttl=engine.ttl, due_only=due_only) as claimed:
            if claimed is None:
                return made
            try:
                _pass(claimed, kind, engine)
            except StaleLease:
                log.info("a pass lost its lease; its result is dropped", extra={"kind": kind.word, "id": pk})
                return made + 1
        if claimed.due_again is None or claimed.due_again > engine.clock():
            return made + 1
        due_only = True
    return MOST_ROUNDS


def _pass(claimed: Claim, kind: Kind, engine: Engine) -> None:
    try:
        prepared, intent = in_transaction(lambda: _prepare(claimed, kind, engine))
        # An object that never came to a provider is gone as soon as it is asked to go.
        seen = Seen(action=plan.Forget() if prepared.deleting and prepared.provider is None else None)
        if prepared.wait is None and prepared.provider is not None and prepared.ref is not None:
            seen = _visit(claimed, kind, prepared, prepared.provider, intent, engine)
        kind.before_conclude(claimed, prepared, seen, now=engine.clock())
        in_transaction(lambda: _conclude(claimed, kind, prepared, seen, engine))
        instants.reach(f"{kind.word}.conclude", Instant.AFTER_COMMIT)
    except (StaleLease, connections.InTransaction, DependencyDown):
        raise  # a database that is away is nobody's bug; the lease's end brings the row back
    except Exception as error:
        bug = error
        log.exception("a pass failed by a bug of ours", extra={"kind": kind.word, "id": claimed.pk})
        in_transaction(lambda: _confess(claimed, bug, engine))


def _prepare(claimed: Claim, kind: Kind, engine: Engine) -> tuple[Prepared, Intent | None]:
    row = claimed.lock()
    return kind.prepare(row, now=engine.clock()), intents.opened(claimed)


def in_transaction(work: Callable[[], T]) -> T:
    """Run `work` as the system in one durable transaction; a deadlock is repeated, nothing else is."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with acting(SYSTEM):
                return work()
        except RetryableError:
            if attempt == ATTEMPTS:
                raise
    raise AssertionError  # pragma: no cover - the loop returns or raises


def _conclude(claimed: Claim, kind: Kind, prepared: Prepared, seen: Seen, engine: Engine) -> None:
    now = engine.clock()
    row = claimed.lock()
    before, had_remarks, was_overdue = row.phase, remarks.stored(row), overdue.is_said(row)
    due_at = kind.conclude(row, prepared, seen, engine=engine, now=now)
    if seen.observed is not None and prepared.provider is not None:
        deleting = prepared.deleting
        remarks.tell(row, prepared.provider, seen.told, had=had_remarks, deleting=deleting, now=now)
    if prepared.provider is not None and (was_overdue or overdue.is_said(row)):
        overdue.tell(row, prepared.provider, now=now)
    if seen.left_alone_until is None and not seen.busy:
        row.observed_generation = claimed.generation
    _settle_phase(row, before, now=now)
    lease.apply(claimed, row, due_at=due_at, fields=[*RECONCILED_FIELDS, *kind.fields()])
    instants.reach(f"{kind.word}.conclude", Instant.BEFORE_COMMIT)


RECONCILED_FIELDS: Final = (
    "conditions", "phase", "failures", "observed", "observed_generation", "ready_at", "finalizers", "released_at",
)  # fmt: skip


def _settle_phase(row: Any, before: str, *, now: datetime) -> None:
    """Derive the phase and say when it changed."""
    phase = phase_of(
        row.conditions, deleting=row.deletion_requested_at is not None, released=row.released_at is not None
    )
    row.phase = phase.value
    if row.phase != before:
        kind = f"{desired.kind_of(row)}.{phase.name.lower().replace('_', '-')}"
        desired.happened(row, kind, actor=SYSTEM, at=now, nudge=False, before=before, why=why(row))


def why(row: Any) -> str:
    """Return the message of the first condition that is not as it should be."""
    for condition in row.conditions:
        wanted = "False" if condition["type"] in {ConditionType.SUSPENDED, ConditionType.EXPIRING} else "True"
        if condition["status"] != wanted:
            return str(condition["message"])
    return ""


def _confess(claimed: Claim, bug: Exception, engine: Engine) -> None:
    """Anything unforeseen: condition Unknown, and a growing pause. The traceback is in the log, not here."""
    now = engine.clock()
    row = claimed.lock()
    before = row.phase
    row.failures += 1
    say(row, ConditionType.READY, "Unknown", Reason.INTERNAL_ERROR, _bug_words(bug), now=now)
    _settle_phase(row, before, now=now)
    due_at = engine.backoff(row.failures, now, cap_s=300.0)
    lease.apply(claimed, row, due_at=due_at, fields=["conditions", "phase", "failures"])


def _bug_words(bug: Exception) -> str:
    return f"An error of ours ({type(bug).__name__}); it is logged and tried again."


def say(row: Any, kind: ConditionType, status: Any, reason: Reason, message: str, *, now: datetime) -> None:
    """Set one condition of a row; the caller saves."""
    row.conditions = set_condition(
        row.conditions, kind, status, reason, message[:500], now=now, generation=row.generation
    )


# --- at the provider ----------------------------------------------------------------------------------


def _visit(
    claimed: Claim, kind: Kind, prepared: Prepared, provider: Provider, intent: Intent | None, engine: Engine
) -> Seen:
    until = breaker.closed_until(provider, engine.clock())
    if not provider.enabled:
        until = engine.after(SWITCHED_OFF_S, engine.clock())
    if until is not None:
        return Seen(left_alone_until=until)
    with breaker.slot(provider.pk) as got_one:
        if not got_one:
            return Seen(busy=True)
        visit = _Visit(claimed, kind, prepared, provider, intent, engine)
        try:
            visit.walk()
        except DriverError as error:
            visit.seen.error = error
        return visit.seen


class _Visit:
    """One pass at one provider: looks and steps until something has to be waited for."""

    def __init__(
        self, claimed: Claim, kind: Kind, prepared: Prepared, provider: Provider, intent: Intent | None, engine: Engine
    ) -> None:
        self.claimed, self.kind, self.prepared = claimed, kind, prepared
        self.provider, self.intent, self.engine = provider, intent, engine
        self.driver = Watched(engine.driver_of(provider))
        self.seen = Seen()
        self.observed: Observed | None = None
        self.stale = prepared.stale

    def walk(self) -> None:
        """Act until the next action is one that waits."""
        steps = () if self.prepared.spec is None else self.driver.steps(self.prepared.spec)
        for _ in range(MOST_STEPS):
            self._check_lease()
            action = self._next(steps)
            self.seen.action = action
            match action:
                case plan.Poll():
                    if not self._poll(action):
                        return
                case plan.Start(step):
                    if not self._start(step):
                        return
                case _:
                    return

    def _check_lease(self) -> None:
        if not self.claimed.held:
            raise StaleLease

    def _next(self, steps: tuple[Step, ...]) -> plan.Action:
        poll = plan.running(intents.as_open(self.intent), now=self.engine.clock())
        if poll is not None:
            return poll
        if self.observed is None:
            self.observed = self._look()
        self._settle("overdue" if self._still_hangs(steps, self.observed) else "seen")
        return plan.plan(
            steps, self.observed, deleting=self.prepared.deleting, stale=self.stale, kept=self.prepared.kept
        )

    def _still_hangs(self, steps: tuple[Step, ...], observed: Observed) -> bool:
        """Whether a task whose time is over has not come to its end: many end while nobody polls."""
        intent = self.intent
        if intent is None or not intent.handle:
            return False
        part = observed.part(intent.step)
        if intent.undo:
            return part.presence is not Presence.ABSENT
        wanted = next((step.want for step in steps if step.name == intent.step), part.have)
        return part.presence is not Presence.PRESENT or part.have != wanted

    def _look(self) -> Observed:
        assert self.prepared.ref is not None
        try:
            observed = self.driver.observe(self.prepared.ref)
        except TransientDriverError:
            breaker.failed(self.provider.pk, self.engine.clock())
            raise
        breaker.succeeded(self.provider)
        self.seen.observed = observed
        self.seen.told.look(observed, lambda steps: in_transaction(lambda: intents.in_doubt(self.claimed, steps)))
        return observed

    def _poll(self, action: plan.Poll) -> bool:
        """Ask for a running task; True when it has ended and another look is due."""
        self.seen.step, self.seen.undo = action.step, action.undo
        answer = self.driver.poll(action.handle)
        if answer.state == "running":
            if self.intent is None:
                self.intent = in_transaction(lambda: self._adopt(action))
            self.seen.running_since = self.intent.started_at
            return False
        self.observed = None
        if answer.state == "failed":
            error = answer.error or TransientDriverError("the provider's task failed")
            self._settle("failed", error)
            if isinstance(error, NoCapacity):
                self._look()  # whether the unit may be moved is decided on what is there now
            raise error
        self._settle("done" if answer.state == "done" else "unknown")
        return True

    def _adopt(self, action: plan.Poll) -> Intent:
        row = self.claimed.lock()
        limit_s = definition(action.step).limit_s
        now = self.engine.clock()
        return intents.adopt(
            self.claimed, action.step, action.handle.value, row, undo=action.undo, limit_s=limit_s, now=now
        )

    def _start(self, step: Step) -> bool:
        """Announce, call, note the answer; True when the step's effect is there already."""
        self.seen.step, self.seen.undo = step.name, step.undo
        self.stale -= {step.name}  # from here on it is new
        word = step_word(step)
        instants.reach(word, Instant.BEFORE_INTENT)
        step = in_transaction(lambda: self._announce(step))
        instants.reach(word, Instant.AFTER_INTENT)
        self._check_lease()
        self.observed = None
        try:
            answer = self.driver.start(step)
        except TransientDriverError as error:
            self._settle("unknown", error)
            raise
        except DriverError as error:
            self._settle("failed", error)
            raise
        in_transaction(lambda: self._note(word, answer.value if not isinstance(answer, Done) else ""))
        instants.reach(word, Instant.AFTER_COMMIT)
        if isinstance(answer, Done):
            self.intent = None
            return True
        self.seen.running_since = self.engine.clock()
        return False

    def _announce(self, step: Step) -> Step:
        """Commit the intent; secrets of the step (a gateway's token) are made in the same transaction."""
        now = self.engine.clock()
        row = self.claimed.lock()
        armed = None if step.undo else self.kind.arm(row, step, self.prepared, now=now)
        if armed is not None:
            step = next(other for other in self.driver.steps(armed) if other.name == step.name)
        self.intent = intents.record(self.claimed, step, row, now=now)
        return step

    def _note(self, word: str, handle: str) -> None:
        self.claimed.lock()
        assert self.intent is not None
        if handle:
            intents.hold_handle(self.intent, handle)
        else:
            intents.settle(self.intent, "done", now=self.engine.clock())
        instants.reach(word, Instant.BEFORE_COMMIT)

    def _settle(self, outcome: str, error: DriverError | None = None) -> None:
        intent = self.intent
        if intent is None:
            return

        def work() -> None:
            self.claimed.lock()
            intents.settle(intent, outcome, now=self.engine.clock(), error=error)

        in_transaction(work)
        self.intent = None


def stops(error: DriverError) -> bool:
    """Whether an error stops an object until its spec changes."""
    return isinstance(error, NotSupported | DriverRejected)
