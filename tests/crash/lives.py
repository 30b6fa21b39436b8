"""Points on a cluster or a vCenter, which cannot be copied: each stage of a life is crashed into, the next follows.

A life is one product in a database and a tenant of its own, from nothing to nothing: made, changed, removed; or a node
that is carved anew and back. At each stage a worker is killed at one instant and another one follows; what stands
there then must be what stands there after an undisturbed stage. A failed stage ends its life, and what was to come is
done in another one.

A task of a vCenter is over at once in the lab. Where a worker is to die while one runs, the lab holds it up until the
next worker has looked once.

How sweeps are counted: from the end of the lease that the killed worker held to the stage's whole end. A sweep after
which the driver said that the provider itself was still at work (pods that come or go, a namespace on its way out, a
GPU that is being carved, a guest that shuts down) is only that wait and does not count. A stage one of whose calls was
harmed is counted from its beginning, and may take two sweeps more than an undisturbed one.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from controlplane.labs.kubernetes.cluster import Cluster as LabCluster
from controlplane.labs.kubernetes.demo import provider_config
from provisioners import instants
from tenants.models import Hold, Host
from tests import factories
from tests.crash import carving, cluster, scenarios, world
from tests.crash.children import Child, Say, fork
from tests.crash.clock import Clock, Clocks
from tests.crash.databases import BASE, Databases
from tests.crash.points import CONCLUDES, Outcome, Point, Recording
from tests.crash.scenarios import Act, Scenario, by_name
from tests.crash.table import MOST, SPARE, victim_of
from tests.crash.wire import ENDED, HELD, LOST, POLL, START, Wire
from tests.crash.world import Estate, Site, World

GROUND: Final = "crash_cluster"
KILL: Final = "kill"
IN_TASK: Final = "kill in task"
IN_CALL: Final = "in the call"
AFTER_COMMIT: Final = "after commit"
UNDISTURBED: Final = "undisturbed"
LONG_TASKS: Final = ("CloneVM_Task", "PowerOnVM_Task")
"""Tasks of a vCenter that take minutes in earnest: a worker is killed while one runs."""
HARMS: Final = frozenset({LOST, ENDED})
KILLS: Final = frozenset({KILL, IN_TASK})


@dataclass(frozen=True, slots=True)
class Stage:
    """One scenario within a life."""

    scenario: Scenario
    prepare: Act | None = None
    """Done and driven to rest before it, where the stages before it have not."""

    @property
    def name(self) -> str:
        """Return its scenario's."""
        return self.scenario.name


def _stages(product: str, *changes: Sequence[Stage]) -> tuple[tuple[Stage, ...], ...]:
    return ((_stage(product, "create"),), *map(tuple, changes), (_stage(product, "delete"),))


def _stage(product: str, verb: str, prepare: Act | None = None) -> Stage:
    return Stage(by_name(f"{product} {verb}"), prepare)


ENDPOINT: Final = "endpoint/namespace"
NAMESPACE: Final = "namespace/namespace"
MACHINE: Final = "machine/vm"
IN_VMS: Final = "endpoint/vm"
LIVES: Final[Mapping[str, tuple[tuple[Stage, ...], ...]]] = {
    ENDPOINT: _stages(
        ENDPOINT,
        (_stage(ENDPOINT, "change revise"),),
        (_stage(ENDPOINT, "change canary"),),
        (_stage(ENDPOINT, "change abort"),),
        (_stage(ENDPOINT, "change sleep"), _stage(ENDPOINT, "change wake")),
        (_stage(ENDPOINT, "change widen"),),
        (_stage(ENDPOINT, "change suspend"), _stage(ENDPOINT, "change resume")),
    ),
    NAMESPACE: _stages(
        NAMESPACE,
        (_stage(NAMESPACE, "change join"), _stage(NAMESPACE, "change leave")),
        (_stage(NAMESPACE, "change narrow", prepare=scenarios.ask_bare),),
    ),
    carving.LAYOUT: ((Stage(carving.CARVE), Stage(carving.BACK)),),
}
"""Product → its stages in order; those of one group are done together or not at all."""
ON_VCENTERS: Final[Mapping[str, tuple[tuple[Stage, ...], ...]]] = {
    MACHINE: _stages(
        MACHINE,
        (
            _stage(MACHINE, "change off"),
            _stage(MACHINE, "change grow"),
            _stage(MACHINE, "change shrink"),
            _stage(MACHINE, "change on"),
        ),
        (_stage(MACHINE, "change cut"), _stage(MACHINE, "change rejoin")),
        (_stage(MACHINE, "change move"),),
        (_stage(MACHINE, "change beside"),),
    ),
    IN_VMS: _stages(
        IN_VMS,
        (_stage(IN_VMS, "change revise"),),
        (_stage(IN_VMS, "change canary"),),
        (_stage(IN_VMS, "change abort"),),
        (_stage(IN_VMS, "change sleep"), _stage(IN_VMS, "change wake")),
        (_stage(IN_VMS, "change suspend"), _stage(IN_VMS, "change resume")),
        (_stage(IN_VMS, "change move"),),
    ),
}
"""The same of vCenters."""
ALL: Final = {**LIVES, **ON_VCENTERS}


@runtime_checkable
class Lived(Estate, Protocol):
    """What of a provider is there at the end of a stage, and what is done after one that failed."""

    def shape(self) -> Counter[str]:
        """Return how many objects of each kind there are: what must be the same however often it was begun."""
        ...

    def wrong(self) -> list[str]:
        """Return what is not exactly as the rows want it, by looks of the table's own."""
        ...

    def wipe(self) -> None:
        """Take away by force what a point has left."""
        ...

    def close(self) -> None:
        """Give connections back."""
        ...


@runtime_checkable
class Harmable(Protocol):
    """A provider whose calls one by one can lose their answer or their session."""

    wire: Wire

    def changes(self) -> Sequence[tuple[str, str]]:
        """Return the calls of the driver: (step, method), in order."""
        ...

    def let_go(self) -> None:
        """Let tasks that are held up go on at the next rest."""
        ...


@dataclass(frozen=True, slots=True)
class Life:
    """One life, and where each of its stages is crashed into."""

    product: str
    points: Mapping[str, Point]
    """Stage → its point; a stage without one is undisturbed."""

    def stages(self) -> Iterator[Stage]:
        """Yield its stages: beginning and end, and changes with a point among them.

        What a removal still makes (a smaller quota, before all of it goes) it makes because of changes, and so it is
        with what it does more than once (the end of a second machine): then all are.
        """
        groups = ALL[self.product]
        last = self.points.get(groups[-1][-1].name)
        makes = last is not None and not last.step.startswith("undo:") and not last.step.endswith(CONCLUDES)
        makes = makes or (last is not None and last.nth > 1)
        for group in groups:
            if makes or group in {groups[0], groups[-1]} or any(stage.name in self.points for stage in group):
                yield from group


def points_of(recording: Recording, where: str = "cluster") -> Iterator[Point]:
    """Yield every (step, instant) that a stage passes; what it passes often is killed the first and the last time.

    The same of every call that changes something: its answer is lost, its session ended; and of each step's beginning.
    While a task runs that takes long: before its caller could note it, and after that.
    """
    times = Counter((step, instant) for step, instant, _ in recording.trace)
    for (step, instant), count in times.items():
        for nth in sorted({1, 1 if step.endswith(CONCLUDES) else count}):
            yield Point(recording.scenario, where, KILL, step, instant, nth)
    for (step, method), count in Counter(recording.changes).items():
        if method not in {START, POLL}:
            for nth in sorted({1, count}):
                yield Point(recording.scenario, where, LOST, step, method, nth)
        yield Point(recording.scenario, where, ENDED, step, method)
        if method in LONG_TASKS:
            for what in (IN_CALL, AFTER_COMMIT):
                yield Point(recording.scenario, where, IN_TASK, step, method, what=what)


def lives_of(points: Iterable[Point]) -> list[Life]:
    """Return as few lives as these points need: one of each stage in each."""
    waiting: dict[str, dict[str, list[Point]]] = {product: {} for product in ALL}
    for point in points:
        waiting[point.scenario.split()[0]].setdefault(point.scenario, []).append(point)
    return [
        Life(product, {point.scenario: point for point in taken if point is not None})
        for product, by_stage in waiting.items()
        for taken in itertools.zip_longest(*by_stage.values())
    ]


@dataclass(slots=True)
class Lab:
    """What a run has: one PostgreSQL, clocks, and a cluster per job; inherited by every job."""

    databases: Databases
    clocks: Clocks
    clusters: Sequence[Any]
    """Clusters of the lab, or its vCenters; one per job."""
    recordings: dict[str, Recording] = field(default_factory=dict)
    shapes: dict[str, Counter[str]] = field(default_factory=dict)
    """Stage → objects by kind and step at its end."""
    slot: int = 0
    """Which cluster and clock are this process's."""
    began: float = 0.0
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    where: str = "cluster"
    """How the table calls what the lives are lived on."""

    def ground(self) -> None:
        """Make the database that every life begins with."""
        self.databases.clone(GROUND, template=BASE)
        self.began = time.time()
        child = fork(lambda _say: self.lay_ground(world.enter(self._site(GROUND))))
        try:
            child.answer()
        finally:
            child.end()

    def lay_ground(self, here: World) -> dict[str, object]:
        """Make people and quota, and connect the provider with its hosts open."""
        return _lay_ground(here, self.clusters[0])

    def site(self, database: str, clock: Clock) -> Site:
        """Return where a life of this process happens."""
        return cluster.site(self.clusters[self.slot], database, clock)

    def _site(self, database: str) -> Site:
        clock = self.clocks.slot(self.slot)
        clock.set(self.began)
        return self.site(database, clock)

    # --- lives ------------------------------------------------------------------------------------

    def record(self, product: str) -> list[Outcome]:
        """Live a whole life undisturbed and keep what it passes."""
        everything = {
            stage.name: Point(stage.name, self.where, UNDISTURBED) for group in ALL[product] for stage in group
        }
        return self.live(Life(product, everything))

    def live(self, life: Life) -> list[Outcome]:
        """Live one life; where a stage fails, what is left of its points is done in another one."""
        outcomes: list[Outcome] = []
        left = dict(life.points)
        while left:
            done = self._live(Life(life.product, left))
            outcomes += done
            if not [left.pop(outcome.point.scenario) for outcome in done if outcome.point.scenario in left]:
                break  # even undisturbed its stages fail; those that are left are missed in the end
        return outcomes

    def _live(self, life: Life) -> list[Outcome]:
        name = f"crash_l{self.slot}_{next(self.numbers)}"
        outcomes = []
        self.databases.clone(name, template=GROUND)
        try:
            site = self._site(name)
            for stage in life.stages():
                point = life.points.get(stage.name) or Point(stage.name, self.where, UNDISTURBED)
                outcome = self._do(site, stage, point)
                if not outcome.good or stage.name in life.points:
                    outcomes.append(outcome)
                if not outcome.good:
                    _wipe(site)
                    break
        finally:
            self.databases.drop(name)
        return outcomes

    def _do(self, site: Site, stage: Stage, point: Point) -> Outcome:
        """Do one stage: prepare it, kill a worker in it, let another one follow, look."""
        started = time.monotonic()
        sweeps = 0
        allowed = SPARE
        problems: list[str] = []
        explain: list[str] = []
        try:
            with _inside(site) as here:
                _begin(here, stage)
            if point.mode in KILLS:
                _die(site, stage.scenario, point)
            with _inside(site) as here:
                sweeps, problems = self._follow(here, stage, point)
                explain = here.explain() if problems else []
        except Exception as error:  # noqa: BLE001 - whatever it was, it is this point's outcome
            problems = [f"{error!r} {traceback.format_exc(limit=-4)}"]
        if point.mode in HARMS:
            allowed += self.recordings[stage.name].sweeps
        if not problems and sweeps > allowed and point.mode != UNDISTURBED:
            problems.append(f"it took {sweeps} sweeps, allowed are {allowed}")
        return Outcome(point, tuple(problems), sweeps, allowed, 1000 * (time.monotonic() - started), tuple(explain))

    def _follow(self, here: World, stage: Stage, point: Point) -> tuple[int, list[str]]:
        """Bring a stage to its end, as the worker does that comes after a dead one; return sweeps and problems."""
        trace: list[tuple[str, str, int]] = []
        problems: list[str] = []
        remove = instants.install(lambda step, instant: trace.append((step, instant.value, here.sweeps)))
        harmable = here.estate if isinstance(here.estate, Harmable) else None
        if point.mode in HARMS:
            assert harmable is not None
            harmable.wire.harm(point.mode, point.step, point.instant, point.nth)
        if point.mode == IN_TASK:
            assert harmable is not None
            harmable.let_go()
            problems = [] if here.estate.everything()["tasks"] else ["no task ran when the worker died"]
        if point.mode in KILLS:
            world.alone()
            here.alarms.said += world.unheld(here)
            here.outlive_leases()
        taken = here.drive(stage.scenario.end, most=MOST)
        if point.mode == IN_TASK:
            here.estate.await_rest()  # what was held up may have been overtaken by another task
        remove()
        if taken is None:
            return 0, [*problems, "the end was not reached"]
        sweeps = taken - here.waits
        problems += world.double_use(here)
        here.calm_down()
        if not stage.scenario.end():
            problems.append("the end did not last")
        problems += world.contradictions(here)
        if harmable is not None and not harmable.wire.has_struck:
            problems.append("the harm was never done")
        if stage.scenario.verb == "delete":
            if Hold.objects.exists():
                here.calm_down()  # people's own capacity is given back when two looks in a row do not show it
            problems += world.leaks(here)
        assert isinstance(here.estate, Lived)
        problems += here.estate.wrong()
        shape = here.estate.shape()
        if point.mode == UNDISTURBED and stage.name not in self.recordings:
            changes = () if harmable is None else tuple(harmable.changes())
            self.recordings[stage.name] = Recording(stage.name, tuple(trace), sweeps, {}, changes)
            self.shapes[stage.name] = shape
        return sweeps, problems + _compare(self.shapes[stage.name], shape)


class _inside:  # noqa: N801 - used as a function
    """A world in this very process, for the length of a `with` block."""

    def __init__(self, site: Site) -> None:
        self._here = world.enter(site)

    def __enter__(self) -> World:
        return self._here

    def __exit__(self, *_: object) -> None:
        assert isinstance(self._here.estate, Lived)
        self._here.estate.close()
        world.leave()


def _lay_ground(here: World, lab: LabCluster) -> dict[str, object]:
    """Make people and quota, and connect the cluster with its hosts open."""
    scenarios.lay_people()
    found = here.site.access().driver(deadline_s=0.0).capabilities()
    row = factories.provider(
        name="cluster",
        kind="kubernetes",
        config=provider_config(lab),
        capabilities={
            "boundary_kinds": sorted(str(kind) for kind in found.boundary_kinds),
            "bindings": sorted(str(binding) for binding in found.bindings),
            "features": dict(found.features),
        },
        due_at=here.clock(),
    )
    scenarios.connect(here, row, lab.admin_token)
    here.calm_down()  # what an open host offers is known from the second look on
    open_ones = set(Host.objects.filter(placeable=True).values_list("provider_ref", flat=True))
    assert {node.name for node in cluster.NODES} <= open_ones, list(Host.objects.values())
    return {}


def _begin(here: World, stage: Stage) -> None:
    if stage.prepare is not None:
        stage.prepare(here)
        if here.drive(scenarios.at_rest, most=MOST) is None:
            raise AssertionError(f"{stage.name} cannot be prepared: {here.explain()}")
        here.calm_down()
    stage.scenario.act(here)


def _die(site: Site, scenario: Scenario, point: Point) -> None:
    victim = (
        _victim_in_task(site, point, scenario)
        if point.mode == IN_TASK
        else victim_of(site, point, scenario, signal.SIGKILL)
    )
    try:
        victim.killed()
    finally:
        victim.end()


def _victim_in_task(site: Site, point: Point, scenario: Scenario) -> Child:
    """Fork a worker that dies while a task of its runs: in the call that began it, or once its handle is stored."""

    def work(say: Say) -> dict[str, Any]:
        here = world.enter(site)
        assert isinstance(here.estate, Harmable)
        wire = here.estate.wire
        wire.harm(HELD, point.step, point.instant, point.nth)

        def die() -> None:
            say({"reached": f"{point.step}: {point.instant}", "sweep": here.sweeps})
            os.kill(os.getpid(), signal.SIGKILL)

        def hook(reached: str, at: instants.Instant) -> None:
            if wire.has_struck and (reached, at) == (point.step, instants.Instant.AFTER_COMMIT):
                die()

        if point.what == IN_CALL:
            wire.begun = die
        else:
            instants.install(hook)
        for _ in range(MOST):
            here.sweep()
            if scenario.end() or not here.wait_for_due():
                break
        msg = f"it never began {point.instant} in {point.step}"
        raise AssertionError(msg)

    return fork(work)


def _wipe(site: Site) -> None:
    with _inside(site) as here:
        assert isinstance(here.estate, Lived)
        here.estate.wipe()


def _compare(wanted: Counter[str], there: Counter[str]) -> list[str]:
    found = [f"{count} × {what} too few" for what, count in (wanted - there).items()]
    return found + [f"{count} × {what} too many" for what, count in (there - wanted).items()]
