"""(wanted steps, what was seen) → the one next action. Pure and complete: the acting half chooses nothing.

Create and change walk the steps forwards: the first whose part is absent or differs is started, one that
changes is polled, one that is there but does not work yet holds up what depends on it. Parts of the same
unit (`vm.power[1]`, `vm.gateway[1]`) depend on each other; a new part without an index needs all before it.
Parts that no step wants any more are removed first, the last one first. Deletion walks backwards over what
is seen. An unknown outcome needs no branch of its own: only what is seen counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from provisioners.driver import Handle, Observed, Part, Presence, Ref, Step, removal_of
from provisioners.steps import definition


@dataclass(frozen=True, slots=True)
class OpenIntent:
    """A step that was about to be or was started and whose outcome is not known yet."""

    step: str
    undo: bool
    handle: str
    """The provider's task, `""` where none was heard of."""
    deadline_at: datetime


@dataclass(frozen=True, slots=True)
class Nothing:
    """No step is to be done now."""

    ready: bool
    """All that the spec asks for is there and works."""
    why: str = ""
    """What is waited for, in words for people."""
    step: str = ""
    """The part that is waited for."""
    complete: bool = False
    """All steps are done, whether or not everything works."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start this step (or its undo)."""

    step: Step


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask the provider how its task is doing."""

    handle: Handle
    step: str
    undo: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing of it exists any more, by an exact read: the row's finalizers may go."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A part that held what nobody can make anew is gone, and not by us; only people say what becomes of it."""

    step: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something outside stands in the way; only people or time mend it."""

    reason: str


Action = Nothing | Start | Poll | Forget | Blocked | Lost


def running(intent: OpenIntent | None, *, now: datetime) -> Poll | None:
    """Return the poll that comes before any look: a step of ours is running and its time is not over."""
    if intent is None or not intent.handle or now >= intent.deadline_at:
        return None
    return Poll(Handle(intent.handle), intent.step, intent.undo)


def plan(
    steps: Sequence[Step],
    observed: Observed,
    *,
    deleting: bool,
    stale: frozenset[str] = frozenset(),
    kept: Mapping[str, str] | None = None,
) -> Action:
    """Return what to do next about one object, given its wanted steps and an exact look at it.

    `steps` of an object that is being deleted serve as undo material only; they may be empty. `stale` names
    parts that will never work as they are (a gateway whose token ran out): not ready, they are made anew.
    `kept`: parts that hold what their step cannot bring back, with the want that was last seen there: absent
    although nothing else is wanted of them, they are lost and not made again.
    """
    if deleting:
        return _backwards(steps, observed)
    extra = _first(_removals(steps, observed))
    if extra is not None:
        return extra
    return _forwards(steps, observed, stale, kept or {})


def _forwards(steps: Sequence[Step], observed: Observed, stale: frozenset[str], kept: Mapping[str, str]) -> Action:
    waiting: Nothing | None = None
    held_up: set[str] = set()
    for step in steps:
        group = _unit(step.name)
        part = observed.part(step.name)
        if group in held_up or (not group and waiting is not None and part.presence is Presence.ABSENT):
            continue
        if part.presence is Presence.CHANGING:
            return _poll(part, undo=False)
        if step.dormant:
            continue
        if part.presence is Presence.UNKNOWN:
            return Nothing(ready=False, why=part.message or "the provider does not say how it is", step=step.name)
        if part.presence is Presence.PRESENT and part.have == step.want:
            if not part.ready and step.name in stale:
                return Start(step.undoing())
            if not part.ready:
                waiting = waiting or Nothing(ready=False, why=part.message or "starting", step=step.name)
                held_up.add(group)
            continue
        if part.presence is Presence.PRESENT and step.replaces:
            return _replacing(step, steps, observed)
        if part.presence is Presence.ABSENT and kept.get(step.name) == step.want:
            return Lost(step.name)
        return Start(step)
    if waiting is None:
        return Nothing(ready=True, complete=True)
    done = all(_is_done(step, observed) for step in steps)
    return Nothing(ready=False, why=waiting.why, step=waiting.step, complete=done)


def _is_done(step: Step, observed: Observed) -> bool:
    part = observed.part(step.name)
    return step.dormant or (part.presence is Presence.PRESENT and part.have == step.want)


def _replacing(step: Step, steps: Sequence[Step], observed: Observed) -> Action:
    """Undo what stands on a part that must be made anew, the last first, then the part itself."""
    unit = _unit(step.name)
    position = next(at for at, other in enumerate(steps) if other.name == step.name)
    chain = [other for other in steps[position:] if _unit(other.name) == unit]
    return _first(_undo(observed.part(other.name), other) for other in reversed(chain)) or Start(step)


def _removals(steps: Sequence[Step], observed: Observed) -> Iterator[Action | None]:
    wanted = {step.name for step in steps}
    for part in reversed(observed.parts):
        if part.step not in wanted:
            yield _undo(part, _removal(observed.ref, part.step))


def _backwards(steps: Sequence[Step], observed: Observed) -> Action:
    if not observed.exists:
        return Forget()
    if observed.blocked_by:
        return Blocked(observed.blocked_by)
    by_name = {step.name: step for step in steps}
    undone = (
        _undo(part, by_name.get(part.step) or _removal(observed.ref, part.step)) for part in reversed(observed.parts)
    )
    return _first(undone) or Nothing(ready=False, why="the provider still shows it")


def _undo(part: Part, step: Step) -> Action | None:
    """Return the removal of one part, None where it is not there."""
    if part.presence is Presence.ABSENT:
        return None
    if part.presence is Presence.CHANGING:
        return _poll(part, undo=True)
    if part.presence is Presence.UNKNOWN:
        return Nothing(ready=False, why=part.message or "the provider does not say how it is", step=part.step)
    return Start(step if step.undo else step.undoing())


def _removal(ref: Ref, name: str) -> Step:
    """Return the undo of a part that no step of the spec makes; it may take as long as making it."""
    return removal_of(ref, name, limit_s=definition(name).limit_s)


def _poll(part: Part, *, undo: bool) -> Action:
    """Adopt the task that the provider shows; one that it has forgotten can only be waited for."""
    if part.handle:
        return Poll(Handle(part.handle), part.step, undo)
    return Nothing(ready=False, why=part.message or "the provider is at work", step=part.step)


def _first(actions: Iterator[Action | None]) -> Action | None:
    return next((action for action in actions if action is not None), None)


def _unit(name: str) -> str:
    """Return the unit's suffix of a step name: `[1]`, or nothing."""
    return name[name.index("[") :] if "[" in name else ""
