"""What is crashed into: each product of each kind of boundary, being made, changed and removed.

A scenario is prepared once (in a child, by the product's own operations and passes), frozen as a template,
and begun by one action; what its passes then do is found out by recording, never listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from django.db import connection

from provisioners import granted_room, sweep
from provisioners.kinds import PASSES
from provisioners.steps import split
from tenants import desired, vault
from tenants.actor import SYSTEM, Actor
from tenants.findings import ORPHAN
from tenants.host_plans import move
from tenants.models import (
    Allocation,
    Boundary,
    Endpoint,
    Finding,
    Host,
    Intent,
    Machine,
    Membership,
    Move,
    Namespace,
    Person,
    Provider,
    ProviderCredential,
    Rollout,
    Tenant,
    Unit,
)
from tenants.operations import (
    allocations,
    endpoints,
    idling,
    machine_changes,
    machines,
    members,
    moves,
    namespaces,
    rollouts,
    tenants,
)
from tenants.operations import findings as finding_operations
from tenants.specs import (
    AllocationSpec,
    BareAsk,
    EndpointAsk,
    GpuAsk,
    MachineAsk,
    MoveAsk,
    NamespaceAsk,
    RevisionAsk,
    RolloutAsk,
    RolloutStep,
    UnitAsk,
    Where,
)
from tenants.states import (
    BoundaryKind,
    ConditionType,
    IdleUnits,
    PlatformRole,
    Reason,
    Role,
    RolloutStrategy,
    SuspensionDepth,
)
from tenants.transactions import acting
from tests import factories
from tests.crash.provider import DOCUMENT, TOKEN, EstateAccess
from tests.crash.world import World

MODEL: Final = "llama-3-1-8b"
AT_ONCE: Final = {"delays_s": {"": 0.0}, "boot_s": 0.0, "load_s": 0.0, "report_delay_s": 0.0}
ALL_TASKS: Final = {"delays_s": {"": 0.5}, "boot_s": 0.5, "load_s": 0.5, "report_delay_s": 0.5}
Act = Callable[[World], None]


def settings_of(variant: str, step: str) -> dict[str, Any]:
    """Return how the provider works in a variant.

    `at once`: every step is done when its call returns. `task`: the point's own step is a task that outlives the
    sweep which started it, the others are done at once. `all tasks`: every step is such a task.
    """
    if variant == "all tasks":
        return ALL_TASKS
    if variant == "at once" or step.endswith(".conclude"):
        return AT_ONCE
    bare = split(step.removeprefix("undo:").removeprefix("start:"))[0]
    making, removing = (0.0, 0.5) if step.startswith("undo:") else (0.5, 0.0)
    return {**AT_ONCE, "delays_s": {"": 0.0, bare: making, f"undo:{bare}": removing}}


# --- actors and rows -----------------------------------------------------------------------------------


def tenant() -> Tenant:
    """Return the one tenant."""
    return Tenant.objects.get(name="crash")


def owner() -> Actor:
    """Return the tenant's owner."""
    return factories.actor(Person.objects.get(display_name="Owner"))


def operator() -> Actor:
    """Return a platform operator."""
    return factories.actor(Person.objects.get(display_name="Operator"))


def products() -> list[Any]:
    """Return the live products, as people know them."""
    models = (Endpoint, Machine, Namespace)
    return [row for model in models for row in model.objects.filter(released_at__isnull=True).order_by("name")]


def lay_ground(world: World) -> None:
    """Make tenant, people, quota, catalogue, and a sandbox whose hosts were discovered and opened."""
    assert isinstance(world.estate, EstateAccess)
    world.estate.make({**DOCUMENT, "settings": {**AT_ONCE, "names": True}})
    lay_people()
    config = {"url": world.site.provider_url, "estate": world.site.estate}
    connect(world, factories.provider(name="sandbox", config=config, due_at=world.clock()), TOKEN)
    assert Host.objects.filter(placeable=True).count() == len(DOCUMENT["hosts"])


def lay_people() -> None:
    """Make the tenant with its quota, the people who act, and the model that is served."""
    of = factories.tenant(name="crash")
    factories.generous(of, "H100-80GB", "A100-80GB")
    factories.member(of, Role.OWNER, who=factories.person(name="Owner"))
    factories.person(name="Guest")
    factories.person(name="Operator", platform=(PlatformRole.OPERATOR,))
    factories.served_model(MODEL)


def connect(world: World, row: Provider, token: str) -> None:
    """Give a provider its credential, have its hosts discovered, and open them."""
    made = ProviderCredential(provider=row, name="token", created_at=world.clock())
    made.sealed = vault.seal(token, table=made._meta.db_table, column="sealed", row=made.pk)
    made.save()
    sweep.look_at(row.pk, engine=world.engine)
    Host.objects.update(state="open")
    with connection.cursor() as cursor:
        cursor.execute("SELECT ledger_refresh_placeable(%s)", [row.pk])


# --- products ------------------------------------------------------------------------------------------


def _unit(product: str, profile: str) -> UnitAsk:
    return UnitAsk(GpuAsk(product, profile), vcpu=4, memory_gib=16)


def _endpoint(kind: BoundaryKind, unit: UnitAsk) -> Act:
    def ask(world: World) -> None:
        spec = AllocationSpec((unit,), where=Where(kind=kind))
        wanted = EndpointAsk("chat", RevisionAsk(MODEL), spec)
        endpoints.create(tenant=tenant(), ask=wanted, actor=owner(), now=world.clock())

    return ask


def _machine(name: str) -> Act:
    def ask(world: World) -> None:
        wanted = MachineAsk(name, AllocationSpec((_unit("A100-80GB", ""),)), "ubuntu-24.04", 40)
        machines.create(tenant=tenant(), ask=wanted, actor=owner(), now=world.clock())

    return ask


def _namespace(world: World) -> None:
    wanted = NamespaceAsk("play", AllocationSpec((_unit("H100-80GB", "1g.10gb"),)))
    namespaces.create(tenant=tenant(), ask=wanted, actor=owner(), now=world.clock())


def ask_bare(world: World) -> None:
    wanted = BareAsk("more", AllocationSpec((_unit("H100-80GB", "2g.20gb"),)))
    allocations.create(tenant=tenant(), ask=wanted, actor=owner(), now=world.clock())


# --- changes -------------------------------------------------------------------------------------------


def _revise(world: World) -> None:
    ask = RevisionAsk(MODEL, {"max_model_len": 4096})
    endpoints.revise(endpoint=Endpoint.objects.get(), ask=ask, actor=owner(), now=world.clock())


def _canary(world: World) -> None:
    _begin_canary(world, RolloutStep(50, 1))


def _begin_canary(world: World, step: RolloutStep) -> None:
    endpoints.revise(
        endpoint=Endpoint.objects.get(),
        ask=RevisionAsk(MODEL, {"max_model_len": 4096}),
        rollout=RolloutAsk(RolloutStrategy.CANARY, (step,)),
        actor=owner(),
        now=world.clock(),
    )


def _abort(world: World) -> None:
    rollouts.abort(endpoint=Endpoint.objects.get(), actor=owner(), now=world.clock())


def _canary_aborted(world: World) -> None:
    """Abort a canary that gets its share of the requests; until then nobody dies."""
    _begin_canary(world, RolloutStep(50, None))
    _drive_until(world, lambda: Rollout.objects.get(ended_at__isnull=True).state == "stepping")
    _abort(world)


def _drive_until(world: World, met: Callable[[], bool]) -> None:
    assert world.drive(met, most=60) is not None, world.explain()


def _sleep(world: World) -> None:
    """Let it go to zero and give its units back."""
    row = Endpoint.objects.get()
    idling.set_idle(endpoint=row, after_s=None, units=IdleUnits.RELEASE, wait_s=60, actor=owner(), now=world.clock())
    idling.sleep(endpoint=row, actor=owner(), now=world.clock())


def _rest(world: World) -> None:
    """Let it go to zero in its machines, which stay."""
    idling.sleep(endpoint=Endpoint.objects.get(), actor=owner(), now=world.clock())


def _wake(world: World) -> None:
    idling.wake(endpoint=Endpoint.objects.get(), actor=owner(), now=world.clock())


def _go(kind: BoundaryKind, product: str, profile: str) -> Act:
    """Build it in another boundary, where it works before anybody dies, and let its name go over."""

    def act(world: World) -> None:
        ask = MoveAsk(kind, gpu=GpuAsk(product, profile), by_hand=True, watch_s=0)
        moves.begin(endpoint=Endpoint.objects.get(), ask=ask, actor=owner(), now=world.clock())
        _drive_until(world, lambda: Move.objects.get().state == "beside")
        moves.cut_over(endpoint=Endpoint.objects.get(), actor=owner(), now=world.clock())

    return act


def _go_back(world: World) -> None:
    """Undo a move whose name has gone over; until then nobody dies."""
    ask = MoveAsk(BoundaryKind.VM, gpu=GpuAsk("A100-80GB"), watch_s=600)
    moves.begin(endpoint=Endpoint.objects.get(name="chat"), ask=ask, actor=owner(), now=world.clock())
    _drive_until(world, lambda: Move.objects.get().state == "watching")
    moves.undo(endpoint=Endpoint.objects.get(name="chat"), actor=owner(), now=world.clock())


def _suspend(world: World) -> None:
    _suspend_to(SuspensionDepth.POWER, world)


def _cut(world: World) -> None:
    _suspend_to(SuspensionDepth.NETWORK, world)


def _suspend_to(depth: SuspensionDepth, world: World) -> None:
    tenants.suspend(tenant=tenant(), depth=depth, reason="a crash table", actor=operator(), now=world.clock())


def _resume(world: World) -> None:
    tenants.resume(tenant=tenant(), actor=operator(), now=world.clock())


def _power(want: str) -> Act:
    def act(world: World) -> None:
        machines.power(machine=Machine.objects.get(), want=want, actor=owner(), now=world.clock())

    return act


def _resize(*, vcpu: int, memory_gib: int, disk_gib: int) -> Act:
    def act(world: World) -> None:
        wanted = {"vcpu": vcpu, "memory_gib": memory_gib, "disk_gib": disk_gib}
        machine_changes.resize(machine=Machine.objects.get(), actor=owner(), now=world.clock(), **wanted)

    return act


def _move(world: World) -> None:
    """Re-place the unit on the other host, as a drain does."""
    with acting(SYSTEM):
        unit = Unit.objects.select_related("allocation__boundary").get(released_at__isnull=True)
        assert move(unit, now=world.clock())
        (product,) = products()
        desired.respecified(product, at=world.clock())


def _join(world: World) -> None:
    guest = Person.objects.get(display_name="Guest")
    members.add(tenant=tenant(), email=guest.email, role=Role.MEMBER, actor=owner(), now=world.clock())


def _leave(world: World) -> None:
    row = Membership.objects.get(person__display_name="Guest")
    members.remove(membership=row, actor=owner(), now=world.clock())


def _narrow(world: World) -> None:
    row = Allocation.objects.get(name="more")
    allocations.release(allocation=row, actor=owner(), now=world.clock())


def relabel(world: World) -> None:
    """Bring everything that lives a new generation: what a corrected spec does."""
    for row in products():
        module = {"Endpoint": endpoints, "Machine": machines, "Namespace": namespaces}[type(row).__name__]
        arguments: dict[str, Any] = {type(row).__name__.lower(): row}
        module.update(changes={"description": "again"}, actor=owner(), now=world.clock(), **arguments)
    with acting(SYSTEM):
        for boundary in Boundary.objects.filter(released_at__isnull=True, deletion_requested_at__isnull=True):
            desired.respecified(boundary, at=world.clock())


def delete_everything(world: World) -> None:
    """Ask for the end of all that is not asked to end yet."""
    for row in products():
        if row.deletion_requested_at is None:
            module = {"Endpoint": endpoints, "Machine": machines, "Namespace": namespaces}[type(row).__name__]
            arguments: dict[str, Any] = {type(row).__name__.lower(): row}
            module.delete(actor=owner(), now=world.clock(), **arguments)
    for row in Allocation.objects.filter(product_kind="bare", deletion_requested_at__isnull=True):
        allocations.release(allocation=row, actor=owner(), now=world.clock())


def clear_orphans(world: World) -> list[str]:
    """Have an operator remove what the inventory told to be orphans; return a problem for each it did not tell."""
    there = world.estate.everything()["objects"]
    told = {row.data["uid"]: row for row in Finding.objects.filter(kind=ORPHAN, resolved_at__isnull=True)}
    for row in told.values():
        finding_operations.resolve(
            finding=row, action="delete", reason="a crash table", actor=operator(), now=world.clock()
        )
    world.calm_down()
    world.calm_down()
    return [f"nobody was told of the orphan {uid}" for uid in there if uid not in told]


# --- ends ----------------------------------------------------------------------------------------------


def at_rest() -> bool:
    """Whether every pass has seen the newest generation of its row, and no step is under way."""
    if Intent.objects.filter(settled_at__isnull=True).exists():
        return False
    for kind in PASSES.values():
        for row in kind.model._base_manager.filter(released_at__isnull=True):
            if row.observed_generation != row.generation or row.lease_expires_at is not None:
                return False
            if row.deletion_requested_at is not None:
                return False
            if kind.word != "allocation" and (row.due_at is not None or _status(row, "Provisioned") != "True"):
                return False
    return True


def _status(row: Any, kind: str) -> str:
    return next((str(c["status"]) for c in row.conditions if c["type"] == kind), "")


def everything(phase: str) -> Callable[[], bool]:
    """Return a condition: at rest, and every product shows this phase."""
    return lambda: at_rest() and {row.phase for row in products()} == {phase}


def gone() -> bool:
    """Whether nothing lives any more."""
    living = [kind.model._base_manager.filter(released_at__isnull=True).values("pk") for kind in PASSES.values()]
    return not living[0].union(*living[1:], all=True).exists()


def _revised() -> bool:
    row = Endpoint.objects.get()
    newest = row.revisions.latest("number").number
    return newest > 1 and everything("Ready")() and row.observed["revision"] == newest


def _rolled(*, over: bool) -> Callable[[], bool]:
    """Return a condition: the revision of the last rollout serves alone, or the one before it."""

    def met() -> bool:
        last = Rollout.objects.select_related("revision", "before").latest("created_at", "since")
        row = Endpoint.objects.get()
        units = Unit.objects.filter(allocation=row.allocation, released_at__isnull=True).count()
        wanted = (last.revision if over else last.before).number
        is_over = last.ended_at is not None
        return is_over and everything("Ready")() and (row.observed["revision"], units) == (wanted, 1)

    return met


def _asleep() -> bool:
    held = Unit.objects.filter(host__isnull=False, released_at__isnull=True).exists()
    return at_rest() and Endpoint.objects.get().slept_at is not None and not held


def _at_rest_in_machines() -> bool:
    row = Endpoint.objects.get()
    return at_rest() and row.slept_at is not None and bool(row.observed.get("asleep"))


def _is_in(kind: BoundaryKind) -> Callable[[], bool]:
    """Return a condition: it is at one place, in a boundary of this kind."""

    def met() -> bool:
        row = Endpoint.objects.select_related("boundary").get()
        over = row.moving_to_id is None and row.boundary is not None and row.boundary.kind == kind.value
        return over and everything("Ready")()

    return met


def _switched_off() -> bool:
    return at_rest() and all(
        c["status"] == "False" and c["reason"] == Reason.BY_OWNER.value
        for row in products()
        for c in row.conditions
        if c["type"] == ConditionType.READY.value
    )


def _resized(*size: int) -> Callable[[], bool]:
    """Return a condition: it is off, it has its newest size, and its isolation has room for just that."""

    def met() -> bool:
        row = Machine.objects.get()
        granted = row.boundary.observed.get(granted_room.SIZES, {}) if row.boundary is not None else {}
        return _switched_off() and row.fitted == row.resizes and granted.get(str(row.allocation_id)) == [*size]

    return met


def _more(granted: int) -> Callable[[], bool]:
    return lambda: everything("Ready")() and len(Boundary.objects.get().observed["granted"]) == granted


# --- the list ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opposite:
    """Something that is wanted while something else is under way."""

    word: str
    act: Act
    end: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that is done from a known beginning to a known end."""

    name: str
    """`<product>/<boundary> <verb>[ <how>]`."""
    before: Sequence[Act]
    """Done and driven to rest, one after the other, before the template is frozen."""
    act: Act
    end: Callable[[], bool]
    opposite: tuple[Opposite, ...] = field(default=())
    """What may be asked for while it is under way."""
    faulty: frozenset[str] | None = None
    """Steps that meet faults here, as the others did elsewhere; None: all that did not. One that is refused ends a
    course somewhere else, by itself."""
    is_course: bool = False
    """Whether it waits by itself between its steps, so that also undisturbed it takes several sweeps."""

    @property
    def verb(self) -> str:
        """Return `create`, `change` or `delete`."""
        return self.name.split()[1]


_IN_NAMESPACE: Final = _endpoint(BoundaryKind.NAMESPACE, _unit("H100-80GB", "1g.10gb"))
_IN_VM: Final = _endpoint(BoundaryKind.VM, _unit("A100-80GB", ""))
_BOX: Final = _machine("box")
_DELETE: Final = (Opposite("delete", delete_everything, gone),)
_READY: Final = everything("Ready")
_NONE: Final[frozenset[str]] = frozenset()
_ABORTS: Final = Opposite("abort", _abort, _rolled(over=False))
_SUSPENDED: Final = everything("Suspended")


def _life(product: str, make: Act) -> list[Scenario]:
    return [
        Scenario(f"{product} create", (), make, _READY, opposite=_DELETE),
        Scenario(
            f"{product} delete",
            (make,),
            delete_everything,
            gone,
            opposite=(Opposite("delete again", delete_everything, gone),),
        ),
    ]


def _serving(product: str, make: Act) -> list[Scenario]:
    return [
        *_life(product, make),
        Scenario(f"{product} change revise", (make,), _revise, _revised, opposite=_DELETE),
        Scenario(
            f"{product} change suspend",
            (make,),
            _suspend,
            _SUSPENDED,
            opposite=(*_DELETE, Opposite("resume", _resume, _READY)),
        ),
        Scenario(
            f"{product} change resume",
            (make, _suspend),
            _resume,
            _READY,
            opposite=(Opposite("suspend", _suspend, _SUSPENDED),),
        ),
    ]


SCENARIOS: Final[tuple[Scenario, ...]] = (
    *_serving("endpoint/namespace", _IN_NAMESPACE),
    Scenario(
        "endpoint/namespace change widen",
        (_IN_NAMESPACE,),
        ask_bare,
        _more(2),
        opposite=(Opposite("narrow", _narrow, _more(1)),),
    ),
    Scenario(
        "endpoint/namespace change canary",
        (_IN_NAMESPACE,),
        _canary,
        _rolled(over=True),
        (_ABORTS, *_DELETE),
        _NONE,
        True,
    ),
    Scenario(
        "endpoint/namespace change abort", (_IN_NAMESPACE,), _canary_aborted, _rolled(over=False), (), _NONE, True
    ),
    Scenario("endpoint/namespace change sleep", (_IN_NAMESPACE,), _sleep, _asleep, _DELETE, _NONE),
    Scenario("endpoint/namespace change wake", (_IN_NAMESPACE, _sleep), _wake, _READY, (), _NONE),
    Scenario(
        "endpoint/namespace change go",
        (_IN_NAMESPACE, ask_bare),  # what else is there keeps its boundary
        _go(BoundaryKind.VM, "A100-80GB", ""),
        _is_in(BoundaryKind.VM),
        _DELETE,
        _NONE,
        is_course=True,
    ),
    Scenario(
        "endpoint/namespace change back",
        (_IN_NAMESPACE, _BOX),
        _go_back,
        _is_in(BoundaryKind.NAMESPACE),
        faulty=_NONE,
        is_course=True,
    ),
    *_serving("endpoint/vm", _IN_VM),
    Scenario("endpoint/vm change move", (_IN_VM,), _move, _READY, opposite=_DELETE),
    Scenario("endpoint/vm change canary", (_IN_VM,), _canary, _rolled(over=True), (_ABORTS, *_DELETE), _NONE, True),
    Scenario("endpoint/vm change abort", (_IN_VM,), _canary_aborted, _rolled(over=False), (), _NONE, True),
    Scenario("endpoint/vm change sleep", (_IN_VM,), _rest, _at_rest_in_machines, _DELETE, _NONE),
    Scenario("endpoint/vm change wake", (_IN_VM, _rest), _wake, _READY, (), _NONE),
    *_life("machine/vm", _BOX),
    Scenario(
        "machine/vm change off", (_BOX,), _power("off"), _switched_off, opposite=(Opposite("on", _power("on"), _READY),)
    ),
    Scenario(
        "machine/vm change grow",
        (_BOX, _power("off")),
        _resize(vcpu=8, memory_gib=32, disk_gib=80),
        _resized(8, 32),
        opposite=(*_DELETE, Opposite("on", _power("on"), _READY)),
    ),
    Scenario(
        "machine/vm change shrink", (_BOX, _power("off")), _resize(vcpu=2, memory_gib=8, disk_gib=80), _resized(2, 8)
    ),
    Scenario("machine/vm change on", (_BOX, _power("off")), _power("on"), _READY, opposite=_DELETE),
    Scenario("machine/vm change move", (_BOX,), _move, _READY, opposite=_DELETE),
    Scenario("machine/vm change beside", (_BOX,), _machine("other"), _READY, opposite=_DELETE),
    *_life("namespace/namespace", _namespace),
    Scenario("namespace/namespace change join", (_namespace,), _join, _READY, opposite=_DELETE),
    Scenario("namespace/namespace change leave", (_namespace, _join), _leave, _READY, opposite=_DELETE),
    Scenario("namespace/namespace change narrow", (_namespace, ask_bare), _narrow, _more(1), opposite=_DELETE),
)


CUTS: Final[tuple[Scenario, ...]] = (
    Scenario("machine/vm change cut", (_BOX,), _cut, _SUSPENDED),
    Scenario("machine/vm change rejoin", (_BOX, _cut), _resume, _READY),
)
"""Only on vCenters, where plugs are pulled one by one."""


def by_name(name: str) -> Scenario:
    """Return one scenario. Raises `LookupError`."""
    found = next((scenario for scenario in (*SCENARIOS, *CUTS) if scenario.name == name), None)
    if found is None:
        msg = f"no scenario is called {name!r}"
        raise LookupError(msg)
    return found
