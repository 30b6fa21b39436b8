"""Preparing templates, recording undisturbed runs, and doing one point in the process that calls.

How "within 2 sweeps" is counted: from the end of the lease that the killed process held, the scenario's whole
end (not only that step's) must be there after at most 2 sweeps; where the provider works by tasks that outlive a
sweep, plus the one that sees them ended; of a course that waits by itself, plus what it takes undisturbed. Faults are
counted from the beginning of the run: the sweep that meets the fault, then 2; each repetition and each second of
delay that a fault asks for is one more. A sweep that finds nothing due is not counted: a pass that asked for a pause
(no room: 30 s, a name that is taken: 60 s) is not driven before it ends; what waits for it looks every 30 s, and
these looks are allowed.
"""

from __future__ import annotations

import itertools
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from zlib import crc32

from provisioners import instants, sweep
from provisioners.driver import Driver
from provisioners.instants import Instant
from provisioners.kinds import PASSES
from tenants.models import Hold
from tests.crash import scenarios, workers, world
from tests.crash.children import Bent, Child, ChildFailed, Fate, Say, fork
from tests.crash.clock import Clocks
from tests.crash.databases import BASE, Databases
from tests.crash.points import STOPPING, Outcome, Point, Recording
from tests.crash.provider import HANG_DEADLINE_S, EstateAccess, Provider
from tests.crash.scenarios import Scenario, by_name
from tests.crash.world import TTL_S, Site, World

SPARE: Final = 2
"""Sweeps that a disturbance may cost."""
MOST: Final = 60
ENOUGH: Final = 8
"""More sweeps than any scenario needs whose steps are done at once: what has not ended by then has stopped."""
AN_HOUR_S: Final = 3600.0
A_MINUTE_S: Final = 60.0
REMOVING: Final = 8
PREPARING: Final = 0
"""Slot of the clock that templates are made on."""
Said = dict[str, Any]
"""What a child says in the end: `sweeps`, `problems`, `explain`."""


@dataclass(frozen=True, slots=True)
class Template:
    """A prepared scenario, frozen: its database, its estate, its time."""

    scenario: str
    database: str
    estate: str
    seconds: float


@dataclass(slots=True)
class Lab:
    """What a run of the table has: one PostgreSQL, one provider, clocks; inherited by every job."""

    databases: Databases
    provider: Provider
    clocks: Clocks
    templates: dict[str, Template] = field(default_factory=dict)
    recordings: dict[str, Recording] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    """Scenario → sweeps that it takes undisturbed where all steps are tasks."""
    slot: int = PREPARING
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    """Of places of this process; a name is used again only after its place was removed."""

    # --- templates ---------------------------------------------------------------------------------

    def ground(self) -> None:
        """Make the template that every scenario begins with."""
        clock = self.clocks.slot(PREPARING)
        clock.set(time.time() - AN_HOUR_S)  # real workers come after what was prepared
        self.databases.clone("crash_ground", template=BASE)
        site = Site("crash_ground", self.provider.url, "e0-ground", clock)
        _finish(fork(lambda _say: _ground(world.enter(site))))
        self.templates["ground"] = Template("ground", site.database, site.estate, clock.seconds())

    def warm_up(self, scenario: Scenario) -> None:
        """Run a scenario in this very process, so that what is loaded and compiled late is there before any fork."""
        self.prepare(scenario)
        with self.place(scenario.name) as site:
            _record(world.enter(site), scenario)
            world.leave()

    def prepare(self, scenario: Scenario) -> None:
        """Drive a scenario to its beginning, do its action, and freeze that."""
        if scenario.name in self.templates:
            return
        number = next(self.numbers)
        with self._copy("ground", f"crash_t{self.slot}_{number}", f"e{self.slot}-t{number}", self.slot) as site:
            _finish(fork(lambda _say: _prepare(world.enter(site), scenario)))
            seconds = site.clock.seconds()
        self.templates[scenario.name] = Template(scenario.name, site.database, site.estate, seconds)

    def _copy(self, template: str, database: str, estate: str, slot: int, *, drop: bool = False) -> _Copy:
        return _Copy(self, self.templates[template], database, estate, slot, drop=drop)

    def place(self, scenario: str) -> _Copy:
        """Return a clone of a scenario's template, for the length of a `with` block."""
        number = next(self.numbers)
        return self._copy(scenario, f"crash_p{self.slot}_{number}", f"e{self.slot}-p{number}", self.slot, drop=True)

    # --- recording ---------------------------------------------------------------------------------

    def record(self, scenario: Scenario, variant: str = "at once") -> Outcome:
        """Run a scenario undisturbed, and check that it leaves nothing; `at once` what it passes is kept."""
        started = time.monotonic()
        point = Point(scenario.name, variant, "undisturbed")
        with self.place(scenario.name) as site:
            _set(site, point)
            said = _finish(fork(lambda _say: _record(world.enter(site), scenario)))
        trace = tuple((step, instant, sweeps) for step, instant, sweeps in said["trace"])
        made = Recording(scenario.name, trace, said["sweeps"], said["begun"])
        problems = list(said["problems"])
        if not made.steps():
            problems.append("no step was started")
        if variant == "at once":
            self.recordings[scenario.name] = made
        elif made.steps() != self.recordings[scenario.name].steps():
            problems.append(f"tasks lead to other steps: {made.steps()}")
        if variant == "all tasks":
            self.lengths[scenario.name] = made.sweeps
        elapsed = 1000 * (time.monotonic() - started)
        return Outcome(point, tuple(problems), said["sweeps"], MOST, elapsed, tuple(said["explain"]))

    # --- points ------------------------------------------------------------------------------------

    def run(self, point: Point) -> Outcome:
        """Do one point; a failure of the harness is a failed point."""
        started = time.monotonic()
        scenario, recording = by_name(point.scenario), self.recordings[point.scenario]
        sweeps = 0
        try:
            with self.place(scenario.name) as site:
                _set(site, point)
                said = MODES[point.mode](site, scenario, recording, point)
                sweeps, problems, explain = said["sweeps"], list(said["problems"]), said.get("explain", [])
        except (ChildFailed, OSError) as error:
            problems, explain = [str(error)], []
        allowed = self.allowed(point)
        if not problems and sweeps > allowed:
            problems.append(f"it took {sweeps} sweeps, allowed are {allowed}")
        return Outcome(point, tuple(problems), sweeps, allowed, 1000 * (time.monotonic() - started), tuple(explain))

    def allowed(self, point: Point) -> int:
        """Return how many sweeps a point may take to its end; see the module's docstring."""
        course = self.recordings[point.scenario].sweeps if by_name(point.scenario).is_course else 0
        by_themselves = {"at once": course, "task": course + 1, "all tasks": self.lengths.get(point.scenario, MOST)}
        asked_for = int(point.options.get("times", 1)) + int(point.options.get("seconds", 0)) if point.effect else 0
        looks = {"no-capacity": 1, "conflicting": 2}.get(str(point.options.get("error")), 0)
        return SPARE + by_themselves[point.variant] + asked_for + looks


@dataclass(slots=True)
class _Copy:
    """A clone of a template, made on the way in."""

    lab: Lab
    template: Template
    database: str
    estate: str
    slot: int
    drop: bool

    def __enter__(self) -> Site:
        clock = self.lab.clocks.slot(self.slot)
        clock.set(self.template.seconds)
        self.lab.databases.clone(self.database, template=self.template.database)
        EstateAccess(self.lab.provider.url, self.estate).copy_from(self.template.estate)
        return Site(self.database, self.lab.provider.url, self.estate, clock)

    def __exit__(self, *_: object) -> None:
        if self.drop:
            self.lab.databases.drop_later(self.database)
            EstateAccess(self.lab.provider.url, self.estate).remove()


def _set(site: Site, point: Point) -> None:
    settings = scenarios.settings_of(point.variant, point.step)
    EstateAccess(site.provider_url, site.estate).control("PATCH", "settings", **settings)


def _finish(child: Child) -> Said:
    try:
        return child.answer()
    finally:
        child.end()


# --- in children -----------------------------------------------------------------------------------------


def _ground(here: World) -> Said:
    scenarios.lay_ground(here)
    return {}


def _prepare(here: World, scenario: Scenario) -> Said:
    for act in scenario.before:
        act(here)
        if here.drive(scenarios.at_rest, most=MOST) is None:
            msg = f"{scenario.name} cannot be prepared: {here.explain()}"
            raise AssertionError(msg)
        here.calm_down()
    here.clock.set(here.clock.seconds() // A_MINUTE_S * A_MINUTE_S + A_MINUTE_S)
    here.calm_down()  # this minute's housekeeping is done once, here, instead of at the beginning of every point
    scenario.act(here)
    return {}


def _record(here: World, scenario: Scenario) -> Said:
    trace: list[tuple[str, str, int]] = []
    remove = instants.install(lambda step, instant: trace.append((step, instant.value, here.sweeps)))
    sweeps = here.drive(scenario.end, most=MOST)
    remove()
    if sweeps is None:
        msg = f"undisturbed, the end was not reached: {here.explain()}"
        raise AssertionError(msg)
    begun = Counter(here.estate.everything()["begun"])
    return {"trace": trace, "begun": begun} | _to_the_end(here, scenario.end, sweeps, expected=None)


def _resume(here: World, scenario: Scenario, recording: Recording, point: Point) -> Said:
    """What a worker does that comes after a dead one: drive to the end, check, remove everything, check."""
    world.alone()
    here.alarms.said += world.unheld(here)
    here.clock.move(TTL_S + 0.01)
    sweeps = here.drive(scenario.end, most=MOST)
    return _to_the_end(here, scenario.end, sweeps, expected=recording.begun, removing=_removes(point))


def _to_the_end(
    here: World,
    end: Callable[[], bool],
    sweeps: int | None,
    *,
    expected: Mapping[str, int] | None,
    removing: bool = True,
) -> Said:
    """Check a world that should be at its end; then (`removing`) delete everything and check that nothing is left."""
    problems: list[str] = []
    if sweeps is None:
        return {"sweeps": -1, "begun": {}, "problems": ["the end was not reached"], "explain": here.explain()}
    problems += world.double_use(here)
    if expected is not None:
        more = Counter(here.estate.everything()["begun"]) - Counter(expected)
        problems += [f"begun once more than needed (× {count}): {what}" for what, count in more.items()]
    here.calm_down()
    if not end():
        problems.append("the end did not last")
    problems += world.contradictions(here)
    explain = here.explain() if problems else []
    if not problems and removing:
        _control(here, "PATCH", "settings", **scenarios.AT_ONCE)
        scenarios.delete_everything(here)
        if here.drive(scenarios.gone, most=MOST) is None and not scenarios.gone():
            problems.append("deleting everything does not come to its end")
            explain = here.explain()
        else:
            here.calm_down()
            if Hold.objects.exists():
                here.calm_down()  # what was moved away is given back when two looks in a row do not show it
            problems += [*world.leaks(here), *world.contradictions(here)]
    return {"sweeps": sweeps, "problems": problems, "explain": explain}


def _control(here: World, method: str, path: str, **body: Any) -> None:
    """Bend the simulated provider of this table."""
    assert isinstance(here.estate, EstateAccess)
    here.estate.control(method, path, **body)


def _at_its_end(here: World, scenario: Scenario, recording: Recording, point: Point) -> Said:
    """Check a world that others have brought to its end."""
    return _to_the_end(here, scenario.end, 0, expected=recording.begun, removing=_removes(point))


# --- modes -------------------------------------------------------------------------------------------------


def _here(site: Site, work: Callable[[World], Said], wrap: Callable[[Driver], Any] | None = None) -> Said:
    """Do in this very process what nobody is killed in: no fork, and what is loaded and compiled stays.

    Raises `ChildFailed` when `work` raises.
    """
    try:
        return work(world.enter(site, wrap))
    except Exception as error:
        raise ChildFailed(f"{error!r} {traceback.format_exc(limit=-4)}") from error
    finally:
        world.leave()


def _removes(point: Point) -> bool:
    """Whether a point also removes everything and looks for leaks: every eighth does, chosen by its words.

    All others are checked at their own end, where holds, charges, objects and gateways must equal the wish.
    """
    return crc32(repr(point).encode()) % REMOVING == 0


def _errors(here: World) -> list[str]:
    return [f"on the way: {text}" for text in here.alarms.said]


def victim_of(site: Site, point: Point, scenario: Scenario, number: signal.Signals) -> Child:
    """Fork a worker that meets its fate at the point's instant; one that may go on ends after that sweep."""

    def work(say: Say) -> Said:
        here = world.enter(site)
        fate = Fate(point.step, Instant(point.instant), point.nth, number, say)
        fate.install(sweep=lambda: here.sweeps)
        for _ in range(MOST):
            here.sweep()
            if fate.met:
                return {"problems": _errors(here)}
            if scenario.end() or not here.wait_for_due():
                break
        msg = f"it never came to {point.step}:{point.instant} (#{point.nth})"
        raise AssertionError(msg)

    return fork(work)


def _kill(site: Site, scenario: Scenario, recording: Recording, point: Point) -> Said:
    """It dies; another one comes when its lease has run out."""
    victim = victim_of(site, point, scenario, signal.SIGKILL)
    try:
        victim.killed()
    finally:
        victim.end()
    return _here(site, lambda here: _resume(here, scenario, recording, point))


def _worker(site: Site, scenario: Scenario, recording: Recording, point: Point) -> Said:
    """A real Celery worker dies; another one is started and finds the work by the sweep alone."""
    sweeps = workers.die_and_be_followed(site, scenario, point)
    site.clock.set(time.time())

    def look(here: World) -> Said:
        here.outlive_leases()  # the follower was ended in the middle of whatever it did, too
        return _to_the_end(here, scenario.end, sweeps, expected=recording.begun, removing=_removes(point))

    return _here(site, look)


def _zombie(site: Site, scenario: Scenario, recording: Recording, point: Point) -> Said:
    """It stands still past its lease's end, another one does everything, and then it goes on with what it had begun."""

    def overtake(here: World) -> Said:
        here.clock.move(TTL_S + 0.01)
        sweeps = here.drive(scenario.end, most=MOST)
        if sweeps is None:
            return {"sweeps": -1, "problems": ["the end was not reached"], "explain": here.explain()}
        return {"sweeps": sweeps, "problems": _errors(here)}

    victim = victim_of(site, point, scenario, signal.SIGSTOP)
    try:
        victim.stopped()
        over = _finish(fork(lambda _say: overtake(world.enter(site))))
        late = victim.go_on()
    finally:
        victim.end()
    said = _here(
        site, lambda here: _to_the_end(here, scenario.end, 0, expected=recording.begun, removing=_removes(point))
    )
    said["problems"] = [*over["problems"], *late["problems"], *said["problems"]]
    return said | {"sweeps": over["sweeps"]}


def _twice(site: Site, scenario: Scenario, recording: Recording, point: Point) -> Said:
    """The same call reaches the provider twice."""

    def work(here: World) -> Said:
        sweeps = here.drive(scenario.end, most=MOST)
        return _to_the_end(here, scenario.end, sweeps, expected=recording.begun, removing=_removes(point))

    return _here(site, work, lambda driver: Bent(driver, point.step))


def _late(site: Site, scenario: Scenario, _recording: Recording, point: Point) -> Said:
    """A call is under way for so long that the lease ends and another worker does everything; then it arrives.

    No lease can prevent that. What it makes or unmakes is found by the inventory: a living object is mended, what
    nobody owns any more is told as an orphan and removed on an operator's word.
    """
    deleted = point.what != ""

    def work(say: Say) -> Said:
        bent: list[Bent] = []

        def wrap(driver: Driver) -> Bent:
            bent.append(Bent(driver, point.step, say))
            return bent[0]

        here = world.enter(site, wrap)
        for _ in range(MOST):
            here.sweep()
            if bent[0].met:
                return {"problems": _errors(here)}
            if scenario.end() or not here.wait_for_due():
                break
        msg = f"it never called {point.step}"
        raise AssertionError(msg)

    def overtake(here: World) -> Said:
        here.clock.move(TTL_S + 0.01)
        sweeps = here.drive(scenario.end, most=MOST)
        if sweeps is not None and deleted:
            scenarios.delete_everything(here)
            sweeps = here.drive(scenarios.gone, most=MOST)
        if sweeps is None:
            return {"sweeps": -1, "problems": ["the end was not reached"], "explain": here.explain()}
        return {"sweeps": sweeps, "problems": _errors(here)}

    def look(here: World) -> Said:
        here.calm_down()
        here.calm_down()
        if deleted:
            return {"sweeps": 0, "problems": scenarios.clear_orphans(here) + world.leaks(here), "explain": []}
        sweeps = 0 if scenario.end() else here.drive(scenario.end, most=MOST)
        return _to_the_end(here, scenario.end, sweeps, expected=None, removing=_removes(point))

    victim = fork(work)
    try:
        victim.stopped()
        over = _finish(fork(lambda _say: overtake(world.enter(site))))
        late = victim.go_on()
    finally:
        victim.end()
    said = _here(site, look)
    said["problems"] = [*over["problems"], *late["problems"], *said["problems"]]
    return said | {
        "sweeps": max(over["sweeps"], said["sweeps"]),
        "explain": said.get("explain") or over.get("explain", []),
    }


def _nudges(site: Site, scenario: Scenario, recording: Recording, point: Point) -> Said:
    """While it is at work everything is nudged six times by another worker."""

    def nudge(here: World) -> Said:
        for _ in range(6):
            for word, kind in PASSES.items():
                for pk in kind.model._base_manager.values_list("pk", flat=True):
                    sweep.reconcile(word, pk, engine=here.engine)
        return {"problems": _errors(here)}

    def go_on(here: World) -> Said:
        sweeps = 0 if scenario.end() else here.drive(scenario.end, most=MOST)
        return _to_the_end(here, scenario.end, sweeps, expected=recording.begun, removing=_removes(point))

    victim = victim_of(site, point, scenario, signal.SIGSTOP)
    try:
        victim.stopped()
        other = _finish(fork(lambda _say: nudge(world.enter(site))))
        mine = victim.go_on()
    finally:
        victim.end()
    said = _here(site, go_on)
    said["problems"] = [*other["problems"], *mine["problems"], *said["problems"]]
    return said


def _against(site: Site, scenario: Scenario, _recording: Recording, point: Point) -> Said:
    """While it is at work somebody wants the opposite."""
    opposite = next(other for other in scenario.opposite if other.word == point.what)

    def want_it(here: World) -> Said:
        opposite.act(here)
        here.sweep()
        return {"problems": _errors(here)}

    def go_on(here: World) -> Said:
        sweeps = 0 if opposite.end() else here.drive(opposite.end, most=MOST)
        return _to_the_end(here, opposite.end, sweeps, expected=None, removing=_removes(point))

    victim = victim_of(site, point, scenario, signal.SIGSTOP)
    try:
        victim.stopped()
        other = _finish(fork(lambda _say: want_it(world.enter(site))))
        mine = victim.go_on()
    finally:
        victim.end()
    said = _here(site, go_on)
    said["problems"] = [*other["problems"], *mine["problems"], *said["problems"]]
    return said


def _fault(site: Site, scenario: Scenario, _recording: Recording, point: Point) -> Said:
    """The provider errs, loses an answer, hangs, forgets, or shows wrong lists."""
    access = EstateAccess(site.provider_url, site.estate)
    access.control("POST", "faults", match=point.step, effect=point.effect, **point.options)
    if point.effect == "hang":
        site = replace(site, deadline_s=HANG_DEADLINE_S)
    stopping = point.options.get("error") in STOPPING and scenario.verb != "delete"

    def bear_it(here: World) -> Said:
        # What the provider refuses stops only its own object; others go on looking at it as long as one watches.
        sweeps = here.drive(scenario.end, most=ENOUGH if stopping else MOST)
        problems = []
        if stopping:
            problems = [] if sweeps is None else ["it went on although the provider refused"]
            problems += _stopped_with(point.options["error"])
            before = here.estate.everything()["begun"]
            here.clock.move(1000.0)
            here.sweep()
            if here.estate.everything()["begun"] != before:
                problems.append("it was tried again although nothing had changed")
            scenarios.relabel(here)
            sweeps = here.drive(scenario.end, most=MOST)
        (fault,) = access.control("GET", "faults")["faults"]
        if fault["times"] == fault_times:
            problems.append("the fault never struck")
        access.control("DELETE", "faults")
        said = _to_the_end(here, scenario.end, sweeps, expected=None, removing=_removes(point))
        said["problems"] = [*problems, *said["problems"]]
        return said

    fault_times = access.control("GET", "faults")["faults"][0]["times"]
    return _here(site, bear_it)


def _stopped_with(error: str) -> list[str]:
    """Return a problem unless something says that it stopped, and why."""
    reason = {"rejected": "Rejected", "not-supported": "NotSupported"}[error]
    for kind in PASSES.values():
        for row in kind.model._base_manager.filter(released_at__isnull=True):
            if any(c["status"] == "False" and c["reason"] == reason for c in row.conditions):
                return [] if row.due_at is None else [f"{kind.word} was refused and is due again"]
    return [f"nothing says that it was refused ({reason})"]


def _rivals(site: Site, scenario: Scenario, recording: Recording, point: Point) -> Said:
    """Two workers sweep everything at the same time, from beginning to end."""

    def one(here: World) -> Said:
        here.sweep()
        return {"problems": _errors(here)}

    def look(here: World) -> Said:
        return {"end": scenario.end(), "more": here.wait_for_due()}

    problems: list[str] = []
    count = 0
    while count < MOST:
        count += 1
        rivals = [fork(lambda _say: one(world.enter(site))) for _ in range(2)]
        for rival in rivals:
            problems += _finish(rival)["problems"]
        seen = _finish(fork(lambda _say: look(world.enter(site))))
        if seen["end"] or not seen["more"]:
            break
    said = _here(
        site, lambda here: _to_the_end(here, scenario.end, 0, expected=recording.begun, removing=_removes(point))
    )
    said["problems"] = [*problems, *said["problems"]]
    return said | {"sweeps": count}


MODES: Final = {
    "kill": _kill,
    "worker": _worker,
    "zombie": _zombie,
    "twice": _twice,
    "late": _late,
    "nudges": _nudges,
    "against": _against,
    "fault": _fault,
    "rivals": _rivals,
}
