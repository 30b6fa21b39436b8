"""The pass of a layout change: cordon, move, wait; have the provider carve; compare with inventory; open the host.

    drain ─► carve ─► compare ─► done
               └─────────┴─► restore ─► failed, or cancelled

A plan is claimed like any other row and each call that changes something has an intent first, so a pass may be killed
anywhere and run again: what came of a call is found out by looking. What fails, takes too long or is cancelled is
changed back, then the host comes back as it was. Where that cannot be made sure of, it stays cordoned and the plan
says so. Nothing is carved while inventory shows anybody on the GPUs that differ.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from provisioners import instants, intents, lease, plan_rows
from provisioners.connections import step_word
from provisioners.driver import (
    Done,
    Driver,
    DriverError,
    DriverRejected,
    Handle,
    LayoutChange,
    NotSupported,
    ObservedUse,
    Part,
    Presence,
    RefusesLayouts,
    Step,
    TransientDriverError,
)
from provisioners.instants import Instant
from provisioners.lease import Claim, StaleLease
from provisioners.plan_rows import LOOK_AGAIN, Clock
from tenants import desired, host_plans, layout_plans, ledger
from tenants.actor import SYSTEM, Actor
from tenants.layout_plans import Stage, Windows, Wish
from tenants.models import Host, HostPlan, Intent, Provider
from tenants.states import HostState
from tenants.transactions import acting, operation

log = logging.getLogger(__name__)

POLL_AGAIN: Final = timedelta(seconds=2)
LIMITS: Final = {
    Stage.CARVE: timedelta(minutes=90),
    Stage.COMPARE: timedelta(minutes=15),
    Stage.RESTORE: timedelta(minutes=90),
}
"""How long a stage may take; drivers give up earlier, and say why. A drain has no limit: people are waited for."""


class _Ended(Exception):
    """The provider's work on a layout ended without it; the text says why."""


def advance(plan: HostPlan, driver: Driver, clock: Clock) -> bool:
    """Do what is next of a running layout change; returns whether anything changed. Raises `DriverError`."""
    if "checked" in plan.observed and "cancelling" not in plan.observed:
        if clock() < plan.starts_at:
            return plan_rows.wait_for_start(plan_id=plan.pk, actor=SYSTEM, now=clock())
        plan_rows.begin(plan_id=plan.pk, actor=SYSTEM, now=clock())
    with lease.claim(desired.kind_of(plan), HostPlan, plan.pk, clock=clock, due_only=False) as claimed:
        if claimed is None:
            return False
        with acting(SYSTEM):
            fresh = HostPlan.objects.select_related("host").get(pk=plan.pk)
        if fresh.state != "running":
            return False
        try:
            moved = _Work(claimed, fresh, driver, clock).go()
        except StaleLease:
            log.info("a layout change lost its lease; its result is dropped", extra={"plan": plan.short_id})
            return True
        except DriverError:
            _hand_back(claimed, clock)  # the caller notes it and says when to try again
            raise
        _hand_back(claimed, clock)
        return moved


def _hand_back(claimed: Claim, clock: Clock) -> None:
    """Give the lease back; the plan is due when its pass said, soon where it said nothing."""
    try:
        with acting(SYSTEM):
            row = claimed.lock()
            untold = row.due_at == claimed.due_marker
            lease.apply(claimed, row, due_at=clock() + LOOK_AGAIN if untold else None, fields=[])
    except StaleLease:
        log.info("a layout change outlived its lease", extra={"id": claimed.pk})


@dataclass(slots=True)
class _Work:
    """One pass over one plan that this worker has claimed."""

    claimed: Claim
    plan: HostPlan
    driver: Driver
    clock: Clock

    @property
    def wish(self) -> Wish:
        return Wish.from_json(self.plan.layout)

    @property
    def ref(self) -> str:
        """The provider's id of the host."""
        return str(self.plan.host.provider_ref)

    @property
    def late(self) -> bool:
        """Whether the plan's stage has had its time."""
        return self.clock() - layout_plans.since(self.plan) > LIMITS[layout_plans.stage(self.plan)]

    def go(self) -> bool:
        """Do what is next; says whether people see a difference."""
        stage, cancelled = layout_plans.stage(self.plan), "cancelling" in self.plan.observed
        if "checked" not in self.plan.observed and not cancelled:
            return self._check()
        if stage is Stage.DRAIN:
            return self._close("cancelled") if cancelled else self._drain()
        if cancelled and stage is not Stage.RESTORE:
            return self._turn_back("It was cancelled.")
        if stage is Stage.CARVE:
            return self._carve()
        return self._compare() if stage is Stage.COMPARE else self._restore()

    # --- until nobody is there ------------------------------------------------------------------------

    def _check(self) -> bool:
        """Ask before anybody is moved whether it can be made at all."""
        refusal = ""
        if isinstance(self.driver, RefusesLayouts):
            refusal = self.driver.layout_refusal(self._change({gpu.ref: gpu.after for gpu in self.wish.gpus}))
        if refusal:
            return self._close("failed", refusal, told=False)
        return _checked(claimed=self.claimed, actor=SYSTEM, now=self.clock())

    def _drain(self) -> bool:
        uses: Sequence[ObservedUse] = ()
        if layout_plans.empties(self.plan):
            try:
                uses = self.driver.evacuate(self.ref)
            except NotSupported:
                log.info("the provider does not cordon; the ledger does", extra={"host": self.ref})
        plan = self.plan
        moved = plan_rows.move_all(plan, lambda: layout_plans.units_on(plan.host, self.wish), self.clock)
        running = [] if self.wish.evict else self._ours(uses)
        return _keep_empty(claimed=self.claimed, running=running, actor=SYSTEM, now=self.clock()) or moved

    def _ours(self, uses: Sequence[ObservedUse]) -> list[str]:
        """Return what of ours is really seen on the GPUs that differ, or somewhere on the host."""
        devices = {gpu.ref for gpu in self.wish.differing}
        seen = {
            use.name for use in uses if use.ref is not None and use.size and (not use.device or use.device in devices)
        }
        return sorted(seen)

    # --- carving --------------------------------------------------------------------------------------

    def _carve(self) -> bool:
        try:
            made = self._made({gpu.ref: gpu.after for gpu in self.wish.gpus})
        except _Ended as ended:
            return self._turn_back(str(ended))
        except TransientDriverError as error:
            if self.late:
                return self._turn_back(f"It took longer than {_minutes(LIMITS[Stage.CARVE])}: {error.detail}")
            raise
        except DriverError as error:
            return self._turn_back(error.detail)
        if made:
            return _enter(claimed=self.claimed, stage=Stage.COMPARE, actor=SYSTEM, now=self.clock())
        if self.late:
            return self._turn_back(f"The provider has not finished within {_minutes(LIMITS[Stage.CARVE])}.")
        return False

    def _compare(self) -> bool:
        """Believe nothing but a snapshot that was taken after the carving."""
        with acting(SYSTEM):
            read_at = Provider.objects.values_list("snapshot_at", flat=True).get(pk=self.plan.host.provider_id)
            shown = layout_plans.is_shown(self.plan)
        if shown and read_at is not None and read_at > layout_plans.since(self.plan):
            return self._close("done")
        if self.late:
            return self._turn_back("The provider says that it is done, and its inventory shows another layout.")
        return _note(claimed=self.claimed, again=POLL_AGAIN, actor=SYSTEM, now=self.clock())

    # --- back -----------------------------------------------------------------------------------------

    def _turn_back(self, why: str) -> bool:
        log.info("a layout change is taken back: %s", why, extra={"plan": self.plan.short_id})
        return _enter(claimed=self.claimed, stage=Stage.RESTORE, actor=SYSTEM, now=self.clock(), why=why)

    def _restore(self) -> bool:
        why = str(self.plan.observed.get("why", ""))
        state = "cancelled" if "cancelling" in self.plan.observed else "failed"
        before = {gpu.ref: gpu.before for gpu in self.wish.gpus}
        known = {ref: windows for ref, windows in before.items() if windows is not None}
        try:
            over = self._made(known, back=True) if len(known) == len(before) else self._at_rest()
        except _Ended as ended:
            return self._close("failed", _both(why, str(ended)), sure=False)
        except TransientDriverError as error:
            if self.late:
                return self._close("failed", _both(why, error.detail), sure=False)
            raise
        except DriverError as error:
            return self._close("failed", _both(why, error.detail), sure=False)
        if over and self._is_read():
            return self._close(state, why)
        if over and not self.late:
            return _restored(claimed=self.claimed, again=POLL_AGAIN, actor=SYSTEM, now=self.clock())
        if self.late:
            trouble = "Inventory has not shown it since." if over else "What it was before did not come back in time."
            return self._close("failed", _both(why, trouble), sure=False)
        return False

    def _is_read(self) -> bool:
        """Whether inventory was read after all was as before: until then it may show what was only on the way."""
        since = str(self.plan.observed.get("restored_at", ""))
        with acting(SYSTEM):
            read_at = Provider.objects.values_list("snapshot_at", flat=True).get(pk=self.plan.host.provider_id)
        return bool(since) and read_at is not None and read_at > datetime.fromisoformat(since)

    def _at_rest(self) -> bool:
        """Whether nothing is at work any more on GPUs whose layout before is not known. Raises `_Ended` if stuck."""
        if not self._settled(back=True):
            return False
        parts = [self._part(step) for step in self._steps({gpu.ref: gpu.after for gpu in self.wish.gpus})]
        stuck = next((part for part in parts if part.presence is Presence.FAILED), None)
        if stuck is not None:
            raise _Ended(stuck.message)
        return all(part.presence is not Presence.CHANGING for part in parts)

    # --- at the provider ------------------------------------------------------------------------------

    def _steps(self, layouts: dict[str, Windows]) -> Sequence[Step]:
        return self.driver.layout_steps(self._change(layouts))

    def _change(self, layouts: dict[str, Windows]) -> LayoutChange:
        (device, windows), *beside = layouts.items()
        return LayoutChange(self.ref, device, windows, tuple(beside), self.wish.evict)

    def _part(self, step: Step) -> Part:
        observed = self.driver.observe(step.ref)
        if not observed.exists:
            msg = f"The provider does not show {self.plan.host.name} or its GPU any more."
            raise _Ended(msg)
        return observed.part(step.name)

    def _made(self, layouts: dict[str, Windows], *, back: bool = False) -> bool:
        """Bring GPUs one move closer to layouts; True once the provider shows all of them.

        Raises `_Ended` when its work failed; on the way `back`, also when a GPU is stuck.
        """
        if not self._settled(back=back):
            return False
        for step in self._steps(layouts):
            part = self._part(step)
            if part.presence is Presence.CHANGING:
                _adopt(claimed=self.claimed, part=part, limit_s=step.limit_s, actor=SYSTEM, now=self.clock())
                return False
            if part.presence is Presence.FAILED and back:
                raise _Ended(part.message)
            if part.presence is Presence.PRESENT and part.have == step.want:
                continue
            if not self._start(step):
                return False
        return True

    def _settled(self, *, back: bool) -> bool:
        """Whether nothing of ours is at work; looks at what is. Raises `_Ended` when it ended badly."""
        with acting(SYSTEM):
            intent = intents.opened(self.claimed)
        if intent is None:
            return True
        outcome, error = "seen", None
        if intent.handle and self.clock() < intent.deadline_at:
            self._check_lease()
            answer = self.driver.poll(Handle(intent.handle))
            if answer.state == "running":
                _note(claimed=self.claimed, again=POLL_AGAIN, actor=SYSTEM, now=self.clock())
                return False
            outcome, error = answer.state, answer.error
        elif intent.handle:
            outcome = "overdue"
        _settle(claimed=self.claimed, intent=intent, outcome=outcome, error=error, actor=SYSTEM, now=self.clock())
        # On the way back it is looked at what is there: what failed may be what is to be undone.
        if outcome == "failed" and not back:
            raise _Ended(error.detail if error is not None else "The provider's work on it failed.")
        return True

    def _start(self, step: Step) -> bool:
        """Announce, call, note the answer; True when its effect is there already."""
        word = step_word(step)
        instants.reach(word, Instant.BEFORE_INTENT)
        intent = _announce(claimed=self.claimed, step=step, actor=SYSTEM, now=self.clock())
        instants.reach(word, Instant.AFTER_INTENT)
        self._check_lease()
        try:
            answer = self.driver.start(step)
        except DriverError as error:
            outcome = "unknown" if isinstance(error, TransientDriverError) else "failed"
            _settle(claimed=self.claimed, intent=intent, outcome=outcome, error=error, actor=SYSTEM, now=self.clock())
            raise
        instants.reach(word, Instant.AFTER_CALL)
        handle = "" if isinstance(answer, Done) else answer.value
        _hold(claimed=self.claimed, intent=intent, word=word, handle=handle, actor=SYSTEM, now=self.clock())
        instants.reach(word, Instant.AFTER_COMMIT)
        return isinstance(answer, Done)

    def _check_lease(self) -> None:
        if not self.claimed.held:
            raise StaleLease

    def _close(self, state: str, why: str = "", *, sure: bool = True, told: bool = True) -> bool:
        """Bring the host back; at a provider that is not sure of its GPUs, or was not told, nothing is opened."""
        if sure and told and layout_plans.empties(self.plan):
            try:
                plan_rows.restore(self.plan, self.driver)
            except DriverRejected as error:
                log.warning("a host cannot be opened at its provider: %s", error.detail, extra={"host": self.ref})
        return _finish(claimed=self.claimed, state=state, why=why, sure=sure, actor=SYSTEM, now=self.clock())


def _both(why: str, more: str) -> str:
    """Return two sentences, the second only where it says something new."""
    return why if more in why else f"{why} {more}".strip()


def _minutes(time: timedelta) -> str:
    return f"{int(time.total_seconds() // 60)} minutes"


# --- rows; each locks host and plan, and names the claim's epoch ------------------------------------------


def _locked(claimed: Claim) -> HostPlan:
    """Return the plan under its host's lock. Raises `StaleLease` where another worker has it, or it has ended."""
    host_id = HostPlan.objects.values_list("host_id", flat=True).get(pk=claimed.pk)
    host = Host.objects.select_for_update(no_key=True).get(pk=host_id)
    plan: HostPlan = claimed.lock()
    if plan.state != "running":  # cancelled before the provider was told anything
        raise StaleLease
    plan.host = host
    return plan


@operation
def _keep_empty(*, claimed: Claim, running: list[str], actor: Actor, now: datetime) -> bool:
    """Keep empty what is free; go on to carving once a report younger than the plan shows nobody."""
    del actor
    plan = _locked(claimed)
    if "cancelling" in plan.observed:
        return plan_rows.save(plan, due_at=now)
    put = host_plans.keep_empty(plan, now=now)
    waits = layout_plans.in_the_way(plan) or [f"{name} still runs there" for name in running]
    if waits and "on_idle" in plan.observed:  # it was to carve what nobody uses, and waits for nobody
        return plan_rows.save(plan, due_at=now, waits_for=waits[:20], cancelling="on-idle")
    read_at = Provider.objects.values_list("snapshot_at", flat=True).get(pk=plan.host.provider_id)
    if waits or read_at is None or read_at <= datetime.fromisoformat(plan.observed["started"]):
        return plan_rows.save(plan, due_at=now + LOOK_AGAIN, waits_for=waits[:20], trouble="") or bool(put)
    return _to_stage(plan, Stage.CARVE, now=now, waits_for=[])


@operation
def _checked(*, claimed: Claim, actor: Actor, now: datetime) -> bool:
    """Nothing speaks against it; the notice runs, or it begins."""
    del actor
    return plan_rows.save(_locked(claimed), due_at=now, checked=now.isoformat(), trouble="")


@operation
def _enter(*, claimed: Claim, stage: Stage, actor: Actor, now: datetime, why: str = "") -> bool:
    del actor
    return _to_stage(_locked(claimed), stage, now=now, why=why)


def _to_stage(plan: HostPlan, stage: Stage, *, now: datetime, **noted: Any) -> bool:
    plan_rows.save(plan, due_at=now, stage=stage.value, stage_at=now.isoformat(), trouble="", **noted)
    desired.happened(plan, f"host-plan.{stage.value}", actor=SYSTEM, at=now, nudge=False, host=plan.host_id, **noted)
    return True


@operation
def _note(*, claimed: Claim, again: timedelta, actor: Actor, now: datetime) -> bool:
    """Nothing is new; look again."""
    del actor
    return plan_rows.save(_locked(claimed), due_at=now + again, trouble="")


@operation
def _restored(*, claimed: Claim, again: timedelta, actor: Actor, now: datetime) -> bool:
    """Write down when all was first seen as before; look again for an inventory that is younger."""
    del actor
    plan = _locked(claimed)
    since = plan.observed.get("restored_at") or now.isoformat()
    return plan_rows.save(plan, due_at=now + again, trouble="", restored_at=since)


@operation
def _announce(*, claimed: Claim, step: Step, actor: Actor, now: datetime) -> Intent:
    del actor
    return intents.record(claimed, step, _locked(claimed), now=now)


@operation
def _adopt(*, claimed: Claim, part: Part, limit_s: int, actor: Actor, now: datetime) -> None:
    """Take over work that the provider shows, after its start was lost sight of; wait where it names none."""
    del actor
    plan = _locked(claimed)
    if part.handle:
        intents.adopt(claimed, part.step, part.handle, plan, undo=False, limit_s=limit_s, now=now)
    plan_rows.save(plan, due_at=now + POLL_AGAIN)


@operation
def _hold(*, claimed: Claim, intent: Intent, word: str, handle: str, actor: Actor, now: datetime) -> None:
    """Note what a start answered: what to poll, or that it is done."""
    del actor
    plan = _locked(claimed)
    if handle:
        intents.hold_handle(intent, handle)
        plan_rows.save(plan, due_at=now + POLL_AGAIN, trouble="")
    else:
        intents.settle(intent, "done", now=now)
    instants.reach(word, Instant.BEFORE_COMMIT)


@operation
def _settle(
    *, claimed: Claim, intent: Intent, outcome: str, error: DriverError | None, actor: Actor, now: datetime
) -> None:
    del actor
    claimed.lock()
    intents.settle(intent, outcome, now=now, error=error)


@operation
def _finish(*, claimed: Claim, state: str, why: str, sure: bool, actor: Actor, now: datetime) -> bool:
    """End the plan: its windows are free, its host is as it was, or cordoned where nobody knows what is on it."""
    plan = _locked(claimed)
    left = intents.opened(claimed)
    if left is not None:
        intents.settle(left, "overdue", now=now)
    host_plans.give_back(plan.host, now=now, plan=plan)
    back_to = plan.observed.get("from", HostState.OPEN.value)
    if not sure and layout_plans.empties(plan):
        back_to = HostState.CORDONED.value
        why = f"{why} The host stays cordoned: look at it before anything is placed there."
    Host.objects.filter(pk=plan.host_id, state=HostState.DRAINING.value).update(state=back_to)
    word = {"done": "changed", "cancelled": "cancelled"}.get(state, "failed")
    plan_rows.end(plan, state, now=now, waits_for=[], trouble="", why=why)
    host = Host.objects.get(pk=plan.host_id)
    desired.changed(host, f"host.layout-{word}", actor=actor, at=now, plan=plan.pk, state=host.state, why=why)
    ledger.refresh_placeable(host.provider_id)
    return True
