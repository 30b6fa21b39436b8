"""A tenant is suspended at each depth while it is asked things, and resumed; its neighbour notices nothing.

The gateways are the real ones, given what `agent_api.config` makes of the rows; the estate behind is simulated,
so one small model in this process answers for all replicas.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Self, TypeVar
from uuid import UUID

import pytest

from provisioners.agent_api import config
from provisioners.gateway.protocol import EndpointConfig
from provisioners.sandbox import views
from tenants.actor import SYSTEM
from tenants.errors import Conflict
from tenants.models import GatewayReplica, Hold, Suspension, UsageRecord
from tenants.operations import endpoints, tenants
from tenants.pricing import Use
from tenants.states import SuspensionDepth
from tenants.transactions import reading
from tests import factories
from tests.drive import fresh, is_ready
from tests.gateway_lab import Lab, until
from tests.scenarios.story import Customer, Deaths, Story, customer, endpoint_ask, machine, namespace, node, story

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

T = TypeVar("T")
CALLERS = 4
PACE_S = 0.02
REFUSED = 403


@dataclass
class Door:
    """One gateway, and callers who ask it again and again."""

    lab: Lab
    plain: str
    seen: list[int] = field(default_factory=list)
    """Status of every answer, in order."""

    async def call(self) -> None:
        while True:
            status, _, _ = await self.lab.ask(key=self.plain, model="chat")
            self.seen.append(status)
            await asyncio.sleep(PACE_S)

    async def now_says(self, wanted: int) -> None:
        """Wait until so many answers in a row are `wanted` that all callers have had one."""
        asked = len(self.seen)

        async def look() -> list[int]:
            return self.seen[asked:][-2 * CALLERS :]

        await until(look, lambda last: len(last) == 2 * CALLERS and set(last) == {wanted})


class SideLoop(asyncio.SelectorEventLoop):
    """A loop beside the main thread. Signals are the main thread's; a gateway here is stopped by its method."""

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: object) -> None:
        del sig, callback, args


class Traffic:
    """The gateways of some endpoints under load, in a thread with a loop of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = SideLoop()
        self._thread = Thread(target=self._loop.run_forever, name="traffic")
        self.doors: dict[UUID, Door] = {}
        self._callers: list[Future[None]] = []
        self._published: dict[UUID, tuple[EndpointConfig, ...]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for caller in self._callers:
            caller.cancel()
        for door in self.doors.values():
            self._do(door.lab.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def open(self, boundary: UUID, plain: str, story: Story) -> None:
        """Start the gateway of a boundary, and ask it with a key from now on."""
        lab = Lab(self._folder / boundary.hex)
        (self._folder / boundary.hex).mkdir()
        self._do(lab.__aenter__())
        door = self.doors[boundary] = Door(lab, plain)
        self._do(lab.serve(*self._wanted(boundary, story)))
        self._callers += [asyncio.run_coroutine_threadsafe(door.call(), self._loop) for _ in range(CALLERS)]

    def _wanted(self, boundary: UUID, story: Story) -> tuple[EndpointConfig, ...]:
        with reading(SYSTEM):
            replica = GatewayReplica.objects.get(boundary_id=boundary, unit=None, removed_at=None)
            document = config.document_of(replica, now=story.now)
        backend = self.doors[boundary].lab.model.backend()
        return tuple(
            each.model_copy(update={"backends": (backend,) if each.backends else ()}) for each in document.endpoints
        )

    def tell(self, story: Story) -> None:
        """Give every gateway the configuration of now, if it is another one."""
        for boundary, door in self.doors.items():
            wanted = self._wanted(boundary, story)
            if self._published.get(boundary) != wanted:
                self._published[boundary] = wanted

                async def publish(door: Door = door, wanted: tuple[EndpointConfig, ...] = wanted) -> None:
                    door.lab.control.publish(*wanted)

                self._do(publish())

    def says(self, boundary: UUID, wanted: int) -> None:
        """Wait until a gateway answers everybody so."""
        self._do(self.doors[boundary].now_says(wanted))


@pytest.fixture
def traffic(tmp_path: Path) -> Iterator[Traffic]:
    with Traffic(tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    "depth",
    [
        pytest.param(SuspensionDepth.KEYS, marks=pytest.mark.slow),
        pytest.param(SuspensionDepth.NETWORK, marks=pytest.mark.slow),
        SuspensionDepth.POWER,
    ],
)
def test_a_tenant_is_suspended_under_load_and_resumed(
    deaths: Deaths | None, depth: SuspensionDepth, traffic: Traffic
) -> None:
    told = story(node("node-1"), node("node-2"), deaths=deaths)
    holding, globex = factories.tenant(name="holding"), customer("globex")
    factories.generous(holding)
    acme = customer("acme", parent=holding)
    made = {who.tenant.name: _chat(who, told) for who in (acme, globex)}
    box, play = machine(acme, told.now), namespace(acme, told.now)
    mine = [made["acme"].endpoint, box, play]
    others = made["globex"].endpoint
    told.drive(lambda: all(is_ready(row)() for row in (*mine, others)))
    doors = {name: fresh(each.endpoint).boundary_id for name, each in made.items()}
    for name, each in made.items():
        traffic.open(doors[name], each.secret, told)
    for boundary in doors.values():
        traffic.says(boundary, 200)
    holds = sorted(Hold.objects.values_list("pk", flat=True))
    state = told.here.estate.state

    # Suspended from above: the whole subtree stops, at this depth, and keeps what it holds.
    tenants.suspend(tenant=holding, depth=depth, reason="unpaid", actor=told.operator, now=told.now)
    traffic.tell(told)
    traffic.says(doors["acme"], REFUSED)
    _drive(told, traffic, lambda: [fresh(row).phase for row in mine] == ["Suspended"] * 3)
    told.settle()
    traffic.tell(told)

    assert [_cut_off(told, row) for row in mine] == [depth is not SuspensionDepth.KEYS] * 3
    assert _cut_off(told, others) is False
    off = {str(unit) for unit in _units(*mine[:2])} if depth is SuspensionDepth.POWER else set()
    running = {use.unit for use in views.truth(state)}
    assert running == {str(unit) for unit in _units(*mine[:2], others)} - off
    assert sorted(Hold.objects.values_list("pk", flat=True)) == holds
    assert fresh(others).phase == "Ready"
    with pytest.raises(Conflict) as refused:
        endpoints.create(tenant=acme.tenant, ask=endpoint_ask("more"), actor=acme.actor, now=told.now)
    assert refused.value.specific_code == "tenant-suspended"
    traffic.says(doors["acme"], REFUSED)
    traffic.says(doors["globex"], 200)

    # Resumed: as it was, on the same windows, without anything being asked for anew.
    tenants.resume(tenant=holding, actor=told.operator, now=told.now)
    _drive(told, traffic, lambda: all(is_ready(row)() for row in mine))
    traffic.says(doors["acme"], 200)
    traffic.says(doors["globex"], 200)
    account = told.at_rest()
    assert [_cut_off(told, row) for row in mine] == [False] * 3
    assert sorted(Hold.objects.values_list("pk", flat=True)) == holds
    assert Suspension.objects.get().ended_at is not None
    assert account.slot_hours(Use.BILLED) > 0
    assert UsageRecord.objects.filter(kind="tenant", held_to__isnull=False).count() == 0

    # Nobody was ever answered anything else, and the neighbour nothing but what he asked for.
    assert set(traffic.doors[doors["acme"]].seen) == {200, REFUSED}
    assert set(traffic.doors[doors["globex"]].seen) == {200}


def _chat(who: Customer, told: Story) -> endpoints.Made:
    return endpoints.create(tenant=who.tenant, ask=endpoint_ask(), actor=who.actor, now=told.now)


def _drive(told: Story, traffic: Traffic, until_so: Callable[[], bool]) -> None:
    """Sweep until a condition holds, with every gateway told what changed after each sweep."""

    def look() -> bool:
        traffic.tell(told)
        return until_so()

    told.drive(look, most=120)


def _units(*rows: Any) -> list[UUID]:
    return [unit.pk for row in rows for unit in row.allocation.units.all()]


def _cut_off(told: Story, row: Any) -> bool:
    """Whether the network of an object is cut: of a machine at its VM, of the others at the object."""
    state = told.here.estate.state
    return state.objects[str(row.pk)].cut_off or any(vm.cut_off for vm in state.workloads_of(str(row.pk)))
